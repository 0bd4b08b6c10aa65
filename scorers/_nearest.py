"""Mean cosine of vectors to the nearest of a small set, each row by itself.

A float32 product proposes `MORE` candidates beyond k; their cosines are taken again in float64, row
by row, so that a row gets the same number in any batch. Cost: n m d; a block of cosines in memory.
"""

from __future__ import annotations

import numpy as np

from foresift.pipeline.vectors import Floats, Matrix

BLOCK_BYTES = 64 << 20
MORE = 4


def mean_cosine(vectors: Matrix, target: Matrix, k: int) -> Floats:
    """[n] mean cosine of unit vectors to the k nearest of `target`; NaN where there is none."""
    n, m = len(vectors), len(target)
    found = np.full(n, np.nan)
    rows = np.flatnonzero(~np.isnan(vectors).any(axis=1))
    k, width = min(k, m), min(k + MORE, m)
    step = max(1, BLOCK_BYTES // (4 * m))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        part = vectors[some]
        near = np.argpartition(part @ target.T, m - width, axis=1)[:, m - width :]
        wide = part.astype(np.float64)
        cosines = np.stack(
            [np.einsum("ij,ij->i", wide, target[j].astype(np.float64)) for j in near.T]
        )
        best = -np.sort(-cosines, axis=0)[:k]
        found[some] = np.add.reduce(best, axis=0) / k
    return found
