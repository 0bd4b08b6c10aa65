"""A mixture: each source gives its share of the budget.

    shares: {news: 0.7, code: 0.3}    these, brought to sum 1
    shares: temperature               p_c ~ size_c^(1/T)     T = 1 proportional, T = inf uniform
    shares: unimax                    as equal as at most `epochs` readings of each source allow
    shares: column                    the number that `column` holds for each source, brought to
                                      sum 1, such as `source_bandit.share`

A source is a label in the column `by`, or the first `depth` components of a key path. size_c is
what its rows cost in the unit of the budget (those that have a score, where `utility` is given).
Sizes (100, 10) have shares (0.909, 0.091) at T = 1, (0.760, 0.240) at T = 2, (0.5, 0.5) at T = inf.

Quotas are whole numbers by largest remainder, never above size_c. A source that is smaller than
its share gives all it has and is listed under `unfilled`; the rest goes to the others in proportion
to their shares (`refill`), never to one whose share is 0. Documents fill a quota as `_quotas.py`
says: the whole exceeds the budget by less than one document, each source misses its quota by less
than one. Within a source rows stand by `utility` or at random (one draw an id); ties by id.

**UniMax above one epoch.** The budget then counts tokens as they will be read, repetitions
included, but a choice holds a row once. The rows of a source that is to be read w > 1 times have
the weight w = drawn / size, all others 1; an order that repeats rows by weight, or a trainer that
heeds weights, makes the repetitions. Without one a source is read once, and less is read than the
budget says: `spent` is the cost of the rows kept, `drawn` what they come to with their weights.

A source that is in `shares` but not in the data, or the reverse, is an error that lists both. In
recipes of several rounds a source may run out: `absent: skip` leaves it out then.

Dropped: "over quota", "no source" (null), "no score". Rows rank by how early the quota of their
source reaches them, kept ones first; at another budget select anew. Facts: for each source (the
100 largest) share, available, quota, taken, weight. Cost: one sort. Sources: temperature sampling
(Devlin et al. 2019, Conneau et al. 2020); UniMax (Chung et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa

from foresift.pipeline.choice import scores
from foresift.pipeline.errors import DataError
from foresift.pipeline.labels import LISTED, detail, labels, named
from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.stages.selectors._quotas import (
    Bools,
    Floats,
    Rows,
    assign_quota,
    chosen,
    spent_by,
    supply,
    temperature_shares,
    unimax,
    whole,
)
from foresift.stages.selectors._ranking import asked, utilities


@dataclass(frozen=True, kw_only=True)
class Mixture(Selector):
    """Keep documents of each source up to its share of the budget."""

    by: str
    """Column of labels, or of key paths such as `source` (see `depth`)."""
    shares: dict[str, float] | Literal["temperature", "unimax", "column"]
    """Label -> share (any positive sum), or how shares follow from what there is."""
    depth: int = 0
    """Components of a key path that name a source: 1 is `bucket` in `bucket/file#row`. 0 takes the
    label as it stands."""
    temperature: float = 1.0
    """T > 0 of `shares: temperature`; `.inf` is uniform."""
    epochs: float = 1.0
    """At most so many readings of a source under `shares: unimax`; at least 1."""
    column: str = ""
    """Column of shares for `shares: column`: at least 0, one number for each source."""
    utility: str = ""
    """Column to rank by within a source; larger = keep first. By default rows are drawn."""
    refill: bool = True
    """Whether what a source cannot give is taken from the others."""
    absent: Literal["refuse", "skip"] = "refuse"
    """What to do about a label of `shares` that no row has."""

    def __post_init__(self) -> None:
        if isinstance(self.shares, dict):
            values = list(self.shares.values())
            if not all(math.isfinite(v) and v >= 0 for v in values) or not sum(values) > 0:
                raise ValueError("shares must be numbers of at least 0, and one above 0")
        if (self.shares == "column") != bool(self.column):
            raise ValueError("`shares: column` and a `column` go together")
        if not self.temperature > 0:
            raise ValueError("temperature must be above 0")
        if not (math.isfinite(self.epochs) and self.epochs >= 1):
            raise ValueError("epochs must be a finite number of at least 1")
        if self.depth < 0:
            raise ValueError("depth must be at least 0")
        if self.by == "source" and self.depth == 0:
            raise ValueError("depth must be at least 1: every row has a `source` of its own")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c for c in (self.by, self.column, self.utility) if c))

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        budget = asked(budget)
        names, source = labels(table, self.by, self.depth)
        draws = rng.gumbel(table["id"]) if not self.utility else None
        utility = utilities(table, self.utility, False) if draws is None else draws
        costs = budget.costs(table)
        sizes = supply(source, utility, costs, len(names))
        amount = whole(budget.limit(costs))
        shares = self._shares(table, names, source, sizes, amount)
        often = self.epochs if self.shares == "unimax" else 1.0
        room = np.floor(sizes * often).astype(np.int64)
        drawn = assign_quota(room, amount, shares, self.refill)
        quota = np.minimum(drawn, sizes)
        choice = chosen(table, budget, source, utility, quota, "no source")

        weight = np.ones(len(names))
        np.divide(drawn, sizes, out=weight, where=drawn > sizes)
        choice.weight[choice.kept] = weight[source[choice.kept]]
        taken = spent_by(source, choice.kept, costs, len(names))
        wanted = assign_quota(np.full(len(names), amount), amount, shares, refill=False)
        columns = {
            "share": shares, "available": sizes, "quota": quota, "taken": taken, "weight": weight,
        }  # fmt: skip
        total = round(float(taken @ weight), 6)
        facts = {
            "drawn": total,
            "short": bool(total < choice.facts["limit"]),
            "sources": detail(names, shares, columns),
            "unfilled": [names[i] for i in np.flatnonzero(wanted > room)[:LISTED]],
            "warnings": _warnings(names, wanted > room, weight, self.refill),
        }
        return replace(choice, facts={**choice.facts, **facts})

    def _shares(
        self, table: pa.Table, names: Sequence[str], source: Rows, sizes: Rows, amount: int
    ) -> Floats:
        """The share of each source; they sum to 1 where there is anything to share."""
        if self.shares == "temperature":
            found = temperature_shares(sizes, self.temperature)
        elif self.shares == "unimax":
            found = unimax(sizes, max(amount, 1), self.epochs)
        elif isinstance(self.shares, dict):
            found = self._given(self.shares, names)
        else:
            found = constant(scores(table, self.column), source, names, self.column)
        total = found.sum()
        return found / total if total > 0 else found

    def _given(self, shares: dict[str, float], names: Sequence[str]) -> Floats:
        """The shares of the recipe in the order of the labels."""
        new = [n for n in names if n not in shares]
        gone = [n for n in sorted(shares) if n not in names]
        if names and (new or (gone and self.absent == "refuse")):
            told = [f"{named(new)} without a share"] if new else []
            told += [f"{named(gone)} without a row"] if gone else []
            raise DataError(
                f"shares do not fit the labels of the data: {' and '.join(told)} "
                f"(labels there are: {named(names)}); a share of 0 leaves a label out, "
                "`absent: skip` passes over labels without rows",
                where=self.by,
            )
        return np.array([shares[n] for n in names], dtype=np.float64)


def _warnings(names: Sequence[str], small: Bools, weight: Floats, refill: bool) -> list[str]:
    """What the shares asked for and the data cannot give, in sentences."""
    told = []
    if small.any():
        rest = "the rest went to the others" if refill else "the rest is not spent"
        few = [name for name, is_small in zip(names, small, strict=True) if is_small]
        told.append(f"sources smaller than their share: {named(few)}; {rest}")
    if (weight > 1).any():
        again = [name for name, w in zip(names, weight, strict=True) if w > 1]
        told.append(
            f"sources to be read more than once: {named(again)}; their rows carry weights above 1, "
            "which an order or a trainer must heed"
        )
    return told


def constant(values: Floats, source: Rows, names: Sequence[str], where: str) -> Floats:
    """The one number that the rows of each source hold."""
    known = (source >= 0) & ~np.isnan(values)
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    np.minimum.at(low, source[known], values[known])
    np.maximum.at(high, source[known], values[known])
    for bad, what in (
        (low > high, "no share"),
        (low < high, "several different shares"),
        ((low < 0) | ((low == high) & np.isinf(low)), "a share below 0 or infinite"),
    ):
        if bad.any():
            wrong = [name for name, is_bad in zip(names, bad, strict=True) if is_bad]
            raise DataError(f"{what} for {named(wrong)}", where=where)
    if len(low) and not low.sum() > 0:
        raise DataError("all shares are 0", where=where)
    return low
