"""A few documents of each kind: what left and why, what was chosen first and last.

    left     for each reason the five with the smallest draw of their id
    first    the five first in the order of the first round
    last     the five last in the order of the last round

Which they are depends on ids and orders alone. Only the row groups that hold them are read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import StoreError
from foresift.pipeline.outcome import HOLDOUT
from foresift.pipeline.plan_rows import rows_in_plan_order
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import StepDir
from foresift.pipeline.tables import content_texts, hex_id
from foresift.stages.report.contents import Contents
from foresift.stages.report.mask import excerpt, origin

EACH, REASONS = 5, 12
Seen = TypeVar("Seen")
COLUMNS = (
    "id",
    "shard",
    "row",
    "source",
    "n_tokens",
    "kept",
    "round",
    "position",
    "rank",
    "reason",
)


@dataclass(frozen=True)
class Example:
    """One document as the page shows it."""

    id: str
    source: str
    n_tokens: int
    text: str


@dataclass(frozen=True)
class Examples:
    """The documents of the page by kind; `trouble` says why their text could not be read."""

    left: dict[str, list[Example]]
    first: list[Example]
    last: list[Example]
    trouble: str = ""


class _Best:
    """The rows with the smallest keys seen so far."""

    def __init__(self) -> None:
        self.keys = np.empty((0, 2))
        self.rows: pa.Table | None = None

    def offer(self, rows: pa.Table, keys: npt.NDArray[np.float64]) -> None:
        """Take in rows; `keys` is [n, 2], compared lexically."""
        keys = np.concatenate([self.keys, keys])
        both = rows if self.rows is None else pa.concat_tables([self.rows, rows])
        best = np.lexsort((np.arange(len(keys)), keys[:, 1], keys[:, 0]))[:EACH]
        self.keys, self.rows = keys[best], both.take(pa.array(best))


def examples(contents: Contents) -> Examples:
    """Pick the documents in one pass over the plan, then read their text."""
    left, first, last = _pick(contents, _reasons(contents))
    picked = [*left.values(), first, last]
    texts, trouble = _texts(contents, [b.rows for b in picked if b.rows is not None])

    def show(best: _Best, backwards: bool = False) -> list[Example]:
        rows = best.rows.to_pylist() if best.rows is not None else []
        return [_example(r, texts) for r in (rows[::-1] if backwards else rows)]

    shown = {reason: show(best) for reason, best in left.items() if best.rows is not None}
    return Examples(shown, show(first), show(last, backwards=True), trouble)


def _reasons(contents: Contents) -> list[str]:
    """The commonest reasons for which documents left; the holdout left for none."""
    counts = contents.manifest["accounts"]["dropped_by_reason"]
    known = [r for r in counts if r != HOLDOUT]
    return sorted(known, key=lambda r: (-counts[r], r))[:REASONS]


def _pick(contents: Contents, reasons: Sequence[str]) -> tuple[dict[str, _Best], _Best, _Best]:
    left, first, last = {reason: _Best() for reason in reasons}, _Best(), _Best()
    for _, plan in contents.plan(COLUMNS):
        gone = plan.filter(pc.invert(plan["kept"]))
        for reason, best in left.items():
            rows = gone.filter(pc.equal(gone["reason"], reason))
            draws = Rng(0).at("report").uniform(rows["id"])
            best.offer(rows, np.stack([draws, np.zeros(len(draws))], axis=1))
        chosen = plan.filter(plan["kept"])
        place = pc.coalesce(chosen["position"], chosen["rank"], pa.scalar(-1, pa.int64()))
        keys = np.stack([_floats(chosen["round"]), _floats(place)], axis=1)
        first.offer(chosen, keys)
        last.offer(chosen, -keys)
    return left, first, last


def _floats(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    return np.asarray(column.fill_null(0).cast(pa.float64()), dtype=np.float64)


def _texts(
    contents: Contents, tables: Sequence[pa.Table]
) -> tuple[dict[tuple[int, int], str], str]:
    places = {(r["shard"], r["row"], r["id"]) for t in tables for r in t.to_pylist()}
    return texts_of(Corpus(contents.base), sorted(places))


def texts_of(
    corpus: Corpus, places: Sequence[tuple[int, int, bytes]]
) -> tuple[dict[tuple[int, int], str], str]:
    """(shard, row) -> excerpt of rows given as (shard, row, id), and what went wrong."""
    return looked_at(corpus, places, excerpt)


def looked_at(
    corpus: Corpus, places: Sequence[tuple[int, int, bytes]], look: Callable[[str], Seen]
) -> tuple[dict[tuple[int, int], Seen], str]:
    """(shard, row) -> what `look` makes of the text of a row, and what went wrong.

    A page without texts is better than none.
    """
    try:
        return {place: look(text) for place, text in read_texts(corpus, places)}, ""
    except (OSError, StoreError, pa.ArrowException) as error:
        return {}, str(error)


def read_texts(
    corpus: Corpus, places: Sequence[tuple[int, int, bytes]]
) -> Iterator[tuple[tuple[int, int], str]]:
    """((shard, row), text) of rows given as (shard, row, id), a few at a time."""
    if not places:
        return
    n = len(places)
    plan = pa.table(
        {
            "id": pa.array([p[2] for p in places], pa.binary(16)),
            "weight": pa.array(np.ones(n), pa.float32()),
            "position": pa.array(np.arange(n), pa.int64()),
            "round": pa.array(np.zeros(n), pa.int32()),
            "shard": pa.array([p[0] for p in places], pa.int32()),
            "row": pa.array([p[1] for p in places], pa.int64()),
        }
    )
    with tempfile.TemporaryDirectory(prefix="foresift-report-") as folder:
        pq.write_table(plan, Path(folder) / "plan.parquet")
        for table in rows_in_plan_order(corpus, StepDir(Path(folder))):
            for shard, row, text in zip(
                table["shard"].to_pylist(), table["row"].to_pylist(), content_texts(table),
                strict=True,
            ):  # fmt: skip
                yield (shard, row), text


def _example(row: dict[str, Any], texts: dict[tuple[int, int], str]) -> Example:
    return Example(
        id=hex_id(row["id"])[:12],
        source=origin(row["source"]),
        n_tokens=row["n_tokens"] or 0,
        text=texts.get((row["shard"], row["row"]), ""),
    )
