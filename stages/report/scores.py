"""How a score is distributed in the pool and among the chosen.

    pool     rows that have the score in its latest round
    chosen   those of them that this round chose (a score from before the rounds: any round)

Two passes over the columns, never over text: the first finds extremes, sums and a sample of at
most SAMPLE rows (drawn by id, so it is the same in every run), the second counts. Means are exact,
medians exact where the corpus is no larger than the sample. The outer bins hold what lies beyond
the 0.5 % and 99.5 % quantiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from foresift.pipeline.rng import Rng
from foresift.stages.report import charts
from foresift.stages.report.contents import Batch, Contents, Scored

SAMPLE, BINS = 200_000, 32
#: what is larger is counted as missing, infinities among them
HUGE = 1e300
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass
class Group:
    """The pool or the chosen: count, sum and a sample."""

    count: int = 0
    total: float = 0.0
    sample: list[Floats] = field(default_factory=list, metadata={"plain": False})
    bins: Floats = field(default_factory=lambda: np.empty(0))

    def add(self, values: Floats, drawn: Bools) -> None:
        self.count += len(values)
        self.total += float(values.sum())
        self.sample.append(values[drawn])

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    @property
    def median(self) -> float | None:
        values = np.concatenate([*self.sample, np.empty(0)])
        return float(np.median(values)) if len(values) else None

    @property
    def shares(self) -> Floats:
        return self.bins / max(self.count, 1)


@dataclass
class Distribution:
    """One score."""

    column: Scored
    pool: Group = field(default_factory=Group)
    chosen: Group = field(default_factory=Group)
    low: float = np.inf
    high: float = -np.inf
    nan: int = 0
    """Rows of the pool whose value is NaN or infinite."""
    whole: bool = True
    """Whether all values are whole numbers."""
    edges: Floats | None = None
    log: bool = False

    @property
    def constant(self) -> bool:
        """Whether all finite values are the same."""
        return self.pool.count > 0 and self.low == self.high

    @property
    def missing(self) -> int:
        """Rows that should have the score and have NaN, infinity or nothing."""
        return max(self.nan, (self.column.alive or self.pool.count) - self.pool.count)

    @property
    def empty(self) -> int:
        """Rows that were scored and were given no value: the method leaves them out."""
        return self.missing - self.nan

    @property
    def chart(self) -> Markup:
        """The two histograms; empty when there is nothing to tell apart."""
        if self.edges is None:
            return Markup("")
        label = f"{self.column.name}: share of documents in the pool and among the chosen"
        return charts.histogram(
            self.edges, self.pool.shares, self.chosen.shares, log=self.log, label=label
        )


def distributions(contents: Contents) -> list[Distribution]:
    """Every column of numbers, in the order in which they were computed."""
    found = [Distribution(column) for column in contents.scored]
    share = min(1.0, SAMPLE / max(contents.rows, 1))
    for batch in contents.plan(["kept", "round"]):
        drawn = Rng(0).at("report").uniform(batch[0].load(["id"])["id"]) < share
        for each, values, chosen, nan in _values(found, batch):
            each.nan += nan
            _look(each, values, chosen, drawn)
    for each in found:
        each.edges = _edges(each)
    for batch in contents.plan(["kept", "round"]):
        for each, values, chosen, _ in _values(found, batch):
            _count(each, values, chosen)
    return found


def _values(found: list[Distribution], batch: Batch) -> Any:
    """(distribution, values with NaN where there is none, rows its round chose, how many NaN)."""
    shard, plan = batch
    table = shard.load(["holdout", *(each.column.name for each in found)])
    pool = ~np.asarray(table["holdout"])
    kept = np.asarray(plan["kept"])
    rounds = np.asarray(plan["round"].fill_null(-1))
    for each in found:
        column = table[each.column.name]
        values = _floats(column)
        finite = np.abs(values) < HUGE
        nan = int((pool & ~finite & np.asarray(column.is_valid())).sum())
        values[~pool | ~finite] = np.nan
        number = each.column.round
        yield each, values, kept & (rounds == number) if number else kept, nan


def _floats(column: pa.ChunkedArray) -> Floats:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    filled = pc.fill_null(column.cast(pa.float64(), safe=False), float("nan"))
    values: Floats = np.asarray(filled, dtype=np.float64).copy()
    return values


def _look(each: Distribution, values: Floats, chosen: Bools, drawn: Bools) -> None:
    there = ~np.isnan(values)
    each.pool.add(values[there], drawn[there])
    each.chosen.add(values[there & chosen], drawn[there & chosen])
    if there.any():
        each.low = min(each.low, float(values[there].min()))
        each.high = max(each.high, float(values[there].max()))
        each.whole &= bool((values[there] == np.rint(values[there])).all())


def _edges(each: Distribution) -> Floats | None:
    """The bins: one a whole number, or equal steps, or equal ratios where values are skewed."""
    sample = np.concatenate([*each.pool.sample, np.empty(0)])
    if len(sample) == 0 or each.constant:
        return None
    low, middle, high = (float(q) for q in np.quantile(sample, (0.005, 0.5, 0.995)))
    if each.whole and high - low < BINS:
        low, high = (each.low, each.high) if each.high - each.low < BINS else (low, high)
        return np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
    if low >= high:
        low, high = each.low, each.high
    each.log = bool(
        each.low > 0 and low > 0 and high / low > 50 and middle - low < (high - low) / 5
    )
    if each.log:
        edges: Floats = np.geomspace(low, high, BINS + 1)
        return np.unique(np.rint(edges)) if each.whole and high > 2 * BINS else edges
    return np.unique(np.linspace(low, high, BINS + 1))


def _count(each: Distribution, values: Floats, chosen: Bools) -> None:
    if each.edges is None:
        return
    there = ~np.isnan(values)
    for group, rows in ((each.pool, there), (each.chosen, there & chosen)):
        inside = np.clip(values[rows], each.edges[0], each.edges[-1])
        found = np.histogram(inside, each.edges)[0].astype(np.float64)
        group.bins = group.bins + found if len(group.bins) else found
