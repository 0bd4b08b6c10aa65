"""Competence-paced curriculum: at first only the easiest rows may come, at last all of them.

    c(t) = min(1, (t (1 - c0^p) + c0^p)^(1/p))          competence at time t
    t = i / (T n)                                       at position i of n; T = `until`
    unlocked at i: the max(i + 1, ceil(c(t) n)) rows of lowest score, ties by id

Each position takes one of the unlocked rows that were not taken yet, all with the same probability.
Every row comes once. With p of at least 1, c(t) >= t, so there is always one to take. p = 1 unlocks
at an even pace; with p = 2 (square root) the pace is inverse to how many are unlocked, so that new
rows do not become rarer or denser among them; c0 = 1 is a shuffle. Rows without a score (null, NaN)
are unlocked last. Cost: one sort and n steps.

Source: Platanios et al. 2019, equation 8 of competence-based curriculum learning; they draw batches
with replacement, here no row is seen twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.nouns import Order, Rng
from foresift.stages.orders._folds import Rows, ranked

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curriculum(Order):
    """Arrange rows at random among the easiest, of which ever more are unlocked."""

    by: str
    """Column of difficulty; low is easy and is unlocked first."""
    c0: float = 0.01
    """Competence at the start: share of the rows unlocked at once; above 0, at most 1."""
    p: float = 2.0
    """Bend of the pace: 1 is linear, 2 the square root, more unlocks earlier; at least 1."""
    until: float = 1.0
    """T, the share of all positions after which every row is unlocked; above 0, at most 1."""

    def __post_init__(self) -> None:
        if not 0 < self.c0 <= 1:
            raise ValueError("c0 is a share of the rows, above 0 and at most 1")
        if not 1 <= self.p < np.inf:
            raise ValueError("p must be at least 1: a slower pace would run out of unlocked rows")
        if not 0 < self.until <= 1:
            raise ValueError("until is a share of the positions, above 0 and at most 1")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def order(self, table: pa.Table, rng: Rng) -> npt.NDArray[np.int64]:
        rows = ranked(table, self.by)
        count = unlocked(len(rows), self.c0, self.p, self.until)
        return rows[paced(count, rng.at("pace").generator())]


def competence(t: Floats, c0: float, p: float) -> Floats:
    """c(t): the share of rows that are unlocked at time t."""
    found: Floats = np.minimum(1.0, (t * (1 - c0**p) + c0**p) ** (1 / p))
    return found


def unlocked(n: int, c0: float, p: float, until: float) -> Rows:
    """[n] how many rows are unlocked at each position."""
    position = np.arange(n)
    share = competence(position / (until * max(n, 1)), c0, p)
    # rounded, so that 0.1 of 30 rows are 3 and not 4
    count = np.ceil(np.round(share * n, 6)).astype(np.int64)
    return np.minimum(np.maximum(count, position + 1), n)


def paced(count: Rows, generator: np.random.Generator) -> Rows:
    """Ranks, each drawn from those below the count of its position that were not drawn yet."""
    draws = generator.random(len(count)).tolist()
    pool: list[int] = []
    order = np.empty(len(count), dtype=np.int64)
    known = 0
    for position, (limit, draw) in enumerate(zip(count.tolist(), draws, strict=True)):
        pool.extend(range(known, limit))
        known = limit
        which = int(draw * len(pool))
        order[position], pool[which] = pool[which], pool[-1]
        pool.pop()
    return order
