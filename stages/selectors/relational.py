"""Group-wise selection: what helps, and is not yet said by what was picked before.

    first pick of a cluster     argmax u_i
    later picks                 argmax r_i u_i
                                r_i = max(0, alpha mean_{j picked} (1 - e_i.e_j / tau))

over the rows of the cluster with u > 0. u is the column `by`: larger = keep first and **0 = neither
helps nor harms**; Group-MATES predicts a change of loss, so u is its negative. e is the embedding
at length 1, alpha and tau are the learned scale and temperature (r is a ratio without a unit, 0 to
alpha (1 + 1/tau)). Equal vectors at tau = 1 have r = 0, orthogonal ones r = alpha. r is rounded to
nine decimals before alpha; equal values go to the larger u, then to the smaller id.

**Unhelpful rows** (u <= 0) stand after all helpful ones of the corpus, by u alone: a product with a
small r would move a harmful row forward for being redundant. Where no u is positive the relation
has no say and this is `topk`; the fact `positive` tells. The released code takes the product
whatever its sign, does not clamp r (at tau < 1 a product of two negative numbers looks helpful),
and fixes alpha = tau = 1 although both are learned.

**Clusters share the budget in proportion to their cost**, helpful or not, at every budget: pick i
of cluster c is due when the share t of the corpus is spent,

    t = (cost of the picks of c before i + cost_i / 2) / cost of c

and rows stand by t (Webster's rule; with largest remainders a larger budget can take a place away,
so that no single order of preference would have them at its cuts). A cluster without helpful rows
left goes on to be given its share, which is spent on the pick of largest value r u in any other
cluster, by the same rule of halves. The order does not depend on the amount of the budget, so
re-cutting it in the same unit equals selecting anew. alpha scales all picks of a cluster but the
first: it matters only where values of different clusters are compared.

Clusters are a column, or spherical k-means over the eligible rows. Never kept: "no score" (u is
missing), "no embedding" (no vector, or one that is not finite or 0), "no cluster". Facts: clusters,
rows in the largest, rows with u > 0, rows not ranked.

Cost: n_c^2 d multiplications and 32 MB beside the vectors of one cluster, n_c its helpful rows
(similarities are kept as sums: nothing of n x n); a few heap operations a row; k-means. 100,000
rows of width 384 in 224 clusters: 3.7 s on one core, 2.3 s of it k-means. Source: Group-MATES
(Yu et al. 2025), relational data influence and cluster-based inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.cells import spherical_kmeans
from foresift.pipeline.choice import scores
from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.labels import labels
from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.pipeline.tables import first_copies, id_words
from foresift.pipeline.vectors import Matrix, Rows, unit, unit_vectors
from foresift.stages.selectors._interleave import Queue, interleave
from foresift.stages.selectors._ranking import NO_SCORE, Floats

GRAM_ROWS = 2048
LARGEST = 1e300


@dataclass(frozen=True, kw_only=True)
class Relational(Selector):
    """Keep helpful rows that differ from those kept before in their cluster (Group-MATES)."""

    by: str
    """Column of utilities; larger = keep first, 0 = neither helps nor harms."""
    embedding: str
    """Column of vectors, such as `embedding.vector`; brought to length 1 here."""
    clusters: int | str = 0
    """Column of cluster labels, or a number of clusters for k-means; 0 is the square root of half
    the documents, at most 10,000 (Group-MATES: 10,000 for 29.5M)."""
    alpha: float | str = 1.0
    """Scale of the relation, > 0: a number, or the column of one, such as `relation.alpha`."""
    tau: float | str = 1.0
    """Temperature of the relation, > 0: below 1, rows of cosine above tau count as said already. A
    number, or the column of one, such as `relation.tau`."""

    def __post_init__(self) -> None:
        for name in ("alpha", "tau"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number above 0")
        if isinstance(self.clusters, int) and self.clusters < 0:
            raise ValueError("clusters must be a column, a number of clusters, or 0")

    @property
    def needs(self) -> tuple[str, ...]:
        others = (self.clusters, self.alpha, self.tau)
        return (self.by, self.embedding, *(c for c in others if isinstance(c, str)))

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        if budget is None:
            raise RecipeError("this selector needs a budget, such as '20%' or '1B tokens'")
        words = id_words(table["id"])
        by_id = np.lexsort((words[:, 1], words[:, 0]))
        utility = np.clip(scores(table, self.by)[by_id], -LARGEST, LARGEST)
        vectors = unit_vectors(table, self.embedding, np.argsort(by_id))
        cluster, reason = self._clusters(table, by_id, utility, vectors, rng)
        costs = budget.costs(table)[by_id]
        alpha, tau = (learned(table, value) for value in (self.alpha, self.tau))
        order = preference(utility, vectors, cluster, costs, alpha, tau)
        choice = Choice.from_order(by_id[order], table, budget)
        choice.reason[by_id[reason != ""]] = reason[reason != ""]
        sizes = np.bincount(cluster[cluster >= 0])
        facts = {
            "alpha": alpha,
            "tau": tau,
            "clusters": int((sizes > 0).sum()),
            "largest_cluster": int(sizes.max(initial=0)),
            "positive": int((utility[order] > 0).sum()),
            "unranked": table.num_rows - len(order),
        }
        return replace(choice, facts={**choice.facts, **facts})

    def _clusters(
        self, table: pa.Table, by_id: Rows, utility: Floats, vectors: Matrix, rng: Rng
    ) -> tuple[Rows, npt.NDArray[np.object_]]:
        """The cluster of each row in the order of ids, or -1 and the reason why it has none."""
        cluster = np.zeros(len(by_id), dtype=np.int64)
        if isinstance(self.clusters, str):
            cluster = labels(table, self.clusters)[1][by_id]
        reason = np.where(cluster < 0, "no cluster", "").astype(object)
        reason[np.isnan(vectors).any(axis=1) | (vectors.shape[1] == 0)] = "no embedding"
        reason[np.isnan(utility)] = NO_SCORE
        cluster[reason != ""] = -1
        if not isinstance(self.clusters, str):
            rows = np.flatnonzero(reason == "")
            first = first_copies(id_words(table["id"])[by_id[rows]])
            found = spherical_kmeans(vectors[rows[first]], self.clusters, rng)
            cluster[rows] = found[np.cumsum(first) - 1]
        return cluster, reason


def learned(table: pa.Table, value: float | str) -> float:
    """The number itself, or the one number that a column holds."""
    if not isinstance(value, str):
        return value
    found = np.unique(scores(table, value))
    found = found[~np.isnan(found)]
    if table.num_rows == 0:
        return 1.0
    if len(found) != 1 or not (np.isfinite(found[0]) and found[0] > 0):
        raise DataError(
            f"must hold one number above 0, the same in every row; it has {len(found)} values"
            + (f", among them {found[0]:.4g}" if len(found) else ""),
            where=value,
        )
    return float(found[0])


def preference(
    utility: Floats, vectors: Matrix, cluster: Rows, costs: Rows, alpha: float, tau: float
) -> Rows:
    """All rows that have a cluster, best first; rows stand by id."""
    eligible = cluster >= 0
    helpful = np.flatnonzero(eligible & (utility > 0))
    rest = np.flatnonzero(eligible & ~(utility > 0))
    rest = rest[np.argsort(-utility[rest], kind="stable")]
    helpful = helpful[np.lexsort((-utility[helpful], cluster[helpful]))]
    shares = np.bincount(cluster[eligible], costs[eligible]).astype(np.int64)
    bounds = np.searchsorted(cluster[helpful], np.arange(len(shares) + 1))
    queues = []
    for share, start, stop in zip(shares.tolist(), bounds, bounds[1:], strict=False):
        rows = helpful[start:stop]
        picks, values = ranking(utility[rows], vectors[rows], alpha, tau)
        queues.append(Queue(rows[picks].tolist(), values.tolist(), share))
    return np.concatenate([interleave(queues, costs), rest])


def ranking(utility: Floats, vectors: Matrix, alpha: float, tau: float) -> tuple[Rows, Floats]:
    """The picks of one cluster and the value r u of each when it was picked.

    Rows stand by utility, largest first, all above 0; among equal values the earlier row is picked.
    """
    n = len(utility)
    similarity = _similarity(unit(vectors))
    total = np.zeros(n)
    taken = np.zeros(n, dtype=np.bool_)
    picks, values = np.zeros(n, dtype=np.int64), np.zeros(n)
    value = utility.copy()
    for count in range(1, n + 1):
        pick = int(np.argmax(value))
        picks[count - 1], values[count - 1] = pick, value[pick]
        taken[pick] = True
        total += similarity(pick)
        relation = alpha * np.maximum(np.round(1 - total / (count * tau), 9), 0)
        value = np.where(taken, -1.0, relation * utility)
    return picks, values


def _similarity(vectors: Floats) -> Callable[[int], Floats]:
    """Row number -> its cosines with all rows: all at once where that is small."""
    if len(vectors) <= GRAM_ROWS:
        gram: Floats = vectors @ vectors.T
        return gram.__getitem__
    return lambda row: vectors @ vectors[row]
