"""Corpus: a view of shards, the columns lying beside them, and the decisions made so far.

Text is never rewritten. A score is a sidecar with the same shard names and the same row order; a
decision is a sidecar with a `kept` column. Joining is zipping files, checked by a digest of the
ids. Rows that an earlier decision dropped, and the holdout, are not alive: a sidecar carries null
there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline import tombstones
from foresift.pipeline.errors import StoreError
from foresift.pipeline.store import StepDir, shard_facts
from foresift.pipeline.tables import BASE, CONTENT, ID
from foresift.pipeline.vectors import spooled

#: the columns of every decision sidecar (dedup and select); a part may add its own
DECISION = {
    "kept": pa.bool_(),
    "rank": pa.int64(),
    "weight": pa.float32(),
    "reason": pa.string(),
}
Bools = npt.NDArray[np.bool_]
#: rows and bytes of content after which a batch is handed on
BATCH_ROWS, BATCH_BYTES = 4096, 16 << 20


@dataclass(frozen=True)
class Mask:
    """Rows are alive where the decision in `path` has `kept == want`."""

    path: Path
    want: bool = True


@dataclass(frozen=True)
class Shard:
    """Everything a worker needs to know about one shard; small, picklable, no rows."""

    name: str
    rows: int
    ids: str
    """Digest of the ids; every sidecar of this shard carries the same."""
    base: Path
    content: Path
    row_groups: tuple[int, int] | None
    rename: tuple[tuple[str, str], ...]
    """(name in the content file, our name) for files that are used in place."""
    columns: tuple[tuple[str, Path, str], ...]
    """(public name, step directory, name in the file)."""
    masks: tuple[Mask, ...]
    holdout: bool
    """True turns the view round: only the rows reserved as holdout are alive."""

    def alive(self) -> Bools:
        """Which rows earlier decisions left, in row order."""
        gone = tombstones.listed(self.base.parent)
        base = _read(self.base, ["id", "holdout"] if gone else ["holdout"])
        mask: Bools = np.asarray(base["holdout"]) == self.holdout
        if gone:
            mask &= ~tombstones.forgotten(base["id"], self.base.parent)
        for m in self.masks:
            kept = self.sidecar(m.path, ["kept"])["kept"].fill_null(False)
            mask &= np.asarray(kept) == m.want
        return mask

    def load(self, columns: Sequence[str]) -> pa.Table:
        """Columns of all rows (never content), in row order."""
        out: dict[str, Any] = {}
        base = [c for c in columns if c in BASE]
        table = _read(self.base, base) if base else None
        by_dir: dict[Path, list[tuple[str, str]]] = {}
        known = {public: (path, name) for public, path, name in self.columns}
        for public in columns:
            if table is not None and public in base:
                out[public] = table[public]
            else:
                path, name = known[public]
                by_dir.setdefault(path, []).append((public, name))
        for path, pairs in by_dir.items():
            sidecar = self.sidecar(path, [name for _, name in pairs])
            out |= {public: sidecar[name] for public, name in pairs}
        if not columns:
            return _read(self.base, ["id"]).select([])
        return pa.table({name: out[name] for name in columns})

    def stream(
        self, columns: Sequence[str] = (), *, content: bool = True, every: bool = False
    ) -> Iterator[tuple[pa.Table, npt.NDArray[np.int64]]]:
        """Batches of alive rows (`every`: of all rows) and their row numbers, content streamed."""
        alive = np.ones(self.rows, dtype=np.bool_) if every else self.alive()
        wanted = list(dict.fromkeys(["id", *columns]))
        beside = self.load(wanted)
        start = 0
        source = self.content_batches() if content else _slices(beside, self.rows)
        for batch in source:
            rows = np.flatnonzero(alive[start : start + batch.num_rows])
            here = beside.slice(start, batch.num_rows)
            if len(rows):
                table = batch if content else here
                if content:
                    for position, name in enumerate(wanted):
                        table = table.add_column(position, name, here[name])
                if len(rows) < batch.num_rows:
                    table = table.take(pa.array(rows))
                yield table, rows + start
            start += batch.num_rows
        if start != self.rows:
            raise StoreError(
                f"{self.content} has {start} rows where {self.rows} were read before; it was "
                "changed while the run was using it: run again",
                where=self.name,
            )

    def content_batches(self) -> Iterator[pa.Table]:
        """Content columns under our names, in batches bounded by rows and bytes."""
        with pq.ParquetFile(self.content) as file:
            ours = dict(self.rename)
            names = [
                n
                for n in file.schema_arrow.names
                if ours.get(n, n) in CONTENT and (not ours or n in ours)
            ]
            groups = list(range(*self.row_groups)) if self.row_groups else None
            size = batch_rows(file, groups)
            for batch in file.iter_batches(size, row_groups=groups, columns=names):
                table = pa.Table.from_batches([batch])
                yield table.rename_columns([ours.get(n, n) for n in table.column_names])

    def sidecar(self, path: Path, names: list[str]) -> pa.Table:
        """Columns of this shard's file in a step directory, once its ids are seen to be ours."""
        file = StepDir(path).shard(self.name)
        if shard_facts(file)["ids"] != self.ids:
            raise StoreError(f"the rows of {file} are not those of {self.base}", where=self.name)
        return _read(file, names)


@dataclass(frozen=True)
class Corpus:
    """A data set as a step sees it: where it was read to, its columns, and who is alive."""

    base: Path
    columns: Mapping[str, tuple[Path, str]] = field(default_factory=dict)
    masks: tuple[Mask, ...] = ()
    holdout: bool = False

    def with_columns(self, step: str, path: Path, names: Sequence[str]) -> Corpus:
        """Add the columns of a step under `<step>.<column>`; a later step replaces an earlier."""
        return replace(self, columns={**self.columns, **{f"{step}.{n}": (path, n) for n in names}})

    def with_mask(self, path: Path, want: bool = True) -> Corpus:
        """Narrow the view by a decision."""
        return replace(self, masks=(*self.masks, Mask(path, want)))

    def only_holdout(self) -> Corpus:
        """The view of the rows that were reserved at ingestion."""
        return replace(self, masks=(), holdout=True)

    def shards(self) -> list[Shard]:
        """The shard descriptors, in order."""
        columns = tuple((public, path, name) for public, (path, name) in self.columns.items())
        found = []
        for path in StepDir(self.base).shards():
            facts = shard_facts(path)
            place = facts.get("content") or {}
            found.append(
                Shard(
                    name=path.stem,
                    rows=facts["rows"],
                    ids=facts["ids"],
                    base=path,
                    content=Path(place.get("path") or path),
                    row_groups=tuple(place["row_groups"]) if place.get("row_groups") else None,
                    rename=tuple((a, b) for a, b in place.get("rename", [])),
                    columns=columns,
                    masks=self.masks,
                    holdout=self.holdout,
                )
            )
        return found

    def table(
        self, columns: Sequence[str], scratch: Path | None = None
    ) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """Columns of all alive rows, and [n, 2] of (shard number, row): the one global read.

        Costs memory in proportion to rows x columns asked for (about 1 % of the text), never text.
        Columns of vectors are the exception: given `scratch`, a table with such columns is written
        to that file, which is removed once it is mapped into memory.
        """
        wanted, places = list(dict.fromkeys(["id", *columns])), []

        def tables() -> Iterator[pa.Table]:
            for number, shard in enumerate(self.shards()):
                rows = np.flatnonzero(shard.alive())
                places.append(np.stack([np.full(len(rows), number), rows], axis=1))
                yield shard.load(wanted).take(pa.array(rows))

        found = tables()
        first = next(found, None)
        if first is None:
            return pa.table({"id": pa.array([], ID)}), np.empty((0, 2), dtype=np.int64)
        every = itertools.chain([first], found)
        if scratch is not None and any(pa.types.is_nested(field.type) for field in first.schema):
            table = spooled(every, wanted, scratch)
            scratch.unlink()
        else:
            table = pa.concat_tables(every)
        return table, np.concatenate(places).astype(np.int64)


def _read(path: Path, columns: list[str]) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read(columns=columns)


def _slices(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, rows, BATCH_ROWS):
        yield table.slice(start, BATCH_ROWS)


def batch_rows(file: pq.ParquetFile, groups: list[int] | None) -> int:
    """Rows a batch, so that a batch holds about BATCH_BYTES of content."""
    numbers = groups if groups is not None else range(file.num_row_groups)
    metas = [file.metadata.row_group(i) for i in numbers]
    rows = sum(m.num_rows for m in metas)
    size = sum(m.total_byte_size for m in metas)
    return int(max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(size, 1) + 1)))
