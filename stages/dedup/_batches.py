"""The documents of a shard as bytes, in groups that fit the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from foresift.pipeline.corpus import Shard
from foresift.pipeline.normal_text import Buffer
from foresift.pipeline.tables import content_columns, content_texts, string_views

#: bytes of content after which a group is handed on; larger ones leave the second-level cache
GROUP_BYTES = 256 << 10
#: rows of a sidecar that are written together
WRITE_ROWS = 1 << 15


def documents(table: pa.Table) -> Iterator[Buffer]:
    """The content of each row as UTF-8 bytes; plain texts are not copied."""
    if content_columns(table.column_names) == ["text"]:
        yield from string_views(table["text"])
    else:
        yield from (text.encode() for text in content_texts(table))


def groups(shard: Shard) -> Iterator[tuple[pa.Table, list[Buffer]]]:
    """The alive rows of a shard: `id` of a few rows, and their documents."""
    for table, _ in shard.stream():
        group: list[Buffer] = []
        size = done = 0
        for document in documents(table):
            group.append(document)
            size += len(document)
            if size >= GROUP_BYTES:
                yield table.select(["id"]).slice(done, len(group)), group
                done += len(group)
                group, size = [], 0
        if group:
            yield table.select(["id"]).slice(done, len(group)), group


def gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Small tables put together, so that the file has few row groups."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if rows >= WRITE_ROWS:
            yield pa.concat_tables(held).combine_chunks()
            held, rows = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()
