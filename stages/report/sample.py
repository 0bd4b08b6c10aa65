"""A sample of the documents with all their numbers: what sections look at that compare columns.

A document is in it where the draw of its id is below SAMPLED / documents, so it is the same in
every run, exact copies are in it together, and two samples of the same share hold the same
documents of two data sets. Where only some documents were measured (the others were dropped
before), those with a score are drawn from among them: below SAMPLED / measured documents. Rows
stand by (draw, id): the first n are a sample of n. The holdout is left out. Cost: one read of the
columns; memory: 2 SAMPLED x columns at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.corpus import Shard
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import ID, id_words

SAMPLED = 100_000
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
#: what is larger counts as missing, infinities among them
HUGE = 1e300


@dataclass(frozen=True)
class Sample:
    """Documents that were drawn."""

    ids: pa.Array = field(metadata={"plain": False})
    draws: Floats = field(metadata={"plain": False})
    kept: Bools = field(metadata={"plain": False})
    columns: dict[str, Floats] = field(metadata={"plain": False})
    """Name -> values, NaN where there is none."""
    share: float
    """Of all documents; 1: all of them are in the sample."""
    scored: Bools = field(metadata={"plain": False})
    """Whether a document has a score of any kind."""

    @property
    def rows(self) -> int:
        return len(self.draws)

    def everything(self) -> Sample:
        """The sample of all documents, measured or not."""
        return self._rows(np.flatnonzero(self.draws < self.share))

    def measured(self, rows: int = SAMPLED) -> Sample:
        """The sample of the documents with a score (of all where none has one), `rows` at most."""
        some = self.scored if self.scored.any() else np.ones(self.rows, dtype=np.bool_)
        return self._rows(np.flatnonzero(some)[:rows])

    def _rows(self, which: npt.NDArray[np.int64]) -> Sample:
        columns = {name: values[which] for name, values in self.columns.items()}
        return replace(
            self, ids=self.ids.take(pa.array(which)), draws=self.draws[which],
            kept=self.kept[which], columns=columns, scored=self.scored[which],
        )  # fmt: skip


def draws(ids: pa.Array | pa.ChunkedArray) -> Floats:
    """The draw of each document, the same in all sections."""
    return Rng(0).at("report").uniform(ids)


def draw(
    batches: Iterable[tuple[Shard, pa.Table]], base: list[str], scores: list[str],
    documents: int, measured: int,
) -> Sample:  # fmt: skip
    """The sample of a corpus: `batches` are shards with their part of the plan file.

    `base` are columns that all documents have, `scores` those that some have; `measured` is how
    many have the score that most have.
    """
    share = min(1.0, SAMPLED / max(documents, 1))
    denser = max(share, min(1.0, SAMPLED / max(measured, 1)))
    tables = []
    for shard, plan in batches:
        table = shard.load(["id", "holdout", *base, *scores])
        valid = [np.asarray(table[n].is_valid()) for n in scores]
        some = np.any(valid, axis=0) if valid else np.zeros(table.num_rows, dtype=np.bool_)
        limit = np.where(some, denser, share)
        drawn = (draws(table["id"]) < limit) & ~np.asarray(table["holdout"])
        beside = {"kept": plan["kept"], "scored": pa.array(some)}
        for name, column in beside.items():
            table = table.append_column(f" {name}", column)
        tables.append(table.take(pa.array(np.flatnonzero(drawn))))
    names = [*base, *scores]
    return _sorted(pa.concat_tables(tables), names, share) if tables else _empty(names)


def _sorted(table: pa.Table, names: list[str], share: float) -> Sample:
    table = table.combine_chunks()
    words, found = id_words(table["id"]), draws(table["id"])
    order = np.lexsort((words[:, 1], words[:, 0], found))
    table = table.take(pa.array(order))
    ids = table["id"].combine_chunks()
    return Sample(
        ids=ids if isinstance(ids, pa.Array) else pa.array([], ID),
        draws=found[order],
        kept=np.asarray(table[" kept"], dtype=np.bool_),
        columns={n: floats(table[n]) for n in names},
        share=share,
        scored=np.asarray(table[" scored"], dtype=np.bool_),
    )


def _empty(names: list[str]) -> Sample:
    none = np.empty(0)
    nothing = np.empty(0, dtype=np.bool_)
    return Sample(pa.array([], ID), none, nothing, dict.fromkeys(names, none), 1.0, nothing)


def floats(column: pa.ChunkedArray) -> Floats:
    """A column of numbers or truth values; NaN where there is no finite value."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    filled = pc.fill_null(column.cast(pa.float64(), safe=False), float("nan"))
    values: npt.NDArray[Any] = np.asarray(filled, dtype=np.float64).copy()
    values[~(np.abs(values) < HUGE)] = np.nan
    return values
