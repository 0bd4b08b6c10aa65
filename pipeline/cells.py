"""Cells: spherical k-means over documents, and nearest neighbours that look into few cells.

    Cells.fit      maximise sum_i v_i . c(i) over unit centroids c_1 .. c_k (Lloyd's iteration)
    nearest        argmax_j v_i . c_j and that cosine
    neighbours     for each document the k others of largest cosine

Documents come in the order of their ids, each once (`vectors.Documents`), and the seed from the
step, so that cells depend neither on the order of rows nor on copies. Above SAMPLE documents a
centroid the centroids are learned from a sample. Nothing holds more than the documents of a few
cells, or BASE vectors, at once. Cost: iterations x sample x k x d, then n x k x d to assign;
neighbours n x m x d where m documents lie in the cells looked into. Source: Dhillon and Modha 2001
(spherical k-means), through faiss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foresift.pipeline.errors import DataError
from foresift.pipeline.rng import Rng
from foresift.pipeline.vectors import Documents, Matrix, Rows

ITERATIONS = 25
SAMPLE = 256
MOST_CELLS = 10_000
#: bytes of one block of cosines
BLOCK_BYTES = 64 << 20
#: vectors that are searched at once where there are no cells
BASE = 1 << 18


def cell_count(n: int) -> int:
    """Cells for n documents where none are asked for: sqrt(n / 2), at most MOST_CELLS."""
    return max(1, min(round(math.sqrt(n / 2)), MOST_CELLS))


def enough(n: int, k: int, where: str = "clusters") -> None:
    """DataError where n documents cannot make k cells."""
    if n < k:
        raise DataError(
            f"{n} documents with a vector cannot make {k} clusters; "
            "ask for fewer, or for 0 (the square root of half of them)",
            where=where,
        )


def train_centroids(vectors: Matrix, k: int, rng: Rng) -> Matrix:
    """[k, d] unit centroids of unit vectors."""
    import faiss

    kmeans = faiss.Kmeans(
        vectors.shape[1],
        k,
        niter=ITERATIONS,
        spherical=True,
        seed=rng.at("kmeans").key % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE,
    )
    kmeans.train(vectors)
    centroids: Matrix = np.array(kmeans.centroids, dtype=np.float32).reshape(k, -1)
    return centroids


def spherical_kmeans(vectors: Matrix, k: int, rng: Rng) -> Rows:
    """The cluster of each of some unit vectors that lie in memory, in the order of their ids."""
    n = len(vectors)
    k = k or cell_count(n)
    if n == 0:
        return np.empty(0, dtype=np.int64)
    enough(n, k)
    return nearest(train_centroids(vectors, k, rng), vectors)[0]


def nearest(centroids: Matrix, vectors: Matrix) -> tuple[Rows, Matrix]:
    """The number of the nearest centroid of each unit vector, and their cosine.

    The two best of a float32 product are compared again in float64, each row by itself, so that a
    row gets the same answer in any batch. A row of NaN gets -1 and NaN.
    """
    n, k = len(vectors), len(centroids)
    cell, cosine = np.full(n, -1, dtype=np.int64), np.full(n, np.nan, dtype=np.float32)
    wide = centroids.astype(np.float64)
    step = max(1, BLOCK_BYTES // (4 * k))
    rows = np.flatnonzero(~np.isnan(vectors).any(axis=1))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        part = vectors[some]
        product = part @ centroids.T
        here = np.arange(len(some))
        pair = np.zeros((2, len(some)), dtype=np.int64)
        for place in range(min(2, k)):
            pair[place] = product.argmax(axis=1)
            product[here, pair[place]] = -np.inf
        pair = np.sort(pair[: min(2, k)], axis=0)
        exact = np.stack([np.einsum("ij,ij->i", part.astype(np.float64), wide[p]) for p in pair])
        best = exact.argmax(axis=0)
        cell[some], cosine[some] = pair[best, here], exact[best, here]
    return cell, cosine


@dataclass(frozen=True, eq=False)
class Cells:
    """Documents parted into cells around unit centroids."""

    centroids: Matrix
    """[k, d]"""
    cell: Rows
    """[m] cell of each document."""
    similarity: npt.NDArray[np.float32]
    """[m] cosine to its centroid."""
    _order: Rows
    _bounds: Rows

    @classmethod
    def fit(cls, documents: Documents, k: int, rng: Rng, where: str = "clusters") -> Cells:
        """k cells (0: `cell_count`); DataError where there are fewer documents than cells."""
        n = len(documents)
        k = k or cell_count(n)
        enough(n, k, where)
        sample = np.arange(n)
        if n > SAMPLE * k:
            sample = np.sort(rng.at("sample").generator().choice(n, SAMPLE * k, replace=False))
        centroids = train_centroids(documents.unit(sample), k, rng)
        return cls.around(documents, centroids)

    @classmethod
    def around(cls, documents: Documents, centroids: Matrix) -> Cells:
        """Each document in the cell of its nearest centroid."""
        n = len(documents)
        cell, cosine = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.float32)
        step = max(1, BLOCK_BYTES // (4 * max(centroids.shape)))
        for start in range(0, n, step):
            some = np.arange(start, min(start + step, n))
            cell[some], cosine[some] = nearest(centroids, documents.unit(some))
        order = np.argsort(cell, kind="stable")
        bounds = np.searchsorted(cell[order], np.arange(len(centroids) + 1))
        return cls(centroids, cell, cosine, order, bounds)

    def __len__(self) -> int:
        return len(self.centroids)

    @property
    def sizes(self) -> Rows:
        """[k] documents in each cell."""
        return np.diff(self._bounds)

    def members(self, cell: int) -> Rows:
        """The numbers of the documents of a cell, ascending."""
        return self._order[self._bounds[cell] : self._bounds[cell + 1]]

    def near(self, cell: int, probes: int) -> Rows:
        """The `probes` cells of nearest centroid, the cell itself first."""
        cosines = self.centroids @ self.centroids[cell]
        cosines[cell] = np.inf
        return np.argsort(-cosines, kind="stable")[:probes]


def neighbours(
    documents: Documents, k: int, cells: Cells | None = None, probes: int = 1
) -> tuple[Rows, Matrix]:
    """([m, k] numbers of the nearest other documents, [m, k] their cosines), nearest first.

    Without cells the search is exact; with cells it looks into the `probes` nearest of them. Where
    there are fewer than k others the rest is -1 and NaN.
    """
    m = len(documents)
    found, cosines = np.full((m, k), -1, dtype=np.int64), np.full((m, k), np.nan, dtype=np.float32)
    if cells is None:
        for start in range(0, m, 1 << 12):
            queries = np.arange(start, min(start + (1 << 12), m))
            found[queries], cosines[queries] = _exact(documents, queries, np.arange(m), k)
        return found, cosines
    for cell in np.flatnonzero(cells.sizes):
        queries = cells.members(int(cell))
        base = np.sort(np.concatenate([cells.members(c) for c in cells.near(int(cell), probes)]))
        found[queries], cosines[queries] = _exact(documents, queries, base, k)
    return found, cosines


def _exact(documents: Documents, queries: Rows, base: Rows, k: int) -> tuple[Rows, Matrix]:
    """The k nearest of `base` for each of `queries`, themselves left out by number."""
    import faiss

    metric = faiss.METRIC_INNER_PRODUCT
    asked = documents.unit(queries)
    values = np.full((len(queries), 0), 0, dtype=np.float32)
    numbers = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(base), BASE):
        part = base[start : start + BASE]
        got, places = faiss.knn(asked, documents.unit(part), min(k + 1, len(part)), metric=metric)
        values = np.concatenate([values, got], axis=1)
        numbers = np.concatenate([numbers, part[places]], axis=1)
    values[numbers == queries[:, None]] = -np.inf
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    numbers = np.take_along_axis(numbers, order, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    gone = np.isneginf(values)
    width = ((0, 0), (0, k - numbers.shape[1]))
    return (
        np.pad(np.where(gone, -1, numbers), width, constant_values=-1),
        np.pad(np.where(gone, np.nan, values), width, constant_values=np.nan).astype(np.float32),
    )
