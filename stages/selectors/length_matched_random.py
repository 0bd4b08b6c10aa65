"""A random sample whose lengths are distributed like those of another selection.

Selections are often longer or shorter than the pool; this baseline takes the length away from the
comparison. Lengths are cut into bins at quantiles of the target T (the rows where `like` is true),
with one bin below its shortest and one above its longest row. Bin b has the quota

    q_b = sum of cost over T in bin b          (tokens; sum_b q_b = the default budget)

Within a bin rows stand in the order of U(seed, id); outside the range of T, nearest length first.
All bins are consumed at the same relative speed: row i of bin b is reached at the time t_i at which
bin b has given out all cost before i and half of i's, when it gives out q_b per unit of time. A bin
that is empty hands its rate to the nearest bin that is not. Rows ordered by t_i therefore match the
target at *every* budget, and re-cutting the choice in the same unit is exact. Rows of T may be
drawn too. A target without cost puts no weight on any bin: then every bin gives out what it has,
which is a plain random sample.

Facts: bin edges, target and achieved cost of each bin, and the Kolmogorov-Smirnov distance between
the lengths of the sample and of the target (largest difference of their distribution functions,
0 to 1, every row counting once). Cost: one sort.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import scores
from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.stages.selectors._ranking import Floats, cut

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class LengthMatchedRandom(Selector):
    """Keep a random sample with the lengths of another selection."""

    budgeted: ClassVar[bool] = False

    like: str
    """Boolean column that marks the target, such as `select.kept`; missing counts as false."""
    by: str = "n_tokens"
    """Column of lengths; rows without a length are never kept."""
    bins: int = 32
    """Quantile bins of the target's lengths (fewer where lengths repeat)."""

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError("bins must be at least 1")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.like, self.by, "n_tokens")

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        length = scores(table, self.by)
        known = ~np.isnan(length)
        target = (np.nan_to_num(scores(table, self.like)) != 0) & known
        costs = (budget or Budget(0)).costs(table)
        budget = budget or Budget(float(costs[target].sum()))

        edges = _edges(length[target], self.bins)
        bin_of = np.searchsorted(edges, length, side="right")
        supply = _cost_by_bin(bin_of, costs, known, len(edges) + 1)
        quota = _cost_by_bin(bin_of, costs, target, len(edges) + 1)
        schedule = _schedule(supply, quota if quota.any() else supply)
        draws = rng.uniform(table["id"])
        outside = {0: -length, len(edges): length} if len(edges) else {}
        time = np.full(table.num_rows, np.nan)
        for number, (spent, at) in enumerate(schedule):
            rows = np.flatnonzero(known & (bin_of == number))
            rows = rows[np.lexsort((draws[rows], outside.get(number, draws)[rows]))]
            middle = np.cumsum(costs[rows]) - costs[rows] / 2
            time[rows] = np.interp(middle, spent, at)
        choice = cut(-time, table, budget, "no length")
        achieved = _cost_by_bin(bin_of, costs, choice.kept, len(edges) + 1)
        facts = {
            "target_rows": int(target.sum()),
            "edges": edges.tolist(),
            "target_cost": [int(x) for x in quota],
            "achieved_cost": [int(x) for x in achieved],
            "ks_distance": _ks(length[choice.kept], length[target]),
        }
        return replace(choice, facts={**choice.facts, **facts})


def _edges(lengths: Floats, bins: int) -> Floats:
    """Quantiles of the target; the last edge lies just above its longest row."""
    if not len(lengths):
        return np.empty(0)
    points = np.linspace(0, 1, bins + 1)
    edges: Floats = np.quantile(lengths, points, method="inverted_cdf").astype(np.float64)
    edges[-1] = np.nextafter(edges[-1], np.inf)
    return np.unique(edges)


def _cost_by_bin(bin_of: npt.NDArray[Any], costs: npt.NDArray[Any], rows: Bools, n: int) -> Floats:
    return np.bincount(bin_of[rows], costs[rows], n).astype(np.float64)


def _schedule(supply: Floats, quota: Floats) -> list[tuple[Floats, Floats]]:
    """For each bin the broken line (cost given out, time), by stepping from one empty bin to the
    next."""
    count = len(supply)
    spent = np.zeros(count)
    steps, times = [spent], [0.0]
    alive = supply > 0
    while alive.any():
        rate = _rates(quota, alive)
        left = np.divide(supply - spent, rate, out=np.full(count, np.inf), where=rate > 0)
        first = left.min()
        alive &= left > first
        spent = np.where(alive, spent + rate * first, np.where(rate > 0, supply, spent))
        steps.append(spent)
        times.append(times[-1] + first)
    lines = np.stack(steps, axis=1)
    return [(line, np.asarray(times)) for line in lines]


def _rates(quota: Floats, alive: Bools) -> Floats:
    """The quota of every bin, given to the nearest bin that is not empty (the shorter on a tie)."""
    open_bins = np.flatnonzero(alive)
    distance = np.abs(np.arange(len(quota))[:, None] - open_bins[None, :])
    nearest = open_bins[np.argmin(distance, axis=1)]
    return np.bincount(nearest, quota, len(quota)).astype(np.float64)


def _ks(sample: Floats, target: Floats) -> float | None:
    """Kolmogorov-Smirnov distance; None where one side is empty."""
    if not (len(sample) and len(target)):
        return None
    points = np.unique(np.concatenate([sample, target]))
    ours = np.searchsorted(np.sort(sample), points, side="right") / len(sample)
    theirs = np.searchsorted(np.sort(target), points, side="right") / len(target)
    return float(np.abs(ours - theirs).max())
