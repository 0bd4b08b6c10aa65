"""Unigram and trigram loss of documents under a model of the pool that has not seen them.

    p1(w)       = (c(w) + 1) / (n + V)
    p2(w | v)   = (c(v w) + b p1(w)) / (c(v) + b)
    p3(w | u v) = (c(u v w) + b p2(w | v)) / (c(u v) + b)            b = STRENGTH
    loss        = -mean ln p over the words of the document, nats per word

c are counts of hashed n-grams in the pool **less the document's own**, copies of it included as
others: what a document repeats from itself is no evidence that it is likely. n-grams do not cross
documents. A document without words has NaN.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foresift.pipeline.words import Words, hashed_words

Floats = npt.NDArray[np.float64]
Keys = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
STRENGTH = 8.0


def losses(texts: list[str]) -> tuple[Floats, Floats]:
    """(unigram, trigram) loss of each text."""
    words = hashed_words(texts)
    rows = np.repeat(np.arange(len(texts)), words.lengths)
    one = words.ids
    two, pair = _joined(one, one, rows, 1)
    three, triple = _joined(two, one, rows, 2)
    total, vocabulary = len(one), len(np.unique(one))
    own = words.lengths[rows]
    p1 = (_others(one, rows) + 1.0) / (total - own + vocabulary)
    before = _shifted(one, 1)
    p2 = np.where(pair, _smoothed(two, before, rows, pair, p1), p1)
    history = _shifted(two, 1)
    p3 = np.where(triple, _smoothed(three, history, rows, triple, p2), p2)
    return _mean(p1, words), _mean(p3, words)


def _joined(left: Keys, words: Keys, rows: npt.NDArray[np.int64], back: int) -> tuple[Keys, Bools]:
    """Keys of n-grams that end at each place, and whether they lie inside one document."""
    inside = np.zeros(len(words), dtype=np.bool_)
    inside[back:] = rows[back:] == rows[:-back]
    with np.errstate(over="ignore"):
        keys = _shifted(left, 1) * np.uint64(0x9E3779B97F4A7C15) ^ (
            words * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(1)
        )
    return keys, inside


def _shifted(keys: Keys, by: int) -> Keys:
    return np.concatenate([np.zeros(by, dtype=np.uint64), keys[:-by]])


def _smoothed(
    grams: Keys, histories: Keys, rows: npt.NDArray[np.int64], inside: Bools, lower: Floats
) -> Floats:
    """(c(gram) + b lower) / (c(history) + b); histories are counted where a gram goes on."""
    found = np.ones(len(grams))
    i = np.flatnonzero(inside)
    up, down = _others(grams[i], rows[i]), _others(histories[i], rows[i])
    found[i] = (up + STRENGTH * lower[i]) / (down + STRENGTH)
    return found


def _others(keys: Keys, rows: npt.NDArray[np.int64]) -> Floats:
    """How often each key occurs, less how often it does so in the same row."""
    _, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    cells = rows * (len(counts) + 1) + place
    _, own, repeats = np.unique(cells, return_inverse=True, return_counts=True)
    found: Floats = (counts[place] - repeats[own]).astype(np.float64)
    return found


def _mean(p: Floats, words: Words) -> Floats:
    rows = np.repeat(np.arange(len(words.lengths)), words.lengths)
    sums = np.bincount(rows, -np.log(p), len(words.lengths))
    with np.errstate(invalid="ignore"):
        return sums / words.lengths
