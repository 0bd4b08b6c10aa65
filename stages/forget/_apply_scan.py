"""Looking for what a forgotten text left behind: words that stand in no document that stays.

A word is a run of five or more letters and digits. Those of the forgotten documents that no other
document of the store has are looked for in every file: parquet and Arrow columns, compressed and
plain files, JSON escapes undone. Words that others have too cannot be told apart, nor those that
the store is written in (`own_words`). Weights are not looked into. Cost: one pass over the text of
the store, and one over all its files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.ledger import among
from foresift.pipeline.tables import content_texts
from foresift.stages.forget import _apply_files as files
from foresift.stages.forget._apply_store import Store

_WORD = re.compile(r"[^\W_]{5,}")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|[nrtbf\"/\\])")
#: bytes of a plain file that are looked at in one go
PIECE = 16 << 20


def distinctive(store: Store, words: npt.NDArray[np.uint64]) -> set[str]:
    """Words of the forgotten documents (by their ids) that no document that stays has."""
    found: set[str] = set()
    for gone, table in _documents(store, words):
        if gone.any():
            for text in content_texts(table.filter(pa.array(gone))):
                found |= words_of(text)
    for gone, table in _documents(store, words):
        if found and not gone.all():
            for text in content_texts(table.filter(pa.array(~gone))):
                found -= words_of(text)
    return found


def own_words(store: Store) -> set[str]:
    """Words that the store itself is written in: names of columns, of fields and of facts."""
    found: set[str] = set()
    for name in store.steps():
        told = store.told(name)
        names = [*told, *(told.get("fields") or {}), *told["facts"]]
        for path in sorted((store.out / "steps" / name).glob("part-*.parquet"))[:1]:
            names += pq.read_schema(path).names
        found |= words_of(" ".join(names))
    return found


def _documents(
    store: Store, words: npt.NDArray[np.uint64]
) -> Iterator[tuple[npt.NDArray[np.bool_], pa.Table]]:
    for name in store.of_verb("read"):
        for shard in Corpus(store.out / "steps" / name).shards():
            for table, _ in shard.stream(every=True):
                yield among(table["id"], words), table


def words_of(text: str) -> set[str]:
    """The words of a text."""
    return set(_WORD.findall(text))


def holds(path: Path, wanted: set[str]) -> bool:
    """Whether a file has one of the words."""
    return any(not wanted.isdisjoint(words_of(text)) for text in texts(path))


def texts(path: Path) -> Iterator[str]:
    """The text in a file, piece by piece."""
    if path.suffix == ".safetensors":
        return
    if path.suffix in (".parquet", ".arrow"):
        try:
            for table in files.tables(path):
                for column in table.columns:
                    yield from _strings(column)
            return
        except (OSError, pa.ArrowException):
            pass  # cut off, or something else: its bytes are looked at
    with files.reading(path) as lines:
        rest = ""
        while piece := lines.read(PIECE):
            text = rest + piece.decode("utf-8", errors="replace")
            yield text
            yield _ESCAPE.sub(_unescaped, text)
            rest = text[-1000:]


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else " "


def _strings(column: Any) -> Iterator[str]:
    """The strings of a column, at whatever depth."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield from (value for value in column.to_pylist() if value)
    elif pa.types.is_nested(kind) and _with_text(kind):
        yield from (str(value) for value in column.to_pylist() if value)


def _with_text(kind: Any) -> bool:
    return "string" in str(kind)
