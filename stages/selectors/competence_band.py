"""Keep what the model solves sometimes: instances whose pass rate lies in a band.

    pass rate of i   mean_k r_ik          r_ik in [0, 1], the rewards of K rollouts
    band             low <= mean_k r_ik <= high
    RIF (default)    max_k r_ik >= theta and mean_k r_ik <= high;  low = 1 / K of known means

An instance that is never solved gives a group-normalised policy gradient no direction, and one
that is always solved gives none either. RIF (rollout-based instance filtering) drops the former
only; `high` below 1, such as 0.99, drops the latter too. Measure with the model that will be
trained: another one has another band. Count a rollout once: identical ones are not evidence twice.

A hard instance may be unlucky. With success probability p it is dropped as too hard with
probability

    P(Binomial(K, p) < low K),    which is (1 - p)^K for RIF: 0.430 and 0.058 at p = 0.1, 0.3, K = 8

Facts give it for p = 0.1 and 0.3 (`false_drop`, the mean over rows where K differs). Give those
that were "never solved" more rollouts (say 32) before dropping them for good.

Reasons: "in the band"; "never solved" (no reward reaches theta, or a mean below 1 / K),
"below the band", "always solved" (mean 1), "above the band"; "no rollouts" (null, NaN or an empty
list; missing rewards in a list are left out). Rewards (0,0,0,0), (1,0,0,0), (1,1,1,1): RIF keeps
the last two, the band (1/4, 3/4) the second. Bounds hold to 1e-6, so that 1/3 in 32 bits is 1/3.
Rows are not ranked, and a budget is not looked at. Cost: one pass. Source: RFT (2507.05386), which
leaves theta and K open; K = 8 is that of a third-party implementation; the band is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.choice import scores
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Budget, Choice, Rng, Selector

Floats = npt.NDArray[np.float64]
SLACK = 1e-6
HARD = (0.1, 0.3)


@dataclass(frozen=True)
class Rollouts:
    """What is known of the rewards of each row; NaN and 0 where there are none."""

    mean: Floats
    best: Floats
    """Largest reward; NaN where only means are known."""
    count: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CompetenceBand(Selector):
    """Keep instances that the model solves sometimes (RIF, or a band of pass rates)."""

    budgeted: ClassVar[bool] = False

    pass_rate: str = ""
    """Column of mean rewards, each in [0, 1]; give this or `rewards`."""
    rewards: str = ""
    """Column of lists: the rewards of a row's rollouts, as many as there are."""
    rollouts: int = 8
    """K behind each pass rate; lists count for themselves."""
    theta: float = 1.0
    """Smallest reward that counts as solved (for `rewards`)."""
    low: float | None = None
    """Smallest mean reward kept; by default one success is enough (RIF)."""
    high: float = 1.0
    """Largest mean reward kept; 1 keeps what is always solved."""

    def __post_init__(self) -> None:
        if bool(self.pass_rate) == bool(self.rewards):
            raise ValueError("give either pass_rate or rewards, the name of a column")
        if self.rollouts < 1:
            raise ValueError("rollouts must be at least 1")
        bounds = [self.theta, self.high, *([] if self.low is None else [self.low])]
        if not all(math.isfinite(x) for x in bounds):
            raise ValueError("theta, low and high must be finite numbers")
        if self.low is not None and self.low > self.high:
            raise ValueError("low must not be above high")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.pass_rate or self.rewards,)

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        seen = self._seen(table)
        mean = seen.mean
        unsolved = seen.best < self.theta - SLACK
        if self.pass_rate:
            unsolved = mean < 1 / self.rollouts - SLACK
        hard = unsolved if self.low is None else mean < self.low - SLACK
        easy = mean > self.high + SLACK
        tests = [
            (np.isnan(mean), "no rollouts"),
            (hard & unsolved, "never solved"),
            (hard, "below the band"),
            (easy & (mean > 1 - SLACK), "always solved"),
            (easy, "above the band"),
        ]
        reason = np.select([t for t, _ in tests], [r for _, r in tests], "in the band")
        kept = reason == "in the band"
        n = len(mean)
        return Choice(
            kept=kept,
            rank=np.full(n, -1, dtype=np.int64),
            weight=np.ones(n, dtype=np.float32),
            reason=reason.astype(object),
            facts=self._facts(seen),
        )

    def _seen(self, table: pa.Table) -> Rollouts:
        if self.rewards:
            return from_lists(table, self.rewards)
        mean = scores(table, self.pass_rate)
        wrong = mean[(mean < -SLACK) | (mean > 1 + SLACK)]
        if len(wrong):
            raise DataError(
                f"a pass rate lies between 0 and 1; {len(wrong)} rows do not, such as {wrong[0]:g}",
                where=self.pass_rate,
            )
        count = np.where(np.isnan(mean), 0, self.rollouts)
        return Rollouts(mean, np.full(len(mean), np.nan), count)

    def _facts(self, seen: Rollouts) -> dict[str, object]:
        counts, rows = np.unique(seen.count[seen.count > 0], return_counts=True)
        drops = {
            f"{p:g}": float(np.average([self.false_drop(p, int(k)) for k in counts], weights=rows))
            if len(counts)
            else None
            for p in HARD
        }
        known = seen.mean[~np.isnan(seen.mean)]
        return {
            "with_rollouts": len(known),
            "mean_pass_rate": float(np.sort(known).mean()) if len(known) else None,
            "rollouts": int(seen.count.sum()),
            "false_drop": drops,
        }

    def false_drop(self, p: float, rollouts: int) -> float:
        """P(an instance of success probability p is dropped as too hard), rewards 0 or 1."""
        least = 1 if self.low is None else math.ceil((self.low - SLACK) * rollouts)
        return math.fsum(
            math.comb(rollouts, k) * p**k * (1 - p) ** (rollouts - k)
            for k in range(min(least, rollouts + 1))
        )


def from_lists(table: pa.Table, name: str) -> Rollouts:
    """Mean, maximum and number of the rewards in each row's list."""
    column = table[name].combine_chunks()
    n, types = table.num_rows, pa.types
    mean, best = np.full(n, np.nan), np.full(n, -np.inf)
    count = np.zeros(n, dtype=np.int64)
    if not types.is_null(column.type):
        nested = types.is_list(column.type) or types.is_large_list(column.type)
        if not (nested or types.is_fixed_size_list(column.type)):
            raise DataError(f"rewards are lists of numbers, not {column.type}", where=name)
        flat = scores(pa.table({name: pc.list_flatten(column)}), name)
        row = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
        row, flat = row[~np.isnan(flat)], flat[~np.isnan(flat)]
        count = np.bincount(row, minlength=n).astype(np.int64)
        total = np.bincount(row, flat, n)
        np.divide(total, count, out=mean, where=count > 0)
        np.maximum.at(best, row, flat)
    best[count == 0] = np.nan
    return Rollouts(mean, best, count)
