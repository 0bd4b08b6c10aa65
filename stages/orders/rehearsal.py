"""Power-law rehearsal: after each stage, a few rows of earlier stages come again.

    stage k = 0 .. K-1      base order cut in K parts of equal cost, or one part a label
    after stage k           rows of stages j < k, drawn until they cost share x cost of stage k
    sampled                 P(j) = (k - j)^-a / sum over i < k of (k - i)^-a
    doubling                the stages of ages k - j = 1, 2, 4, 8, ... by turns

The age of a stage counts from when it was trained; stages without rows do not count. For a = 1,
ages 1, 2 and 4 alone would be drawn with 4/7, 2/7 and 1/7. The rows of a stage come by a draw of
(seed, id), and none comes twice before all of its stage did. Inside one rehearsal none comes twice
at all: a stage with no row left is drawn no more, and a rehearsal may be smaller than its share.
The row that crosses the share is included, and what it costs too much is taken off the next
rehearsal (counted in rows, what was rehearsed up to any stage is the share, rounded up). Nothing
precedes stage 0: nothing is rehearsed after it.

Each row comes once in the base order; everything else is a repeat. Cost: two sorts and a step for
each repeat. Source: power-law rehearsal against catastrophic interference. That probability falls
as a power of age is theirs; a = 1, the share and `doubling` are our choice. Usual are shares of 1 %
to 5 % and a from 0.5 to 1.5.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import Budget
from foresift.pipeline.nouns import Order, Rng
from foresift.stages.orders._domains import SHUFFLE, Rows, domains, inner_order
from foresift.stages.orders._parts import equal_parts

#: (numbers of the stages that have rows left, the stage now) -> a function that draws one of them
Due = Callable[[list[int], int], Callable[[], int]]


@dataclass(frozen=True, kw_only=True)
class Rehearsal(Order):
    """Arrange rows in stages and rehearse earlier ones after each, older ones more rarely."""

    repeats: ClassVar[bool] = True

    stages: int | str = 8
    """K, the number of stages; or a column of labels: one stage a label, in the order of labels,
    rows without one in the last."""
    by: str = SHUFFLE
    """The base order, all of it or inside a label: `shuffle`, or a column of scores, low first."""
    share: float = 0.03
    """Cost of what is rehearsed after a stage, as a share of that stage's; above 0, at most 1."""
    schedule: Literal["sampled", "doubling"] = "sampled"
    """Stages drawn by the power law, or those of ages 1, 2, 4, 8, ... by turns."""
    exponent: float = 1.0
    """a, how fast a stage is forgotten by the sampled schedule; at least 0 (0: all ages alike)."""
    cost: str = "n_tokens"
    """Column in which stages and shares are measured; `rows` counts every row as 1."""

    def __post_init__(self) -> None:
        if isinstance(self.stages, int) and self.stages < 1:
            raise ValueError("stages must be at least 1, or the name of a column")
        if not 0 < self.share <= 1:
            raise ValueError("share must be above 0 and at most 1")
        if not 0 <= self.exponent < np.inf:
            raise ValueError("exponent must be a number of at least 0")

    @property
    def needs(self) -> tuple[str, ...]:
        stages = (self.stages,) if isinstance(self.stages, str) else ()
        by = () if self.by == SHUFFLE else (self.by,)
        return (*stages, *by, *(() if self.cost == "rows" else (self.cost,)))

    def order(self, table: pa.Table, rng: Rng) -> npt.NDArray[np.int64]:
        rows = inner_order(table, self.by, rng)
        costs = Budget(1.0, True, self.cost).costs(table)
        if isinstance(self.stages, str):
            stage = domains(table, self.stages)[0][rows]
        else:
            stage = equal_parts(costs[rows], self.stages)
        rows, stage = rows[np.argsort(stage, kind="stable")], np.sort(stage)
        pieces = np.split(rows, np.flatnonzero(np.diff(stage)) + 1)
        queue = np.empty(len(rows), dtype=np.int64)
        queue[inner_order(table, SHUFFLE, rng.at("rehearsal"))] = np.arange(len(rows))
        queues = [piece[np.argsort(queue[piece])] for piece in pieces]
        due = turns if self.schedule == "doubling" else sampled(self.exponent, rng.at("stage"))
        again = rehearsals(queues, costs, self.share, due)
        parts = itertools.chain.from_iterable(zip(pieces, again, strict=True))
        return np.concatenate(list(parts))


def power_law(ages: Sequence[int], exponent: float) -> npt.NDArray[np.float64]:
    """The probability of each age: age^-a over their sum."""
    weights = np.asarray(ages, dtype=np.float64) ** -exponent
    found: npt.NDArray[np.float64] = weights / weights.sum()
    return found


def sampled(exponent: float, rng: Rng) -> Due:
    """Draws by the power law."""
    generator = rng.generator()

    def due(stages: list[int], now: int) -> Callable[[], int]:
        bounds = np.cumsum(power_law([now - stage for stage in stages], exponent)).tolist()
        return lambda: stages[min(bisect.bisect(bounds, generator.random()), len(stages) - 1)]

    return due


def turns(stages: list[int], now: int) -> Callable[[], int]:
    """Takes the stages whose age is a power of two by turns, the last one first."""
    ages = sorted(now - stage for stage in stages)
    turn = itertools.cycle([now - age for age in ages if age & (age - 1) == 0])
    return lambda: next(turn, -1)


def rehearsals(queues: list[Rows], costs: Rows, share: float, due: Due) -> list[Rows]:
    """What is rehearsed after each stage, given the rows of each in the order they come in."""
    at = [0] * len(queues)
    over = 0.0
    found = []
    for now, queue in enumerate(queues):
        left = {stage: len(queues[stage]) for stage in range(now)}
        target = share * int(costs[queue].sum()) - over if now else 0.0
        spent, rows, draw = 0, [], due(list(left), now) if left else None
        while draw is not None and spent < round(target, 6):
            stage = draw()
            if stage < 0:
                break
            rows.append(int(queues[stage][at[stage] % len(queues[stage])]))
            spent += int(costs[rows[-1]])
            at[stage] += 1
            left[stage] -= 1
            if not left[stage]:
                del left[stage]
                draw = due(list(left), now) if left else None
        over = max(spent - target, 0.0)
        found.append(np.array(rows, dtype=np.int64))
    return found
