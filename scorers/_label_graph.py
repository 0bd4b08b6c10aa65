"""Neighbours for detectors of wrong labels: graphs, votes, propagation, and how well labels part.

    vote(i, c)    share of the neighbours of i that have label c; a document with several labels
                  gives each the same part of its vote
    A[i, j]       = max(e_i . e_j, 0) where j is one of the k nearest of i or i of j, else 0
    propagate     T times  Y <- (1 - alpha) D^-1 A Y + alpha Y,   D = row sums of A
    R(Z)          = 1/2 ln det(I + d / (m eps) Z^T Z)                                       nats
    Rc(Z | y)     = 1/2 sum_j (m_j / m) ln det(I + d / (m_j eps) Z_j^T Z_j)                 nats
    gain          = R - Rc: how much better the parts are packed than the whole

A document without a neighbour keeps its Y (D^-1 A has an empty row there). Memory: k numbers a
document, and `COLUMNS` labels of Y at once. Cost: T nnz(A) K; the coding rate m d^2 + K d^3.
Source: ERASE (Chen et al. 2024, arXiv 2312.08852), whose code scales the
columns of A where rows are meant; Yu et al. 2020 (coding rate, eps squared already).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse  # type: ignore[import-untyped]

from foresift.pipeline.cells import Cells, neighbours
from foresift.pipeline.rng import Rng
from foresift.pipeline.vectors import Documents

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
#: labels that are propagated at once
COLUMNS = 64
BLOCK = 1 << 11


def nearest_others(
    documents: Documents, k: int, exact_up_to: int, probes: int, rng: Rng
) -> tuple[Rows, Floats]:
    """[m, k] numbers of the nearest other documents (-1: none) and their cosines."""
    k = min(k, max(len(documents) - 1, 1))
    cells = None if len(documents) <= exact_up_to else Cells.fit(documents, 0, rng)
    number, cosine = neighbours(documents, k, cells, probes)
    return number, cosine.astype(np.float64)


def nearest_among(documents: Documents, queries: Rows, base: Rows, k: int) -> tuple[Rows, Floats]:
    """[q, k] numbers of the nearest of `base`, the query itself left out, and their cosines."""
    k = min(k, len(base))
    number = np.full((len(queries), k), -1, dtype=np.int64)
    cosine = np.full((len(queries), k), -np.inf)
    for start in range(0, len(queries), BLOCK):
        mine = slice(start, start + BLOCK)
        asked = documents.unit(queries[mine])
        for at in range(0, len(base), 8 * BLOCK):
            part = base[at : at + 8 * BLOCK]
            values = (asked @ documents.unit(part).T).astype(np.float64)
            values[queries[mine, None] == part] = -np.inf
            values = np.concatenate([cosine[mine], values], axis=1)
            here = np.broadcast_to(part, (len(asked), len(part)))
            numbers = np.concatenate([number[mine], here], axis=1)
            order = np.argsort(-values, axis=1, kind="stable")[:, :k]
            number[mine] = np.take_along_axis(numbers, order, axis=1)
            cosine[mine] = np.take_along_axis(values, order, axis=1)
    number[np.isneginf(cosine)] = -1
    return number, cosine


def label_shares(document: Rows, label: Rows, shape: tuple[int, int]) -> Any:
    """[d, K] sparse: 1 at a document's label, equal parts where it has several."""
    parts = 1.0 / np.bincount(document, minlength=shape[0])[document]
    return sparse.csr_matrix((parts, (document, label)), shape=shape)


def votes(number: Rows, shares: Any) -> Any:
    """[q, K] sparse shares of the neighbours' votes; an empty row where there is no neighbour."""
    there = number >= 0
    many = there.sum(axis=1)
    row = np.repeat(np.arange(len(number)), many)
    weight = 1.0 / many[row]
    chosen = sparse.csr_matrix((weight, (row, number[there])), shape=(len(number), shares.shape[0]))
    return chosen @ shares


def graph(number: Rows, cosine: Floats) -> Any:
    """[m, m] D^-1 A of nearest neighbours."""
    m = len(number)
    there = (number >= 0) & (np.nan_to_num(cosine) > 0)
    row = np.repeat(np.arange(m), there.sum(axis=1))
    one = sparse.csr_matrix((cosine[there], (row, number[there])), shape=(m, m))
    both = one.maximum(one.T).tocsr()
    degree = np.asarray(both.sum(axis=1)).ravel()
    inverse = np.divide(1.0, degree, out=np.zeros(m), where=degree > 0)
    found = (sparse.diags(inverse) @ both).tocsr()
    found.sort_indices()
    return found


def propagate(matrix: Any, start: Floats, alpha: float, steps: int) -> Floats:
    """[m, c] labels after some steps; rows without a neighbour stay."""
    alone = np.diff(matrix.indptr) == 0
    found = start
    for _ in range(steps):
        found = (1 - alpha) * (matrix @ found) + alpha * found
        found[alone] = start[alone]
    return np.asarray(found)


def propagated(
    matrix: Any, shares: Any, alpha: float, steps: int
) -> Iterator[tuple[slice, Floats]]:
    """Labels from .. to, and what propagation gives every document of each of them."""
    by_label = shares.tocsc()
    for at in range(0, shares.shape[1], COLUMNS):
        part = slice(at, min(at + COLUMNS, shares.shape[1]))
        yield part, propagate(matrix, by_label[:, part].toarray(), alpha, steps)


def coding_rate(z: Floats, eps: float) -> float:
    """R of [m, d] unit rows."""
    m, d = z.shape
    inner = z.T @ z if d <= m else z @ z.T
    return 0.5 * float(np.linalg.slogdet(np.eye(len(inner)) + d / (m * eps) * inner)[1])


def coding_gain(z: Floats, label: Rows, eps: float) -> float:
    """R - Rc of [m, d] unit rows parted by labels."""
    parts = [z[label == k] for k in np.unique(label)]
    return coding_rate(z, eps) - sum(len(p) / len(z) * coding_rate(p, eps) for p in parts)
