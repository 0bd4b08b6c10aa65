"""N-grams of evaluation items, kept so that a batch of documents is looked up at once.

    word    a run of letters and digits, lower-cased; apostrophes inside are taken out, all other
            punctuation (and the underscore) separates; each Chinese or Japanese character is a word
    n-gram  h = sum_j w_(i+j) P^(n-1-j)  (mod 2^64) of the words' xxh3-64 hashes, P odd

A `Postings` holds the distinct n-grams of all items in ascending order, and for each the items that
have it. Looking up costs one bit of a table of 4 M bits for most n-grams, a binary search for those
that pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

Keys = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_ODD = np.uint64(0x9E3779B97F4A7C15)
_SIGNS = r"\u3040-\u30ff\u3400-\u9fff"
_RUN = rf"[^\W_{_SIGNS}]+"
WORD = re.compile(rf"{_RUN}(?:['\u2019]{_RUN})*|[{_SIGNS}]")
_TABLE = 1 << 22


class _Hashes(dict[str, int]):
    """A word as it stands -> the hash of its normal form."""

    def __missing__(self, word: str) -> int:
        plain = word.lower().replace("'", "").replace("\u2019", "")
        value = xxhash.xxh3_64_intdigest(plain.encode())
        self[word] = value
        return value


@dataclass(frozen=True)
class Words:
    """The hashed words of several texts, one text after the other."""

    ids: Keys
    offsets: Ints
    """[texts + 1] text t has the words `offsets[t]` to `offsets[t + 1]`."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> Words:
        hashes, ids, lengths = _Hashes(), list[int](), [0]
        for text in texts:
            found = WORD.findall(text)
            ids += map(hashes.__getitem__, found)
            lengths.append(len(found))
        return cls(np.array(ids, dtype=np.uint64), np.cumsum(lengths, dtype=np.int64))

    def of_text(self, text: int) -> Keys:
        return self.ids[self.offsets[text] : self.offsets[text + 1]]

    def grams(self, n: int) -> tuple[Keys, Ints, Ints]:
        """(hash, first word, text) of every n-gram, in the order of the words."""
        lengths = np.diff(self.offsets)
        counts = np.maximum(lengths - (n - 1), 0)
        text = np.repeat(np.arange(len(lengths)), counts)
        before = np.cumsum(counts) - counts
        first = np.arange(len(text)) - before[text] + self.offsets[text]
        found = np.zeros(max(len(self.ids) - n + 1, 0), dtype=np.uint64)
        for j in range(n if len(found) else 0):
            found *= _ODD
            found += self.ids[j : j + len(found)]
        return found[first], first, text


def places(text: str) -> list[tuple[int, int]]:
    """The characters from start to stop of each word."""
    return [match.span() for match in WORD.finditer(text)]


@dataclass(frozen=True)
class Postings:
    """Distinct n-grams, ascending, and the items that have each."""

    keys: Keys
    starts: Ints
    """[keys + 1] key k is in the items `items[starts[k]:starts[k + 1]]`."""
    items: Ints

    @classmethod
    def of(cls, words: Words, n: int, item: Ints) -> Postings:
        """Of the n-grams of texts; `item` is the number of each text's item."""
        hashes, _, text = words.grams(n)
        keys, place = np.unique(hashes, return_inverse=True)
        count = int(item.max()) + 1 if len(item) else 1
        pairs = np.unique(place.reshape(-1).astype(np.int64) * count + item[text])
        starts = np.searchsorted(pairs // count, np.arange(len(keys) + 1))
        return cls(keys, starts.astype(np.int64), pairs % count)

    @property
    def spread(self) -> Ints:
        """[keys] how many items have each."""
        return np.diff(self.starts)

    def sums(self, weights: Floats, items: int) -> Floats:
        """[items] the weight of each item's n-grams."""
        total = np.bincount(self.items, np.repeat(weights, self.spread), items)
        return total.astype(np.float64)

    def look_up(self, hashes: Keys) -> Ints:
        """The number of the key of each n-gram, -1 where no item has it."""
        found = np.full(len(hashes), -1, dtype=np.int64)
        if not len(self.keys):
            return found
        table = np.zeros(_TABLE, dtype=np.bool_)
        mask = np.uint64(_TABLE - 1)
        table[self.keys & mask] = True
        some = np.flatnonzero(table[hashes & mask])
        place = np.minimum(np.searchsorted(self.keys, hashes[some]), len(self.keys) - 1)
        same = self.keys[place] == hashes[some]
        found[some[same]] = place[same]
        return found

    def pairs(self, rows: Ints, keys: Ints) -> tuple[Ints, Ints, Ints]:
        """(row, item, key) for each item that has a key found in a row; keys distinct by row."""
        spread = self.spread[keys]
        which = np.repeat(np.arange(len(keys)), spread)
        inside = np.arange(len(which)) - np.repeat(np.cumsum(spread) - spread, spread)
        return rows[which], self.items[self.starts[keys[which]] + inside], keys[which]

    def arrays(self, name: str) -> dict[str, npt.NDArray[np.generic]]:
        """What is stored of it."""
        parts = {"keys": self.keys, "starts": self.starts, "items": self.items}
        return {f"{name}_{part}": values for part, values in parts.items()}

    @classmethod
    def read(cls, stored: Mapping[str, npt.NDArray[np.generic]], name: str) -> Postings:
        keys, starts, items = (stored[f"{name}_{part}"] for part in ("keys", "starts", "items"))
        return cls(keys, starts, items)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Hits:
    """n-grams of a batch that some item has."""

    keys: Ints
    first: Ints
    """First word, counted over the whole batch."""
    rows: Ints

    @classmethod
    def of(cls, words: Words, n: int, postings: Postings, counted: Bools | None = None) -> Hits:
        """Look every n-gram up; where `counted` is false for a key it is no evidence."""
        hashes, first, rows = words.grams(n)
        keys = postings.look_up(hashes)
        good = keys >= 0
        if counted is not None:
            good[good] = counted[keys[good]]
        return cls(keys[good], first[good], rows[good])

    def distinct(self) -> tuple[Ints, Ints]:
        """(row, key) of the distinct n-grams of each row, ascending."""
        if not len(self.keys):
            return self.rows, self.keys
        count = int(self.keys.max()) + 1
        both = np.unique(self.rows * count + self.keys)
        return both // count, both % count


def sums_by_pair(rows: Ints, items: Ints, values: Floats, count: int) -> tuple[Ints, Ints, Floats]:
    """(row, item, sum of values) of distinct pairs, ascending; sums run in the order given."""
    pair, place = np.unique(rows * count + items, return_inverse=True)
    total = np.bincount(place.reshape(-1), values, len(pair)).astype(np.float64)
    return pair // count, pair % count, total


def runs(first: Ints, n: int) -> Iterator[tuple[int, int]]:
    """(first word, word behind the last) of maximal stretches covered by n-grams, ascending."""
    start = stop = -1
    for word in np.unique(first).tolist():
        if word > stop:
            if stop >= 0:
                yield start, stop
            start = word
        stop = word + n
    if stop >= 0:
        yield start, stop


def occurs(needle: Keys, words: Keys) -> bool:
    """Whether words stand one after the other somewhere."""
    length = len(needle)
    if not 0 < length <= len(words):
        return False
    starts = np.flatnonzero(words[: len(words) - length + 1] == needle[0]).tolist()
    return any(np.array_equal(words[s : s + length], needle) for s in starts)
