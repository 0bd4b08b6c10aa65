"""ZIG: folding in which every other pass runs from high to low.

    r = rows by score, ascending, ties by id (0-based ranks, n rows, L folds)
    r[0], r[L], r[2L], ...,   ..., r[2L+1], r[L+1], r[1],   r[2], r[L+2], ...

For n = 10 and L = 3 that is [0 3 6 9 7 4 1 2 5 8]. A permutation. Where one fold ends the next one
begins, so the score never falls from the highest rank to the lowest, as it does in `folding`; L = 1
is `sorted`. Rows without a score (null, NaN) rank last. Cost: one sort. Source: the ZIG ordering of
DELT's released code, with its default of 5 folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.nouns import Order, Rng
from foresift.stages.orders._folds import check_folds, ranked, zigzagged


@dataclass(frozen=True, kw_only=True)
class Zig(Order):
    """Arrange rows in folds that run low to high and high to low by turns (ZIG)."""

    by: str
    """Column of scores; low comes first in the first fold, the third, and so on."""
    folds: int = 5
    """L, the number of passes; at least 1."""

    def __post_init__(self) -> None:
        check_folds(self.folds)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def order(self, table: pa.Table, rng: Rng) -> npt.NDArray[np.int64]:
        return ranked(table, self.by)[zigzagged(table.num_rows, self.folds)]
