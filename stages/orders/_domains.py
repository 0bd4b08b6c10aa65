"""Domains of rows: the values of a column of labels, numbered in their own order.

Numbers do not depend on the order of rows. Missing labels (null, NaN) are one domain, the last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.choice import scores
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Rng
from foresift.pipeline.tables import id_words

Rows = npt.NDArray[np.int64]
SHUFFLE = "shuffle"


def domains(table: pa.Table, name: str) -> tuple[Rows, list[Any]]:
    """[rows] number of each row's domain, and the labels by number (None: without a label)."""
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type):
        raise DataError(f"domains are named by numbers or strings, not {column.type}", where=name)
    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype=np.int64), [None] if len(column) else []
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    known = pc.unique(column).drop_null()
    known = known.take(pc.array_sort_indices(known))
    numbers = pc.index_in(column, value_set=known).cast(pa.int64()).fill_null(len(known))
    labels = known.to_pylist() + ([None] if column.null_count else [])
    found: Rows = np.asarray(numbers, dtype=np.int64)
    return found, labels


def inner_order(table: pa.Table, within: str, rng: Rng) -> Rows:
    """All rows, at random (`shuffle`) or by a column of scores (low first, missing ones last)."""
    shuffled = within == SHUFFLE
    key = rng.uniform(table["id"]) if shuffled else scores(table, within)
    words = id_words(table["id"])
    return np.lexsort((words[:, 1], words[:, 0], key))
