"""One call that reads files and gives everything back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.nouns import Inputs, Job, Rng, StepDir
from foresift.pipeline.parts import find
from tests.corpora import Serial


@dataclass
class Read:
    """What reading left behind."""

    out: Path
    facts: dict[str, Any]

    @property
    def corpus(self) -> Corpus:
        return Corpus(self.out)

    def table(self, columns: Sequence[str] = ("source", "holdout", "n_bytes", "n_tokens")) -> Any:
        """All rows, content and columns, through the shards."""
        streams = (s.stream(columns, every=True) for s in self.corpus.shards())
        tables = [table for stream in streams for table, _ in stream]
        return pa.concat_tables(
            [t.cast(pa.schema([(f.name, _small(f.type)) for f in t.schema])) for t in tables]
        )

    def rejects(self) -> list[dict[str, Any]]:
        path = self.out / "rejects.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().split("\n") if line]

    def bytes(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted(self.out.iterdir())}


def _small(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_large_string(kind) else kind


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Read]:
    """`read("jsonl", paths=[...])`; `out` and `engine` may be given."""
    count = iter(range(1000))

    def run(part: str, *, out: Path | None = None, engine: Any = None, **fields: Any) -> Read:
        step = StepDir(out or tmp_path / "out" / str(next(count)))
        step.open()
        reader = find("read", part).parse(fields, "data")
        facts = reader.run(Inputs(), step, Job(engine or Serial(), Rng(0)))  # type: ignore[attr-defined]
        assert facts["rows_in"] == facts["rows"] + facts["rejected"]
        assert sum(s["rows"] for s in facts["sources"].values()) == facts["rows"]
        assert sum(s["holdout"] for s in facts["sources"].values()) == facts["holdout"]
        return Read(step.path, facts)

    return run
