"""Confident learning: the joint of given and true labels, from out-of-fold probabilities.

    t_k       = mean of P[i, k] over samples with label k                    (at least 2e-6)
    confident: P[i, k] >= t_k - 1e-6; a guess is the one confident class, or argmax_k P[i, k] where
               several are; without one a sample is not counted
    C[a, b]   = samples of label a with guess b; C[a, a] at least 1
    C'[a, b]  = C[a, b] n_a / sum_b C[a, b], brought to the sum n, rounded so that rows keep theirs

    prune_by_noise_rate   for each a and b != a the C'[a, b] samples of label a with the largest
                          P[i, b] - P[i, a]
    prune_by_class        the n_a - C'[a, a] samples of label a with the smallest P[i, a]
    both                  flagged by both
    confident_learning    the samples off the diagonal of C
    predicted_neq_given   argmax P is another label
    low_self_confidence, low_normalized_margin    as many of the lowest as confident_learning flags

In all but the last two a sample whose argmax of P (1e-6 added at its label) is its label is let go.

    self_confidence              P[i, y]
    normalised_margin            (P[i, y] - max_{k != y} P[i, k] + 1) / 2
    confidence_weighted_entropy  ln(q + 1) / q with q = H(P[i]) / (ln K  P[i, y])

Equal values are taken in the order of the samples, that is by id. C is kept sparse. Cost: three
passes over P in blocks and, for each pair (a, b) in C, a sort of label a.
Source: Northcutt et al. 2021 (JAIR 70); counts and scores as in cleanlab 2.9.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from foresift.pipeline.labels import LISTED
from foresift.pipeline.rng import Rng

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Filter = Literal[
    "prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given",
    "low_self_confidence", "low_normalized_margin",
]  # fmt: skip
Quality = Literal["self_confidence", "normalised_margin", "confidence_weighted_entropy"]
QUALITIES = get_args(Quality)
LEAST_THRESHOLD = 2e-6
NEVER = 2.0
CLOSE = 1e-6
BLOCK_BYTES = 64 << 20
#: labels of which all of the transition matrix is told
WHOLE = 30
#: resamples of the samples, for the interval of the noise rate
RESAMPLES = 200


@dataclass(frozen=True, eq=False)
class Probabilities:
    """Probabilities of samples, gathered in blocks: `values[document]` is a sample's row."""

    values: npt.NDArray[Any]
    """[d, K] rows of documents; may be mapped from a file."""
    document: Rows
    """[m]"""
    label: Rows
    """[m]"""
    offset: Floats | None = None
    """[K] added to each row, which is then brought to the sum 1."""

    def blocks(self) -> Iterator[tuple[slice, Floats, Rows]]:
        """Samples from .. to, their probabilities in float64, and their labels."""
        width = self.values.shape[1]
        step = max(1, BLOCK_BYTES // (8 * width))
        for start in range(0, len(self.label), step):
            part = slice(start, min(start + step, len(self.label)))
            rows = self.values[self.document[part]].astype(np.float64)
            if self.offset is not None:
                rows += self.offset
                rows /= rows.sum(axis=1, keepdims=True)
            yield part, rows, self.label[part]

    def of(self, samples: Rows, column: int) -> Floats:
        """Probabilities of one class for some samples, without the offset."""
        found: Floats = self.values[self.document[samples], column].astype(np.float64)
        return found


@dataclass(frozen=True, eq=False)
class Joint:
    """Counts of (given, guessed), sparse, with the guess of each sample."""

    thresholds: Floats
    """[K]; 2 for a class that no sample has."""
    guess: Rows
    """[m] -1: not confident of any class."""
    best: Rows
    """[m] argmax of P."""
    holds: Bools
    """[m] whether argmax P is the given label, nearly."""
    given: Rows
    true: Rows
    counts: Rows
    """Cells of C that are not 0, by (given, true)."""
    calibrated: Rows
    """The same cells of C'."""


def thresholds(p: Probabilities) -> Floats:
    """[K] mean probability of each class over the samples that have it as label."""
    width = p.values.shape[1]
    sums, counts = np.zeros(width), np.bincount(p.label, minlength=width)
    for _, rows, label in p.blocks():
        sums += np.bincount(label, rows[np.arange(len(label)), label], width)
    found = np.full(width, NEVER)
    np.divide(sums, counts, out=found, where=counts > 0)
    np.maximum(found, LEAST_THRESHOLD, out=found)
    return found


def joint(p: Probabilities) -> Joint:
    """The confident joint of given and true labels."""
    limits, m = thresholds(p), len(p.label)
    guess, best = np.full(m, -1, dtype=np.int64), np.zeros(m, dtype=np.int64)
    holds = np.zeros(m, dtype=np.bool_)
    for part, rows, label in p.blocks():
        confident = rows >= limits - CLOSE
        many = confident.sum(axis=1)
        best[part] = rows.argmax(axis=1)
        guess[part] = np.where(many > 1, best[part], confident.argmax(axis=1))
        guess[part][many == 0] = -1
        rows[np.arange(len(label)), label] += CLOSE
        holds[part] = rows.argmax(axis=1) == label
    width = p.values.shape[1]
    cells, number = _cells(p.label, guess, width)
    sizes = np.bincount(p.label, minlength=width)
    calibrated = calibrate(cells // width, number, sizes)
    return Joint(limits, guess, best, holds, cells // width, cells % width, number, calibrated)


def _cells(label: Rows, guess: Rows, width: int) -> tuple[Rows, Rows]:
    """Numbers of cells that are not 0 and their counts, every diagonal cell at least 1."""
    sure = guess >= 0
    diagonal = np.arange(width) * (width + 1)
    cells, place = np.unique(
        np.concatenate([diagonal, label[sure] * width + guess[sure]]), return_inverse=True
    )
    number = np.bincount(place[width:], minlength=len(cells))
    on = cells % (width + 1) == 0
    number[on] = np.maximum(number[on], 1)
    return cells.astype(np.int64), number.astype(np.int64)


def scaled(given: Rows, counts: npt.NDArray[Any], sizes: Rows) -> Floats:
    """Cells with each row brought to the size of its label, and all to the number of samples."""
    rows = np.bincount(given, counts, len(sizes))
    values = counts * (sizes / np.maximum(rows, LEAST_THRESHOLD))[given]
    total = values.sum()
    found: Floats = values / max(total, LEAST_THRESHOLD) * sizes.sum()
    return found


def calibrate(given: Rows, counts: Rows, sizes: Rows) -> Rows:
    """`scaled`, rounded so that rows keep their sums: where most was rounded away, one more."""
    values = scaled(given, counts, sizes)
    found = np.rint(values)
    bounds = np.searchsorted(given, np.arange(len(sizes) + 1))
    sums = np.bincount(given, values, len(sizes)).round() - np.bincount(given, found, len(sizes))
    for row in np.flatnonzero(np.abs(sums) > CLOSE):
        part = slice(bounds[row], bounds[row + 1])
        step = int(np.sign(sums[row]))
        order = np.argsort(values[part] - found[part], kind="stable")[::-step]
        found[part][order[: int(abs(sums[row]))]] += step
    return found.astype(np.int64)


def noise_rate(found: Joint, label: Rows, width: int, rng: Rng) -> tuple[float, float, float]:
    """Share of the joint off its diagonal, with the ends of a 95 % bootstrap interval.

    Samples are drawn anew, P and thresholds stay: what the classifier would have learned from
    other samples is not in the interval.
    """
    m = len(label)
    cell = label * (width + 1) + np.where(found.guess < 0, width, found.guess)
    kinds, number = np.unique(cell, return_counts=True)
    given, true = kinds // (width + 1), kinds % (width + 1)

    def rate(counts: npt.NDArray[Any]) -> float:
        sizes = np.bincount(given, counts, width)
        sure = true < width
        values = counts[sure].astype(np.float64)
        where = given[sure]
        diagonal = np.bincount(where, values * (true[sure] == where), width)
        short = np.maximum(1.0 - diagonal, 0.0) * (sizes > 0)  # a diagonal is at least 1
        off = np.bincount(where, values, width) - diagonal
        return float((sizes * off / np.maximum(off + diagonal + short, 1e-300)).sum() / m)

    draws = rng.at("bootstrap").generator().multinomial(m, number / m, size=RESAMPLES)
    low, high = np.quantile([rate(d) for d in draws], [0.025, 0.975])
    return rate(number), float(low), float(high)


def flagged(p: Probabilities, found: Joint, rule: Filter, scores: dict[str, Floats]) -> Bools:
    """[m] whether each sample's label is taken for wrong."""
    off = (found.guess >= 0) & (found.guess != p.label)
    if rule.startswith("low_"):
        many = int((off & ~found.holds).sum())
        name = "self_confidence" if rule == "low_self_confidence" else "normalised_margin"
        return _lowest(scores[name], many)
    issues: Bools
    if rule == "confident_learning":
        issues = off
    elif rule == "predicted_neq_given":
        issues = found.best != p.label
    elif rule == "prune_by_noise_rate":
        issues = _by_noise_rate(p, found)
    elif rule == "prune_by_class":
        issues = _by_class(p, found)
    else:
        issues = _by_noise_rate(p, found) & _by_class(p, found)
    return issues & ~found.holds


def _lowest(values: Floats, many: int) -> Bools:
    marked = np.zeros(len(values), dtype=np.bool_)
    marked[np.argsort(values, kind="stable")[:many]] = True
    return marked


def _members(label: Rows, width: int) -> Iterator[tuple[int, Rows]]:
    """Labels of two samples or more, and these."""
    order = np.argsort(label, kind="stable")
    bounds = np.searchsorted(label[order], np.arange(width + 1))
    for k in np.flatnonzero(np.diff(bounds) > 1).tolist():
        yield k, order[bounds[k] : bounds[k + 1]]


def _by_noise_rate(p: Probabilities, found: Joint) -> Bools:
    marked = np.zeros(len(p.label), dtype=np.bool_)
    starts = np.searchsorted(found.given, np.arange(p.values.shape[1] + 1))
    for k, members in _members(p.label, p.values.shape[1]):
        part = slice(starts[k], starts[k + 1])
        true, many = found.true[part], found.calibrated[part].copy()
        if not many[true == k].any():  # one sample of a label is left at least
            many -= 1
        own = p.of(members, k)
        for other, count in zip(true.tolist(), many.tolist(), strict=True):
            if other != k and count > 0:
                margin = p.of(members, other) - own
                marked[members[np.argsort(-margin, kind="stable")[:count]]] = True
    return marked


def _by_class(p: Probabilities, found: Joint) -> Bools:
    marked, on = np.zeros(len(p.label), dtype=np.bool_), found.given == found.true
    kept = dict(zip(found.given[on].tolist(), found.calibrated[on].tolist(), strict=True))
    for k, members in _members(p.label, p.values.shape[1]):
        many = len(members) - max(kept[k], 1)
        marked[members[np.argsort(p.of(members, k), kind="stable")[: max(many, 0)]]] = True
    return marked


def qualities(p: Probabilities) -> dict[str, Floats]:
    """The three scores of each sample, 0 to 1, larger = more likely right."""
    m, width = len(p.label), p.values.shape[1]
    own, margin, entropy = (np.empty(m) for _ in range(3))
    for part, rows, label in p.blocks():
        here = np.arange(len(label))
        own[part] = rows[here, label]
        logs = np.log(np.maximum(rows, np.finfo(np.float64).tiny))
        entropy[part] = -(rows * logs).sum(axis=1) / np.log(width)
        rows[here, label] = -np.inf
        margin[part] = (own[part] - rows.max(axis=1) + 1) / 2
    q = np.maximum(entropy / np.maximum(own, CLOSE), CLOSE)
    return dict(zip(QUALITIES, (own, margin, np.log1p(q) / q), strict=True))


def adjusted(p: Probabilities, found: Joint) -> Probabilities:
    """P[i, k] - t_k + max t, brought to the sum 1."""
    seen = found.thresholds < NEVER
    limits = np.where(seen, found.thresholds, 0.0)
    return replace(p, offset=limits.max() - limits)


def described(found: Joint, names: Sequence[str]) -> dict[str, Any]:
    """Thresholds, and P(given | true): of few labels all, of many the likeliest confusions."""
    width = len(names)
    true = np.bincount(found.true, found.calibrated, width)
    share = found.calibrated / np.maximum(true, 1)[found.true]
    shown = np.flatnonzero(found.calibrated)
    if width > WHOLE:
        off = shown[found.given[shown] != found.true[shown]]
        shown = off[np.argsort(-share[off], kind="stable")[:LISTED]]
    transition: dict[str, dict[str, float]] = {}
    for i in shown.tolist():
        transition.setdefault(names[found.true[i]], {})[names[found.given[i]]] = float(share[i])
    low = np.argsort(found.thresholds, kind="stable")[:LISTED]
    limits = {names[i]: float(found.thresholds[i]) for i in low if found.thresholds[i] < NEVER}
    return {"transition": transition, "thresholds": limits}
