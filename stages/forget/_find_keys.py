"""Which rows a key names, by the columns that lie beside the text: nothing is read of the text.

document   id equal                      key        source equal to the value, or going on behind
licence    the label, or one of it                  it with `/` or `#`
personal   a keyed hash among `pii.keys`
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from foresift.pipeline.corpus import Shard
from foresift.pipeline.errors import DataError
from foresift.pipeline.ledger import among
from foresift.pipeline.tables import ID, id_words
from foresift.stages.forget._find_words import Flags
from foresift.stages.forget.history import History
from foresift.stages.forget.request import Key

#: level -> the score whose column is read
COLUMNS = {"licence": "licence.licence", "personal": "pii.keys"}
#: what separates the components of a key path
SEPARATORS = ("/", "#")
#: labels of a licence expression
_LABEL = re.compile(r"[^\s()]+")
#: scripts without spaces between words: their letters are no part of a neighbour's word
_JOINED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7ff"
    r"\uf900-\ufaff]"
)


def text_id(text: str) -> bytes:
    """The id that a reader gives a plain document."""
    return xxhash.xxh3_128_digest(text.encode())


def columns_of(keys: Iterable[Key], history: History) -> dict[str, tuple[Path, str]]:
    """Level -> (step directory, column) of the score that answers it; DataError where it is not."""
    found = {}
    for level in sorted({key.level for key in keys} & set(COLUMNS)):
        column = COLUMNS[level]
        place = history.score(column)
        if place is None:
            step = column.partition(".")[0]
            raise DataError(
                f"keys of level {level!r} are looked up in the column `{column}`, and this run has"
                f" no such score; add the step `score: {step}` to its recipe and run it again",
                where=str(history.run.path),
            )
        found[level] = place
    return found


def named(key: Key, shard: Shard, table: pa.Table, place: tuple[Path, str] | None) -> Flags:
    """[rows] whether the key names a row of the shard; `table` has its `id` and `source`."""
    if key.level in ("document", "text"):
        raw = bytes.fromhex(key.value) if key.level == "document" else text_id(key.value)
        return among(table["id"], id_words(pa.array([raw], ID)))
    if key.level == "key":
        return under(table["source"], key.value)
    if place is None:
        return np.zeros(table.num_rows, dtype=np.bool_)
    column = shard.sidecar(place[0], [place[1]])[place[1]]
    return _labelled(column, key.value) if key.level == "licence" else _hashed(column, key.value)


def under(source: pa.ChunkedArray, head: str) -> Flags:
    """[rows] whether a key path is `head`, or begins with it at the end of a component."""
    head = head.rstrip("".join(SEPARATORS)) or head
    source = source.cast(pa.string())
    found = pc.equal(source, head)
    for separator in SEPARATORS:
        found = pc.or_(found, pc.starts_with(source, head + separator))
    return np.asarray(pc.fill_null(found, False))


def _labelled(column: pa.ChunkedArray, value: str) -> Flags:
    """Licence expressions that are the label, or hold it as one of theirs, in any case."""
    value = value.casefold()
    labels = pc.dictionary_encode(column.cast(pa.string())).combine_chunks()
    words = [(t or "").casefold() for t in labels.dictionary.to_pylist()]
    yes = np.array([value == w or value in _LABEL.findall(w) for w in words] + [False])
    found: Flags = yes[np.asarray(pc.fill_null(labels.indices, len(words)))]
    return found


def _hashed(column: pa.ChunkedArray, value: str) -> Flags:
    """Rows among whose keyed hashes is the one given (hex)."""
    try:
        wanted = bytes.fromhex(value)
    except ValueError:
        wanted = b""
    if len(wanted) != 16:
        raise DataError(
            "a key of level 'personal' is a keyed hash, 32 hex digits"
            " (foresift.pipeline.personal.keyed), not the value itself",
            where="request",
        )
    found = np.zeros(len(column), dtype=np.bool_)
    start = 0
    for chunk in column.chunks:
        rows = np.asarray(pc.list_parent_indices(chunk))
        hit = np.asarray(pc.equal(pc.list_flatten(chunk), pa.scalar(wanted, pa.binary(16))))
        found[start + rows[hit.astype(bool)]] = True
        start += len(chunk)
    return found


class Entity:
    """A name as it stands in texts: in any case, between the ends of words."""

    def __init__(self, name: str) -> None:
        words = fold(name).split()
        self.sign = max(words, key=len)
        before = "" if _JOINED.match(words[0][0]) or not _wordy(words[0][0]) else r"(?<!\w)"
        last = words[-1][-1]
        after = "" if _JOINED.match(last) or not _wordy(last) else r"(?!\w)"
        inside = r"\s+".join(map(re.escape, words))
        self.pattern = re.compile(before + inside + after)

    def stands_in(self, folded: str) -> bool:
        """Whether it stands in a text that `fold` made."""
        return self.sign in folded and self.pattern.search(folded) is not None


def _wordy(character: str) -> bool:
    return character.isalnum() or character == "_"


def fold(text: str) -> str:
    """A text in which entities are looked for: one form of each character, without case."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def hint(key: Key, heads: Sequence[str]) -> str:
    """What a key that matched nothing was perhaps meant to be."""
    if key.level == "key":
        close = difflib.get_close_matches(key.value, heads, n=3, cutoff=0.5) or sorted(heads)[:3]
        shown = ", ".join(map(repr, close))
        return f"no source lies under {key.value!r}; nearest: {shown}"
    if key.level == "document":
        return f"no document {key.value} was read"
    shown = key.value if len(key.value) <= 60 else key.value[:57] + "..."
    return f"{key.level} {shown!r} matches nothing"
