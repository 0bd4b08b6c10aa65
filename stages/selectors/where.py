"""Keep the rows for which a condition over columns holds.

    keep row i  <=>  condition(columns of i) is true

The syntax and the treatment of missing values are those of `pipeline/expression.py`: null and NaN
make a comparison unknown, and an unknown row is dropped. The reason of a dropped row is the first
top-level `and` clause that does not hold, as it was written. Rows are not ranked, and a budget is
not looked at. Cost: one pass over the columns named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.expression import Expression
from foresift.pipeline.nouns import Budget, Choice, Rng, Selector


@dataclass(frozen=True, kw_only=True)
class Where(Selector):
    """Keep the rows that satisfy a condition."""

    budgeted: ClassVar[bool] = False

    keep: str
    """The condition, such as `heuristics.ok and loss.nll < 4.5 or source_name in ['a', 'b']`."""

    def __post_init__(self) -> None:
        Expression.parse(self.keep)

    @property
    def needs(self) -> tuple[str, ...]:
        return Expression.parse(self.keep).columns

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        n = table.num_rows
        kept = np.ones(n, dtype=np.bool_)
        reason = np.full(n, "where", dtype=object)
        failed: dict[str, int] = {}
        for text, holds in Expression.parse(self.keep).clauses(table):
            drops = kept & ~holds
            name = f"not ({text})"
            reason[drops] = name
            failed[name] = failed.get(name, 0) + int(drops.sum())
            kept &= holds
        return Choice(
            kept=kept,
            rank=np.full(n, -1, dtype=np.int64),
            weight=np.ones(n, dtype=np.float32),
            reason=reason,
            facts={"dropped_by": failed},
        )
