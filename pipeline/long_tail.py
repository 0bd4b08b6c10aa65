"""What rare items are worth: the long tail, and memorisation that a model needs.

    tau_l = E[a^(l+1) (1 - a)^(n-l)] / E[a^l (1 - a)^(n-l)]

is the frequency to be expected of a subpopulation that a sample of size n holds l times, where
frequencies a are drawn from a prior. A learner that fails to fit the subpopulations seen l times
loses at least tau_l on each, so n tau_l is how many of n test items one of them is worth. Known
answers: all a = 1/N gives 1/N; Zipf(1) over 10,000 and n = 10,000 gives n tau_1 = 0.50, n tau_2 =
1.10, n tau_5 = 4.00: a singleton is worth half a test item.

    mem(x) = E[score(x) | x in S] - E[score(x) | x not in S]         S: random halves of the data

is the counterfactual memorisation of x. With K models of N parameters on D tokens it costs 6 N D K
/ 2 FLOPs and gives every x at once. Sources: Feldman 2020; Feldman and Zhang 2020; Zhang et al.
2023.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, xlog1py, xlogy  # type: ignore[import-untyped]

Floats = npt.NDArray[np.float64]
#: ranks of a Zipf law that are taken one by one; further ones in groups, RANKS to an octave
RANKS = 1 << 14


def zipf(count: int, exponent: float = 1.0) -> tuple[Floats, Floats]:
    """(frequencies, how many subpopulations have each) of `count` ones with 1 / rank^exponent.

    Beyond the first RANKS, ranks are taken in groups at their mean: one in 16,000 wide.
    """
    if count < 1:
        raise ValueError("there is at least one subpopulation")
    ranks = np.arange(1, min(count, 2 * RANKS) + 1, dtype=np.float64)
    values, times = [ranks**-exponent], [np.ones(len(ranks))]
    low = 2 * RANKS
    while low < count:
        high = min(2 * low, count)
        edges = np.unique(np.linspace(low, high, RANKS + 1).astype(np.int64))
        values.append(((edges[:-1] + 1 + edges[1:]) / 2.0) ** -exponent)
        times.append(np.diff(edges).astype(np.float64))
        low = high
    value, time = np.concatenate(values), np.concatenate(times)
    return value / float(value @ time), time


def tau(
    counts: npt.ArrayLike, n: int, frequencies: npt.ArrayLike, times: npt.ArrayLike | None = None
) -> Floats:
    """tau_l for each l in `counts`, given the prior: frequencies in (0, 1], each `times` often."""
    seen = np.atleast_1d(np.asarray(counts, dtype=np.float64))
    a = np.asarray(frequencies, dtype=np.float64)
    weight = np.ones(len(a)) if times is None else np.asarray(times, dtype=np.float64)
    if not len(a) or (a <= 0).any() or (a > 1).any():
        raise ValueError("frequencies lie above 0 and are at most 1")
    if (seen < 0).any() or (seen > n).any():
        raise ValueError(f"in a sample of {n} something is seen 0 to {n} times")
    found = []
    for times_seen in seen.tolist():
        chance = xlogy(times_seen, a) + xlog1py(n - times_seen, -a) + np.log(weight)
        below = logsumexp(chance)
        above = logsumexp(chance + np.log(a))
        found.append(float(np.exp(above - below)) if np.isfinite(below) else float(times_seen / n))
    return np.array(found)


def counterfactual_memorisation(
    scores: npt.ArrayLike, members: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """[n] mem(x) of [K, n] scores by K models, and whether each x was in their data.

    NaN where all models had x, or none.
    """
    score = np.asarray(scores, dtype=np.float64)
    inside = np.asarray(members, dtype=np.bool_)
    if score.ndim != 2 or score.shape != inside.shape:
        raise ValueError(f"scores {score.shape} and members {inside.shape} are both [K, n]")
    had = inside.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        with_it = np.where(inside, score, 0.0).sum(axis=0) / had
        without = np.where(inside, 0.0, score).sum(axis=0) / (len(score) - had)
    return np.asarray(with_it - without)
