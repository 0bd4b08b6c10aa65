"""Groups of numbers on a line, ascending: k-means in one dimension, or parts of equal size.

    kmeans      minimises   sum_g sum_{i in g} (x_i - mean_g)^2      over all k intervals
    quantile    the x in rank order, cut into k parts whose sizes differ by at most 1

k-means of sorted numbers is a cut of the line: D(c, j), the least cost of the j lowest in c groups,
is min_i D(c - 1, i) + cost(i, j), and the best i does not fall as j grows. So j is solved at steps
of a power of two that is halved, each between its solved neighbours: O(k m log m) for m different
values, with costs from prefix sums. Exact up to EXACT different values and so without a seed. Above
that the exact cut of SUMMARY weighted means is moved to the nearest cut that Lloyd's rule leaves
alone. Equal numbers share a group, except where fewer than k differ: then, as in `quantile`, the
ranking is cut into equal parts and equal numbers follow the order in which they were given.

Numbers are finite float64. Source: Wang and Song 2011 (Ckmeans.1d.dp); Wu 1991 for the order of the
best cuts.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Grouping = Literal["kmeans", "quantile"]
#: different values up to which the cut is the exact one (about a second for ten groups)
EXACT = 131072
#: weighted means that stand for more than that
SUMMARY = 32768
_MOVES = 100


def grouped(values: Floats, k: int, grouping: Grouping) -> Ints:
    """[n] the group of each value, 0 (lowest) .. k - 1, none of them empty; n is at least k."""
    if grouping == "kmeans":
        distinct, counts = np.unique(values, return_counts=True)
        if len(distinct) >= k:
            firsts = distinct[starts(distinct, counts, k)[1:]]
            return np.searchsorted(firsts, values, side="right")
    labels = np.empty(len(values), dtype=np.int64)
    labels[np.argsort(values, kind="stable")] = np.arange(len(values)) * k // len(values)
    return labels


def equal_part(n: int, k: int, first: int, parts: int) -> int:
    """Values in `parts` groups of `quantile`, from group `first` on."""
    return -(-(first + parts) * n // k) + (-first * n // k)


def starts(values: Floats, weights: Ints, k: int) -> Ints:
    """[k] where each group begins in sorted different values, by weighted k-means."""
    if len(values) <= EXACT:
        return _cut(values, weights.astype(np.float64), k)
    edges = np.arange(SUMMARY, dtype=np.int64) * len(values) // SUMMARY
    mass = np.add.reduceat(weights.astype(np.float64), edges)
    means = np.add.reduceat(values * weights, edges) / mass
    return _settled(values, weights, edges[_cut(means, mass, k)])


def _cut(values: Floats, weights: Floats, k: int) -> Ints:
    """The exact cut."""
    sums = _Sums(values, weights)
    m = len(values)
    best = sums.cost(np.zeros(m + 1, dtype=np.int64), np.arange(m + 1))
    choices = []
    for groups in range(1, k):
        best, choice = _layer(best, sums, groups)
        choices.append(choice)
    begins = np.zeros(k, dtype=np.int64)
    end = m
    for group in range(k - 1, 0, -1):
        begins[group] = end = choices[group - 1][end]
    return begins


class _Sums:
    """Prefix sums of weights, values and squares; values are centred, so that little cancels."""

    def __init__(self, values: Floats, weights: Floats) -> None:
        centred = values - np.average(values, weights=weights)
        self.weight = np.concatenate(([0.0], np.cumsum(weights)))
        self.first = np.concatenate(([0.0], np.cumsum(weights * centred)))
        self.second = np.concatenate(([0.0], np.cumsum(weights * centred**2)))

    def cost(self, begin: Ints, end: Ints) -> Floats:
        """Squared deviations of values begin .. end - 1 from their mean; 0 for none."""
        mass = self.weight[end] - self.weight[begin]
        total = self.first[end] - self.first[begin]
        spread = self.second[end] - self.second[begin]
        cost: Floats = np.maximum(spread - total**2 / np.where(mass > 0, mass, 1.0), 0.0)
        return cost


def _layer(before: Floats, sums: _Sums, groups: int) -> tuple[Floats, Ints]:
    """One group more than `groups`: for each j the least cost, and where the last group begins.

    No group is empty: the last one begins at `groups` or later, and ends after that.
    """
    m = len(before) - 1
    best = np.zeros(m + 1)
    choice = np.zeros(m + 1, dtype=np.int64)
    step = 1 << m.bit_length()
    while step > 1:
        half = step // 2
        j = np.arange(half, m + 1, step)
        low = np.maximum(choice[j - half], groups)
        above = np.minimum(j + half, m + 1)
        high = np.where(above <= m, choice[np.minimum(above, m)], m)
        best[j], choice[j] = _least(before, sums, j, low, np.minimum(high, j - 1))
        step = half
    best[: groups + 1] = np.inf
    return best, choice


def _least(before: Floats, sums: _Sums, j: Ints, low: Ints, high: Ints) -> tuple[Floats, Ints]:
    """For each j the least before[i] + cost(i, j) over low <= i <= high, and the first such i."""
    lengths = np.maximum(high - low, 0) + 1
    offsets = np.cumsum(lengths) - lengths
    i = np.arange(int(lengths.sum())) + np.repeat(low - offsets, lengths)
    found = before[i] + sums.cost(i, np.repeat(j, lengths))
    least = np.minimum.reduceat(found, offsets)
    hits = np.flatnonzero(found == np.repeat(least, lengths))
    return least, i[hits[np.searchsorted(hits, offsets)]]


def _settled(values: Floats, weights: Ints, begins: Ints) -> Ints:
    """Lloyd's rule on sorted values: each goes to the nearest mean, until nothing moves."""
    mass = np.concatenate(([0.0], np.cumsum(weights.astype(np.float64))))
    total = np.concatenate(([0.0], np.cumsum(values * weights)))
    for _ in range(_MOVES):
        edges = np.append(begins, len(values))
        means = np.diff(total[edges]) / np.diff(mass[edges])
        moved = np.searchsorted(values, (means[1:] + means[:-1]) / 2, side="right")
        after = np.concatenate(([0], moved))
        if np.array_equal(after, begins) or (np.diff(np.append(after, len(values))) < 1).any():
            break
        begins = after
    return begins
