"""JIT: an order by score, shuffled inside windows of a few rows.

    r = rows by score, ascending, ties by id (with `folds` L above 1: as `folding` arranges them)
    position p of r lies in window p // w;   each window is shuffled by U(seed, id)

A permutation in which no row moves further than w - 1 positions: the curriculum stays, but batches
do not hold neighbours in score only. w = 1 changes nothing; w of at least n is a shuffle. Rows
without a score (null, NaN) rank last. Cost: two sorts. Source: the JIT step of DELT's released
code, where the window is 0 (off) unless given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.nouns import Order, Rng
from foresift.stages.orders._folds import check_folds, folded, ranked


@dataclass(frozen=True, kw_only=True)
class Jit(Order):
    """Arrange rows from low to high score and shuffle them inside windows (JIT)."""

    by: str
    """Column of scores; low comes first."""
    window: int = 1024
    """w, rows in a window; at least 1."""
    folds: int = 1
    """Passes from low to high score that are made before the windows are shuffled; at least 1."""

    def __post_init__(self) -> None:
        check_folds(self.folds)
        if self.window < 1:
            raise ValueError("window must be at least 1 row")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def order(self, table: pa.Table, rng: Rng) -> npt.NDArray[np.int64]:
        n = table.num_rows
        rows = ranked(table, self.by)[folded(n, self.folds)]
        draws = rng.uniform(table["id"])[rows]
        return rows[np.lexsort((draws, np.arange(n) // self.window))]
