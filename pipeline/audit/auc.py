"""How well a score tells members from others: the area under its ROC curve, with an interval.

    AUC = P(score of a member > score of another) + P(equal) / 2           [0, 1], 0.5 = chance

The 95 % interval is DeLong's: with V10_i the share of others below member i, V01_j the share of
members above other j (equals count half),

    var = var(V10) / n + var(V01) / m        logit(AUC) +- 1.96 sqrt(var) / (AUC (1 - AUC))

on the logit scale, so that its ends stay inside [0, 1]. Where all members lie above all others (or
below) that variance is 0, though n and m are finite: the interval is then Wilson's for min(n, m)
successes in min(n, m) trials. Where all scores are equal it is the band below.

`untrained_band` is where the AUC of a score that knows nothing falls 95 times in 100:

    0.5 +- 1.96 sqrt((n + m + 1) / (12 n m))

Cost: sorting. Sources: DeLong et al. 1988; Sun and Xu 2014; Pepe 2003 (logit); Mann and Whitney
1947 (the band).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foresift.pipeline.errors import DataError
from foresift.pipeline.proportions import Z, wilson

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Auc:
    """An area under a ROC curve and its 95 % interval."""

    value: float
    low: float
    high: float
    members: int
    """How many members there were."""
    others: int
    """How many others."""


def auc(members: npt.ArrayLike, others: npt.ArrayLike) -> Auc:
    """The AUC of scores of members against scores of others; larger = more likely a member."""
    ours, theirs = _flat(members, "members"), _flat(others, "others")
    n, m = len(ours), len(theirs)
    above = _placed(ours, theirs) / m
    value = float(above.mean())
    if n < 2 or m < 2:
        return Auc(value, 0.0, 1.0, n, m)
    below = 1 - _placed(theirs, ours) / n
    se = math.sqrt(float(above.var(ddof=1)) / n + float(below.var(ddof=1)) / m)
    if value in (0.0, 1.0):
        k = min(n, m)
        return Auc(value, *wilson(round(value * k), k), n, m)
    if se == 0:
        return Auc(value, *untrained_band(n, m), n, m)
    middle, half = math.log(value / (1 - value)), Z * se / (value * (1 - value))
    return Auc(value, _expit(middle - half), _expit(middle + half), n, m)


def rank_auc(members: npt.ArrayLike, others: npt.ArrayLike) -> float:
    """The AUC alone."""
    ours, theirs = _flat(members, "members"), _flat(others, "others")
    return float(_placed(ours, theirs).mean() / len(theirs))


def untrained_band(members: int, others: int, z: float = Z) -> tuple[float, float]:
    """Where the AUC of a score that knows nothing lies, with chance 95 % (at z = 1.96)."""
    half = z * math.sqrt((members + others + 1) / (12 * members * others))
    return max(0.0, 0.5 - half), min(1.0, 0.5 + half)


def _flat(values: npt.ArrayLike, name: str) -> Floats:
    found = np.asarray(values, dtype=np.float64).ravel()
    if not len(found):
        raise DataError("no score", where=name)
    if np.isnan(found).any():
        raise DataError(f"{int(np.isnan(found).sum())} of {len(found)} are NaN", where=name)
    return found


def _placed(these: Floats, among: Floats) -> Floats:
    """How many of `among` lie below each of these; equals count half."""
    line = np.sort(among)
    left, right = np.searchsorted(line, these, "left"), np.searchsorted(line, these, "right")
    found: Floats = (left + right) / 2.0
    return found


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
