"""The columns of a corpus: their names, types and meaning. There is no Record class.

    id        binary(16)   128-bit xxh3 of the content; exact copies share it
    text      string       a plain document, or
    messages  list<struct<role, content>>   a conversation, or
    prompt, response  string                an instruction pair
    source    string       a key path of any depth, `bucket/file#row`
    holdout   bool         reserved at ingestion: never selected, never trained
    n_bytes   int64        UTF-8 bytes of the content
    n_tokens  int64        tokens of the content under the recipe's tokenizer (else n_bytes / 4)

Every other column is called `<step>.<column>` and is described by a Column.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

ID = pa.binary(16)
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

#: content columns in the order in which a reader looks for them
CONTENT = {
    "text": pa.string(),
    "messages": MESSAGES,
    "prompt": pa.string(),
    "response": pa.string(),
}
#: what `read` adds to each row, in this order
BASE = {
    "id": ID,
    "source": pa.string(),
    "holdout": pa.bool_(),
    "n_bytes": pa.int64(),
    "n_tokens": pa.int64(),
}
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Column:
    """What a produced column is: Arrow type, unit, and whether larger values are better.

    Utility columns are always larger = keep first; the raw quantity lies next to them.
    """

    dtype: pa.DataType
    unit: str
    better: Better = "neither"


def content_columns(names: list[str]) -> list[str]:
    """The content columns among `names`: text, or messages, or prompt and response."""
    have = [c for c in CONTENT if c in names]
    return ["prompt", "response"] if {"prompt", "response"} <= set(have) else have[:1]


def string_views(column: pa.ChunkedArray | pa.Array) -> Iterator[memoryview]:
    """The UTF-8 bytes of each string without copying; nulls come as empty."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    for chunk in chunks:
        if not (pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type)):
            chunk = chunk.cast(pa.large_string())
        width = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
        _, offsets, data = chunk.buffers()
        if len(chunk) == 0:
            continue
        ends = np.frombuffer(offsets, dtype=width)[chunk.offset : chunk.offset + len(chunk) + 1]
        view = memoryview(data) if data is not None else memoryview(b"")
        bounds = ends.tolist()
        for start, stop in itertools.pairwise(bounds):
            yield view[start:stop]


def content_ids(table: pa.Table | pa.RecordBatch) -> pa.Array:
    """The id of each row: xxh3-128 of the content, one domain for each kind of content."""
    names = content_columns(table.column_names)
    hash_of = xxhash.xxh3_128_digest
    if names == ["text"]:
        raw = b"".join([hash_of(v) for v in string_views(table["text"])])
    elif names == ["prompt", "response"]:
        pairs = zip(string_views(table["prompt"]), string_views(table["response"]), strict=True)
        raw = b"".join([hash_of(b"pair\x00" + hash_of(p) + hash_of(r)) for p, r in pairs])
    else:
        turns = ([[m["role"], m["content"]] for m in row or []] for row in _rows(table["messages"]))
        packed = (json.dumps(t, ensure_ascii=False, separators=(",", ":")).encode() for t in turns)
        raw = b"".join([hash_of(b"chat\x00" + p) for p in packed])
    return pa.Array.from_buffers(ID, table.num_rows, [None, pa.py_buffer(raw)])


def content_bytes(table: pa.Table | pa.RecordBatch) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of the content of each row."""
    import pyarrow.compute as pc

    names = content_columns(table.column_names)
    if names == ["messages"]:
        sizes = [
            sum(len((m["content"] or "").encode()) for m in row or [])
            for row in _rows(table["messages"])
        ]
        return np.asarray(sizes, dtype=np.int64)
    lengths = [pc.fill_null(pc.binary_length(table[n]), 0).cast(pa.int64()) for n in names]
    total: npt.NDArray[np.int64] = sum(np.asarray(x, dtype=np.int64) for x in lengths)  # type: ignore
    return total


def content_texts(table: pa.Table | pa.RecordBatch) -> list[str]:
    """The content of each row as one string (turns and halves joined by a newline)."""
    names = content_columns(table.column_names)
    if names == ["messages"]:
        return [
            "\n".join(m["content"] or "" for m in row or []) for row in _rows(table["messages"])
        ]
    if names == ["prompt", "response"]:
        pairs = zip(_rows(table["prompt"]), _rows(table["response"]), strict=True)
        return [f"{p or ''}\n{r or ''}" for p, r in pairs]
    return [t or "" for t in _rows(table["text"])]


def _rows(column: Any) -> list[Any]:
    rows: list[Any] = column.to_pylist()
    return rows


def id_words(ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """An id column as [n, 2] unsigned 64-bit words."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if isinstance(ids, pa.ChunkedArray):  # an empty table stays chunked
        return np.empty((0, 2), dtype=np.uint64)
    raw = ids.buffers()[1]
    words = np.frombuffer(raw, dtype="<u8") if raw is not None else np.empty(0, dtype=np.uint64)
    return words.reshape(-1, 2)[ids.offset : ids.offset + len(ids)]


def first_copies(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Of sorted ids [n, 2], those that differ from the one before."""
    first = np.ones(len(words), dtype=np.bool_)
    first[1:] = (words[1:] != words[:-1]).any(axis=1)
    return first


def hex_id(value: bytes) -> str:
    """An id as people read it: 32 hex digits."""
    return value.hex()
