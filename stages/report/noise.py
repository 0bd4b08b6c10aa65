"""How much of the data is wrong, as its detectors estimate it.

A detector of wrong labels or steps gives a column `noise` (a probability, or a share of what it
checked) and may tell a `noise_rate` in its facts. For each:

    pool     mean of `noise` over the documents judged      kept   the same over those kept
    change   kept less pool: what the selection did about it
    told     the `noise_rate` of the step, with its own interval (`noise_rate_low`, `_high`)
    flagged  documents with a finding among all that were judged, with Wilson's interval

Means are over the first DRAWN measured documents of the sample, with bootstrap intervals
(`intervals.py`). They say how far the mean would move with other documents; whether a detector is
calibrated they cannot say, so two detectors may differ by more than their intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foresift.pipeline.findings import is_findings
from foresift.pipeline.store import Facts
from foresift.stages.report.contents import Contents, Scored
from foresift.stages.report.found import count
from foresift.stages.report.intervals import Floats, Interval, mean, resampled, share

DRAWN = 20_000
COLUMN = "noise"


@dataclass(frozen=True)
class Estimate:
    """What one detector says."""

    detector: str
    unit: str
    """Of its column, empty where it has none."""
    documents: int
    """Documents of the sample that it judged."""
    pool: Interval | None
    kept: Interval | None
    change: Interval | None
    """Kept less pool."""
    told: Interval | None
    """The `noise_rate` that the step tells."""
    judged: int
    """All documents that it judged for findings."""
    flagged: int
    """Those of them that have one."""
    flagged_share: Interval | None
    """Flagged of judged."""


@dataclass(frozen=True)
class Noise:
    """The section."""

    documents: int
    """Documents in the sample."""
    estimates: list[Estimate]
    """One for each detector."""


def noise(contents: Contents) -> Noise | None:
    """The section; None where no step estimates noise."""
    columns = {c.step: c for c in contents.scored if c.file_name == COLUMN}
    facts = {s["name"]: s["facts"] for s in contents.first_of("score")}
    steps = [name for name, told in facts.items() if name in columns or rate(told) is not None]
    if not steps:
        return None
    sample = contents.sample.measured(DRAWN)
    names = [columns[s].name for s in steps if s in columns]
    values = [sample.columns[n] for n in names]
    kept = [np.where(sample.kept, v, np.nan) for v in values]
    draws = resampled(sample.ids, [*values, *kept]) if names else np.empty((0, 0))
    means = {
        n: _means(values[i], kept[i], draws[:, i], draws[:, len(names) + i])
        for i, n in enumerate(names)
    }
    flagged = _flagged(contents, steps)
    return Noise(
        sample.rows,
        [_estimate(s, columns.get(s), means, rate(facts[s]), flagged.get(s)) for s in steps],
    )


def rate(facts: Facts) -> Interval | None:
    """The `noise_rate` that a step tells, with its interval where it tells one."""
    value = facts.get("noise_rate")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    low, high = facts.get("noise_rate_interval") or (
        facts.get("noise_rate_low"), facts.get("noise_rate_high"),
    )  # fmt: skip
    return Interval(float(value), low, high)


Means = tuple[int, Interval | None, Interval | None, Interval | None]


def _means(pool: Floats, kept: Floats, pool_draws: Floats, kept_draws: Floats) -> Means:
    """Documents judged, mean of the pool, mean of what was kept, and the second less the first."""
    ours, theirs = mean(pool, pool_draws), mean(kept, kept_draws)
    change = None
    if ours and theirs:
        gap = kept_draws - pool_draws
        known = gap[~np.isnan(gap)]
        change = Interval(theirs.value - ours.value)
        if theirs.low is not None and len(known):
            low, high = (float(q) for q in np.quantile(known, [0.025, 0.975]))
            change = Interval(change.value, low, high)
    return int((~np.isnan(pool)).sum()), ours, theirs, change


def _flagged(contents: Contents, steps: list[str]) -> dict[str, tuple[int, int]]:
    """Step -> documents that it judged, and those with a finding."""
    columns = [c for c in contents.columns if is_findings(c.dtype) and c.step in steps]
    return {name: (c.documents, c.any) for name, c in count(contents, columns).items()}


def _estimate(
    step: str, column: Scored | None, means: dict[str, Means], told: Interval | None,
    flagged: tuple[int, int] | None,
) -> Estimate:  # fmt: skip
    nothing: Means = (0, None, None, None)
    documents, pool, kept, change = means[column.name] if column else nothing
    judged, some = flagged or (0, 0)
    return Estimate(
        step, column.unit if column else "", documents, pool, kept, change, told,
        judged, some, share(some, judged),
    )  # fmt: skip
