"""What a run directory holds, read so that memory does not grow with the corpus.

manifest            `manifest.json`, or `.manifest.json` while the run is being finished
steps(verb)         what the manifest tells of the steps of the selection itself
plan(columns)       one (shard, table of the plan file) after the other
columns             all columns beside the corpus, each from its latest round
scored              those of them that hold numbers
sample              some documents with all their numbers
place(name, step)   where a step found the column that it names
values(place)       a column of the whole corpus
decided(step)       what a `select` could choose from, and what it chose
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.corpus import Corpus, Shard
from foresift.pipeline.errors import StoreError
from foresift.pipeline.plan import MAIN
from foresift.pipeline.store import Facts, StepDir, shard_facts
from foresift.stages.report.sample import Sample, draw

Batch = tuple[Shard, pa.Table]
Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
#: what is larger counts as missing, infinities among them
HUGE = 1e30
_NONE = np.zeros(0, dtype=np.bool_)


def read_manifest(path: Path) -> Facts:
    """The manifest of a run, finished or about to be."""
    for name in ("manifest.json", ".manifest.json"):
        if (path / name).exists():
            found: Facts = json.loads((path / name).read_text(encoding="utf-8"))
            return found
    raise StoreError("no manifest here", where=str(path))


@dataclass(frozen=True)
class Scored:
    """A column beside the corpus."""

    name: str
    """`<step>.<column>`; a column of the corpus itself has no dot."""
    path: Path = field(metadata={"plain": False})
    round: int
    unit: str
    better: str
    alive: int | None
    """Rows that were scored; None: all that are there."""
    dtype: pa.DataType = field(metadata={"plain": False})
    step: str
    """The name of the step that gave it; empty for a column of the corpus itself."""

    @property
    def file_name(self) -> str:
        """The name in the step's files: without the step."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Place:
    """Where the values of a column lie, and the round that they are from (0: before all)."""

    path: Path
    field: str
    round: int


@dataclass(frozen=True)
class Contents:
    """A run directory and the step directories it names."""

    path: Path
    manifest: Facts

    @classmethod
    def open(cls, path: Path) -> Contents:
        """Read the manifest."""
        return cls(path, read_manifest(path))

    def steps(self, verb: str, line: str = MAIN) -> list[Facts]:
        """The steps of a verb, in the order in which they ran."""
        return [s for s in self.manifest["steps"] if s["verb"] == verb and s["line"] == line]

    def first_of(self, verb: str) -> list[Facts]:
        """As `steps`, without those that only repeat the evidence."""
        return [s for s in self.steps(verb) if not s["repeat"]]

    def line(self, name: str) -> list[Facts]:
        """All steps of a line, without those that only repeat the evidence."""
        return [s for s in self.manifest["steps"] if s["line"] == name and not s["repeat"]]

    def directory(self, step: Facts) -> Path:
        """Where a step lies; beside the run also when both were moved or copied together."""
        path = Path(step["path"])
        here = self.path.parent.parent / "steps" / path.name
        return here if here.parent.is_dir() else path

    @cached_property
    def base(self) -> Path:
        """The directory that the corpus was read to."""
        return self.directory(self.steps("read")[0])

    @cached_property
    def shards(self) -> list[Shard]:
        """The shards of the corpus with all columns beside them."""
        columns = {c.name: (c.path, c.file_name) for c in self.columns}
        return Corpus(self.base, columns).shards()

    def lies_beside(self, path: Path) -> bool:
        """Whether a step's sidecars belong to the corpus and not to another data set."""
        mine, theirs = StepDir(self.base).shards(), StepDir(path).shards()
        return bool(mine) and _shape(mine) == _shape(theirs)

    @cached_property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @cached_property
    def columns(self) -> list[Scored]:
        """All columns beside the corpus, each from the latest round that has it."""
        found: dict[str, Scored] = {}
        for step in self.first_of("score"):
            path = self.directory(step)
            if self.lies_beside(path):
                found |= {c.name: c for c in _beside(step, path, StepDir(path).shards()[0])}
        return list(found.values())

    @cached_property
    def scored(self) -> list[Scored]:
        """The columns of numbers and truth values, the corpus's own number of tokens first."""
        tokens = Scored("n_tokens", self.base, 0, "tokens", "neither", None, pa.int64(), "")
        return [tokens, *(c for c in self.columns if countable(c.dtype))]

    def place(self, name: str, reader: Facts) -> Place | None:
        """Where a step of the selection found the column `name` (`<step>.<column>`)."""
        owner, dot, field = name.rpartition(".")
        if not dot:
            return Place(self.base, name, 0) if name in fields(self.base) else None
        steps = self.line(MAIN)
        for step in reversed(steps[: steps.index(reader)]):
            path = self.directory(step)
            if step["name"] == owner and self.lies_beside(path) and field in fields(path):
                return Place(path, field, step["round"])
        return None

    def values(self, place: Place) -> Floats:
        """A column of all rows as floats of its own width; NaN where there is no value."""
        found = [s.sidecar(place.path, [place.field])[place.field] for s in self.shards]
        return np.concatenate([np.empty(0, np.float32), *map(_floats, found)])

    def decided(self, step: Facts) -> tuple[Bools, Bools]:
        """The rows that a `select` could choose from, and those it chose."""
        path = self.directory(step)
        tables = [s.sidecar(path, ["rank", "kept"]) for s in self.shards]
        pool = [np.asarray(t["rank"].is_valid()) for t in tables]
        chosen = [np.asarray(t["kept"]) for t in tables]
        return np.concatenate([_NONE, *pool]), np.concatenate([_NONE, *chosen])

    @cached_property
    def sample(self) -> Sample:
        """Documents drawn by id, with all numbers and the plan's `kept`."""
        scores = [c for c in self.scored if c.step]
        measured = max((c.alive or 0 for c in scores), default=0)
        base, names = ["n_bytes", "n_tokens"], [c.name for c in scores]
        return draw(self.plan(["kept"]), base, names, self.rows, measured)

    def plan(self, columns: Sequence[str]) -> Iterator[Batch]:
        """The plan file, shard by shard (its row groups end where shards do)."""
        with pq.ParquetFile(self.path / "plan.parquet") as file:
            group = 0
            for shard in self.shards:
                tables, rows = [], 0
                while rows < shard.rows:
                    tables.append(file.read_row_group(group, columns=list(columns)))
                    rows += tables[-1].num_rows
                    group += 1
                if tables:
                    yield shard, pa.concat_tables(tables)


def _shape(shards: Sequence[Path]) -> list[tuple[str, str]]:
    return [(path.name, str(shard_facts(path)["ids"])) for path in shards]


def _beside(step: Facts, path: Path, shard: Path) -> Iterator[Scored]:
    """The columns in a step's sidecars."""
    about = StepDir(path).facts()
    known = _described(about.get("part", ""))
    for each in pq.read_schema(shard):
        if each.name == "id":
            continue
        column = known.get(each.name)
        yield Scored(
            name=f"{step['name']}.{each.name}",
            path=path,
            round=step["round"],
            unit=getattr(column, "unit", ""),
            better=getattr(column, "better", "neither"),
            alive=about["facts"].get("alive"),
            dtype=each.type,
            step=step["name"],
        )


def fields(path: Path) -> list[str]:
    """The columns in a step's sidecars; none where it has no shard."""
    shards = StepDir(path).shards()
    return list(pq.read_schema(shards[0]).names) if shards else []


def _floats(column: pa.ChunkedArray) -> Floats:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    narrow = column.type in (pa.float16(), pa.float32())
    column = column.cast(pa.float32() if narrow else pa.float64(), safe=False)
    values: Floats = np.asarray(column.fill_null(float("nan"))).copy()
    values[~(np.abs(values) < HUGE)] = np.nan
    return values


def countable(kind: pa.DataType) -> bool:
    """Whether a column holds numbers or truth values."""
    t = pa.types
    return bool(t.is_integer(kind) or t.is_floating(kind) or t.is_boolean(kind))


def _described(part: str) -> dict[str, Any]:
    """What a part says of its columns, if it can still be imported."""
    module, _, name = part.partition(":")
    try:
        return dict(getattr(importlib.import_module(module), name).columns)
    except (ImportError, AttributeError, ValueError, TypeError):
        return {}
