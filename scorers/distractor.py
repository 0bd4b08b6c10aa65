"""Passages of a context that lead the model away from the answer, after NoisyBench.

With k passages before a question, the loss of the answer behind all of them and behind all but one:

    harm_j = mean NLL(answer | all) - mean NLL(answer | all but j)      > 0: j distracts
    worst  = max_j harm_j at passage `passage`                          utility = -worst
    rise   = mean NLL(answer | all) - mean NLL(answer | evidence alone) what all noise costs

The evidence is the passages in which the answer occurs (that of the column `answer`, else the
response), `evidence` their number. NoisyBench adds random documents and hard negatives to a golden
context. A hard negative that has the answer makes an item invalid: `leaked` counts the passages
after the first that have it. Findings: `distractor` (harm_j > `threshold`, the passage) and
`answer_in_distractor` (each passage that has the answer, after the first).

Leaving a passage out also shortens the prompt, so small numbers mean nothing; the passages of one
item share that. `nll` is that of any answer or plain text. `rise` is NaN without
evidence; the rest is NaN without a context of at least two passages (see `_steps_context.py`) or
with more than `most`. A document that is longer than the model reads has no losses.

Cost: k + 2 forwards of the item. Source: NoisyBench (arXiv 2601.07226), whose own measure is the
relative drop of accuracy (`relative_drop`); the version by likelihoods is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import Arrays
from foresift.pipeline.tables import Column
from foresift.scorers._steps import traces
from foresift.scorers._steps_context import CONTEXT, Context, compiled, context
from foresift.scorers._steps_fit import Ask, AsksByDocument, Before, mean

_NOTHING = (np.nan, -1, np.nan, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Distractor(AsksByDocument):
    """Passages before a question whose removal makes the answer easier for the model."""

    context: str = CONTEXT
    """Regular expression; what it finds in the prompt (its first group) is the context."""
    answer: str = ""
    """Column with the short answer that evidence has; empty: the response."""
    threshold: float = 0.1
    """Nats per token by which a passage must hurt to be a finding."""
    most: int = 16
    """Passages above which an item is not looked at."""

    forwards: ClassVar[float] = 6.0
    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "-worst, nats per token", "higher"),
        "worst": Column(pa.float32(), "nats per token", "lower"),
        "passage": Column(pa.int32(), "passage from 0, -1: none"),
        "rise": Column(pa.float32(), "nats per token", "lower"),
        "nll": Column(pa.float32(), "nats per token", "lower"),
        "passages": Column(pa.int32(), "passages"),
        "evidence": Column(pa.int32(), "passages with the answer"),
        "leaked": Column(pa.int32(), "passages with the answer after the first", "lower"),
        "findings": FOUND,
    }

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.answer,) if self.answer else ()

    def __post_init__(self) -> None:
        compiled(self.context)
        if self.threshold < 0 or self.most < 2:
            raise ValueError("threshold must not be negative, and most is at least 2")

    def measure(self, table: pa.Table, ask: Ask) -> Arrays:
        told = table[self.answer].to_pylist() if self.answer else [None] * table.num_rows
        findings, rows, pattern = Findings(table.num_rows), [], compiled(self.context)
        nll = [mean(each) for each in ask.last(table)]
        for row, trace in enumerate(traces(table)):
            found = context(trace, pattern)
            if found is None or not 2 <= len(found.passages) <= self.most:
                rows.append(_NOTHING)
                continue
            answer = trace.text if told[row] is None else str(told[row])
            rows.append(self._item(row, nll[row], found, found.evidence(answer), ask, findings))
        names = ["worst", "passage", "rise", "passages", "evidence", "leaked"]
        columns: dict[str, Any] = {n: [r[k] for r in rows] for k, n in enumerate(names)}
        return {
            **columns,
            "nll": nll,
            "utility": -np.array(columns["worst"], dtype=np.float32),
            "findings": findings.array(),
        }

    def _item(
        self,
        row: int,
        nll: float,
        found: Context,
        evidence: Sequence[int],
        ask: Ask,
        findings: Findings,
    ) -> tuple[Any, ...]:
        spans = found.passages
        noise = [s for k, s in enumerate(spans) if k not in evidence]
        before: list[Before] = [found.without(s) for s in spans]
        before += [found.without(*noise)] if evidence else []
        losses = ask.answers([found.trace] * len(before), before)
        rises = nll - np.array([mean(each) for each in losses])
        harm, rise = rises[: len(spans)], float(rises[-1]) if evidence else np.nan
        for k in evidence[1:]:
            start, stop = (found.start + c for c in spans[k])
            findings.add(row, "answer_in_distractor", start, stop)
        for k in np.flatnonzero(harm > self.threshold).tolist():
            start, stop = (found.start + c for c in spans[k])
            findings.add(row, "distractor", start, stop, float(harm[k]))
        worst = int(np.nanargmax(harm)) if np.isfinite(harm).any() else -1
        value = float(harm[worst]) if worst >= 0 else np.nan
        leaked = max(0, len(evidence) - 1)
        return value, worst, rise, len(spans), len(evidence), leaked


def relative_drop(clean: float, noisy: float) -> float:
    """By which share a figure falls under noise: 0.5 where half is lost."""
    return 1 - noisy / clean
