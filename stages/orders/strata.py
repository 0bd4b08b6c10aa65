"""STR: one pass from low to high score, folded around the boundaries of its sections.

    r = rows by score, ascending, ties by id (0-based ranks, n rows, S sections, L folds)
    around boundary s = 1 .. S-1:   zone of ranks round(n s / S) - w .. round(n s / S) + w - 1,
                                    w = round(rho n), arranged as `folding` arranges it
    elsewhere                       r in its order

A zone begins no earlier than the one before it ends. For n = 10, S = 2, rho = 0.225 and L = 3 the
zone is the ranks 3 to 6, and the order [0 1 2 3 6 4 5 7 8 9]. A permutation; rho = 0, S = 1 or
L = 1 is `sorted`. Rows without a score (null, NaN) rank last. Cost: one sort. Source: the STR
ordering of DELT's released code and its defaults. That a zone leaves out its upper end is our
reading.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.nouns import Order, Rng
from foresift.stages.orders._folds import check_zones, folded, ranked, zoned


@dataclass(frozen=True, kw_only=True)
class Strata(Order):
    """Arrange rows from low to high score, folded around section boundaries (STR)."""

    by: str
    """Column of scores; low comes first."""
    sections: int = 2
    """S, the number of sections of equally many rows; at least 1."""
    radius: float = 0.225
    """rho, half the width of a folded zone, as a share of all rows; from 0 to 0.5."""
    folds: int = 3
    """L, the number of passes through a zone; at least 1."""

    def __post_init__(self) -> None:
        check_zones(self.sections, self.radius, self.folds)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def order(self, table: pa.Table, rng: Rng) -> npt.NDArray[np.int64]:
        rows = ranked(table, self.by)
        return rows[zoned(len(rows), self.sections, self.radius, lambda n: folded(n, self.folds))]
