"""Facility location: documents that together stand for all the others.

    maximise  sum_i max_{j in S} sim(i, j) + bonus sum_{j in S} rank(u_j)      sim = max(0, cos)

over the distinct documents of a cell, greedily: the next pick is the document of largest gain,
equal gains go to the smaller id. The sum is monotone and submodular, so that k greedy picks reach
at least 1 - 1/e of the best k (Nemhauser, Wolsey, Fisher 1978). With `by`, every pick also earns
`bonus` times the rank of its score in (0, 1): a bonus of 1 is worth as much as one document more
that is wholly covered.

`neighbours` = K > 0: of each document only the K most similar others count as similar to it, so
that nothing of n x n is stored; they are found by exact search, or in `probes` k-means cells where
there are more than 8,192 documents. K = 0 counts all, and takes cells of up to 8,192 documents.

`stochastic` looks for each pick at a random sample of (n / k) ln(1 / epsilon) documents, k the
picks that the cell is expected to need; the expected value is within epsilon of greedy's guarantee
(Mirzasoleiman et al. 2015). Its picks depend on the budget.

Cells share the budget in proportion to their cost, as in `relational`: 1 cell is the rule over the
whole pool. Exact copies count as one document with the cost of all, and stand side by side. Picks
are made until the budget is full; other documents are "not reached" and not ranked. Never kept: "no
score", "no embedding", "no cluster".

Cost: n_c^2 d for the neighbours in a cell of n_c documents (n_c m d where m lie in the cells looked
into), then about K operations for each gain looked at. Memory: 4 n_c d + 24 K n_c bytes. 1,000 of
50,000 vectors of width 384 at once: 9 s on one core, 4 s in 158 cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa

from foresift.pipeline.cells import Cells, cell_count, neighbours
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.pipeline.vectors import Rows
from foresift.stages.selectors._greedy import Coverage, Enough, Picks, Similar
from foresift.stages.selectors._pool import Picker, Pool
from foresift.stages.selectors._ranking import Floats

LARGEST_FULL = 8192


@dataclass(frozen=True, kw_only=True)
class FacilityLocation(Selector):
    """Keep rows that together stand for all the others (submodular coverage)."""

    embedding: str
    """Column of vectors, such as `embedding.vector`; brought to length 1 here."""
    cells: int | str = 0
    """Column of labels, or a number of cells for k-means; 0 is the square root of half the
    documents, at most 10,000; 1 is the whole pool at once."""
    neighbours: int = 256
    """Documents that count as similar to each; 0 is all of a cell. Take several times the number of
    documents for each one kept."""
    probes: int = 8
    """In a cell of more than 8,192 documents neighbours are searched in so many k-means cells of
    it, the nearest ones; 0 searches all of it."""
    by: str = ""
    """Column of scores, larger = keep first; empty: none."""
    bonus: float = 1.0
    """What the best score adds to a pick's gain, in documents covered, at least 0."""
    variant: Literal["lazy", "stochastic"] = "lazy"
    """All candidates for each pick, or a random sample of them."""
    epsilon: float = 0.1
    """What `stochastic` may lose, between 0 and 1."""

    def __post_init__(self) -> None:
        if isinstance(self.cells, int) and self.cells < 0:
            raise ValueError("cells must be a column, a number of cells, or 0")
        if self.neighbours < 0 or self.probes < 0:
            raise ValueError("neighbours and probes must be at least 0")
        if not (math.isfinite(self.bonus) and self.bonus >= 0):
            raise ValueError("bonus must be a finite number of at least 0")
        if not 0 < self.epsilon < 1:
            raise ValueError("epsilon must be between 0 and 1")

    @property
    def needs(self) -> tuple[str, ...]:
        others = (self.by, self.cells)
        return (self.embedding, *(name for name in others if isinstance(name, str) and name))

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        by = [self.by] if self.by else []
        pool = Pool.of(table, self.embedding, by, "rank", budget, self.cells)
        assert budget is not None
        cells = pool.members(self.cells, rng)
        bonus = self.bonus * pool.weight if by else np.zeros(len(pool.weight))
        gained = np.zeros(len(pool.weight))

        def picker(number: int, cell: Rows) -> Picker:
            return self._picker(pool, cell, bonus[cell], gained, rng.at(number))

        order = pool.shared(cells, picker)
        choice = pool.choice(table, budget, order, {})
        total = float((gained - bonus)[order].sum())
        facts = {
            "documents": len(pool.weight),
            "clusters": len(cells),
            "largest_cluster": max(map(len, cells), default=0),
            "mean_similarity": round(total / max(len(pool.weight), 1), 6),
        }
        return replace(choice, facts={**choice.facts, **facts})

    def _picker(self, pool: Pool, cell: Rows, bonus: Floats, gained: Floats, rng: Rng) -> Picker:
        """The greedy of one cell; the gains of its picks are written to `gained`."""
        state = Coverage(bonus)
        share = pool.limit / max(int(pool.cost.sum()), 1)
        expected = max(1.0, min(1.0, share) * len(cell))
        size = math.ceil(min(len(cell), len(cell) / expected * math.log(1 / self.epsilon)))

        def sample(pick: int) -> Rows:
            drawn: Rows = rng.at("sample", pick).generator().choice(len(cell), size, replace=False)
            return drawn

        def more(enough: Enough) -> Picks:
            if len(state.picks) == len(cell):
                return [], []
            similar = self._similar(pool, cell, rng)
            chosen = sample if self.variant == "stochastic" else None
            picks, gains = state.more(similar, lambda pick: enough(int(cell[pick])), chosen)
            gained[cell[picks]] = gains
            return cell[picks].tolist(), gains

        return more

    def _similar(self, pool: Pool, cell: Rows, rng: Rng) -> Similar:
        """All cosines of a cell, or those of neighbours."""
        n = len(cell)
        if not self.neighbours and n > LARGEST_FULL:
            raise DataError(
                f"a cell of {n} documents is too large to compare all pairs; ask for more cells, "
                "or for some `neighbours` of each document",
                where=self.embedding,
            )
        if not self.neighbours or n <= self.neighbours + 1:
            vectors = pool.documents.unit(cell)
            return Similar(vectors @ vectors.T)
        documents = pool.some(cell)
        if self.probes and n > LARGEST_FULL:
            index = Cells.fit(documents, cell_count(n), rng.at("index"))
            found, cosines = neighbours(documents, self.neighbours, index, self.probes)
        else:
            found, cosines = neighbours(documents, self.neighbours)
        return Similar(cosines, found)
