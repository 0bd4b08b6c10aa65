"""How well columns rank what people preferred: AUROC with bootstrap intervals, a table.

    paired   P(better half > worse half of the same pair), ties 1/2
    auroc    P(good row > other row) over all such pairs of rows, ties 1/2
    level    the same among rows of like length: in each tenth of the lengths, weighted by the
             number of its pairs of rows
    matched  `paired` where the lengths of the halves differ by a tenth at most

Columns whose smaller values are declared better are negated. A row without a number is last, as it
is for selectors. Intervals: 2.5 to 97.5 % of DRAWS draws of groups (pairs, pages) with replacement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from scipy.stats import rankdata

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
DRAWS, STRATA = 500, 10
#: correlation of ranks from which two columns are one row of the table
SAME = 0.999


@dataclass
class Row:
    """What one column came to."""

    name: str
    better: str | None
    """Which end is declared better; without one larger is taken, and below 0.5 smaller is."""
    model: bool
    """Whether the score reads the language model."""
    scored: float
    """Share of the rows that have a number."""
    values: Floats
    """Oriented: larger = better, -inf where there is none."""
    also: list[str] = field(default_factory=list)
    measures: dict[str, Floats] = field(default_factory=dict)
    """Measure -> its value, then its draws."""

    def told(self) -> dict[str, Any]:
        """Plain values: each measure as [value, low, high]."""
        found = {k: [round(v, 4) for v in interval(d)] for k, d in self.measures.items()}
        return {"also": self.also, "better": self.better, "model": self.model,
                "scored": round(self.scored, 4), **found}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """Which rows people preferred."""

    good: Bools
    group: npt.NDArray[np.int64]
    """Drawn together: the number of a pair or of a page."""
    length: Floats
    subsets: Mapping[str, Bools]
    """Further measures: AUROC among these rows alone."""

    def draws(self) -> Floats:
        """[1 + DRAWS, n] how often each row is drawn; first once each."""
        names, place = np.unique(self.group, return_inverse=True)
        rng = np.random.default_rng(0)
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
        drawn: Floats = np.vstack([np.ones(len(names)), counts])[:, place]
        return drawn

    def stratum(self) -> npt.NDArray[np.int64]:
        """The tenth of the lengths in which a row lies."""
        edges = np.quantile(self.length, np.arange(1, STRATA) / STRATA)
        found: npt.NDArray[np.int64] = np.searchsorted(edges, self.length, side="right")
        return found


def oriented(values: Floats, better: str | None) -> Floats:
    """Larger = better, -inf where there is no number."""
    found = -values if better == "lower" else values
    return np.where(np.isnan(found), -np.inf, found)


def measured(columns: Sequence[Row], truth: Truth) -> list[Row]:
    """The distinct columns with their measures, best first."""
    drawn, stratum = truth.draws(), truth.stratum()
    rows = _merged(columns)
    for row in rows:
        row.measures["auroc"] = auroc(row.values, truth.good, drawn)
        row.measures["level"] = auroc(row.values, truth.good, drawn, stratum)
        for name, inside in truth.subsets.items():
            row.measures[name] = auroc(row.values[inside], truth.good[inside], drawn[:, inside])
        row.measures |= paired(row.values, truth)
    return sorted(rows, key=lambda r: -float(r.measures["auroc"][0]))


def _merged(columns: Sequence[Row]) -> list[Row]:
    """Columns that rank alike are one row, under the first name."""
    found: list[tuple[Row, Floats]] = []
    for row in columns:
        ranks = rankdata(row.values)
        if ranks.std() == 0:
            continue
        for other, theirs in found:
            if np.corrcoef(ranks, theirs)[0, 1] > SAME:
                other.also.append(row.name)
                other.better = other.better or row.better
                break
        else:
            found.append((row, ranks))
    return [row for row, _ in found]


def auroc(
    values: Floats, good: Bools, drawn: Floats, stratum: npt.NDArray[np.int64] | None = None
) -> Floats:
    """[draws] P(good > other), ties 1/2; among rows of the same stratum where there are any."""
    parts = [np.arange(len(values))]
    if stratum is not None:
        parts = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    won, pairs = np.zeros(len(drawn)), np.zeros(len(drawn))
    for rows in parts:
        order = rows[np.argsort(values[rows], kind="stable")]
        found = values[order]
        first = np.flatnonzero(np.append(True, found[1:] != found[:-1]))
        yes = np.add.reduceat(drawn[:, order] * good[order], first, axis=1)
        no = np.add.reduceat(drawn[:, order] * ~good[order], first, axis=1)
        won += (yes * (np.cumsum(no, axis=1) - no / 2)).sum(axis=1)
        pairs += yes.sum(axis=1) * no.sum(axis=1)
    return won / pairs


def paired(values: Floats, truth: Truth) -> dict[str, Floats]:
    """`paired` and `matched`: [draws] P(good half > other half); nothing without pairs."""
    order = np.lexsort([truth.good, truth.group])
    if len(order) % 2 or (truth.group[order[::2]] != truth.group[order[1::2]]).any():
        return {}
    worse, good = values[order].reshape(-1, 2).T
    wins = (good > worse) + 0.5 * (good == worse)
    apart = np.abs(np.diff(np.log(truth.length[order].reshape(-1, 2)), axis=1))[:, 0]
    alike = wins[apart <= np.log(1.1)]
    return {"paired": _mean(wins), "matched": _mean(alike)}


def _mean(wins: Floats) -> Floats:
    """The mean, then that of each draw."""
    n = len(wins)
    if not n:
        return np.full(1 + DRAWS, np.nan)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS)
    found: Floats = np.concatenate([[wins.mean()], counts @ wins / n])
    return found


def interval(draws: Floats, tests: int = 1) -> tuple[float, float, float]:
    """(value, low, high): 95 % together over so many tests; normal where there is more than one."""
    value = float(draws[0])
    if tests > 1:
        half = float(-ndtri(0.025 / tests) * draws[1:].std())
        return value, value - half, value + half
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return value, float(low), float(high)


def best(rows: Sequence[Row], measure: str) -> tuple[str, float, float]:
    """The best declared model-based score: its name, value, and the low end of its interval.

    It is the best of many, so the interval is Bonferroni's over all of them.
    """
    among = [r for r in rows if r.model and r.better]
    if not among:
        return "", float("nan"), float("nan")
    row = max(among, key=lambda r: float(r.measures[measure][0]))
    value, low, _ = interval(row.measures[measure], max(2, len(among)))
    return row.name, value, low


def markdown(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """A table: for each measure its value and the 95 % interval."""
    heads = ["score", "better", "scored", *titles.values()]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [_name(row), row.better or "", f"{row.scored:.0%}"]
        for measure in titles:
            value, low, high = interval(row.measures[measure])
            cells.append(f"{value:.3f} ({low:.2f}-{high:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _name(row: Row) -> str:
    also = f" (= {', '.join(row.also)})" if row.also else ""
    return f"`{row.name}`{' *' if row.model else ''}{also}"
