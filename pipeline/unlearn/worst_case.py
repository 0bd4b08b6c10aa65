"""Worst-case forget sets: the documents whose loss stays lowest after unlearning.

    lower level   theta_u(w) = sign-SGD on sum_i (1 - w_i) l_i(theta)           w in [0, 1]^n
    upper level   w <- Proj(w - lr_w (l_i(theta_u) + 2 gamma w))
    Proj          clip(a - mu, 0, 1) with mu such that the sum is m             by bisection

The gradient of the upper level is just the loss of each document after unlearning, so one round is
informative already: `scorers/worst_case.py` takes it, a deletion plan ranks by it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_BISECTIONS = 100


def project(values: npt.ArrayLike, total: float) -> tuple[Floats, float]:
    """(w, mu): the nearest point of {0 <= w <= 1, sum w = total}."""
    a = np.asarray(values, dtype=np.float64)
    if not 0.0 <= total <= len(a):
        raise ValueError(f"weights in 0 .. 1 of {len(a)} members cannot sum to {total:g}")
    low, high = float(a.min()) - 1.0, float(a.max())
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if np.clip(a - middle, 0.0, 1.0).sum() > total:
            low = middle
        else:
            high = middle
    mu = (low + high) / 2.0
    return np.clip(a - mu, 0.0, 1.0), mu
