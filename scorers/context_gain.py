"""How much the context helps the model to give the answer: RAP's modality test, for text.

    nll = mean NLL(answer | context, question)     nll_without = mean NLL(answer | question)
    gain = nll_without - nll                       utility = gain

in nats per token of the same answer. A large gain: the answer has to be read from the context.
About 0: the question alone is enough (or the model can do neither: `nll` tells these apart, as a
low gain says the same of what is known and of what is out of reach). Below 0: the context leads
away from the answer; such rows are findings (`misleading`, the characters of the context) where the
gain is below `-threshold`.

What the context is stands in `context`, a regular expression on the prompt (see
`_steps_context.py`): by default all paragraphs but the last; `of: turns` takes all turns before the
last question instead, system prompt included. `nll` is that of any answer (or plain text); the rest
is NaN without a context. All is NaN without an answer, or where a document is longer than the model
reads.

Cost: two forwards. Source: RAP (arXiv 2506.04755), its causal discrepancy estimator, as
likelihoods: the paper's own is the difference of success rates over rollouts (`rollout_gain`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import Arrays
from foresift.pipeline.tables import Column
from foresift.scorers._steps import Trace, traces
from foresift.scorers._steps_context import CONTEXT, Context, compiled, context
from foresift.scorers._steps_fit import Ask, AsksByDocument, Before, mean


@dataclass(frozen=True, kw_only=True)
class ContextGain(AsksByDocument):
    """Loss of an answer without its context less the loss with it: must it be read there?"""

    context: str = CONTEXT
    """Regular expression; what it finds in the prompt (its first group) is the context."""
    of: Literal["prompt", "turns"] = "prompt"
    """Whether the context stands in the prompt, or is all turns before the last question."""
    threshold: float = 0.1
    """Nats per token by which a context must hurt to be a finding."""

    forwards: ClassVar[float] = 2.0
    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "gain, nats per token", "higher"),
        "gain": Column(pa.float32(), "nats per token", "higher"),
        "nll": Column(pa.float32(), "nats per token", "lower"),
        "nll_without": Column(pa.float32(), "nats per token"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        compiled(self.context)
        if self.threshold < 0:
            raise ValueError("threshold must not be negative")

    def measure(self, table: pa.Table, ask: Ask) -> Arrays:
        asked = [(row, *found) for row, t in enumerate(traces(table)) if (found := self._bare(t))]
        told = ask.answers([t for _, t, *_ in asked], [bare for _, _, bare, _ in asked])
        losses = np.full((2, table.num_rows), np.nan)
        losses[0] = [mean(nll) for nll in ask.last(table)]
        losses[1, [row for row, *_ in asked]] = [mean(nll) for nll in told]
        gain = losses[1] - losses[0]
        findings = Findings(table.num_rows)
        for row, _, _, (start, stop) in asked:
            if gain[row] < -self.threshold:
                findings.add(row, "misleading", start, stop, float(gain[row]))
        both: dict[str, npt.NDArray[np.float64]] = {"nll": losses[0], "nll_without": losses[1]}
        return {"utility": gain, "gain": gain, **both, "findings": findings.array()}

    def _bare(self, trace: Trace) -> tuple[Trace, Before, tuple[int, int]] | None:
        """What stands before the answer without the context, and where the context is."""
        if self.of == "turns":
            if len(trace.turns) < 2 or not trace.text or trace.before is None:
                return None
            last = trace.turns[-1]
            stop = len(trace.before) - 2 - len(last["content"] or "")
            return trace, [last], (0, stop)
        found: Context | None = context(trace, compiled(self.context))
        if found is None:
            return None
        start, stop = (found.start + c for c in found.span)
        return trace, found.without(found.span), (start, stop)
