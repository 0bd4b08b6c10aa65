"""Facility location by apricot's lazy greedy.

    python apricot_facility.py VECTORS.npy COUNT NEIGHBOURS

VECTORS: [n, d] of length 1. NEIGHBOURS = 0 gives apricot the whole matrix max(0, cos) of float64;
above 0 a sparse matrix of the nearest neighbours, made by the scikit-learn class that apricot's own
`n_neighbors` takes (that option itself ends in an error in 0.6.1 when a pick is added). Prints one
line of JSON: picks, and seconds from vectors to picks without imports and compilation.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from apricot import FacilityLocationSelection
from sklearn.neighbors import KNeighborsTransformer


def picks(vectors: np.ndarray, count: int, neighbours: int) -> list[int]:
    """The picks in their order."""
    if neighbours:
        search = KNeighborsTransformer(mode="distance", n_neighbors=neighbours)
        matrix = search.fit_transform(vectors.astype(np.float64))
        matrix.data = np.maximum(1 - matrix.data**2 / 2, 0)
    else:
        matrix = np.empty((len(vectors), len(vectors)), dtype=np.float64)
        for start in range(0, len(vectors), 1024):
            rows = slice(start, start + 1024)
            np.maximum(vectors[rows] @ vectors.T, 0, out=matrix[rows], casting="unsafe")
    part = FacilityLocationSelection(count, metric="precomputed", optimizer="lazy")
    return [int(i) for i in part.fit(matrix).ranking]


def main() -> None:
    vectors = np.load(sys.argv[1])
    count, neighbours = int(sys.argv[2]), int(sys.argv[3])
    picks(vectors[:200], 5, min(neighbours, 20))  # compile
    start = time.perf_counter()
    found = picks(vectors, count, neighbours)
    print(json.dumps({"seconds": time.perf_counter() - start, "picks": found}))


if __name__ == "__main__":
    main()
