"""Intervals of 95 %: of a share, of a difference of shares, of a rank correlation, of a mean.

    share        Wilson's score interval: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    difference   Newcombe's: the two Wilson intervals, their halves added in squares
    correlation  Spearman's rho by Fisher's z with the variance (1 + rho^2/2) / (n - 3)
    mean         2.5 and 97.5 % quantiles of the weighted mean when every document counts Poisson(1)
                 times (a bootstrap): the count is read off a draw of its id, so that exact copies
                 count alike and neither row order nor the number of workers matters

All of them take the documents for a sample of what their sources give. They tell how far figures
would move with other documents of the same kind; they know nothing of a detector's own errors.
Sources: Wilson 1927; Newcombe 1998 (method 10); Bonett and Wright 2000; Efron 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.proportions import Z, wilson
from foresift.pipeline.rng import Rng

RESAMPLES = 400
Floats = npt.NDArray[np.float64]
#: chance that a Poisson(1) count is at most 0, 1, 2 ...
_AT_MOST = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(16)])


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its 95 % interval; None where they cannot be told."""

    value: float
    low: float | None = None
    """Lower end."""
    high: float | None = None
    """Upper end."""


def share(count: int, n: int) -> Interval | None:
    """Wilson's interval of `count` in `n`; None where there is nothing to count in."""
    if n <= 0:
        return None
    return Interval(count / n, *wilson(count, n))


def difference(ours: Interval, theirs: Interval) -> Interval:
    """Theirs less ours, of two shares with their Wilson intervals."""
    gap = theirs.value - ours.value
    if ours.low is None or ours.high is None or theirs.low is None or theirs.high is None:
        return Interval(gap)
    below = math.hypot(theirs.value - theirs.low, ours.high - ours.value)
    above = math.hypot(theirs.high - theirs.value, ours.value - ours.low)
    return Interval(gap, max(-1.0, gap - below), min(1.0, gap + above))


def correlation(rho: float, n: int) -> Interval:
    """A rank correlation over `n` documents."""
    if n < 4 or abs(rho) >= 1:
        return Interval(rho)
    half = Z * math.sqrt((1 + rho * rho / 2) / (n - 3))
    z = math.atanh(rho)
    return Interval(rho, math.tanh(z - half), math.tanh(z + half))


def resampled(ids: pa.Array | pa.ChunkedArray, columns: Sequence[Floats]) -> Floats:
    """[RESAMPLES, columns] means of each column (NaN left out) over documents drawn anew."""
    filled = np.stack([np.nan_to_num(c, nan=0.0) for c in columns], axis=1)
    there = np.stack([~np.isnan(c) for c in columns], axis=1).astype(np.float64)
    found = np.empty((RESAMPLES, len(columns)))
    for draw in range(RESAMPLES):
        chance = Rng(0).at("report", "bootstrap", draw).uniform(ids)
        weight = np.searchsorted(_AT_MOST, chance, side="right").astype(np.float64)
        with np.errstate(invalid="ignore"):
            found[draw] = (weight @ filled) / (weight @ there)
    return found


def mean(values: Floats, draws: Floats) -> Interval | None:
    """The mean of the values that are there, with the quantiles of its draws."""
    there = values[~np.isnan(values)]
    if len(there) == 0:
        return None
    known = draws[~np.isnan(draws)]
    if len(there) < 2 or len(known) < RESAMPLES // 2:
        return Interval(float(there.mean()))
    low, high = (float(q) for q in np.quantile(known, [0.025, 0.975]))
    return Interval(float(there.mean()), low, high)


def quantiles(values: Floats, at: Sequence[float]) -> list[float | None]:
    """Quantiles of what is there; None of nothing."""
    there: npt.NDArray[Any] = values[~np.isnan(values)]
    return [float(q) for q in np.quantile(there, at)] if len(there) else [None] * len(at)
