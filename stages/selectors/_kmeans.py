"""Columns of vectors, and spherical k-means over them.

    unit_vectors        v_i / |v_i|; a row of NaN where there is no vector, a component is not
                        finite, or the length is 0
    spherical_kmeans    maximise sum_i v_i . c(i) over unit centroids c_1 .. c_k (Lloyd's iteration)

Documents are clustered, not rows: exact copies share an id, are seen once and land in one cluster.
The vectors come in the order of their ids and the seed from the step, so that clusters depend
neither on the order of the rows nor on copies. Above SAMPLE vectors a centroid the centroids are
learned from a sample and every vector is assigned. Cost: iterations x sample x k x d, and once
n x k x d for the assignment. Source: Dhillon and Modha 2001 (spherical k-means), through faiss.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Rng

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
ITERATIONS = 25
SAMPLE = 256
MOST_CLUSTERS = 10_000
BLOCK = 1 << 14


def unit(vectors: npt.NDArray[Any]) -> Floats:
    """Each row over its L2 norm, in float64; NaN where there is no direction."""
    wide = vectors.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        norms[~(np.isfinite(norms) & (norms > 0))] = np.nan
        scaled: Floats = wide / norms[:, None]
    return scaled


def unit_vectors(table: pa.Table, name: str, place: Rows) -> Vectors:
    """A column of vectors as [rows, width], each of length 1; NaN where there is none.

    Row i comes to `place[i]` (a permutation), without a second copy of the column.
    """
    column = table[name]
    width = _width(column, name)
    found = np.full((table.num_rows, width), np.nan, dtype=np.float32)
    start = 0
    for chunk in column.chunks:
        for at in range(0, len(chunk), BLOCK):
            part = chunk.slice(at, BLOCK)
            rows = start + at + np.flatnonzero(part.is_valid().to_numpy(zero_copy_only=False))
            values = part.drop_null().flatten().cast(pa.float64())
            found[place[rows]] = unit(
                values.to_numpy(zero_copy_only=False).reshape(len(rows), width)
            )
        start += len(chunk)
    return found


def _width(column: pa.ChunkedArray, name: str) -> int:
    """The one width of all vectors (0 where there are none)."""
    types, dtype = pa.types, column.type
    nested = types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype)
    if not nested or not types.is_floating(dtype.value_type):
        raise DataError(
            f"vectors are lists of floats, such as `embedding.vector`, not {dtype}", where=name
        )
    widths = pc.unique(pc.list_value_length(column).drop_null()).to_pylist()
    if len(widths) > 1:
        raise DataError(
            f"vectors of {len(widths)} different widths, such as {min(widths)} and {max(widths)}; "
            "give vectors of one model",
            where=name,
        )
    return int(widths[0]) if widths else 0


def cluster_count(n: int) -> int:
    """Clusters for n documents where none are asked for: sqrt(n / 2), at most MOST_CLUSTERS."""
    return max(1, min(round(math.sqrt(n / 2)), MOST_CLUSTERS))


def spherical_kmeans(documents: Vectors, k: int, rng: Rng) -> Rows:
    """The cluster of each unit vector; they come in the order of their ids, each id once.

    k = 0 is `cluster_count`.
    """
    n = len(documents)
    k = k or cluster_count(n)
    if 0 < n < k:
        raise DataError(
            f"{n} documents with a score and a vector cannot make {k} clusters; "
            "ask for fewer, or for 0 (the square root of half of them)",
            where="clusters",
        )
    return _clustered(documents, k, rng) if n else np.empty(0, dtype=np.int64)


def _clustered(documents: Vectors, k: int, rng: Rng) -> Rows:
    import faiss  # noqa: TID251

    kmeans = faiss.Kmeans(
        documents.shape[1],
        k,
        niter=ITERATIONS,
        spherical=True,
        seed=rng.at("kmeans").key % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE,
    )
    kmeans.train(documents)
    nearest: Rows = kmeans.index.search(documents, 1)[1][:, 0].astype(np.int64)
    return nearest
