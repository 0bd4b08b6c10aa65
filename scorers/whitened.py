"""Vectors with the mean taken out, turned to principal axes and, if asked, brought to one variance.

    x_i = v_i - mean                                       dimensions: 0, whiten: false
    x_i = (v_i - mean) Q_K                                 dimensions: K
    x_i = (v_i - mean) Q_K diag(1 / sqrt(l_k + eps))       whiten: true
    vector_i = x_i / |x_i|

v at length 1; Q, l: eigenvectors and eigenvalues of the covariance of the distinct documents,
largest first, each turned so that its component of largest size is positive; eps = 1e-6 l_1.

Hidden states of language models lie in a narrow cone: much of every cosine is the mean, and most of
what is left is one direction. Taken out, cosines say how texts differ, and a threshold, a distance
or a cluster means something again. In the mixed pool of `benchmarks/diversity.py` the mean cosine
with the mean is 0.83 and the first axis holds 76 % of the variance around it. Whitening makes rare
directions as loud as the first, noise included: take few dimensions with it.

A row without a direction (see `vectors.py`) has null. Facts: `cone`, the mean cosine with the
mean; `explained`, the share of variance of the first axes. Errors: DataError where no document has
a direction, where all are alike, or where the axes asked for are more than there are. Cost: n d^2
once and n d K; memory d^2. Source: BERT-whitening (Su et al. 2021, arXiv 2103.15316); "all but the
top" (Mu and Viswanath 2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Arrays, Facts, FittedScorer
from foresift.pipeline.tables import Column
from foresift.pipeline.vectors import BLOCK, Documents, Floats, unit, vector_column
from foresift.scorers._documents import counted, documents_of, unit_rows

_MEAN, _AXES = "mean.npy", "axes.npy"
EPS = 1e-6
#: variance below which documents are alike
ALIKE = 1e-12
TOLD = 8


@dataclass(frozen=True, kw_only=True)
class Whitened(FittedScorer):
    """Centred (or whitened) vectors, so that cosines tell texts apart."""

    embedding: str = "embedding.vector"
    """Column of vectors; they are brought to length 1 first."""
    dimensions: int = 0
    """Principal axes that are kept; 0: all of the space, without turning it."""
    whiten: bool = False
    """Whether every axis is brought to the same variance; needs `dimensions`."""

    reads_content: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = {
        "vector": Column(pa.list_(pa.float32()), "direction around the mean"),
    }

    def __post_init__(self) -> None:
        if self.dimensions < 0:
            raise ValueError("dimensions must be a number of axes, or 0")
        if self.whiten and not self.dimensions:
            raise ValueError("whiten needs dimensions: say how many axes are kept")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.embedding,)

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        documents = documents_of(tables, self.embedding, out)
        mean, covariance = moments(documents)
        values, basis = np.linalg.eigh(covariance)
        values, basis = np.maximum(values[::-1], 0.0), basis[:, ::-1]
        if values[0] < ALIKE:
            raise DataError("all documents have the same direction", where=self.embedding)
        rank = int((values > EPS * values[0]).sum())
        if self.dimensions > rank:
            raise DataError(
                f"{self.dimensions} axes of vectors that vary in {rank} directions only",
                where=self.embedding,
            )
        axes = np.eye(len(mean))
        if self.dimensions:
            axes = basis[:, : self.dimensions]
            axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        if self.whiten:
            axes = axes / np.sqrt(values[: self.dimensions] + EPS * values[0])
        np.save(out / _MEAN, mean, allow_pickle=False)
        np.save(out / _AXES, axes, allow_pickle=False)
        shares = values / values.sum()
        return {
            **counted(documents),
            "cone": float(np.linalg.norm(mean)),
            "explained": [float(s) for s in shares[:TOLD]],
        }

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        mean = np.load(out / _MEAN, allow_pickle=False)
        axes = np.load(out / _AXES, allow_pickle=False)
        vectors = unit_rows(batch, self.embedding)
        rows, width = vectors.shape
        if width not in (0, len(mean)):
            raise DataError(
                f"vectors of width {width}, those that were fitted have {len(mean)}",
                where=self.embedding,
            )
        found = np.full((rows, axes.shape[1]), np.nan)
        if width:
            centred = vectors.astype(np.float64) - mean
            # row by row, so that a row gets the same numbers in any batch
            found = unit(np.einsum("ij,jk->ik", centred, axes) if self.dimensions else centred)
        return {"vector": vector_column(found)}


def moments(documents: Documents) -> tuple[Floats, Floats]:
    """Mean [d] and covariance [d, d] of the documents at length 1, in blocks by id."""
    width = documents.vectors.width
    total, square = np.zeros(width), np.zeros((width, width))
    for start in range(0, len(documents), BLOCK):
        part = documents.unit(np.arange(start, min(start + BLOCK, len(documents))))
        wide = part.astype(np.float64)
        total += wide.sum(axis=0)
        square += wide.T @ wide
    mean = total / len(documents)
    return mean, square / len(documents) - np.outer(mean, mean)
