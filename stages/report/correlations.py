"""Which scores say the same: Spearman's rank correlation between all columns of numbers.

    rho(a, b) = Pearson's correlation of the mean ranks of a and b, over the documents with both

Over the first DRAWN measured documents of the sample. Columns without two different values are
left out and named. Of columns of one step that order documents alike (|rho| >= ALIKE: `utility` is
often a `noise` turned round) one stands for all. Those that are left are put so that columns that
go together stand together (average linkage of 1 - |rho|). The pairs listed are those with the
largest |rho|, with the 95 % interval (Fisher's z; Bonett and Wright 2000). Where there are more
columns than CHARTED, the chart shows those with the strongest partner; the list looks at all.

Cost: one sort for each column and pattern of missing values, one product of ranks for each two
patterns. Source: Spearman 1904.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from scipy.cluster import hierarchy  # type: ignore[import-untyped]

from foresift.stages.report import heatmap
from foresift.stages.report.contents import Contents
from foresift.stages.report.intervals import Interval, correlation

DRAWN, CHARTED, MOST, PAIRS = 20_000, 40, 160, 20
ALIKE = 0.9995
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two columns."""

    a: str
    """One column."""
    b: str
    """The other."""
    rho: Interval
    """Their rank correlation."""
    documents: int
    """Documents with both."""


@dataclass(frozen=True)
class Alike:
    """Columns of one step that order documents like the one that stands for them."""

    column: str
    others: list[str]
    """Columns that it stands for."""


@dataclass(frozen=True)
class Correlations:
    """The section."""

    documents: int
    """Documents in the sample."""
    columns: list[str]
    """Those that are compared, neighbours together."""
    rho: list[list[float | None]]
    """[columns, columns]; None where fewer than three documents have both."""
    charted: list[int]
    """Numbers in `columns` of those in the chart."""
    strongest: list[Pair]
    """The PAIRS pairs with the largest correlation, of either sign."""
    alike: list[Alike]
    """Columns that stand for others of their step."""
    left_out: list[str]
    """Columns without two different values."""
    unlooked: int
    """Columns beyond the first MOST."""

    @property
    def chart(self) -> Markup:
        """The lower half of the matrix."""
        if len(self.charted) < 2:
            return Markup("")
        names = [self.columns[i] for i in self.charted]
        values = [[self.rho[i][k] for k in self.charted] for i in self.charted]
        label = f"Rank correlation between {len(names)} columns; the strongest pairs are listed"
        return heatmap.lower_half(names, values, label)


def correlations(contents: Contents) -> Correlations | None:
    """The section; None where there are not two columns to compare."""
    sample = contents.sample.measured(DRAWN)
    names = [c.name for c in contents.scored]
    told = {n: sample.columns[n] for n in names[:MOST]}
    varied = {n: v for n, v in told.items() if _varies(v)}
    if len(varied) < 2:
        return None
    rho, both = spearman(list(varied.values()))
    shown, alike = _merged(list(varied), rho)
    part = np.ix_(shown, shown)
    rho, both = rho[part], both[part]
    order = _order(rho)
    part = np.ix_(order, order)
    rho, both = rho[part], both[part]
    columns = [list(varied)[shown[i]] for i in order]
    return Correlations(
        documents=sample.rows,
        columns=columns,
        rho=[[None if np.isnan(r) else round(float(r), 4) for r in row] for row in rho],
        charted=_charted(rho),
        strongest=_strongest(columns, rho, both),
        alike=alike,
        left_out=[n for n in told if n not in varied],
        unlooked=max(0, len(names) - MOST),
    )


def _varies(values: Floats) -> bool:
    there = values[~np.isnan(values)]
    return len(there) > 2 and bool((there != there[0]).any())


def spearman(columns: Sequence[Floats]) -> tuple[Floats, Floats]:
    """[k, k] rank correlations and [k, k] documents with both; NaN where it is not defined."""
    there = np.stack([~np.isnan(c) for c in columns])
    patterns, which = np.unique(there, axis=0, return_inverse=True)
    which = which.reshape(-1)
    k = len(columns)
    rho, both = np.full((k, k), np.nan), np.zeros((k, k))
    for p, q in [*combinations(range(len(patterns)), 2), *((p, p) for p in range(len(patterns)))]:
        rows = patterns[p] & patterns[q]
        mine, theirs = np.flatnonzero(which == p), np.flatnonzero(which == q)
        a = _standard([columns[int(i)][rows] for i in mine])
        b = a if p == q else _standard([columns[int(i)][rows] for i in theirs])
        found = (
            np.clip(a @ b.T, -1, 1).round(12)
            if rows.sum() > 2
            else np.full((len(a), len(b)), np.nan)
        )
        rho[np.ix_(mine, theirs)], rho[np.ix_(theirs, mine)] = found, found.T
        both[np.ix_(mine, theirs)] = both[np.ix_(theirs, mine)] = rows.sum()
    return rho, both


def _standard(columns: Sequence[Floats]) -> Floats:
    """[k, n] mean ranks, centred, of length one; NaN where all are the same."""
    ranks = np.stack([ranked(c) for c in columns])
    ranks -= ranks.mean(axis=1, keepdims=True) if ranks.shape[1] else 0.0
    length = np.sqrt((ranks**2).sum(axis=1, keepdims=True))
    with np.errstate(invalid="ignore"):
        return np.asarray(ranks / np.where(length > 0, length, np.nan))


def ranked(values: Floats) -> Floats:
    """Ranks from 1; equal values share their mean rank."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return ranks


def _merged(names: Sequence[str], rho: Floats) -> tuple[list[int], list[Alike]]:
    """The columns that stand for themselves, and for which others of their step they stand."""
    shown: list[int] = []
    others: dict[int, list[str]] = {}
    for i, name in enumerate(names):
        step = name.rpartition(".")[0]
        same = (k for k in shown if step and names[k].rpartition(".")[0] == step)
        into = next((k for k in same if abs(rho[i, k]) >= ALIKE), None)
        if into is None:
            shown.append(i)
        else:
            others.setdefault(into, []).append(name)
    return shown, [Alike(names[i], told) for i, told in others.items()]


def _order(rho: Floats) -> list[int]:
    """Leaves of the tree of average linkage, those of one branch together."""
    if len(rho) < 3:
        return list(range(len(rho)))
    apart = 1 - np.abs(np.nan_to_num(rho))
    near = apart[np.triu_indices(len(rho), 1)]
    tree = hierarchy.linkage(near, "average", optimal_ordering=True)
    return [int(i) for i in hierarchy.leaves_list(tree)]


def _charted(rho: Floats) -> list[int]:
    """The columns in the chart, in their order."""
    strength = np.abs(np.nan_to_num(rho)) - np.eye(len(rho)) * 2
    best = np.argsort(-strength.max(axis=1), kind="stable")[:CHARTED]
    return [int(i) for i in np.sort(best)]


def _strongest(columns: Sequence[str], rho: Floats, both: Floats) -> list[Pair]:
    """The pairs with the largest |rho|."""
    cells = combinations(range(len(columns)), 2)
    above = [(i, k) for i, k in cells if not np.isnan(rho[i, k])]
    above.sort(key=lambda p: (-round(abs(float(rho[p])), 9), columns[p[0]], columns[p[1]]))
    return [
        Pair(
            columns[i], columns[k], correlation(float(rho[i, k]), int(both[i, k])), int(both[i, k])
        )
        for i, k in above[:PAIRS]
    ]
