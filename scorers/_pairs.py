"""Largest cosines with earlier rows, in blocks: nothing of n x n is held.

    before   M_j = max(0, max_{i < j} v_i . v_j)               every earlier row counts
    kept     M_j = max(0, max_{i < j, i kept} v_i . v_j)       j is kept where M_j <= 1 - eps

Rows are unit vectors in their order of preference. M is at most 1 and 0 for the first row. Cost:
n^2 d / 2 multiplications and two blocks of 4 MB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from foresift.pipeline.vectors import Bools, Matrix

Cosines = npt.NDArray[np.float32]
BLOCK = 1024


def duplicate(similarity: npt.NDArray[Any], eps: float) -> Bools:
    """Whether a similarity is strictly above 1 - eps; NaN is not."""
    found: Bools = similarity.astype(np.float64) > 1 - eps
    return found


def before(vectors: Matrix) -> Cosines:
    """M of each row over all earlier ones."""
    found = np.zeros(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK):
        rows, best = vectors[start : start + BLOCK], found[start : start + BLOCK]
        for at in range(0, start, BLOCK):
            np.maximum(best, (rows @ vectors[at : at + BLOCK].T).max(axis=1), out=best)
        np.maximum(best, np.tril(rows @ rows.T, -1).max(axis=1), out=best)
    return np.minimum(found, 1)


def kept(vectors: Matrix, eps: float) -> Cosines:
    """M of each row over the earlier ones that are kept."""
    found = np.zeros(len(vectors), dtype=np.float32)
    alive: list[Matrix] = []
    for start in range(0, len(vectors), BLOCK):
        rows, best = vectors[start : start + BLOCK], found[start : start + BLOCK]
        for others in alive:
            np.maximum(best, (rows @ others.T).max(axis=1), out=best)
        stays, inner = ~duplicate(best, eps), rows @ rows.T
        for j in range(len(rows)):
            best[j] = max(best[j], inner[j, :j][stays[:j]].max(initial=0))
            stays[j] = not duplicate(best[j : j + 1], eps)[0]
        if stays.any():
            alive.append(rows[stays])
    return np.minimum(found, 1)


def within(vectors: Matrix, cells: npt.NDArray[np.int64]) -> tuple[Cosines, Cosines]:
    """M of each row over all earlier ones, and over those that share a cell with it.

    `cells` [n, r] has the cell of each row in each of r partitions; to share one is enough.
    """
    full, near = (np.zeros(len(vectors), dtype=np.float32) for _ in range(2))
    for start in range(0, len(vectors), BLOCK):
        here = slice(start, start + BLOCK)
        for at in range(0, start + 1, BLOCK):
            there = slice(at, at + BLOCK)
            product = vectors[here] @ vectors[there].T
            if at == start:
                product = np.tril(product, -1)
            np.maximum(full[here], product.max(axis=1), out=full[here])
            shared = np.zeros(product.shape, dtype=np.bool_)
            for cell in cells.T:
                shared |= cell[here, None] == cell[None, there]
            best = np.where(shared, product, 0).max(axis=1)
            np.maximum(near[here], best, out=near[here])
    return np.minimum(full, 1), np.minimum(near, 1)
