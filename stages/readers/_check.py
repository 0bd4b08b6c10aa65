"""Which rows have usable content: not null, not blank, UTF-8, turns with role and content."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.tables import CONTENT
from foresift.stages.readers._units import Batch, Rejects

Bools = npt.NDArray[np.bool_]


def check(batch: Batch, content: tuple[str, ...], rejects: Rejects) -> Bools:
    """Which rows have usable content; the others are noted with a reason."""
    good = np.ones(batch.table.num_rows, dtype=np.bool_)
    for name in content:
        column = batch.table[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        faults = _chat_faults(column) if name == "messages" else _text_faults(column, name)
        for row, reason in faults.items():
            if good[row]:
                rejects.add(*batch.place(row), reason, _excerpt(batch.table, row))
            good[row] = False
    return good


def _text_faults(column: pa.Array, name: str) -> dict[int, str]:
    faults = {int(r): f"{name} is null" for r in _where(column.is_null())}
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return faults | _byte_faults(column, name)
    head = pc.utf8_slice_codeunits(column, 0, 1)
    maybe = pc.or_kleene(pc.utf8_is_space(head), pc.equal(pc.binary_length(column), 0))
    for row in _where(maybe):
        if not column[int(row)].as_py().strip():
            faults[int(row)] = f"{name} is empty"
    return faults


def _byte_faults(column: pa.Array, name: str) -> dict[int, str]:
    """Faults of a column that is not UTF-8 throughout, row by row."""
    faults = {}
    wide = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
    for row, value in enumerate(column.view(wide)):
        try:
            if value.is_valid and not value.as_py().decode().strip():
                faults[row] = f"{name} is empty"
        except UnicodeDecodeError:
            faults[row] = f"{name} is not UTF-8"
    return faults


def _chat_faults(column: pa.Array) -> dict[int, str]:
    faults = {int(r): "messages is null" for r in _where(column.is_null())}
    sizes = pc.fill_null(pc.list_value_length(column), 1)
    faults |= {int(r): "messages is empty" for r in _where(pc.equal(sizes, 0))}
    parents = np.asarray(pc.list_parent_indices(column))
    turns = pc.list_flatten(column)
    roles, texts = pc.struct_field(turns, "role"), pc.struct_field(turns, "content")
    full = np.zeros(len(column), dtype=np.bool_)
    blank = _text_faults(texts, "content")
    full[parents[[t for t in range(len(texts)) if t not in blank]]] = True
    for row in np.flatnonzero(~full):
        faults.setdefault(int(row), "messages hold no text")
    for turn, reason in blank.items():
        if reason.endswith("UTF-8"):
            faults[int(parents[turn])] = "messages are not UTF-8"
    missing = pc.or_(roles.is_null(), texts.is_null())
    for row in np.unique(parents[_where(missing)]):
        faults[int(row)] = "messages hold a turn without the strings role and content"
    return faults


def _where(mask: pa.Array) -> npt.NDArray[np.int64]:
    return np.flatnonzero(np.asarray(mask.fill_null(False), dtype=np.bool_)).astype(np.int64)


def _excerpt(table: pa.Table, row: int) -> str:
    parts = []
    for name in table.column_names:
        if name in CONTENT:
            try:
                parts.append(str(table[name][row].as_py()))
            except UnicodeDecodeError as error:
                parts.append(bytes(error.object).decode(errors="replace"))
    return " | ".join(parts)
