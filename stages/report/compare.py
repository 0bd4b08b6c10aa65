"""Two data sets side by side: sizes, common scores, rates of reasons, documents in common.

    distance    Kolmogorov-Smirnov: the largest gap between the two cumulative shares of a score;
                1.358 sqrt((n + m) / (n m)) is what chance alone stays below 95 times in 100
    difference  theirs less ours, of the share of documents with a reason; Newcombe's interval
    overlap     documents of one whose content is in the other too, by id; each content once

Scores are compared where both have a column of the name; what was computed by another part or with
other settings is said, not left out. Scores and overlaps are of the samples (which hold the same
documents of both, being drawn by id), counts of reasons and sizes are exact. An overlap that was
counted in full has no interval. Sources: Smirnov 1948; Newcombe 1998.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foresift.pipeline.errors import StoreError
from foresift.pipeline.findings import is_findings
from foresift.pipeline.outcome import HOLDOUT
from foresift.pipeline.store import Facts, StepDir
from foresift.pipeline.tables import id_words
from foresift.stages.report.contents import Contents, Scored
from foresift.stages.report.found import count
from foresift.stages.report.intervals import Floats, Interval, difference, quantiles, share
from foresift.stages.report.sample import Sample

QUANTILES = (0.1, 0.5, 0.9)
#: reasons shown, those that differ most first
TOP = 40
CRITICAL = 1.358
GROUPS = ("pool", "kept")
DROPPED = "dropped"
Keys = npt.NDArray[np.void]


@dataclass(frozen=True)
class Side:
    """One of the two data sets."""

    name: str
    documents: int
    """The holdout among them."""
    tokens: int
    kept: int
    kept_tokens: int
    """Tokens of those that were kept."""
    sampled: int
    """Documents in the sample."""


@dataclass(frozen=True)
class Gap:
    """One score in both, of the pool or of what was kept."""

    name: str
    group: str
    ours: list[float | None]
    """10, 50 and 90 % quantiles."""
    theirs: list[float | None]
    our_documents: int
    """Documents with a value."""
    their_documents: int
    """Documents with a value."""
    distance: float | None
    at: float | None
    """The value at which the shares are furthest apart."""
    chance: float | None
    """What the distance would stay below by chance 95 times in 100, were both the same."""
    differs: list[str]
    """What was set otherwise when it was computed."""

    @property
    def told(self) -> bool:
        """Whether the two are further apart than chance would have them."""
        return self.distance is not None and self.chance is not None and self.distance > self.chance


@dataclass(frozen=True)
class Rate:
    """How often one reason comes in both."""

    detector: str
    """The step that found it; `dropped`: why documents left."""
    reason: str
    ours: Interval
    theirs: Interval
    difference: Interval


@dataclass(frozen=True)
class Overlap:
    """Contents that both have."""

    group: str
    ours: int
    """Distinct contents that were looked at."""
    theirs: int
    """Distinct contents that were looked at."""
    both: int
    """Those that both have."""
    exact: bool
    """Whether all of them were looked at."""

    @property
    def of_ours(self) -> Interval | None:
        """Share of ours that is in theirs."""
        return self._share(self.ours)

    @property
    def of_theirs(self) -> Interval | None:
        """Share of theirs that is in ours."""
        return self._share(self.theirs)

    @property
    def jaccard(self) -> float | None:
        """Those in both, of those in either."""
        either = self.ours + self.theirs - self.both
        return self.both / either if either else None

    def _share(self, n: int) -> Interval | None:
        found = share(self.both, n)
        return Interval(found.value) if found and self.exact else found


@dataclass(frozen=True)
class Comparison:
    """Two data sets side by side."""

    ours: Side
    theirs: Side
    overlaps: list[Overlap]
    """Of the pools, and of what was kept."""
    scores: list[Gap]
    """Those that are furthest apart first; the pool of each, then what was kept."""
    rates: list[Rate]
    """Those that differ most first."""
    further: int
    """Reasons that are not listed: they differ less."""
    only_ours: list[str]
    """Scores that the other one has not."""
    only_theirs: list[str]
    """Scores that ours has not."""


def compare(contents: Contents, other: Contents) -> Comparison:
    """Ours against theirs."""
    ours, theirs = ({c.name: c for c in each.scored} for each in (contents, other))
    common = [(ours[n], theirs[n]) for n in ours if n in theirs]
    rates = _rates(contents, other)
    return Comparison(
        _side(contents),
        _side(other),
        [_overlap(contents.sample, other.sample, group) for group in GROUPS],
        [gap for pair in _gaps(contents, other, common) for gap in pair],
        rates[:TOP],
        max(0, len(rates) - TOP),
        [n for n in ours if n not in theirs],
        [n for n in theirs if n not in ours],
    )


def _side(contents: Contents) -> Side:
    accounts = contents.manifest["accounts"]
    return Side(
        contents.path.name, accounts["rows"], accounts["n_tokens"], accounts["kept"],
        accounts["kept_tokens"], contents.sample.everything().rows,
    )  # fmt: skip


def _gaps(
    contents: Contents, other: Contents, common: list[tuple[Scored, Scored]]
) -> list[list[Gap]]:
    found = [[_gap(a, b, group, contents, other) for group in GROUPS] for a, b in common]
    return sorted(found, key=lambda pair: -max(gap.distance or 0.0 for gap in pair))


def _gap(a: Scored, b: Scored, group: str, contents: Contents, other: Contents) -> Gap:
    mine, others = _values(contents, a, group), _values(other, b, group)
    distance, at = furthest(mine, others)
    n, m = len(mine), len(others)
    chance = CRITICAL * math.sqrt((n + m) / (n * m)) if n and m else None
    return Gap(
        a.name, group, quantiles(mine, QUANTILES), quantiles(others, QUANTILES), n, m,
        distance, at, chance, _differs(a, b),
    )  # fmt: skip


def _values(contents: Contents, column: Scored, group: str) -> Floats:
    """The values of a score in the sample of those who could have it."""
    sample = contents.sample.measured() if column.step else contents.sample.everything()
    values = sample.columns[column.name]
    return values[~np.isnan(values) & (sample.kept | (group == "pool"))]


def furthest(ours: Floats, theirs: Floats) -> tuple[float | None, float | None]:
    """The largest gap between two cumulative shares, and the value where it is."""
    if not len(ours) or not len(theirs):
        return None, None
    values = np.unique(np.concatenate([ours, theirs]))
    shares = (np.searchsorted(np.sort(v), values, side="right") / len(v) for v in (ours, theirs))
    gap = np.abs(np.subtract(*shares))
    where = int(np.argmax(gap))
    return float(gap[where]), float(values[where])


def _differs(ours: Scored, theirs: Scored) -> list[str]:
    """Names of what was set otherwise; fields of the reader are none but the tokenizer."""
    a, b = _about(ours), _about(theirs)
    names = ["tokenizer"] if not ours.step else sorted({*a, *b})
    return [name for name in names if a.get(name) != b.get(name)]


def _about(column: Scored) -> Facts:
    try:
        facts = StepDir(column.path).facts()
    except StoreError:
        return {}
    return {**facts.get("fields", {}), "part": facts.get("part"), "version": facts.get("version")}


def _rates(contents: Contents, other: Contents) -> list[Rate]:
    """Every reason of the detectors that both ran, and why documents left: largest gap first."""
    found = []
    ours, theirs = _reasons(contents), _reasons(other)
    for detector in (d for d in ours if d in theirs):
        (n, mine), (m, others) = ours[detector], theirs[detector]
        for reason in sorted({*mine, *others}):
            a, b = share(mine.get(reason, 0), n), share(others.get(reason, 0), m)
            if a and b:
                found.append(Rate(detector, reason, a, b, difference(a, b)))
    return sorted(found, key=lambda r: (-abs(r.difference.value), r.detector, r.reason))


def _reasons(contents: Contents) -> dict[str, tuple[int, dict[str, int]]]:
    """Detector -> documents it judged, and documents by reason."""
    accounts = contents.manifest["accounts"]
    left = dict(accounts["dropped_by_reason"])
    documents = accounts["rows"] - left.pop(HOLDOUT, 0)
    told = {DROPPED: (documents, left)}
    columns = [c for c in contents.columns if is_findings(c.dtype)]
    for name, counts in count(contents, columns).items():
        told[name] = counts.documents, {r: t.documents for r, t in counts.reasons.items()}
    return told


def _overlap(ours: Sample, theirs: Sample, group: str) -> Overlap:
    """Contents of both among those whose draws are below the smaller share of the two samples."""
    limit = min(ours.share, theirs.share)
    mine, others = _keys(ours, group, limit), _keys(theirs, group, limit)
    both = np.intersect1d(mine, others, assume_unique=True)
    return Overlap(group, len(mine), len(others), len(both), limit >= 1)


def _keys(sample: Sample, group: str, limit: float) -> Keys:
    """The distinct ids of the documents drawn below a limit."""
    which = sample.draws < limit
    if group == "kept":
        which &= sample.kept
    words = np.ascontiguousarray(id_words(sample.ids)[which])
    keys: Keys = np.unique(words.view("V16").reshape(-1))
    return keys
