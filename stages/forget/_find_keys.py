"""Which rows a key names, by the columns that lie beside the text: nothing is read of the text.

document   id equal                      key        source equal to the value, or going on behind
licence    the label, or one of it                  it with `/` or `#`
personal   a keyed hash among `pii.keys`
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from foresift.pipeline.corpus import Shard
from foresift.pipeline.errors import DataError
from foresift.pipeline.ledger import among
from foresift.pipeline.normal_text import Ints
from foresift.pipeline.tables import ID, id_words
from foresift.stages.forget._find_words import Flags
from foresift.stages.forget.history import History
from foresift.stages.forget.request import Key

#: level -> the score whose column is read
COLUMNS = {"licence": "licence.licence", "personal": "pii.keys"}
#: what separates the components of a key path
SEPARATORS = ("/", "#")
#: keys of level `key` up to which each is a pass over the sources; above, all are one
FEW = 8
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


def named(
    keys: Sequence[Key], shard: Shard, table: pa.Table, scores: Mapping[str, tuple[Path, str]]
) -> Iterator[tuple[int, Ints]]:
    """(number of a key, rows of the shard it names); `table` has the `id` and `source` of all."""
    by_id: dict[bytes, list[int]] = {}
    heads: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        if key.level in ("document", "text"):
            raw = bytes.fromhex(key.value) if key.level == "document" else text_id(key.value)
            by_id.setdefault(raw, []).append(number)
        elif key.level == "key":
            heads.setdefault(_trimmed(key.value), []).append(number)
        elif key.level in scores:
            path, name = scores[key.level]
            column = shard.sidecar(path, [name])[name]
            look = _labelled if key.level == "licence" else _hashed
            yield number, np.flatnonzero(look(column, key.value))
    if by_id:
        rows = np.flatnonzero(among(table["id"], id_words(pa.array(list(by_id), ID))))
        ids = table["id"].take(pa.array(rows)).to_pylist()
        yield from _grouped(rows, [by_id[i] for i in ids])
    if len(heads) > FEW:
        paths = table["source"].cast(pa.string()).to_pylist()
        found = [(row, [n for h in _heads(p or "") for n in heads.get(h, [])])
                 for row, p in enumerate(paths)]  # fmt: skip
        yield from _grouped(np.arange(len(found)), [numbers for _, numbers in found])
    else:
        for head, numbers in heads.items():
            rows = np.flatnonzero(under(table["source"], head))
            yield from ((number, rows) for number in numbers)


def _grouped(rows: Ints, numbers: Sequence[Sequence[int]]) -> Iterator[tuple[int, Ints]]:
    """Rows by the number of the key, of the numbers at each row."""
    found: dict[int, list[int]] = {}
    for row, here in zip(rows.tolist(), numbers, strict=True):
        for number in here:
            found.setdefault(number, []).append(row)
    for number in sorted(found):
        yield number, np.array(found[number], dtype=np.int64)


def _trimmed(head: str) -> str:
    return head.rstrip("".join(SEPARATORS)) or head


def _heads(path: str) -> list[str]:
    """A key path and its heads, each up to the end of a component."""
    return [path[:at] for at, character in enumerate(path) if character in SEPARATORS] + [path]


def under(source: pa.ChunkedArray, head: str) -> Flags:
    """[rows] whether a key path is `head`, or begins with it at the end of a component."""
    head = _trimmed(head)
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
