"""A quota for each cluster, and the best, or random, documents of each up to it.

    proportional   q_c ~ size_c            equal   the same q for all
    sqrt           q_c ~ sqrt(size_c)      modular clusters take turns, one document a turn

Quotas and sizes are in the unit of the budget (tokens, rows, ...); size_c counts the rows of
cluster c that have a score. They are whole numbers by largest remainder and never above size_c.
With `refill`, what a small cluster cannot take goes to the others in proportion to their weights
until the budget is placed; without it, that much is not spent, and `short` is true. Nothing is ever
taken twice. `_quotas.py` tells how documents of different length fill a quota: the whole exceeds
the budget by less than one document, each cluster misses its quota by less than one, and under a
budget of rows quotas are exact.

`modular` gives clusters equal numbers of documents whatever the budget counts: first each
cluster's first document in the order of the labels, then each one's second, and so on; clusters
that have given all they have are passed over. MELU handles entities as modules one after the other
within a run; what a selection can take from it is that every module has its turn.

Within a cluster rows stand by the column `by` (larger first, or smaller with `lowest`) or at
random (one draw an id); ties by id. So

    prototype pruning (D4)     by: clusters.distance, quota: proportional

keeps those farthest from each centroid, R_proto of each cluster (D4 discards the closest); 1,000
rows at 25 % are exactly 250. `equal` on a column of one label a document is EAQuant's balanced
calibration set for documents that belong to one cell each; a document that feeds several cells at
once (tokens routed to many experts) would need the greedy choice by quota still open, which is not
here.

Facts: clusters, each one's (available, quota, taken) for the 100 largest quotas, smallest, median
and largest quota, and `unfilled`: clusters that have less than their weight alone would give them
(their number, the amount missing, and the first 20 labels; under `modular`, whose quotas are what
was taken, there are none). Dropped: "over quota", "no cluster"
(null), "no score". Rows rank by how early their cluster's quota reaches them, kept ones first; at
another budget select anew, a re-cut keeps quotas only roughly (`modular` exactly). Cost: one sort.
Source: D4 (Tirumala et al. 2023) and EAQuant (calibration balance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from foresift.pipeline.labels import detail, labels, named
from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.pipeline.tables import id_words
from foresift.stages.selectors._quotas import (
    Rows,
    assign_quota,
    chosen,
    in_cells,
    spent_by,
    supply,
    whole,
)
from foresift.stages.selectors._ranking import NO_SCORE, Floats, asked, utilities

FIRST = 20
UNLABELLED = "no cluster"


@dataclass(frozen=True, kw_only=True)
class ClusterQuota(Selector):
    """Keep the best or random documents of each cluster, up to a quota."""

    clusters: str
    """Column of labels, such as `clusters.cluster`; rows without one are never kept."""
    quota: Literal["proportional", "equal", "sqrt", "modular"] = "proportional"
    """How the budget is shared: by size, alike, by the square root of the size, or in turns."""
    by: str = ""
    """Column to rank by within a cluster; larger = keep first. By default rows are drawn."""
    lowest: bool = False
    """True prefers the smallest values of `by`."""
    refill: bool = True
    """Whether what a cluster cannot take goes to the others (`modular` always does that)."""

    def __post_init__(self) -> None:
        if self.lowest and not self.by:
            raise ValueError("lowest needs a column `by`")
        if self.quota == "modular" and not self.refill:
            raise ValueError("refill must be true where quota is modular: turns pass on by nature")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.clusters, self.by) if self.by else (self.clusters,)

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        budget = asked(budget)
        names, cell = labels(table, self.clusters)
        draws = rng.gumbel(table["id"]) if not self.by else None
        utility = utilities(table, self.by, self.lowest) if draws is None else draws
        costs = budget.costs(table)
        sizes = supply(cell, utility, costs, len(names))
        if self.quota == "modular":
            choice = in_turns(table, budget, cell, utility)
            taken = spent_by(cell, choice.kept, costs, len(names))
            facts = _facts(names, sizes, taken, taken, np.minimum(taken, sizes))
            return replace(choice, facts={**choice.facts, **facts})
        weights = {"equal": np.ones(len(sizes)), "sqrt": np.sqrt(sizes)}.get(self.quota, sizes)
        amount = whole(budget.limit(costs))
        quota = assign_quota(sizes, amount, weights, self.refill)
        choice = chosen(table, budget, cell, utility, quota, UNLABELLED)
        wanted = assign_quota(np.full(len(sizes), amount), amount, weights, refill=False)
        taken = spent_by(cell, choice.kept, costs, len(names))
        facts = _facts(names, sizes, quota, taken, wanted)
        unfilled = facts["unfilled"]
        if unfilled["clusters"]:
            where = "went to the others" if self.refill else "are not spent (`refill: false`)"
            facts["warnings"] = [
                f"{unfilled['clusters']} clusters are smaller than their quota "
                f"({named(unfilled['first'], 3)}): {unfilled['missing']} {budget.cost} {where}"
            ]
        return replace(choice, facts={**choice.facts, **facts})


def in_turns(table: pa.Table, budget: Budget, cell: Rows, utility: Floats) -> Choice:
    """One document of each cell a turn, in the order of the cells, until the budget is full."""
    rows = in_cells(cell, utility, id_words(table["id"]))
    first = np.searchsorted(cell[rows], cell[rows])
    turn = np.arange(len(rows)) - first
    order = rows[np.lexsort((cell[rows], turn))]
    choice = Choice.from_order(order, table, budget, unranked_reason=NO_SCORE)
    choice.reason[cell < 0] = UNLABELLED
    return replace(choice, facts={**choice.facts, "unranked": table.num_rows - len(order)})


def _facts(
    names: Sequence[str], sizes: Rows, quota: Rows, taken: Rows, wanted: Rows
) -> dict[str, Any]:
    """What was asked of the clusters and what they gave."""
    missing: Rows = np.maximum(wanted - sizes, 0)
    unfilled = np.flatnonzero(missing)
    spread = np.quantile(quota, [0, 0.5, 1]).tolist() if len(quota) else [0, 0, 0]
    columns = {"available": sizes, "quota": quota, "taken": taken}
    return {
        "clusters": len(names),
        "quota": dict(zip(("smallest", "median", "largest"), spread, strict=True)),
        "quotas": detail(names, quota, columns),
        "unfilled": {
            "clusters": len(unfilled),
            "missing": int(missing.sum()),
            "first": [names[i] for i in unfilled[:FIRST]],
        },
    }
