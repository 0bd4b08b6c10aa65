"""Risk late: what may have to be deleted comes late, so that a replay of the training is short.

Exact deletion by replay goes back to the last checkpoint before the first exposure of what is
deleted, and costs S - start of that checkpoint interval (`pipeline/replay_cost.py`).

    interval of a row   k-th of `intervals` parts of equal cost, of all rows by risk, low first
    in an interval      at random: by U(seed, epoch, id)
    apart               rows whose decision is one of `apart`: after all others, once, by risk

The parts are to be the checkpoint intervals of the training: as many as its checkpoints. Known
answer: of 10 intervals of 100 steps, a deletion in the first costs 1,000 steps, in the last 100.
With more `epochs` whole passes follow one another, each in the same order of intervals; what stands
apart still comes once. So a row apart is first seen at the very end, and the others in the first
pass. What comes late is kept best (Chang et al. 2024): hence once, and never a copy.

Risk is in any unit; rows without it (null, NaN) count as the riskiest. Cost: two sorts an epoch.
Errors: risk that is no number. Source: ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import Budget, scores
from foresift.pipeline.labels import labels
from foresift.pipeline.nouns import Order, Rng
from foresift.pipeline.tables import id_words
from foresift.stages.orders._parts import equal_parts

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RiskLate(Order):
    """Arrange rows from low to high risk of deletion, the quarantined ones last and once."""

    repeats: ClassVar[bool] = True

    risk: str = "forget_risk.risk"
    """Column of risks, or of priors of removal; low comes first."""
    decision: str = "forget_risk.decision"
    """Column of labels that says which rows stand apart; empty: none do."""
    apart: list[str] = field(default_factory=lambda: ["quarantine"])
    """Labels of `decision` whose rows come after all others, and once."""
    intervals: int = 10
    """Checkpoint intervals of a pass; inside of one, order is random; at least 1."""
    epochs: int = 1
    """Passes over the rows that do not stand apart; at least 1."""
    cost: str = "n_tokens"
    """Column in which intervals are of equal size; `rows` counts every row as 1."""

    def __post_init__(self) -> None:
        if self.intervals < 1 or self.epochs < 1:
            raise ValueError("intervals and epochs must be at least 1")

    @property
    def needs(self) -> tuple[str, ...]:
        named = (self.risk, self.decision, "" if self.cost == "rows" else self.cost)
        return tuple(dict.fromkeys(n for n in named if n))

    def order(self, table: pa.Table, rng: Rng) -> Rows:
        words = id_words(table["id"])

        def by(key: npt.NDArray[np.float64], number: int) -> Rows:
            draw = rng.at("epoch", number).uniform(table["id"])
            return np.lexsort((words[:, 1], words[:, 0], draw, key))

        risk = scores(table, self.risk)
        ranked = by(risk, 0)
        last = self._apart(table)[ranked]
        usual = ranked[~last]
        part = np.zeros(table.num_rows)
        part[usual] = equal_parts(Budget(1.0, True, self.cost).costs(table)[usual], self.intervals)
        part[ranked[last]] = -1
        passes = []
        for number in range(self.epochs):
            rows = by(part, number)
            passes.append(rows[part[rows] >= 0])
        return np.concatenate([*passes, ranked[last]]).astype(np.int64)

    def _apart(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """[rows] whether it comes after the others."""
        if not self.decision:
            return np.zeros(table.num_rows, dtype=np.bool_)
        names, code = labels(table, self.decision)
        return np.isin(code, [k for k, name in enumerate(names) if name in self.apart])
