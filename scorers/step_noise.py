"""Steps of a chain of thought at which the model's loss jumps, and those that nothing refers to.

    m_t        mean NLL of the tokens of step t                                       nats
    jump_t     (m_t - median) / max(1.4826 MAD, floor), median and MAD over the trace's steps, or
               over those before t (`against: before`; from the third step on)
    overlap_t  share of the step's words that occur in the question or in another step; words are
               lower-case runs of letters or digits without the most frequent function words
    jump       max_t jump_t at step `step`             utility = -jump
    noise      share of steps with jump_t > threshold  worst = max_t m_t
    unrelated  max_t 1 - overlap_t

A finding is a step with jump_t > threshold: `irrelevant` where overlap_t < `related` (a fact that
nothing takes up), else `inaccurate` (of the right things, but the model did not expect it). These
are NoRa's two kinds of noise, as far as losses and words can tell them apart; a wrong sum is told
by `arithmetic`. A step is a line, or a sentence where there is one line (`by`).

The defaults were set on half of NoRa: with a floor of 0.1 nats clean traces, whose losses hardly
vary, had jumps as well (every sixth step of kinship above 1). `nll` itself ranks steps of one
domain as well as the jump does. Medians bear noise in up to half of the steps. The first steps of a
trace are unpredictable anyway, so a model that knows the domain is needed: with random weights the
numbers mean nothing. Where a document is cut, the steps behind the cut are NaN and do not count.
NaN where fewer than three steps are left, or the tokens cannot be brought under the characters. On
a plain text all of it is the trace. Steps are also read by `nll`, one number a step.

Cost: one forward, shared with the other model scores of its step, and the answers are tokenised a
second time, for the places of their tokens. Source: the noise kinds of NoRa (arXiv 2410.23856); the
measure is ours.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.lm.signals import Signals, Tokens
from foresift.pipeline.nouns import Arrays, ModelScorer
from foresift.pipeline.tables import Column
from foresift.scorers._steps import By, Span, Trace, steps, traces
from foresift.scorers._steps_fit import last_run, places

Floats = npt.NDArray[np.float64]
#: a normal distribution's standard deviation in units of its MAD
_NORMAL = 1.4826
_FEWEST = 3
_WORD = re.compile(r"[^\W\d_]+|\d+")
_EMPTY = frozenset([
    "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "has", "have", "in", "is", "it",
    "of", "on", "or", "so", "that", "the", "then", "this", "to", "was", "we", "were", "which",
    "with",
])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepNoise(ModelScorer):
    """Steps of a chain of thought whose loss jumps out of the trace, irrelevant or inaccurate."""

    by: By = "auto"
    """Steps are every `line`, `sentence` or `blank_line` (paragraph), or lines else sentences."""
    against: Literal["all", "before"] = "all"
    """What a step is compared with: all steps of its trace, or those before it."""
    threshold: float = 1.0
    """Jump, in units of spread, above which a step is a finding."""
    floor: float = 1.0
    """Least spread, in nats, that a trace is taken to have; small ones find jumps in any trace."""
    related: float = 0.5
    """Share of a step's words that must occur elsewhere for it not to be irrelevant."""

    reads_content: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "-jump, units of spread", "higher"),
        "jump": Column(pa.float32(), "units of spread", "lower"),
        "step": Column(pa.int32(), "step from 0, -1: none"),
        "noise": Column(pa.float32(), "share of steps", "lower"),
        "worst": Column(pa.float32(), "nats per token", "lower"),
        "unrelated": Column(pa.float32(), "share of words, 0 to 1", "lower"),
        "nll": Column(pa.list_(pa.float32()), "nats per token, of each step"),
        "overlap": Column(pa.list_(pa.float32()), "share of words, of each step"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        if not self.floor > 0 or not self.threshold > 0 or not 0 <= self.related <= 1:
            raise ValueError("floor and threshold are positive, related is a share")

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll",)

    def score(self, tokens: Tokens, signals: Signals) -> Arrays:
        assert tokens.encoded is not None
        findings, rows = Findings(len(tokens)), []
        losses = signals.token["nll"].astype(np.float64)
        for row, trace in enumerate(traces(tokens.table)):
            _, ids = last_run(tokens.encoded, row)
            stop = int(signals.offsets[row + 1])
            where = places(trace.text, ids, tokens.tokenizer)
            spans = steps(trace.text, self.by)
            means = step_means(spans, where or (), losses[stop - len(ids) : stop])
            shared = overlaps(trace, spans)
            jumps_ = jumps(means, self.against, self.floor)
            for t in np.flatnonzero(jumps_ > self.threshold).tolist():
                reason = "irrelevant" if shared[t] < self.related else "inaccurate"
                start, stop = (trace.start + c for c in spans[t])
                findings.add(row, reason, start, stop, float(jumps_[t]))
            rows.append(_summary(means, jumps_, shared, self.threshold))
        return {
            **{name: [r[k] for r in rows] for k, name in enumerate(self.columns) if k < 8},
            "findings": findings.array(),
        }


def _summary(means: Floats, jumped: Floats, shared: Floats, threshold: float) -> tuple[object, ...]:
    known = np.isfinite(jumped)
    there = means[np.isfinite(means)]
    worst = float(there.max()) if len(there) else math.nan
    apart = float(1 - shared.min()) if len(shared) else math.nan
    if not known.any():
        return (math.nan, math.nan, -1, math.nan, worst, apart, means.tolist(), shared.tolist())
    step = int(np.nanargmax(jumped))
    jump, noise = float(jumped[step]), float((jumped[known] > threshold).mean())
    return (-jump, jump, step, noise, worst, apart, means.tolist(), shared.tolist())


def step_means(spans: Sequence[Span], where: object, nll: Floats) -> Floats:
    """[steps] mean NLL of the tokens that end in each; NaN where none does."""
    sums, counts = np.zeros(len(spans)), np.zeros(len(spans))
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    for token, _, stop in where:  # type: ignore[attr-defined]
        step = int(np.searchsorted(starts, stop - 1, side="right")) - 1
        if step >= 0:
            sums[step] += nll[token]
            counts[step] += 1
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / np.where(counts > 0, counts, np.nan))


def jumps(means: Floats, against: str = "all", floor: float = 1.0) -> Floats:
    """[steps] how far each stands above the others' median, in units of spread."""
    found = np.full(len(means), np.nan)
    known = np.flatnonzero(np.isfinite(means))
    if len(known) < _FEWEST:
        return found
    values = means[known]
    if against == "all":
        found[known] = _above(values, values, floor)
    else:
        for t in range(2, len(values)):
            found[known[t]] = _above(values[t], values[:t], floor)
    return found


def _above(value: Floats, others: Floats, floor: float) -> Floats:
    middle = np.median(others)
    spread = _NORMAL * np.median(np.abs(others - middle))
    return np.asarray((value - middle) / max(float(spread), floor))


def overlaps(trace: Trace, spans: Sequence[Span]) -> Floats:
    """[steps] share of the words of each that the question or another step has; 1: it has none."""
    words = [_words(trace.text[start:stop]) for start, stop in spans]
    held = Counter(w for mine in words for w in mine)
    asked = _words(trace.before or "")
    return np.array(
        [
            sum(w in asked or held[w] > 1 for w in mine) / len(mine) if mine else 1.0
            for mine in words
        ],
        dtype=np.float64,
    )


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower())) - _EMPTY
