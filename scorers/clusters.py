"""Clusters of documents: spherical k-means over a column of vectors.

    cluster_i    = argmax_j e_i . c_j       over unit centroids c_1 .. c_k
    similarity_i = max_j e_i . c_j          cosine to the own centroid, -1 to 1
    distance_i   = 1 - similarity_i         0 to 2; small = a prototype of its cluster, large = odd

e_i is the vector at length 1; centroids maximise sum_i e_i . c(i) (Lloyd's iteration, `cells.py`).
None of these is a utility: whether prototypes or odd documents come first is for a selector to say
(D4 keeps the odd ones, see configs/d4.yaml). Numbers of clusters mean nothing and hold for one step
only; after a selection the score is taken anew on what is left. Documents without a vector have
null and NaN.

Facts: clusters, their sizes (min, median, max), how many are empty, the entropy of the sizes in
nats (log k where all are equal), inertia (mean distance), documents, rows without a vector.
Errors: fewer documents than clusters; no document with a direction. Cost: 25 x sample x k x d
multiplications to learn (at most 256 documents a centroid), n x k x d to assign. Source: Dhillon
and Modha 2001; D4 (Tirumala et al. 2023) and SemDeDup (Abbas et al. 2023) use it so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.cells import Cells, nearest
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column
from foresift.scorers._documents import counted, documents_of, unit_rows

_FILE = "centroids.npy"


@dataclass(frozen=True, kw_only=True)
class Clusters(FittedScorer):
    """Cluster of a document by spherical k-means, and how far it lies from the centroid."""

    embedding: str = "embedding.vector"
    """Column of vectors; they are brought to length 1."""
    clusters: int = 0
    """How many clusters; 0: the square root of half the documents, at most 10,000."""
    seed: int = 0
    """Chooses the first centroids, and the sample that centroids are learned from."""

    reads_content: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = {
        "cluster": Column(pa.int32(), "number of a cluster"),
        "similarity": Column(pa.float32(), "cosine to the own centroid"),
        "distance": Column(pa.float32(), "1 - cosine to the own centroid"),
    }

    def __post_init__(self) -> None:
        if self.clusters < 0:
            raise ValueError("clusters must be a number of clusters, or 0")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.embedding,)

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        documents = documents_of(tables, self.embedding, out)
        cells = Cells.fit(documents, self.clusters, Rng(self.seed).at("clusters"))
        np.save(out / _FILE, cells.centroids, allow_pickle=False)
        facts = counted(documents)
        return {**facts, **described(cells), "warnings": facts["warnings"] + doubts(cells)}

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        centroids = np.load(out / _FILE, allow_pickle=False)
        vectors = unit_rows(batch, self.embedding)
        rows, width = vectors.shape
        if width not in (0, centroids.shape[1]):
            raise DataError(
                f"vectors of width {width}, clusters of width {centroids.shape[1]}",
                where=self.embedding,
            )
        cell, cosine = np.full(rows, -1, dtype=np.int64), np.full(rows, np.nan, dtype=np.float32)
        if width:
            cell, cosine = nearest(centroids, vectors)
        cluster = pa.array(cell.astype(np.int32), mask=cell < 0)
        return {"cluster": cluster, "similarity": cosine, "distance": 1 - cosine}


def described(cells: Cells) -> Facts:
    """How many clusters there are, how large they are, and how tight."""
    sizes = np.asarray(cells.sizes)
    shares = sizes[sizes > 0] / sizes.sum()
    return {
        "clusters": len(cells),
        "empty": int((sizes == 0).sum()),
        "sizes": {"min": int(sizes.min()), "median": float(np.median(sizes)),
                  "max": int(sizes.max())},
        "entropy": float(-(shares * np.log(shares)).sum()) + 0.0,
        "inertia": float(1 - cells.similarity.astype(np.float64).mean()),
    }  # fmt: skip


def doubts(cells: Cells) -> list[str]:
    """What makes clusters doubtful."""
    sizes = np.asarray(cells.sizes)
    empty, largest = int((sizes == 0).sum()), int(sizes.max())
    found = []
    if empty:
        found.append(f"{empty} of {len(sizes)} clusters are empty; ask for fewer clusters")
    if len(sizes) > 3 and 2 * largest > sizes.sum():
        found.append(f"one cluster of {len(sizes)} holds {largest} of {sizes.sum()} documents")
    return found
