"""How alike two texts are, in words of their plain form (`pipeline/normal_text.py`, numbers kept).

    alike(a, b) = 2 L / (|a| + |b|)     L: longest common subsequence of words, in [0, 1]
    inside(a, b)      L / |a| against the stretch of b that is most like a
    spans(a, b, w)    the stretches of a that are runs of w words and more verbatim in b

One word of n that was replaced costs 1 / n whatever n is, so short texts and long ones are held to
the same measure; the Jaccard similarity of n-grams loses n of them for each word. Unlike it,
`alike` sees the order of words. Cost of L: `subsequence.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foresift.pipeline.minhash import Keys, shingles, span_hashes
from foresift.pipeline.normal_text import Buffer, Ints, Words, words
from foresift.pipeline.subsequence import common

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Text:
    """One text in its plain form."""

    batch: Words

    @classmethod
    def of(cls, raw: Buffer) -> Text:
        """The plain form of UTF-8 bytes."""
        return cls(words([raw], loose=False).cut())

    def __len__(self) -> int:
        return len(self.batch.starts)

    @property
    def words(self) -> Keys:
        """A 64-bit hash of each word."""
        return span_hashes(self.batch.buffer, self.batch.starts, self.batch.ends)

    def runs(self, size: int) -> Keys:
        """A 64-bit hash of each `size` consecutive words."""
        return shingles(self.batch, size)[0]


def alike(a: Keys, b: Keys) -> float:
    """2 L / (|a| + |b|); 0 where both are empty."""
    both = len(a) + len(b)
    return 2 * common(a.tolist(), b.tolist()) / both if both else 0.0


def most_alike(a: int, b: int) -> float:
    """The largest `alike` of texts of so many words."""
    return 2 * min(a, b) / (a + b) if a + b else 0.0


def inside(a: Text, b: Text, ngram: int) -> float:
    """L / |a| of the stretch of b, a quarter longer than a, that shares most of its n-grams."""
    size = len(a) + len(a) // 4
    if len(b) <= size:
        return common(a.words.tolist(), b.words.tolist()) / len(a) if len(a) else 0.0
    hits = np.concatenate([[0], np.cumsum(np.isin(b.runs(ngram), a.runs(ngram)))])
    last = len(b) - size
    first = int(np.argmax(hits[size - ngram + 1 :][: last + 1] - hits[: last + 1]))
    return common(a.words.tolist(), b.words[first : first + size].tolist()) / len(a)


def spans(a: Text, b: Text, size: int) -> Ints:
    """[n, 2] first word and end of each stretch of `a` made of runs of `size` words of `b`."""
    if not 0 < size <= min(len(a), len(b)):
        return np.empty((0, 2), dtype=np.int64)
    shared = np.flatnonzero(np.isin(a.runs(size), b.runs(size)))
    return covered(shared, shared + size, len(a), 1)


def covered(starts: Ints, stops: Ints, length: int, least: int) -> Ints:
    """[n, 2] the stretches of `length` places that at least `least` of some intervals cover."""
    edges = np.zeros(length + 1, dtype=np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, stops, -1)
    inside = np.concatenate([[False], np.cumsum(edges)[:-1] >= least, [False]])
    return np.flatnonzero(inside[1:] != inside[:-1]).reshape(-1, 2)
