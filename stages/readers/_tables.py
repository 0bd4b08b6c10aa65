"""Rows that come as Arrow tables: are the wanted columns there, and in types we can use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.errors import DataError, nearest
from foresift.pipeline.tables import CONTENT, MESSAGES


def usable(
    schema: pa.Schema, wanted: Mapping[str, str], where: str, columns: Sequence[str] = ()
) -> pa.Schema:
    """Refuse a file without a wanted column or with content of another type.

    Returns names and types of the extra `columns`.
    """
    for ours, theirs in wanted.items():
        if theirs not in schema.names:
            raise DataError(f"no column {theirs!r}{nearest(theirs, schema.names)}", where=where)
        kind = schema.field(theirs).type
        if ours in CONTENT and not (_is_chat if ours == "messages" else _is_text)(kind):
            wish = "a list of {role, content}" if ours == "messages" else "strings"
            raise DataError(f"column {theirs!r} holds {kind}, not {wish}", where=where)
    return pa.schema([(name, schema.field(name).type) for name in columns])


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    names = ("string", "large_string", "string_view", "binary", "large_binary", "null")
    return str(kind) in names


def _is_chat(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    turn = kind.value_type
    if not pa.types.is_struct(turn):
        return False
    fields = {turn.field(i).name: turn.field(i).type for i in range(turn.num_fields)}
    return all(name in fields and _is_text(fields[name]) for name in ("role", "content"))


def conform(table: pa.Table, wanted: Mapping[str, str], extra: pa.Schema, where: str) -> pa.Table:
    """The wanted columns under our names; extra columns in the types of the first file."""
    out = {}
    for ours, theirs in wanted.items():
        column = table[theirs]
        try:
            if ours == "messages":
                column = _chat(column)
            elif ours in CONTENT:
                column = _text(column)
            else:
                column = column.cast(pa.string() if ours == "source" else extra.field(ours).type)
        except pa.ArrowException as error:
            raise DataError(f"column {theirs!r} cannot be used: {error}", where=where) from error
        out[ours] = column
    return pa.table(out)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings; bytes are taken for strings unchecked, the check of the rows comes later."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = kind.value_type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        to = pa.string() if pa.types.is_binary(kind) else pa.large_string()
        return pa.chunked_array([chunk.view(to) for chunk in column.chunks], to)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column
    return column.cast(pa.string())


def _chat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Turns with role and content alone."""
    if column.type == MESSAGES:
        return column
    chunks = []
    names = ("role", "content")
    fields = [MESSAGES.value_type.field(n) for n in names]
    for chunk in column.chunks:
        turns = pc.list_flatten(chunk)
        parts = [pc.struct_field(turns, n).cast(pa.string()) for n in names]
        slim = pa.StructArray.from_arrays(parts, fields=fields, mask=turns.is_null())
        sizes = np.asarray(pc.fill_null(pc.list_value_length(chunk), 0))
        ends = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
        chunks.append(pa.ListArray.from_arrays(ends, slim, mask=chunk.is_null()).cast(MESSAGES))
    return pa.chunked_array(chunks, MESSAGES)
