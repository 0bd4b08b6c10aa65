"""Rows in random order, keyed by id.

    position of row i = rank of U(seed, id_i) ~ Uniform(0, 1)

Exact copies share a draw and stay side by side, in row order. Cost: one sort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.nouns import Order, Rng


@dataclass(frozen=True, kw_only=True)
class Shuffle(Order):
    """Arrange rows at random."""

    def order(self, table: pa.Table, rng: Rng) -> npt.NDArray[np.int64]:
        return np.argsort(rng.uniform(table["id"]), kind="stable")
