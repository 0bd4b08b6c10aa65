"""The best of every axis: the union of the top sets of several scores, filled to the budget.

    q_k(i)   percentile rank of row i on axis k, in (0, 1)
    S_k(t)   {i : q_k(i) >= t}
    keep     S_1(t) + ... + S_K(t), united, t as large as the budget allows

q_k(i) = (average rank - 1/2) / m_k among the m_k rows that have a value, equal values alike, the
largest near 1. All axes share one threshold t, since raw scores of different axes cannot be
compared. A row is in the union exactly when max_k q_k(i) >= t, so rows stand by that maximum,
largest first (ties by id), and the budget cuts, the row that crosses it included: the set that
bisection over t finds, without bisection, counted once a row. Among rows equal at t, bisection
would take all; here as many as the budget holds.

`tails` turns an axis: `low` takes 1 - q, `both` takes max(q, 1 - q), for an axis of which neither
end is known to be better (such a one gives twice as many rows at the same t). A row that lacks an
axis can be chosen by the others; one that lacks all is never kept ("no score"). An axis whose
values are all equal says nothing and is left out, unless all are so.

The reason of a kept row names its best axis (the first of equals), so that every document belongs
to one axis. Facts: the threshold t; for each axis the rows ranked, |S_k|, and the rows that it is
the best axis of; for each pair

    overlap = |S_k & S_l| / min(|S_k|, |S_l|)      over_p = overlap / max(p_k, p_l)

where p_k = |S_k| / m_k. Independent axes have over_p = 1 at every p, so an overlap says nothing
without p: 2 % is what independence gives at p = 0.02. Cost: K sorts. Source: ODiS (2510.18909);
how the paper tunes its joint threshold and defines overlap is not known, this is our reading.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import scores
from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.pipeline.vectors import Vectors
from foresift.stages.selectors._ranking import Floats, asked, cut

Tail = Literal["high", "low", "both"]


@dataclass(frozen=True, kw_only=True)
class PerAxisTop(Selector):
    """Keep the union of the top documents of several axes (ODiS)."""

    axes: list[str]
    """Columns of scores, larger = better; a column of lists stands for its components, which are
    called `name[1]`, `name[2]`, ..."""
    tails: dict[str, Tail] = field(default_factory=dict)
    """Axis -> `high` (the default), `low` or `both`. The name of a column of lists means all its
    components."""

    def __post_init__(self) -> None:
        if not self.axes:
            raise ValueError("axes must name at least one column")
        if len(set(self.axes)) < len(self.axes):
            raise ValueError("axes must be different columns")
        unknown = [n for n in self.tails if n not in self.axes and _column(n) not in self.axes]
        if unknown:
            raise ValueError(f"tails names {unknown[0]!r}, which is not one of the axes")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(self.axes)

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        budget = asked(budget)
        names, values = axis_values(table, self.axes)
        ranks = np.stack([percentile_ranks(v) for v in values], axis=1)
        constant = ~np.array([_varies(v) for v in values])
        if not constant.all():
            ranks[:, constant] = np.nan
        for k, name in enumerate(names):
            ranks[:, k] = turned(ranks[:, k], self.tails.get(name, self._tail(name)))
        filled = np.where(np.isnan(ranks), -1.0, ranks)
        best = filled.argmax(axis=1)
        top = filled.max(axis=1)
        choice = cut(np.where(top < 0, np.nan, top), table, budget)
        kept = choice.kept
        reasons = np.array([f"best axis {name}" for name in names], dtype=object)
        choice.reason[kept] = reasons[best[kept]]
        flat = [names[k] for k in np.flatnonzero(constant)] if table.num_rows else []
        facts = {
            "threshold": float(top[kept].min()) if kept.any() else None,
            "constant": flat,
            "warnings": [f"all values of {name} are equal: it says nothing" for name in flat],
            **overlaps(names, ranks, kept, best),
        }
        return replace(choice, facts={**choice.facts, **facts})

    def _tail(self, name: str) -> Tail:
        return self.tails.get(_column(name), "high")


def _column(name: str) -> str:
    """The column of a component `column[3]`."""
    return name.rpartition("[")[0] if name.endswith("]") else name


def axis_values(table: pa.Table, axes: Sequence[str]) -> tuple[list[str], list[Floats]]:
    """Names and values of all axes, columns of lists taken apart."""
    names: list[str] = []
    values: list[Floats] = []
    types = pa.types
    for axis in axes:
        kind = table[axis].type
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            vectors = Vectors.of(table, axis)
            raw = vectors.raw(np.arange(vectors.rows))
            names += [f"{axis}[{k + 1}]" for k in range(vectors.width)]
            values += [raw[:, k].astype(np.float64) for k in range(vectors.width)]
        else:
            names.append(axis)
            values.append(scores(table, axis))
    if not values:  # lists of nothing
        return list(axes), [np.full(table.num_rows, np.nan) for _ in axes]
    return names, values


def _varies(values: Floats) -> bool:
    known = values[~np.isnan(values)]
    return bool(len(known) and known.min() < known.max())


def percentile_ranks(values: Floats) -> Floats:
    """(average rank - 1/2) / m of each value among the m there are; NaN stays NaN."""
    ranks = np.full(len(values), np.nan)
    known = ~np.isnan(values)
    _, place, counts = np.unique(values[known], return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    ranks[known] = middle[place.ravel()] / max(int(known.sum()), 1)
    return ranks


def turned(ranks: Floats, tail: Tail) -> Floats:
    """Percentile ranks in which the wanted end, or both, are near 1."""
    if tail == "high":
        return ranks
    other: Floats = 1 - ranks
    return other if tail == "low" else np.maximum(ranks, other)


def overlaps(
    names: Sequence[str], ranks: Floats, kept: npt.NDArray[np.bool_], best: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """What each axis brought, and how much of it others brought too."""
    reached = ranks[kept].max(axis=1, initial=-1.0, where=~np.isnan(ranks[kept]))
    threshold = reached.min(initial=np.inf)
    inside = kept[:, None] & (ranks >= threshold)
    size = inside.sum(axis=0)
    ranked = (~np.isnan(ranks)).sum(axis=0)
    p = size / np.maximum(ranked, 1)
    both = inside.T.astype(np.float64) @ inside.astype(np.float64)
    of = np.bincount(best[kept], minlength=len(names))
    pairs = [
        {
            "axes": [names[k], names[j]],
            "overlap": float(both[k, j] / min(size[k], size[j])),
            "over_p": float(both[k, j] / min(size[k], size[j]) / max(p[k], p[j])),
        }
        for k, j in itertools.combinations(range(len(names)), 2)
        if min(size[k], size[j]) > 0
    ]
    mean = {
        f"mean_{key}": float(np.mean([pair[key] for pair in pairs])) if pairs else None
        for key in ("overlap", "over_p")
    }
    axes = {
        name: {"ranked": int(ranked[k]), "selected": int(size[k]), "best": int(of[k])}
        for k, name in enumerate(names)
    }
    return {"axes": axes, "pairs": pairs, "p": float(p.mean()), **mean}
