"""Columns of labels and of numbers that somebody gave: clusters, sources, domains, grades, counts.

Labels stand in their own order, not the rows'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.errors import DataError

Rows = npt.NDArray[np.int64]
#: labels that facts list one by one
LISTED = 100


def labels(table: pa.Table, name: str, depth: int = 0) -> tuple[list[str], Rows]:
    """(labels in ascending order, the number of each row's label or -1 where it has none).

    Null and NaN are no label. `depth` above 0 keeps that many components of a key path
    `bucket/file#row`; an empty one is no label.
    """
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type):
        raise DataError(f"labels are numbers or strings, not {column.type}", where=name)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    if depth and not pa.types.is_null(column.type):
        column = _heads(column, name, depth)
    known = pc.unique(column).drop_null()
    if not pa.types.is_null(known.type):
        known = known.take(pc.sort_indices(known))
    code: Rows = pc.index_in(column, value_set=known).fill_null(-1).to_numpy().astype(np.int64)
    return [label_text(value) for value in known.to_pylist()], code


def numbers(table: pa.Table, name: str, what: str) -> npt.NDArray[np.float64]:
    """[rows] a column as numbers, NaN where there is none; DataError where it holds none of them.

    `what` says what they are: "grades are numbers".
    """
    try:
        column = table[name].cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{what} are numbers: {error}", where=name) from error
    return np.asarray(column.fill_null(np.nan), dtype=np.float64)


def _heads(column: pa.ChunkedArray, name: str, depth: int) -> pa.ChunkedArray:
    """The first components of key paths."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"depth cuts key paths, which are strings, not {column.type}", where=name)
    pattern = rf"^(?P<head>[^/#]*(?:[/#][^/#]*){{0,{depth - 1}}})"
    head = pc.struct_field(pc.extract_regex(column, pattern), "head")
    return pc.if_else(pc.equal(head, ""), None, head)


def label_text(value: Any) -> str:
    """A label as it is written: true, 3, news."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def named(names: Sequence[str], most: int = 20) -> str:
    """Labels as a sentence lists them."""
    shown = ", ".join(repr(n) for n in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def detail(
    names: Sequence[str], first: npt.NDArray[Any], columns: Mapping[str, npt.NDArray[Any]]
) -> dict[str, dict[str, Any]]:
    """Label -> its numbers, for the LISTED labels with the largest value in `first`."""
    shown = np.argsort(-first, kind="stable")[:LISTED]
    return {names[i]: {key: values[i].item() for key, values in columns.items()} for i in shown}
