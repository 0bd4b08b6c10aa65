"""Folding: several passes from low to high score through one sorted set.

    r = rows by score, ascending and stable (0-based ranks, n rows, L folds)
    code    r[0], r[L], r[2L], ...,  r[1], r[L+1], ...,  ...,  r[L-1], r[2L-1], ...
    paper   r[L-1], r[2L-1], ...,    r[0], r[L], ...,    ...,  r[L-2], r[2L-2], ...

For n = 10 and L = 3 that is [0 3 6 9 1 4 7 2 5 8] and [2 5 8 0 3 6 9 1 4 7]. A permutation: each
fold is one pass over the whole range of scores; L = 1 is `sorted`. Rows without a score (null, NaN)
rank last. Cost: one sort. Source: DELT, folding ordering; `code` is its released implementation,
`paper` its equation 10 read literally (1-based ranks, residue 0 first).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import scores
from foresift.pipeline.nouns import Order, Rng
from foresift.stages.orders._folds import check_folds, folded


@dataclass(frozen=True, kw_only=True)
class Folding(Order):
    """Arrange rows in folds, each from low to high score."""

    by: str
    """Column of scores; low comes first in each fold."""
    folds: int = 3
    """L, the number of passes; at least 1."""
    variant: Literal["code", "paper"] = "code"
    """Which fold comes first: that of the lowest rank, or that of rank L."""

    def __post_init__(self) -> None:
        check_folds(self.folds)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def order(self, table: pa.Table, rng: Rng) -> npt.NDArray[np.int64]:
        ranked = np.argsort(scores(table, self.by), kind="stable")
        first = self.folds - 1 if self.variant == "paper" else 0
        return ranked[folded(len(ranked), self.folds, first)]
