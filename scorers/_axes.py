"""Orthogonal axes of several scores: a principal component analysis with signs that stay put.

    z_ij  = (s_ij - m_j) / d_j          m, d: mean and population deviation of the sample
    C     = Z'Z / n  =  Q L Q'          correlations; l_1 >= l_2 >= ... , the sum is D
    y_i   = Q_K' z_i                    scores of the first K axes; sample covariance diag(l)

s are the scores with the columns where lower is better negated. With `rank_gauss`, s_ij is first
replaced by the normal quantile of its rank, Phi^-1((r - 1/2) / n), equal values at their mean rank
(van der Waerden scores); new values are interpolated between at most KNOTS of these. So one scale
does not pull an axis by its outliers, and any increasing transform of a score changes nothing.

**Sign.** An axis is turned so that its loadings over the named quality columns sum to 0 or more.
Where the sum is within `below` of 0 the axis is *unsigned*, and its largest loading (the first of
equal ones) is made positive. Loadings of later axes are orthogonal to those of the first, so where
the first weighs all columns alike the others are all unsigned: then name quality columns.

Axes of variance at most FLAT times D are none: they are 0 but for rounding.

Sums run over rows in the order given (by id, from the caller) without BLAS, projections column by
column: nothing depends on batches or threads. Uncorrelated is not independent: `overlap` tells what
is left in the tails. Cost: n D^2. Source: ODiS (arXiv 2510.18909); no code of it is public, and the
scaling to unit variance and the definition of the overlap are ours.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from foresift.pipeline.errors import DataError
from foresift.pipeline.store import Facts, publish, temporary

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Scale = Literal["standard", "rank_gauss"]
SIGN, FLAT, KNOTS = 0.1, 1e-9, 1025
_FILE = "axes.safetensors"


@dataclass(frozen=True, eq=False)
class Axes:
    """K fitted axes of D columns; `fit`, `project`, `save`, `load`."""

    columns: tuple[str, ...]
    lower: Bools
    """[D] columns that are negated first."""
    knots: tuple[Floats, ...]
    """For each column [2, m]: values and their normal quantiles; m is 0 without `rank_gauss`."""
    mean: Floats
    """[D]"""
    scale: Floats
    """[D] population deviations."""
    loadings: Floats
    """[D, K] columns of length 1, turned by the rule of signs."""
    variance: Floats
    """[D] variance along every component, largest first."""
    sums: Floats
    """[K] sum of the loadings over the quality columns, 0 or more unless unsigned."""
    below: float = SIGN
    """Size of a sum under which the axis is unsigned."""

    @classmethod
    def fit(
        cls,
        values: Floats,
        columns: tuple[str, ...],
        count: int,
        *,
        lower: tuple[str, ...] = (),
        quality: tuple[str, ...] = (),
        scale: Scale = "standard",
        below: float = SIGN,
        where: str = "axes",
    ) -> Axes:
        """Fit `count` axes to finite values [n, D], rows in a fixed order."""
        if len(values) <= count:
            raise DataError(
                f"{len(values)} documents with all of the scores cannot make {count} axes; "
                f"at least {count + 1} are needed",
                where=where,
            )
        turned = np.array([name in lower for name in columns])
        signed = np.where(turned, -values, values)
        _varies(signed, columns)
        gauss = scale == "rank_gauss"
        knots = tuple(_knots(column) if gauss else np.empty((2, 0)) for column in signed.T)
        signed = _through(signed, knots)
        mean, deviation = signed.mean(axis=0), signed.std(axis=0)
        z = (signed - mean) / deviation
        variance, basis = np.linalg.eigh(np.einsum("ij,ik->jk", z, z) / len(z))
        variance, basis = np.maximum(variance[::-1], 0.0), basis[:, ::-1][:, :count]
        rank = int(np.sum(variance > FLAT * len(columns)))
        if rank < count:
            raise DataError(
                f"{count} axes of scores that vary in {rank} directions only: some scores follow "
                f"from others; ask for at most {rank}",
                where=where,
            )
        named = np.array([name in quality or not quality for name in columns])
        basis = basis * _signs(basis, named, below)
        sums = np.array([math.fsum(q) for q in basis[named].T])
        return cls(columns, turned, knots, mean, deviation, basis, variance, sums, below)

    @property
    def unsigned(self) -> Bools:
        """[K] axes whose good end the quality columns do not tell."""
        found: Bools = np.abs(self.sums) < self.below
        return found

    @property
    def explained(self) -> Floats:
        """[D] share of the variance along each component."""
        shares: Floats = self.variance / self.variance.sum()
        return shares

    def project(self, values: Floats) -> Floats:
        """[n, K] scores y; NaN where a value is not finite."""
        signed = _through(np.where(self.lower, -values, values), self.knots)
        z = (signed - self.mean) / self.scale
        found = np.zeros((len(values), self.loadings.shape[1]))
        for column, loadings in zip(z.T, self.loadings, strict=True):
            found += column[:, None] * loadings
        found[~np.isfinite(values).all(axis=1)] = np.nan
        return found

    def facts(self) -> Facts:
        """What was learned, as plain values; loadings by axis and column."""
        return {
            "columns": list(self.columns),
            "lower": [c for c, low in zip(self.columns, self.lower, strict=True) if low],
            "mean": self.mean.tolist(),
            "deviation": self.scale.tolist(),
            "loadings": self.loadings.T.tolist(),
            "explained": self.explained.tolist(),
            "sign_sums": self.sums.tolist(),
            "unsigned": (np.flatnonzero(self.unsigned) + 1).tolist(),
        }

    def save(self, folder: Path) -> None:
        """Write `axes.safetensors`, whole or not at all."""
        from safetensors.numpy import save_file

        arrays: dict[str, Any] = {
            "lower": self.lower, "mean": self.mean, "scale": self.scale,
            "loadings": self.loadings, "variance": self.variance, "sums": self.sums,
            "below": np.array([self.below]),
        }  # fmt: skip
        arrays |= {f"knots.{i}": knots for i, knots in enumerate(self.knots)}
        partial = temporary(folder / _FILE)
        about = {"columns": json.dumps(self.columns), "format": "1"}
        save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, partial, metadata=about)
        publish(partial, folder / _FILE)

    @classmethod
    def load(cls, folder: Path) -> Axes:
        """What `save` wrote."""
        from safetensors import safe_open

        with safe_open(folder / _FILE, framework="numpy") as file:
            columns = tuple(json.loads(file.metadata()["columns"]))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        knots = tuple(arrays.pop(f"knots.{i}") for i in range(len(columns)))
        below = float(arrays.pop("below")[0])
        return cls(columns=columns, knots=knots, below=below, **arrays)


def _varies(values: Floats, columns: tuple[str, ...]) -> None:
    """DataError where a column is constant, up to rounding, or too large to be squared."""
    for name, column in zip(columns, values.T, strict=True):
        size = float(np.abs(column).max())
        if size > 1e150:
            raise DataError(f"a score of {size:.3g} is too large for a variance", where=name)
        if np.ptp(column) <= 1e-12 * size:
            raise DataError(
                f"the same score, {abs(column[0]):.6g}, in all {len(column)} documents that have "
                "all of the scores: it can make no axis; leave it out",
                where=name,
            )


def _signs(basis: Floats, named: Bools, below: float) -> Floats:
    """+1 or -1 for each axis, by the rule at the head of the file."""
    signs = np.ones(basis.shape[1])
    for axis, q in enumerate(basis.T):
        total = math.fsum(q[named])
        if abs(total) < below:
            size = np.abs(q)
            total = q[np.argmax(size > size.max() - 1e-9)]
        signs[axis] = 1.0 if total >= 0 else -1.0
    return signs


def normal_scores(values: Floats) -> Floats:
    """Phi^-1((r - 1/2) / n) of each value's rank r from 1; equal values have their mean rank."""
    from scipy.special import ndtri  # type: ignore[import-untyped]

    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(sizes) - sizes / 2
    found: Floats = ndtri(middle / len(values))[place]
    return found


def _knots(values: Floats) -> Floats:
    """[2, m] values in ascending order and their normal scores, m at most KNOTS."""
    distinct, first = np.unique(values, return_index=True)
    pick = np.unique(np.linspace(0, len(distinct) - 1, KNOTS).round().astype(np.int64))
    found: Floats = np.stack([distinct, normal_scores(values)[first]])[:, pick]
    return found


def _through(values: Floats, knots: tuple[Floats, ...]) -> Floats:
    """Each column interpolated between its knots; beyond the last ones it stays there."""
    columns = [
        np.interp(column, *k) if k.shape[1] else column
        for column, k in zip(values.T, knots, strict=True)
    ]
    return np.stack(columns, axis=1)


def overlap(values: Floats, share: float) -> Floats:
    """[pairs] of columns of [n, K]: |S_k and S_l| / |S_k|, S_k the ceil(share n) largest of k.

    Rows of equal value are taken in row order. Independent columns have an overlap of `share`.
    """
    count = max(1, math.ceil(round(share * len(values), 6)))
    top = np.zeros(values.shape, dtype=np.bool_)
    for column, marks in zip(values.T, top.T, strict=True):
        marks[np.argsort(-column, kind="stable")[:count]] = True
    pairs = itertools.combinations(range(values.shape[1]), 2)
    return np.array([(top[:, k] & top[:, m]).sum() / count for k, m in pairs])
