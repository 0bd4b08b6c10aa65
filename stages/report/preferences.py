"""Preferences: the scores that rounds ranked by, and how they changed from one round to the next.

    rank correlation   Spearman's rho of a round's scores with those of the round before, over the
                       documents that have both
    agreement          of the k documents that a round chose, how many are among the k best of the
                       same candidates by some scores; ties at the cut count as agreement where they
                       can. Jaccard = agreed / (chosen or best)
    standing           share of the documents with both scores that a document stands ahead of

Scores are in their own unit, larger = keep first (turned where the selector says `lowest`). The
pool is what the round's budgeted `select` could choose from, the chosen are what it kept.
Cost: two reads of a column for each round; memory of a column in two rounds, and of its ranks.
Source of rho: Spearman 1904, with mean ranks for ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import hex_id
from foresift.stages.report import charts
from foresift.stages.report.contents import Bools, Contents, Floats
from foresift.stages.report.examples import Example, texts_of

MOVERS, BINS = 3, 32
Edges = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """The scores of some documents: count, mean, and the 10, 50 and 90 % quantiles."""

    count: int
    mean: float | None = None
    quantiles: tuple[float | None, ...] = (None, None, None)

    @classmethod
    def of(cls, values: Floats) -> Summary:
        if not len(values):
            return cls(0)
        found = np.quantile(values, (0.1, 0.5, 0.9))
        return cls(len(values), float(values.mean(dtype=np.float64)), tuple(map(float, found)))


@dataclass(frozen=True)
class Agreement:
    """The choice of a round against the best by some scores."""

    chosen: int
    agreed: int
    best: int
    """How many the scores would have taken: fewer than chosen where too few have a score."""

    @property
    def entered(self) -> int:
        """Chosen, though not among the best by those scores."""
        return self.chosen - self.agreed

    @property
    def left(self) -> int:
        """Among the best by those scores, and yet not chosen."""
        return self.best - self.agreed

    @property
    def jaccard(self) -> float:
        return self.agreed / max(self.chosen + self.best - self.agreed, 1)


@dataclass(frozen=True)
class Mover:
    """A document whose standing changed, from one share to another."""

    document: Example
    before: float
    now: float


@dataclass(frozen=True)
class Change:
    """A round's scores against those of the round before."""

    both: int
    """Documents that have both scores."""
    correlation: float | None
    """Spearman's rho; None where one of them is constant."""
    agreement: Agreement
    own: Agreement
    """The choice against this round's own scores: the rest is the selector's draw."""
    risers: list[Mover]
    fallers: list[Mover]


@dataclass(frozen=True)
class Preference:
    """One column in one round."""

    column: str
    round: int
    refreshed: bool
    """Whether the column was computed in this round."""
    pool: Summary
    chosen: Summary
    change: Change | None
    chart: Markup


def preferences(
    contents: Contents, column: str, lowest: bool, selects: Mapping[int, Facts]
) -> list[Preference]:
    """One column, round after round; the values of two rounds are held at a time."""
    places = {n: place for n, s in selects.items() if (place := contents.place(column, s))}
    edges = _edges(contents.values(place) for place in places.values())
    found: list[Preference] = []
    before = None
    for number, place in places.items():
        values, (pool, chosen) = contents.values(place), contents.decided(selects[number])
        refreshed, there = place.round == number, ~np.isnan(values)
        change = None
        if refreshed and before is not None:
            two = (-before, -values) if lowest else (before, values)
            change = _change(contents, *two, pool, chosen)
        had, took = values[pool & there], values[chosen & there]
        chart = _chart(edges, had, took, f"{column} in round {number}")
        summaries = Summary.of(had), Summary.of(took)
        found.append(Preference(column, number, refreshed, *summaries, change, chart))
        before = values
    return found


def _edges(columns: Iterable[Floats]) -> Edges | None:
    """Bins that all rounds share: from the lowest 0.5 % quantile to the highest 99.5 %."""
    spans, whole = [], True
    for values in columns:
        values = values[~np.isnan(values)]
        if len(values):
            spans.append(np.quantile(values, (0.0, 0.005, 0.995, 1.0)).astype(np.float64))
            whole &= bool((values == np.rint(values)).all())
    if not spans:
        return None
    least, low, high, most = np.min(spans, 0)[:2].tolist() + np.max(spans, 0)[2:].tolist()
    if low >= high:
        low, high = least, most
    if low >= high:
        return None
    if whole and high - low < BINS:
        low, high = (least, most) if most - least < BINS else (low, high)
        return np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
    return np.unique(np.linspace(low, high, BINS + 1))


def _chart(edges: Edges | None, pool: Floats, chosen: Floats, label: str) -> Markup:
    if edges is None:
        return Markup("")
    counts = [np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] for v in (pool, chosen)]
    shares = [count / max(count.sum(), 1) for count in counts]
    label = f"{label}: share of documents in the pool and among the chosen"
    return charts.histogram(edges, shares[0], shares[1], label=label)


def _change(contents: Contents, before: Floats, now: Floats, pool: Bools, chosen: Bools) -> Change:
    """Compare two rounds' scores, both larger = keep first."""
    both = np.flatnonzero(~np.isnan(before) & ~np.isnan(now))
    ranks = ranked(before[both]), ranked(now[both])
    was, became = (r / max(len(both) - 1, 1) for r in ranks)
    return Change(
        len(both),
        correlation(*ranks),
        agreement(before[pool], chosen[pool]),
        agreement(now[pool], chosen[pool]),
        _movers(contents, both, was, became, 1),
        _movers(contents, both, was, became, -1),
    )


def ranked(values: Floats) -> Floats:
    """How many values each one exceeds, its equals by half."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts + 1) / 2)[place]
    return ranks


def correlation(a: Floats, b: Floats) -> float | None:
    """Pearson's r, which of ranks is Spearman's rho; None where one of them is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def agreement(scores: Floats, chosen: Bools) -> Agreement:
    """How many of the chosen are among as many with the largest scores."""
    count = int(chosen.sum())
    there = scores[~np.isnan(scores)]
    best = min(count, len(there))
    if not best:
        return Agreement(count, 0, 0)
    cut = np.partition(there, -best)[-best]
    room = best - int((scores > cut).sum())
    agreed = int((chosen & (scores > cut)).sum()) + min(room, int((chosen & (scores == cut)).sum()))
    return Agreement(count, agreed, best)


def _movers(
    contents: Contents, rows: npt.NDArray[np.int64], was: Floats, became: Floats, sign: int
) -> list[Mover]:
    """The documents that rose (or fell) most."""
    by = sign * (became - was)
    best = [int(i) for i in np.argsort(-by, kind="stable")[:MOVERS] if by[i] > 0]
    documents = _documents(contents, [int(rows[i]) for i in best])
    return [
        Mover(document, float(was[i]), float(became[i]))
        for i, document in zip(best, documents, strict=True)
    ]


def _documents(contents: Contents, rows: Sequence[int]) -> list[Example]:
    """Documents by their row in the whole corpus, with the beginning of their text."""
    starts = np.cumsum([0, *(shard.rows for shard in contents.shards)])
    found = []
    for row in rows:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        at = row - int(starts[number])
        table = contents.shards[number].load(["id", "source", "n_tokens"]).slice(at, 1)
        found.append((number, at, table.to_pylist()[0]))
    texts, _ = texts_of(Corpus(contents.base), [(n, at, about["id"]) for n, at, about in found])
    return [
        Example(
            id=hex_id(about["id"])[:12],
            source=about["source"] or "(no source)",
            n_tokens=about["n_tokens"] or 0,
            text=texts.get((number, at), ""),
        )
        for number, at, about in found
    ]
