"""Density: how near the nearest other documents are.

    distance_i = 1 - (1 / k) sum_{j in kNN(i)} e_i . e_j      0 to 2; large = few documents like it
    kth_i      = 1 - e_i . e_{k-th nearest}
    utility_i  = distance_i                                   sparse regions first

e is the vector at length 1 and kNN(i) are the k other documents of largest cosine. A document is
left out of its own neighbours by its id, so an exact copy (same id) is no neighbour while a
near-duplicate is. Utility asks for diversity; where common documents are wanted, take
`{select: topk, by: density.distance, lowest: true}`. Sparse regions also hold junk: filter for
quality first. Documents without a vector have NaN.

Up to `exact_up_to` documents the search is exact. Beyond, it looks into the `probes` nearest cells
of a spherical k-means; `recall` among the facts is the share of the true neighbours of `sampled`
documents that it found. Documents whose cells hold fewer than k others are searched exactly.

Facts: documents, rows without a vector, median distance, and beyond `exact_up_to` cells, recall.
Errors: no more than k documents; none with a direction. Cost: n^2 d multiplications, or
n d (k-means + probes n / cells). Source: k-nearest-neighbour density estimation (Loftsgaarden and
Quesenberry 1965).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.cells import Cells, neighbours
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column
from foresift.pipeline.vectors import Documents, Matrix, Rows
from foresift.scorers._documents import counted, documents_of, ids

BLOCK = 1 << 11
#: documents whose neighbours are compared with an exact search
CHECKED = 2_000
RECALL = 0.95


@dataclass(frozen=True, kw_only=True)
class Density(FittedScorer):
    """Mean cosine distance of a document to its nearest others; sparse regions first."""

    embedding: str = "embedding.vector"
    """Column of vectors; they are brought to length 1."""
    neighbours: int = 10
    """How many nearest other documents are averaged."""
    exact_up_to: int = 50_000
    """Documents up to which all are compared with all."""
    probes: int = 4
    """Beyond that: cells that are looked into; more find more."""
    clusters: int = 0
    """Beyond that: how many cells; 0: the square root of half the documents."""
    seed: int = 0
    """Chooses the first centroids, and the documents that recall is measured on."""

    reads_content: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = {
        "distance": Column(pa.float32(), "1 - mean cosine to the nearest"),
        "kth": Column(pa.float32(), "1 - cosine to the k-th nearest"),
        "utility": Column(pa.float32(), "1 - mean cosine to the nearest", "higher"),
    }

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.probes < 1:
            raise ValueError("neighbours and probes must be at least 1")
        if self.clusters < 0 or self.exact_up_to < 0:
            raise ValueError("clusters and exact_up_to must not be negative")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.embedding,)

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        documents = documents_of(tables, self.embedding, out)
        if len(documents) <= self.neighbours:
            raise DataError(
                f"{len(documents)} documents have a vector, so none has {self.neighbours} others; "
                "ask for fewer",
                where="neighbours",
            )
        cosines, facts = self._search(documents)
        wide = cosines.astype(np.float64)
        distance = np.clip(1 - wide.mean(axis=1), 0, 2).astype(np.float32)
        kth = np.clip(1 - wide[:, -1], 0, 2).astype(np.float32)
        write_by_id(out, documents.words, {"distance": distance, "kth": kth})
        before = counted(documents)
        warnings = before["warnings"] + facts.pop("warnings", [])
        return {**before, **facts, "median": float(np.median(distance)), "warnings": warnings}

    def _search(self, documents: Documents) -> tuple[Matrix, Facts]:
        """[m, k] cosines of the nearest others, nearest first, and how they were found."""
        if len(documents) <= self.exact_up_to:
            return neighbours(documents, self.neighbours)[1], {"exact": True}
        rng = Rng(self.seed).at("density")
        cells = Cells.fit(documents, self.clusters, rng)
        cosines = neighbours(documents, self.neighbours, cells, self.probes)[1]
        short = np.flatnonzero(np.isnan(cosines[:, -1]))
        sample = np.sort(np.argsort(rng.at("check").uniform(ids(documents)))[:CHECKED])
        true = exact(documents, sample, self.neighbours)
        # cosines, not numbers, are compared: any of several equally near documents will do
        cosines[short] = exact(documents, short, self.neighbours)
        recall = float((cosines[sample] >= true[:, -1:] - 1e-6).mean())
        facts: Facts = {"exact": False, "cells": len(cells), "recall": recall, "short": len(short)}
        if recall < RECALL:
            said = f"{recall:.1%} of the nearest documents were found; raise `probes`"
            facts["warnings"] = [said]
        return cosines, facts

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        found = read_by_id(out, batch["id"])
        return {**found, "utility": found["distance"]}


def exact(documents: Documents, queries: Rows, k: int) -> Matrix:
    """[q, k] cosines of the k nearest others of some documents, nearest first."""
    found = np.full((len(queries), k), -np.inf, dtype=np.float32)
    step = BLOCK
    for start in range(0, len(documents) if len(queries) else 0, step):
        base = np.arange(start, min(start + step, len(documents)))
        vectors = documents.unit(base)
        for at in range(0, len(queries), step):
            mine = slice(at, at + step)
            product = documents.unit(queries[mine]) @ vectors.T
            product[queries[mine, None] == base] = -np.inf
            both = np.concatenate([found[mine], product], axis=1)
            found[mine] = -np.partition(-both, k - 1, axis=1)[:, :k]
    found.sort(axis=1)
    return found[:, ::-1]
