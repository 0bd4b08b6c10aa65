"""Copies of sought texts in a corpus, found in one pass over its text, all rows of it.

    exact      the same plain form: lower case, punctuation dropped, numbers kept (`dedup: exact`)
    near       similarity of words 2 L / (|a| + |b|) of at least `near`, L their longest common
               subsequence
    substring  `window` words of the sought text stand in it, verbatim in plain form; of a shorter
               text all of its words. similarity: share of the sought words in such runs

A conversation or an instruction pair is compared as a whole and by each of its turns or halves.
Texts of fewer than `least` words are only found where they are equal, and in a turn only where the
request gave the text itself.

**What is not found.** Paraphrases share few words in order: they are no near copies (on purpose;
see the suspects of `resolve.py`). Translations neither. A passage that is both rewritten and inside
something longer is found where 50 of its words in a row were left alone. **What is found though it
is none:** records filled into one form are alike to any measure of wording; raise `near` for them.

Memory: the sought texts (about 30 bytes a word; more than WORDS are looked for in several passes)
and one batch of the corpus. Cost: some 25 MB/s a core and pass. A row's result depends on its
content alone, so exact copies are found alike.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from foresift.pipeline.corpus import Shard
from foresift.pipeline.normal_text import Buffer, Words, words
from foresift.pipeline.tables import content_columns, content_texts, string_views
from foresift.stages.forget._find_index import Index, Sought, plain_key
from foresift.stages.forget._find_words import Text, alike, most_alike, run

#: words of sought texts that are looked for in one pass
WORDS = 1 << 25
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

    def __post_init__(self) -> None:
        if not 0 < self.near <= 1:
            raise ValueError("near must lie in (0, 1]")
        if not 3 <= self.least <= self.window:
            raise ValueError("least must be at least 3, and window at least `least`")


class Hit(NamedTuple):
    """A row that holds a copy: the best of what was found in it."""

    row: int
    reason: str
    similarity: float
    sought: Sought


class Unit(NamedTuple):
    """A text that is compared: a row as a whole, or a turn of it."""

    row: int
    raw: Buffer
    turn: bool


def search(index: Index, near: float, shard: Shard) -> list[Hit]:
    """Every row of a shard that holds a copy, in the order of rows."""
    best: dict[int, Hit] = {}
    for group in _groups(shard):
        for hit in _hits(index, near, group):
            held = best.get(hit.row)
            if held is None or _rank(hit) < _rank(held):
                best[hit.row] = hit
    return [best[row] for row in sorted(best)]


def _rank(hit: Hit) -> tuple[int, float, int, bytes]:
    order = ("text", "exact", "near", "substring").index(hit.reason)
    return order, -hit.similarity, hit.sought.key, hit.sought.id


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
            yield Hit(unit.row, "text" if verbatim else "exact", 1.0, one)
    opened: dict[int, Text] = {}
    for pair in index.candidates(batch):
        if pair.text in same:
            continue
        text = opened.setdefault(pair.text, Text(_only(batch, pair.text)))
        one = index.sought[pair.sought]
        sought = index.texts[pair.sought]
        if pair.near and min(len(text), len(sought)) >= index.least:
            similarity = _alike(text, sought, near)
            if similarity >= near:
                yield Hit(group[pair.text].row, "near", similarity, one)
                continue
        if pair.run:
            share = run(sought, text, min(index.window, len(sought)))
            if share > 0:
                yield Hit(group[pair.text].row, "substring", share, one)


def _alike(a: Text, b: Text, near: float) -> float:
    """Their similarity, or 0 where their lengths alone say that it is too small."""
    return alike(a.words, b.words) if most_alike(len(a), len(b)) >= near else 0.0


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
