"""The folder of a deletion plan: its files, and how they are read.

    <out>/deletions/<request id>/
        request.json     the request; status: planned, applied, undone, purged
        lineage.parquet  one line a document that is to go (LINEAGE)
        forget shared neighbors_direct neighbors_indirect neighbors_style retain holdout coreset
        worst_case probes relearn_hi relearn_mid relearn_lo      .jsonl each, rows have an `id`
        keywords.json    words that carry the request
        budget.json      roll back to where, and what replay and unlearning would cost
        openunlearning/ tofu/ muse/ rwku/ dusk/    the same rows as these tools read them
        plan.json        written last: it is there = the plan is whole

Ids are 32 hex digits in JSON and 16 bytes in parquet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.errors import DataError, StoreError
from foresift.pipeline.store import Facts, finite, read_json, write_text
from foresift.pipeline.tables import ID

NEIGHBOURS = ("neighbors_direct", "neighbors_indirect", "neighbors_style")
RELEARN = ("relearn_hi", "relearn_mid", "relearn_lo")
SETS = (
    "forget", "shared", *NEIGHBOURS, "retain", "holdout", "coreset", "worst_case", "probes",
    *RELEARN,
)  # fmt: skip
#: exposures: the directory name of the training, the round, and the optimizer step
EXPOSURE = pa.struct([("training", pa.string()), ("round", pa.int32()), ("step", pa.int32())])
LINEAGE = pa.schema(
    [
        ("doc_id", ID),
        ("content_sha256", pa.string()),
        ("cluster", pa.int64()),
        ("source", pa.string()),
        ("key_path", pa.list_(pa.string())),
        ("licence", pa.string()),
        ("created_at", pa.string()),
        ("reason_included", pa.string()),
        ("exposures", pa.list_(EXPOSURE)),
        ("first_step", pa.int32()),
        ("duplicates_kept", pa.int32()),
    ]
)
PLANNED, APPLIED, UNDONE, PURGED = "planned", "applied", "undone", "purged"


@dataclass(frozen=True)
class DeletionPlan:
    """One request's folder."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> DeletionPlan:
        """A plan that is whole; DataError says what is missing."""
        path = Path(path)
        if not (path / "plan.json").exists():
            raise DataError(
                "no deletion plan here (plan.json is written last); write one with `foresift forget"
                " plan`",
                where=str(path),
            )
        return cls(path)

    @property
    def facts(self) -> Facts:
        """Counts of every set, and what was warned of."""
        return read_json(self.path / "plan.json")

    @property
    def request(self) -> Facts:
        """Who asked for what, and how far it is."""
        return read_json(self.path / "request.json")

    @property
    def budget(self) -> Facts:
        """What the ways to go would cost."""
        return read_json(self.path / "budget.json")

    @property
    def lineage(self) -> pa.Table:
        """One line a document that is to go."""
        try:
            return pq.read_table(self.path / "lineage.parquet")
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"lineage cannot be read ({error})", where=str(self.path)) from error

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of one of SETS."""
        path = self.path / f"{name}.jsonl"
        try:
            with open(path, encoding="utf-8") as file:
                return [json.loads(line) for line in file]
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot be read ({error})", where=str(path)) from error

    def texts(self, name: str) -> list[str]:
        """The texts of one of SETS; questions with their answers where there is no text."""
        return [text_of(row) for row in self.rows(name)]


def text_of(row: Mapping[str, Any]) -> str:
    """The text of a row of a set, or its question and answer."""
    if row.get("text") is not None:
        return str(row["text"])
    return f"{row['question']} {row['answer']}"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a set, whole or not at all; returns how many rows."""
    lines = [json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows]
    write_text(path, "".join(lines))
    return len(lines)
