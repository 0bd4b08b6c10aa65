"""What exact deletion by replay costs, in optimizer steps, and what it is expected to cost.

    steps(hit)   = S - start of the earliest interval that holds a deleted document
    E[cost]      = sum over i of  prod_{j<i} (1 - p_j)  x  p_i  x  (S - start_i)

An interval lies between two checkpoints. p_i is the probability that a document of interval i is
deleted; for documents with deletion probabilities q it is 1 - prod (1 - q). Intervals count from 1.
Known answer: 10 intervals of 100 steps, hit in interval 1: 1,000 steps, in interval 10: 100.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def replay_steps(intervals: Sequence[int], hit: int | Iterable[int]) -> int:
    """Steps to be taken again when documents of these intervals (from 1) are deleted."""
    hits = [hit] if isinstance(hit, int) else list(hit)
    if not hits:
        return 0
    first = min(hits)
    if first < 1 or max(hits) > len(intervals):
        raise ValueError(f"intervals are 1 .. {len(intervals)}, got {hits}")
    return int(sum(intervals[first - 1 :]))


def hit_probability(documents: Iterable[float]) -> float:
    """Probability that at least one of some documents is deleted, each by itself."""
    q = np.asarray(list(documents), dtype=np.float64)
    return float(-np.expm1(np.log1p(-q).sum())) if (q < 1).all() else 1.0


def expected_steps(intervals: Sequence[int], probabilities: Sequence[float]) -> float:
    """Expected steps of a replay, given the probability that each interval is hit."""
    if len(intervals) != len(probabilities):
        raise ValueError(f"{len(intervals)} intervals, {len(probabilities)} probabilities")
    p: Floats = np.asarray(probabilities, dtype=np.float64)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("probabilities lie between 0 and 1")
    left = np.cumsum(np.asarray(intervals, dtype=np.float64)[::-1])[::-1]
    spared = np.concatenate([[1.0], np.cumprod(1 - p)[:-1]])
    return float((spared * p * left).sum())
