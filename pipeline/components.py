"""From equal keys to clusters: rows that share a key, and what hangs together through pairs.

Rows are numbers. Rows that share a key lie in one bucket; pairs of a bucket are edges; connected
components are clusters (union-find); the best row of each cluster is kept. Chains are allowed: a
and c end in one cluster through b. Cost: a sort of the keys, 16 bytes an edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


def bucket_pairs(keys: Keys, window: int = 0) -> Ints:
    """[m, 2] pairs (earlier, later) of rows with equal `keys` ([n] or [n, words]).

    `window` 0 pairs each row with the first of its bucket, enough to join the whole bucket; w > 0
    pairs it with up to w rows before it in the bucket.
    """
    columns = keys if keys.ndim == 2 else keys[:, None]
    order = np.lexsort(columns.T[::-1])
    ranked = columns[order]
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    bucket = np.cumsum(fresh)
    if window == 0:
        firsts = order[np.flatnonzero(fresh)][bucket - 1]
        return np.stack([firsts[~fresh], order[~fresh]], axis=1).astype(np.int64)
    found = [np.empty((0, 2), dtype=np.int64)]
    for lag in range(1, min(window, len(order) - 1) + 1):
        same = np.flatnonzero(bucket[lag:] == bucket[:-lag])
        if len(same) == 0:
            break
        found.append(np.stack([order[same], order[same + lag]], axis=1))
    return np.concatenate(found)


@dataclass(frozen=True)
class Clusters:
    """The rows in clusters of two and more: `rows` ascending, the row kept, the cluster's size."""

    rows: Ints
    kept: Ints
    sizes: Ints


def find_clusters(pairs: Ints, worth: npt.NDArray[np.float64]) -> Clusters:
    """Connected components of `pairs`; kept is the row of most worth, the first among equals.

    A row whose worth is NaN comes last.
    """
    rows, ends = np.unique(pairs, return_inverse=True)
    ends = ends.reshape(-1, 2)
    graph = coo_array(
        (np.ones(len(ends), dtype=np.bool_), (ends[:, 0], ends[:, 1])), shape=(len(rows), len(rows))
    )
    _, label = connected_components(graph, directed=False)
    value = worth[rows]
    lost = np.isnan(value)
    order = np.lexsort((rows, -np.where(lost, 0.0, value), lost, label))
    first = np.unique(label[order], return_index=True)[1]
    sizes = np.bincount(label).astype(np.int64)
    return Clusters(rows, rows[order[first]][label], sizes[label])
