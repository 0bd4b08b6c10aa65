"""Ridge regression in its dual form, with alpha chosen and checked on labels the fit did not see.

    f(x) = w . x + c    minimises    sum_i (y_i - f(x_i))^2 + alpha |w|^2        c is free
    w = X'H a,   (H X X' H + alpha) a = y - mean,   H = I - 11'/n

`direct` takes the eigenvectors U and values s of H X X' H. For every alpha the error of the fit
that leaves document i out is then known exactly (Allen 1974),

    e_i = (y_i - f(x_i)) / (1 - h_ii),     h_ii = 1/n + sum_k U_ik^2 s_k / (s_k + alpha),

and the alpha of the grid with the least sum of squares is taken, for each target its own. Each of
the folds is predicted by a fit, choice of alpha included, that saw none of its labels.

`iterative` solves the same equations by conjugate gradients on the sparse rows. Every fold is
predicted at every alpha; the least total error chooses, and a fold is predicted with the alpha that
the other folds choose.

Cost: `direct` O(n^3) and 8 n^2 bytes a matrix; `iterative` some hundred products with the rows for
each alpha and fold. Columns of y are solved at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.errors import DataError
from foresift.pipeline.rng import Rng

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
#: distinct documents below which nothing is fitted
FEWEST = 20
#: alpha over the mean square of a centred row
GRID = np.logspace(-3, 3, 13)
_BLOCK = 512
#: conjugate gradients end at this relative residual, or after so many steps
_CLOSE, _STEPS = 1e-8, 1000


@dataclass(frozen=True)
class Solved:
    """A fit of G targets."""

    weights: Floats
    """[p, G]"""
    offset: Floats
    """[G] the intercepts c."""
    alpha: Floats
    """[G]"""
    unseen: Floats
    """[n, G] predictions of the documents by fits that did not see their labels."""


def folds(
    kept: Integers, ids: pa.Array | pa.ChunkedArray | None, count: int = 5, where: str = ""
) -> Integers:
    """The fold of each labelled document: the rank of its id's draw, in `count` equal parts."""
    rng = Rng(0).at("folds")
    draws = rng.generator().random(len(kept)) if ids is None else rng.uniform(ids)[kept]
    distinct, place = np.unique(draws, return_inverse=True)
    if len(distinct) < FEWEST:
        raise DataError(
            f"only {len(distinct)} distinct documents have a usable label, and at least {FEWEST} "
            "are needed; label more documents",
            where=where,
        )
    parts: Integers = place * count // len(distinct)
    return parts


def direct(rows: Any, y: Floats, parts: Integers) -> Solved:
    """Solve by an eigendecomposition: `rows` csr [n, p], y [n, G], `parts` the folds [n]."""
    kernel = _kernel(rows)
    unseen = np.empty_like(y)
    for fold in range(parts.max() + 1):
        seen, new = np.flatnonzero(parts != fold), np.flatnonzero(parts == fold)
        dual, offset, _ = _eigen(kernel[np.ix_(seen, seen)], y[seen])
        unseen[new] = kernel[np.ix_(new, seen)] @ dual + offset
    dual, offset, alpha = _eigen(kernel, y)
    return Solved(rows.T @ dual, offset, alpha, unseen)


def _kernel(rows: Any) -> Floats:
    """Inner products of all pairs of rows, block by block."""
    kernel, turned = np.empty((rows.shape[0],) * 2), rows.T.tocsr()
    for start in range(0, len(kernel), _BLOCK):
        kernel[start : start + _BLOCK] = (rows[start : start + _BLOCK] @ turned).toarray()
    return kernel


def _eigen(kernel: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """(dual coefficients, intercepts, alphas) with the least leave-one-out error."""
    mean, means = y.mean(axis=0), kernel.mean(axis=0)
    values, basis = np.linalg.eigh(kernel - means - means[:, None] + means.mean())
    values = np.maximum(values, 0.0)
    turned, squares = basis.T @ (y - mean), basis**2
    grid = GRID * (values.mean() or 1.0)
    errors = []
    for alpha in grid:
        kept = values / (values + alpha)
        residual = y - mean - basis @ (kept[:, None] * turned)
        leverage = 1.0 / len(y) + squares @ kept
        errors.append(np.sum((residual / (1.0 - leverage)[:, None]) ** 2, axis=0))
    best = grid[np.argmin(errors, axis=0)]
    dual = basis @ (turned / (values[:, None] + best))
    return dual, mean - means @ dual, best


def iterative(rows: Any, y: Floats, parts: Integers) -> Solved:
    """Solve by conjugate gradients, for more documents than an eigendecomposition can take."""
    mean = np.asarray(rows.mean(axis=0)).ravel()
    grid = GRID[::2] * ((rows.multiply(rows).sum() / len(y) - mean @ mean) or 1.0)
    guesses = np.empty((len(grid), *y.shape))
    errors = np.empty((parts.max() + 1, len(grid), y.shape[1]))
    for fold in range(len(errors)):
        seen, new = np.flatnonzero(parts != fold), np.flatnonzero(parts == fold)
        dual = np.zeros_like(y[seen])
        for number in reversed(range(len(grid))):  # each starts where the larger alpha ended
            dual = _conjugate(rows[seen], y[seen], np.full(y.shape[1], grid[number]), dual)
            guesses[number, new] = _answers(rows[seen], y[seen], dual, rows[new])
        errors[fold] = np.sum((guesses[:, new] - y[new]) ** 2, axis=1)
    total = errors.sum(axis=0)
    chosen = np.argmin(total - errors, axis=1)[parts]
    unseen = np.take_along_axis(guesses, chosen[None], axis=0)[0]
    alpha = grid[np.argmin(total, axis=0)]
    weights = rows.T @ _conjugate(rows, y, alpha, np.zeros_like(y))
    return Solved(weights, y.mean(axis=0) - mean @ weights, alpha, unseen)


def _answers(rows: Any, y: Floats, dual: Floats, asked: Any) -> Floats:
    """Predictions for the rows `asked` of the fit with these dual coefficients."""
    weights = rows.T @ dual
    mean = np.asarray(rows.mean(axis=0)).ravel()
    answers: Floats = asked @ weights + (y.mean(axis=0) - mean @ weights)
    return answers


def _conjugate(rows: Any, y: Floats, alpha: Floats, dual: Floats) -> Floats:
    """Dual coefficients for each column of y, started at `dual`."""

    def apply(v: Floats) -> Floats:
        product = rows @ (rows.T @ v)
        return np.asarray(product - product.mean(axis=0) + alpha * v)

    target = y - y.mean(axis=0)
    enough = _CLOSE**2 * np.sum(target**2, axis=0)
    residual = target - apply(dual)
    step, size = residual, np.sum(residual**2, axis=0)
    for _ in range(_STEPS):
        if (size <= enough).all():
            break
        moved = apply(step)
        length = size / np.maximum(np.sum(step * moved, axis=0), 1e-300)
        dual, residual = dual + length * step, residual - length * moved
        before, size = size, np.sum(residual**2, axis=0)
        step = residual + size / np.maximum(before, 1e-300) * step
    return dual
