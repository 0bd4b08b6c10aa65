"""SemDeDup: how near a document is to one that stands before it in its cluster.

    1. documents are parted by spherical k-means into cells
    2. within a cell they stand farthest from the centroid first (`keep: hard`)
    3. M_j = max(0, max_{i before j} e_i . e_j)        e: vectors of length 1; M = 0 for the first
    4. j is a duplicate where M_j > 1 - eps, strictly

    similarity = M (0 to 1)     duplicate = M > 1 - eps     utility = -M (first the least redundant)

`rule: released` is the paper's and its code's: every earlier document counts, even one that is a
duplicate itself, so in a chain a~b~c both b and c go. `rule: greedy` compares with kept documents
only, so c stays. At angles 0, 10, 20 and 90 degrees in this order and eps = 0.02, released has
M = (0, .985, .985, .342) and drops the 2nd and 3rd; greedy has .940 for the 3rd and keeps it.

To drop a share instead of choosing eps (which released M does not depend on):

    {select: topk, by: semantic_duplicate.utility, budget: 75% rows}

and to drop at eps: `{select: where, keep: "not semantic_duplicate.duplicate"}`. Exact copies share
an id and one score, so both stay or both go: run `dedup: exact` (and `minhash`, which reads words)
before. How near is near depends on the vectors: look at pairs before trusting an eps, above all
with the last hidden state of a causal model, which may say more of the last word than of the text.
Documents without a vector have NaN and null.

**Duplicates in different cells are missed.** `recall` among the facts is the share of duplicates,
among `checked` documents, that are also found within cells. Below 0.95 the run warns: fewer
`clusters` find more, and so does `restarts`, which parts the documents several times; the order is
that of the first time in all of them, so that no pair loses both sides. A cell of more than
`largest_cell` documents is clustered again, not cut. Facts: also cells, the largest, duplicates,
and `share_at`, the share that would be duplicates at other values of eps (released).

Errors: fewer documents than clusters; none with a direction. Cost: k-means, and n^2 d / 2k
multiplications; `checked`^2 d / 2 for recall. Source: Abbas et al. 2023 (SemDeDup); the default of
eps is ours (they choose it for a wanted size).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.cells import Cells, cell_count
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column
from foresift.pipeline.vectors import Documents, Rows
from foresift.scorers import _pairs
from foresift.scorers._documents import counted, documents_of, ids, some

RECALL = 0.95
#: how often a cell that is too large is clustered again
LEVELS = 3
#: documents a cell where no number is asked for: comparing them costs no more than k-means
PER_CELL = 2_000
EPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True, kw_only=True)
class SemanticDuplicate(FittedScorer):
    """Cosine with the most similar earlier document of the same cluster (SemDeDup)."""

    embedding: str = "embedding.vector"
    """Column of vectors; they are brought to length 1."""
    eps: float = 0.05
    """1 - cosine below which a document is a duplicate of an earlier one, in [0, 1]."""
    keep: Literal["hard", "easy", "random"] = "hard"
    """Who stands first in a cell: those far from the centroid, those near it, or by chance."""
    rule: Literal["released", "greedy"] = "released"
    """Compared with every earlier document, or with those that are kept."""
    clusters: int = 0
    """How many cells; 0: one for 2,000 documents, at most the square root of half of them; 1: all
    are compared with all."""
    restarts: int = 1
    """How often the documents are parted into cells, each time with other seeds (released)."""
    largest_cell: int = 20_000
    """Documents above which a cell is clustered again."""
    checked: int = 20_000
    """Documents that are compared with one another for `recall`; 0: it is not measured."""
    seed: int = 0
    """Chooses the first centroids, `keep: random`, and the documents that are checked."""

    reads_content: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = {
        "similarity": Column(pa.float32(), "largest cosine to an earlier document", "lower"),
        "duplicate": Column(pa.bool_(), "similarity above 1 - eps"),
        "utility": Column(pa.float32(), "negative cosine", "higher"),
    }

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise ValueError("eps must lie in [0, 1]")
        if self.clusters < 0 or self.checked < 0:
            raise ValueError("clusters and checked must not be negative")
        if self.restarts < 1 or self.largest_cell < 2:
            raise ValueError("restarts must be at least 1, largest_cell at least 2")
        if self.restarts > 1 and self.rule == "greedy":
            raise ValueError("restarts go with rule: released; with greedy ask for fewer clusters")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.embedding,)

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        documents = documents_of(tables, self.embedding, out)
        rng = Rng(self.seed).at("semantic_duplicate")
        n = len(documents)
        clusters = self.clusters or max(1, min(cell_count(n), n // PER_CELL))
        parted = []
        for number in range(self.restarts):
            there = rng.at("cells", number)
            parted.append(parts(documents, clusters, self.largest_cell, there))
        cells = np.stack([cell for cell, _ in parted], axis=1)
        order = preference(documents, parted[0][1], self.keep, rng)
        similarity = self._similarity(documents, cells, order)
        write_by_id(out, documents.words, {"similarity": similarity})
        return self._facts(documents, cells, order, similarity, rng)

    def _similarity(self, documents: Documents, cells: Rows, order: Rows) -> _pairs.Cosines:
        """[m] M of each document."""
        found = np.zeros(len(documents), dtype=np.float32)
        for cell in cells.T:
            by_cell = order[np.argsort(cell[order], kind="stable")]
            ends = np.cumsum(np.bincount(cell))
            for rows in np.split(by_cell, ends[:-1]):
                if len(rows) < 2:
                    continue
                vectors = documents.unit(rows)
                if self.rule == "greedy":
                    found[rows] = _pairs.kept(vectors, self.eps)
                else:
                    found[rows] = np.maximum(found[rows], _pairs.before(vectors))
        return found

    def _facts(
        self, documents: Documents, cells: Rows, order: Rows, similarity: _pairs.Cosines, rng: Rng
    ) -> Facts:
        sizes = np.concatenate([np.bincount(cell) for cell in cells.T])
        number = int(_pairs.duplicate(similarity, self.eps).sum())
        facts = counted(documents) | {
            "cells": int((sizes > 0).sum()), "largest_cell": int(sizes.max()),
            "duplicates": number, "share": number / len(documents),
        }  # fmt: skip
        if self.rule == "released":
            facts["share_at"] = {
                str(eps): float(_pairs.duplicate(similarity, eps).mean()) for eps in EPS
            }
        if self.checked:
            facts["recall"] = recall = self._recall(documents, cells, order, rng)
            if recall is not None and recall < RECALL:
                more = "" if self.rule == "greedy" else " or more `restarts`"
                facts["warnings"].append(
                    f"cells hide {1 - recall:.1%} of the duplicates; ask for fewer `clusters`{more}"
                )
        if facts["largest_cell"] > self.largest_cell:
            facts["warnings"].append(
                f"a cell of {facts['largest_cell']} documents could not be clustered further"
            )
        return facts

    def _recall(self, documents: Documents, cells: Rows, order: Rows, rng: Rng) -> float | None:
        """Of the duplicates among some documents, the share found within cells."""
        drawn = np.argsort(rng.at("check").uniform(ids(documents)), kind="stable")[: self.checked]
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        rows = drawn[np.argsort(place[drawn])]
        full, near = _pairs.within(documents.unit(rows), cells[rows])
        there, seen = (int(_pairs.duplicate(x, self.eps).sum()) for x in (full, near))
        return seen / there if there else None

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        similarity = read_by_id(out, batch["id"])["similarity"]
        marked = pa.array(_pairs.duplicate(similarity, self.eps), mask=np.isnan(similarity))
        return {"similarity": similarity, "duplicate": marked, "utility": -similarity}


def parts(
    documents: Documents, clusters: int, largest: int, rng: Rng, levels: int = LEVELS
) -> tuple[Rows, npt.NDArray[Any]]:
    """[m] cell of each document and cosine to its centroid; large cells are clustered again."""
    cells = Cells.fit(documents, clusters, rng)
    cell, similarity, count = cells.cell.copy(), cells.similarity.copy(), len(cells)
    large = np.flatnonzero(cells.sizes > largest)
    for number in large if levels and len(cells) > 1 else ():
        members = cells.members(int(number))
        more = math.ceil(2 * len(members) / largest)
        below = rng.at("large", int(number))
        inner, cosine = parts(some(documents, members), more, largest, below, levels - 1)
        cell[members], similarity[members] = count + inner, cosine
        count += int(inner.max()) + 1
    return cell, similarity


def preference(documents: Documents, similarity: npt.NDArray[Any], keep: str, rng: Rng) -> Rows:
    """Document numbers, who stands first first; among equals (to a millionth) the smaller id."""
    key: npt.NDArray[Any] = np.round(similarity.astype(np.float64), 6)
    if keep == "easy":
        key = -key
    elif keep == "random":
        key = rng.at("keep").uniform(ids(documents))
    return np.argsort(key, kind="stable")
