"""A sample of the documents with all their columns: what sections look at that compare columns.

A document is in it where the draw of its id is below SAMPLED / documents, so it is the same in
every run, exact copies are in it together, and two samples of the same share hold the same
documents of two data sets. Its rows stand by (draw, id): the first n are a sample of n. The holdout
is left out. Cost: one read of the columns; memory: SAMPLED x columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.corpus import Shard
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import id_words

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

    @property
    def rows(self) -> int:
        return len(self.draws)

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return self.share >= 1

    def first(self, rows: int) -> Sample:
        """The rows with the smallest draws: a sample of the sample."""
        part = slice(0, rows)
        columns = {name: values[part] for name, values in self.columns.items()}
        share = self.share * min(1.0, rows / max(self.rows, 1))
        return Sample(self.ids[part], self.draws[part], self.kept[part], columns, share)


def draws(ids: pa.Array | pa.ChunkedArray) -> Floats:
    """The draw of each document, the same in all sections."""
    return Rng(0).at("report").uniform(ids)


def draw(batches: Iterable[tuple[Shard, pa.Table]], names: list[str], documents: int) -> Sample:
    """The sample of a corpus: `batches` are shards with their part of the plan file."""
    share = min(1.0, SAMPLED / max(documents, 1))
    tables = [pa.table({"id": pa.array([], pa.binary(16)), "kept": pa.array([], pa.bool_())})]
    for shard, plan in batches:
        table = shard.load(["id", "holdout", *names])
        drawn = (draws(table["id"]) < share) & ~np.asarray(table["holdout"])
        table = table.append_column("kept", plan["kept"]).drop_columns(["holdout"])
        tables.append(table.take(pa.array(np.flatnonzero(drawn))))
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    words = id_words(table["id"])
    found = draws(table["id"])
    order = np.lexsort((words[:, 1], words[:, 0], found))
    table = table.take(pa.array(order))
    return Sample(
        ids=table["id"].combine_chunks(),
        draws=found[order],
        kept=np.asarray(table["kept"]),
        columns={n: floats(table[n]) for n in names if n in table.column_names},
        share=share,
    )


def floats(column: pa.ChunkedArray) -> Floats:
    """A column of numbers or truth values; NaN where there is no finite value."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    filled = pc.fill_null(column.cast(pa.float64(), safe=False), float("nan"))
    values: npt.NDArray[Any] = np.asarray(filled, dtype=np.float64).copy()
    values[~(np.abs(values) < HUGE)] = np.nan
    return values
