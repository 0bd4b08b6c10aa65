"""A uniform random sample: the baseline that every selection is measured against.

    keep the rows with the largest draw U(seed, id) ~ Uniform(0, 1) that fill the budget

The draw belongs to the id, so exact copies stand side by side in the ranking and the same seed
keeps the same documents in any row order. Cost: one sort.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.stages.selectors._ranking import cut


@dataclass(frozen=True, kw_only=True)
class Random(Selector):
    """Keep a uniform random sample."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        return cut(rng.uniform(table["id"]), table, budget)
