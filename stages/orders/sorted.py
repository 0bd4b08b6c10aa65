"""Rows by one column: a plain curriculum.

    position of row i = rank of s_i, low first (`descending`: high first)

s is in any unit. The sort is stable: equal scores keep their row order. Rows without a score (null,
NaN) come last either way. Cost: one sort. In DELT's ablation ascending helps and descending hurts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import scores
from foresift.pipeline.nouns import Order, Rng


@dataclass(frozen=True, kw_only=True)
class Sorted(Order):
    """Arrange rows by a score."""

    by: str
    """Column of scores."""
    descending: bool = False
    """False puts low scores first, True high ones."""

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def order(self, table: pa.Table, rng: Rng) -> npt.NDArray[np.int64]:
        values = scores(table, self.by)
        return np.argsort(-values if self.descending else values, kind="stable")
