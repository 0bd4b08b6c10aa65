"""Sampling by softmax of standardised scores, as QuRating selects.

    z_i = (s_i - mean s) / std s       over the finite scores of the whole pool
    keep the largest of  z_i / tau + G_i   until the budget is full,  G ~ Gumbel(0, 1), one an id

This draws rows one after the other without putting them back, each time with probabilities in
proportion to exp(z / tau). tau is in standard deviations of the pool: 0 is `topk`, infinity would
be `random`. Adding a number to all scores, or multiplying them by one, changes nothing. Two
documents with z = -1 and 1 come first with probabilities 0.268941 and 0.731059 at tau = 2.

With `per`, each label gets its share of the budget in proportion to what it has (cost of its rows
that have a score), by the rule of `_quotas.py`; scores are still standardised over the pool, not
within a label. Without `per` this is `gumbel_topk` with
`standardise: true` and its textbook variant, at another default temperature.

The document that crosses the budget is kept. Never kept: "no score", and "no label" where `per`
is null. The released code numbers domains by a salted hash; labels here stand in their own order.
Cost: one sort. Source: QuRating (Wettig et al. 2024), section on selection and its release, where
tau = 1 is the default and tau = 2 did best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pyarrow as pa

from foresift.pipeline.labels import detail, labels
from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.stages.selectors._quotas import assign_quota, chosen, spent_by, supply, whole
from foresift.stages.selectors._ranking import asked, cut, perturbed, standardised, utilities


@dataclass(frozen=True, kw_only=True)
class SoftmaxSample(Selector):
    """Sample without replacement in proportion to exp(z / tau) (QuRating)."""

    by: str
    """Column of scores; larger = keep first."""
    lowest: bool = False
    """True prefers the smallest scores."""
    temperature: float = 1.0
    """tau >= 0, in standard deviations of the score; 0 is `topk`. QuRating found 2 best."""
    per: str = ""
    """Column of labels (a domain, a cluster) that share the budget in proportion to their cost; by
    default there are none."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError("temperature must be a finite number of at least 0")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by, self.per) if self.per else (self.by,)

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        budget = asked(budget)
        z = standardised(utilities(table, self.by, self.lowest))
        key = perturbed(z, self.temperature, rng.gumbel(table["id"]))
        if not self.per:
            return cut(key, table, budget)
        names, label = labels(table, self.per)
        costs = budget.costs(table)
        sizes = supply(label, key, costs, len(names))
        quota = assign_quota(sizes, whole(budget.limit(costs)))
        choice = chosen(table, budget, label, key, quota, "no label")
        taken = spent_by(label, choice.kept, costs, len(names))
        columns = {"available": sizes, "quota": quota, "taken": taken}
        facts = {"labels": len(names), "quotas": detail(names, quota, columns)}
        return replace(choice, facts={**choice.facts, **facts})
