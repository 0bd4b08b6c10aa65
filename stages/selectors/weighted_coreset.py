"""Greedy weighted k-centre: documents that score well and are far from those picked before.

    first pick of a cell    argmax_i w_i
    later picks             argmax_i w_i min_{j picked} d(i, j)

over the distinct documents of a cell; w is the product of the columns `by`, each brought to (0, 1)
by its rank among the documents (average rank of equals), so that none dominates. d is 1 - cos, or
the Euclidean distance of the vectors as they are. The weight multiplies the distance: without it
the rule prefers outliers, which in text are junk. With equal weights the largest distance of a
document to the picks is at most twice the least possible (Gonzalez 1985). Equal values go to the
larger weight, then to the smaller id. `pool` keeps the best share of the documents by weight first.

Cells share the budget in proportion to their cost, as in `relational` (Webster's rule): 1 cell is
the rule over the whole pool at once. Exact copies count as one document with the cost of all, and
stand side by side. Picks are made until the budget is full; the other documents are not ranked
("not reached", "outside the pool"), so that the choice can be cut again at a smaller budget only.
Never kept: "no score", "no embedding", "no cluster".

Cost: k_c n_c d for n_c documents and k_c picks of a cell at most, mostly by products of blocks: a
document is looked at again only where its old value, an upper bound, is above the best. Memory: the
vectors of one cell, gathered from the table when its turn comes, and some 100 bytes a document.
10,000 of 1,000,000 vectors of width 384 in 512 cells: 80 s on two cores, most of it k-means.
Source: D3 (arXiv 2503.11441); no code is published, the greedy rule is a reconstruction. Which
distance it uses, and how it scales its factors, is not known; ranks are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.pipeline.vectors import Rows
from foresift.stages.selectors._greedy import Distance, Enough, KCentre, Picks
from foresift.stages.selectors._pool import Picker, Pool, Scale


@dataclass(frozen=True, kw_only=True)
class WeightedCoreset(Selector):
    """Keep good rows that lie far from one another (weighted k-centre, D3)."""

    by: list[str]
    """Columns of scores, multiplied with one another; larger = keep first."""
    embedding: str
    """Column of vectors, such as `embedding.vector`."""
    cells: int | str = 0
    """Column of labels, or a number of cells for k-means; 0 is the square root of half the
    documents, at most 10,000; 1 compares with every pick."""
    distance: Distance = "cosine"
    """1 - cos, or the Euclidean distance of the vectors as they are."""
    scale: Scale = "rank"
    """`rank` brings each column to (0, 1) by rank; `raw` takes numbers of at least 0 as is."""
    pool: float = 1.0
    """Share of the documents of largest weight that is considered, above 0 to 1 (D3: 0.2)."""

    def __post_init__(self) -> None:
        if not self.by:
            raise ValueError("by needs at least one column")
        if isinstance(self.cells, int) and self.cells < 0:
            raise ValueError("cells must be a column, a number of cells, or 0")
        if not 0 < self.pool <= 1:
            raise ValueError("pool must be a share above 0, at most 1")

    @property
    def needs(self) -> tuple[str, ...]:
        cells = (self.cells,) if isinstance(self.cells, str) else ()
        return (*self.by, self.embedding, *cells)

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        pool = Pool.of(table, self.embedding, self.by, self.scale, budget, self.cells)
        assert budget is not None
        best = pool.best(self.pool)
        cells = pool.members(self.cells, rng, best)
        order = pool.shared(cells, lambda _, cell: self._picker(pool, cell))
        outside = np.setdiff1d(np.arange(len(pool.weight)), best, assume_unique=True)
        choice = pool.choice(table, budget, order, {"outside the pool": outside})
        facts = {
            "documents": len(pool.weight),
            "pool": len(best),
            "clusters": len(cells),
            "largest_cluster": max(map(len, cells), default=0),
        }
        return replace(choice, facts={**choice.facts, **facts})

    def _picker(self, pool: Pool, cell: Rows) -> Picker:
        """The greedy of one cell; its vectors are gathered for each call and let go."""
        members = cell[np.argsort(-pool.weight[cell], kind="stable")]
        state = KCentre(pool.weight[members], self.distance)

        def more(enough: Enough) -> Picks:
            if len(state.picks) == len(members):
                return [], []
            documents = pool.documents
            if self.distance == "cosine":
                vectors = documents.unit(members)
            else:
                vectors = documents.vectors.raw(documents.rows[members])
            picks, values = state.more(vectors, lambda pick: enough(int(members[pick])))
            return members[picks].tolist(), values

        return more
