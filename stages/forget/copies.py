"""Copies of sought texts in a corpus, found in one pass over its text, all rows of it.

    exact      the same plain form: lower case, punctuation dropped, numbers kept (`dedup: exact`)
    near       similarity of words 2 L / (|a| + |b|) of at least `near`, L their longest common
               subsequence
    substring  `window` words of the sought text stand in it, verbatim in plain form; of a shorter
               text all of its words. similarity: share of the sought words in such runs. Or its
               words stand in a stretch of it to `near` (L / |a|), in order, with edits. What more
               than `common` documents hold and is less than half of the sought text is taken for
               boilerplate ("share your experiences by ..."): who holds nothing else is a suspect

A conversation or an instruction pair is compared as a whole and by each of its turns or halves.
Texts of fewer than `least` words are only found where they are equal, and in a turn only where the
request gave the text itself.

**What is not found.** Paraphrases share few words in order: they are no near copies (on purpose;
see the suspects of `resolve.py`). Translations neither. A part
of a sought text that was edited is found where 50 of its words in a row were left alone.
**What is found though it is none:** records filled into one form are alike to any measure of
wording; raise `near` for them.

Memory: the sought texts (about 30 bytes a word; more than WORDS are looked for in several passes)
and one batch of the corpus. Cost: 10 MB/s (a hundred long texts sought) to 30 MB/s a core and pass.
A row's result depends on its content alone, so exact copies are found alike.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from foresift.pipeline.corpus import Shard
from foresift.pipeline.normal_text import Buffer, Ints, Words, words
from foresift.pipeline.tables import content_columns, content_texts, string_views
from foresift.stages.forget._find_index import NGRAM, Index, Sought, plain_key
from foresift.stages.forget._find_words import Text, alike, covered, inside, most_alike, spans

#: words of sought texts that are looked for in one pass
WORDS = 1 << 25
#: words from which an edited text is looked for inside longer ones
INSIDE = 20
#: bytes of content that are compared at once; larger ones leave the second-level cache
GROUP_BYTES = 256 << 10


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What counts as a copy."""

    near: float = 0.8
    """Similarity of words from which a text is a near copy, in (0, 1]."""
    window: int = 50
    """Words in a row, verbatim, that make a substring copy."""
    least: int = 8
    """Words below which a text is found only where it is equal."""
    common: int = 10
    """Documents above which a passage they share is boilerplate, not a copy."""

    def __post_init__(self) -> None:
        if not 0 < self.near <= 1:
            raise ValueError("near must lie in (0, 1]")
        if not 3 <= self.least <= self.window:
            raise ValueError("least must be at least 3, and window at least `least`")
        if self.common < 1:
            raise ValueError("common must be at least 1")


class Hit(NamedTuple):
    """A row that holds a copy of a sought text."""

    row: int
    reason: str
    similarity: float
    sought: int
    spans: tuple[tuple[int, int], ...] = ()
    """Of a substring: first word and end of the stretches of the sought text that stand in it."""


class Unit(NamedTuple):
    """A text that is compared: a row as a whole, or a turn of it."""

    row: int
    raw: Buffer
    turn: bool


def search(index: Index, near: float, shard: Shard) -> list[Hit]:
    """What each row of a shard is a copy of, rows ascending; or all that it holds passages of."""
    whole: dict[int, Hit] = {}
    parts: dict[tuple[int, int], Hit] = {}
    for group in _groups(shard):
        for hit in _hits(index, near, group):
            if hit.spans:
                held = parts.get((hit.row, hit.sought))
                if held is None or hit.similarity > held.similarity:
                    parts[hit.row, hit.sought] = hit
            elif hit.row not in whole or _rank(index, hit) < _rank(index, whole[hit.row]):
                whole[hit.row] = hit
    found = [*whole.values(), *(hit for hit in parts.values() if hit.row not in whole)]
    return sorted(found, key=lambda hit: (hit.row, hit.sought))


def _rank(index: Index, hit: Hit) -> tuple[int, float, int, bytes]:
    one = index.sought[hit.sought]
    return ("text", "exact", "near").index(hit.reason), -hit.similarity, one.key, one.id


def boilerplate(
    index: Index, hits: Sequence[Hit], ids: Sequence[bytes], measure: Measure
) -> npt.NDArray[np.bool_]:
    """[hits] whether all that a row holds of a sought text is common to many documents."""
    found = np.zeros(len(hits), dtype=np.bool_)
    of: dict[int, list[int]] = {}
    for at, hit in enumerate(hits):
        if hit.spans:
            of.setdefault(hit.sought, []).append(at)
    for number, places in of.items():
        holders = {ids[at]: hits[at].spans for at in places}
        if len(holders) <= measure.common:
            continue
        length = len(index.texts[number])
        starts, stops = np.array([s for spans in holders.values() for s in spans]).T
        own = np.ones(length, dtype=np.bool_)
        for start, stop in covered(starts, stops, length, measure.common + 1).tolist():
            own[start:stop] = False
        for at in places:
            rest = max((_longest(own[a:b]) for a, b in hits[at].spans), default=0)
            found[at] = hits[at].similarity < 0.5 and rest < measure.window
    return found


def _longest(flags: npt.NDArray[np.bool_]) -> int:
    """Length of the longest stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return int(np.diff(edges)[::2].max(initial=0))


def _groups(shard: Shard) -> Iterator[list[Unit]]:
    """All rows of a shard as units, in groups that fit the cache."""
    group: list[Unit] = []
    size = 0
    for table, rows in shard.stream(every=True):
        for unit in units(table, rows.tolist()):
            group.append(unit)
            size += len(unit.raw)
            if size >= GROUP_BYTES:
                yield group
                group, size = [], 0
    if group:
        yield group


def units(table: pa.Table, rows: Sequence[int]) -> Iterator[Unit]:
    """The content of each row, then its turns or halves; plain texts are not copied."""
    names = content_columns(table.column_names)
    if names == ["text"]:
        for row, view in zip(rows, string_views(table["text"]), strict=True):
            yield Unit(row, view, False)
        return
    for row, text, turns in zip(rows, content_texts(table), _turns(table, names), strict=True):
        yield Unit(row, text.encode(), False)
        for turn in turns:
            yield Unit(row, (turn or "").encode(), True)


def _turns(table: pa.Table, names: Sequence[str]) -> Iterator[Sequence[str | None]]:
    if names == ["messages"]:
        yield from ([m["content"] for m in row or []] for row in table["messages"].to_pylist())
    else:
        yield from zip(*(table[name].to_pylist() for name in names), strict=True)


def _hits(index: Index, near: float, group: Sequence[Unit]) -> Iterator[Hit]:
    batch = words([unit.raw for unit in group], loose=False).cut()
    same: set[int] = set()
    for at, unit in enumerate(group):
        number = index.plain.get(plain_key(batch, at, unit.raw))
        if number is None:
            continue
        one = index.sought[number]
        if not unit.turn or one.given or len(index.texts[number]) >= index.least:
            same.add(at)
            verbatim = one.given and xxhash.xxh3_128_digest(unit.raw) == one.id
            yield Hit(unit.row, "text" if verbatim else "exact", 1.0, number)
    opened: dict[int, Text] = {}
    for pair in index.candidates(batch):
        if pair.text in same:
            continue
        text = opened.setdefault(pair.text, Text(_only(batch, pair.text)))
        sought, row = index.texts[pair.sought], group[pair.text].row
        similarity = _alike(text, sought, near) if pair.near and len(text) >= index.least else 0.0
        if similarity >= near:
            yield Hit(row, "near", similarity, pair.sought)
            continue
        stretches = spans(sought, text, min(index.window, len(sought)) if pair.run else 0)
        share = float(np.diff(stretches).sum() / len(sought))
        if share < near and pair.near and INSIDE <= len(sought) < len(text):
            share, stretches = _edited(sought, text, near, share, stretches)
        if share:
            held = tuple((first, stop) for first, stop in stretches.tolist())
            yield Hit(row, "substring", share, pair.sought, held)


def _alike(a: Text, b: Text, near: float) -> float:
    """Their similarity, or 0 where their lengths alone say that it is too small."""
    return alike(a.words, b.words) if most_alike(len(a), len(b)) >= near else 0.0


def _edited(
    sought: Text, text: Text, near: float, share: float, stretches: Ints
) -> tuple[float, Ints]:
    """As it was, or all of the sought text where enough of it stands in a stretch of the text."""
    similarity = inside(sought, text, NGRAM)
    if similarity < near:
        return share, stretches
    return similarity, np.array([[0, len(sought)]])


def _only(batch: Words, text: int) -> Words:
    """One text of a batch."""
    first, last = int(batch.offsets[text]), int(batch.offsets[text + 1])
    return Words(
        batch.buffer, batch.starts[first:last], batch.ends[first:last], np.array([0, last - first])
    )


# -- over many shards --------------------------------------------------------------------------


def passes(sought: Sequence[Sought], measure: Measure) -> Iterator[Index]:
    """Indexes that together hold all sought texts, each of at most about WORDS words."""
    held: list[Sought] = []
    size = 0
    for one in sought:
        size += len(one.raw) // 6 + 1
        held.append(one)
        if size >= WORDS:
            yield Index.of(held, measure.least, measure.window)
            held, size = [], 0
    if held:
        yield Index.of(held, measure.least, measure.window)


def keep(index: Index, near: float, folder: Path) -> partial[dict[str, Any]]:
    """A task for an engine: shard -> its hits. The index goes by way of a file."""
    path = folder / f"{len(list(folder.iterdir())):04d}.pickle"
    path.write_bytes(pickle.dumps((index, near)))
    return partial(_searched, path)


def _searched(path: Path, shard: Shard) -> dict[str, Any]:
    index, near = _opened(path)
    return {"hits": search(index, near, shard)}


@lru_cache(maxsize=1)
def _opened(path: Path) -> tuple[Index, float]:
    """Written by this process's own parent a moment before."""
    loaded: tuple[Index, float] = pickle.loads(path.read_bytes())
    return loaded
