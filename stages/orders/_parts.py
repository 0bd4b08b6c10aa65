"""Rows in a given order, cut into parts of equal cost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def equal_parts(costs: Rows, count: int) -> Rows:
    """[rows] the part in which the middle of each row lies, of `count` parts of equal cost."""
    if not costs.any():
        costs = np.ones(len(costs), dtype=np.int64)
    middle = np.cumsum(costs) - costs / 2
    found: Rows = (middle * count / max(int(costs.sum()), 1)).astype(np.int64)
    return np.minimum(found, count - 1)
