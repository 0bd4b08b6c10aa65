"""Hashed n-grams of words, and how likelier a document's are under a target than under a pool.

    bucket(gram)  = h_n mod B,   h_1 = xxh3-64(word_1),   h_k = mix(h_{k-1}) + xxh3-64(word_k)
    phat_b        = (count_b + s B prior_b) / (sum_b count_b + s B)     likewise qhat, of the pool
    ratio_b       = log(phat_b + 1e-8) - log(qhat_b + 1e-8)
    log_weight(x) = sum over the n-grams of x of ratio_bucket        nats, not divided by anything
    KL(p || q)    = sum_b phat_b log((phat_b + 1e-8) / (qhat_b + 1e-8))

The prior is 1 / B (Laplace smoothing) or the pool's own shares, which then stay as they are: what
a small target never has is taken to be as usual there as elsewhere, and counts little.

An n-gram lies in one document. The paper's code takes sha256 of the n-gram's text where this takes
64-bit hashes, so buckets, and with them the last digits, are not those of the paper's code.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from foresift.pipeline.words import hashed_words

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
#: below which no probability falls
EPS = 1e-8
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Grams:
    """The buckets of the n-grams of several texts, one order (1, 2, ...) after the other."""

    def __init__(self, texts: Iterable[str | None], n: int, buckets: int) -> None:
        words = hashed_words(texts)
        self.words: Counts = words.lengths
        self.buckets = buckets
        self.orders: list[tuple[Counts, Counts]] = []
        """For each order: the buckets, flat, and how many each text has."""
        ends = np.repeat(np.cumsum(words.lengths), words.lengths)
        starts, hashes = np.arange(len(words.ids)), words.ids
        for order in range(1, n + 1):
            if order > 1:
                room = starts + order <= ends[starts]
                starts = starts[room]
                hashes = _mix(hashes[room]) + words.ids[starts + order - 1]
            found = (hashes % np.uint64(buckets)).astype(np.int64)
            self.orders.append((found, np.maximum(words.lengths - order + 1, 0)))

    @property
    def lengths(self) -> Counts:
        """n-grams of each text, of all orders."""
        total = np.zeros(len(self.words), dtype=np.int64)
        for _, lengths in self.orders:
            total += lengths
        return total

    def counts(self) -> Counts:
        """[B] n-grams of all texts in each bucket."""
        total = np.zeros(self.buckets, dtype=np.int64)
        for found, _ in self.orders:
            total += np.bincount(found, minlength=self.buckets)
        return total

    def sums(self, ratio: Floats) -> Floats:
        """The sum of `ratio` over the n-grams of each text; each depends on its own text alone."""
        total = np.zeros(len(self.words), dtype=np.float64)
        for found, lengths in self.orders:
            some = np.flatnonzero(lengths)
            if len(some):
                begins = np.cumsum(lengths) - lengths
                total[some] += np.add.reduceat(ratio[found], begins[some])
        return total


def _mix(hashes: Hashes) -> Hashes:
    """So that the order of the words counts."""
    folded: Hashes = (hashes ^ (hashes >> np.uint64(29))) * _ODD
    return folded


def shares(counts: Counts, smoothing: float = 0.0, prior: Floats | None = None) -> Floats:
    """[B] probabilities from counts, with `smoothing` more a bucket on average, spread by `prior`.

    Without a prior they are spread evenly; where nothing was counted, the prior is all there is.
    """
    even = np.full(len(counts), 1.0 / len(counts)) if prior is None else prior
    added = smoothing * len(counts)
    total = float(counts.sum()) + added
    found: Floats = (counts + added * even) / total if total else even
    return found


def log_ratio(target: Floats, pool: Floats) -> Floats:
    """[B] by how many nats each bucket is likelier under the target."""
    ratio: Floats = np.log(target + EPS) - np.log(pool + EPS)
    return ratio


def divergence(p: Floats, q: Floats) -> float:
    """KL(p || q) in nats."""
    return float(np.sum(p * log_ratio(p, q)))
