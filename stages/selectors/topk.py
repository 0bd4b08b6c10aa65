"""Hard top-k by one column, k set by the budget.

    keep the smallest head of the rows sorted by u (descending) whose cost reaches the budget

u is the column `by` (any unit; larger = keep first) or its negative where `lowest` is set. The row
that crosses the budget is kept. Ties are broken by id, so the kept set does not depend on row order
or seed; rows without a score (null, NaN) are never kept. Cost: one sort.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.stages.selectors._ranking import cut, utilities


@dataclass(frozen=True, kw_only=True)
class TopK(Selector):
    """Keep the rows with the best score."""

    by: str
    """Column of scores; larger = keep first."""
    lowest: bool = False
    """True keeps the smallest scores first."""

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        return cut(utilities(table, self.by, self.lowest), table, budget)
