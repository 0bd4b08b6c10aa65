"""Whether the model looks at the passage that has the answer while it gives the answer.

    a_j    attention to token j in one layer, mean over heads and over the positions that predict
           the tokens of the answer
    m_n    mean of a_j over the tokens of passage n (`lengths: free`), or their sum (`counted`)
    ratio  sum of m_n over the evidence / sum of m_n over all passages       utility = ratio

The evidence is the passages in which the answer occurs (that of the column `answer`, else the
response); attention to what stands outside of all passages, as to the first token, does not count.
A ratio below the threshold is a finding, `evidence_ignored`, at each passage of the evidence. The
threshold belongs to the number of passages k, as a constant would flag everything for large k:
`thresholds` (the entry of the largest number up to k), and without them the share of the evidence
among the passages, which even attention would give.

MIA-DPO takes answers with a low ratio as rejected ones. Its thresholds, for images in a sequence,
are `{2: 0.8, 3: 0.7, 4: 0.6}`; they do not carry over to text, calibrate your own. Only the order
of ratios at the same k means something.

`nll` is that of any answer or plain text; the rest is NaN without at least two passages or without
evidence (see `_steps_context.py`), and where a document is longer than the model reads.

Cost: two forwards. Source: MIA-DPO (arXiv 2410.17637), which reads layer 16 of 32 (`depth` 0.5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.nouns import Arrays
from foresift.pipeline.tables import Column
from foresift.scorers._steps import Span, traces
from foresift.scorers._steps_attention import Attention
from foresift.scorers._steps_context import CONTEXT, Context, compiled, context
from foresift.scorers._steps_fit import Ask, AsksByDocument, last_run, mean, places

Floats = npt.NDArray[np.float64]
Region = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EvidenceAttention(AsksByDocument):
    """Share of attention to passages that goes to those with the answer, while answering."""

    context: str = CONTEXT
    """Regular expression; what it finds in the prompt (its first group) is the context."""
    answer: str = ""
    """Column with the short answer that evidence has; empty: the response."""
    depth: float = 0.5
    """Which layer is read: 0 the first, 0.5 the middle, 1 the last."""
    lengths: Literal["free", "counted"] = "free"
    """Whether passages are compared by attention a token, or by all that they get."""
    thresholds: dict[int, float] = field(default_factory=dict)
    """Number of passages -> ratio below which the evidence is ignored; empty: even attention."""

    forwards: ClassVar[float] = 2.0
    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "ratio, 0 to 1", "higher"),
        "ratio": Column(pa.float32(), "share of attention, 0 to 1", "higher"),
        "nll": Column(pa.float32(), "nats per token", "lower"),
        "passages": Column(pa.int32(), "passages"),
        "evidence": Column(pa.int32(), "passages with the answer"),
        "findings": FOUND,
    }

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.answer,) if self.answer else ()

    def __post_init__(self) -> None:
        compiled(self.context)
        if not 0 <= self.depth <= 1:
            raise ValueError("depth is a share of the layers")
        if any(k < 2 or not 0 <= tau <= 1 for k, tau in self.thresholds.items()):
            raise ValueError("thresholds are shares, of two passages or more")

    def measure(self, table: pa.Table, ask: Ask) -> Arrays:
        told = table[self.answer].to_pylist() if self.answer else [None] * table.num_rows
        encoded, pattern = ask.encode(table), compiled(self.context)
        ratios = np.full(table.num_rows, np.nan)
        counts = np.zeros((2, table.num_rows), dtype=np.int64)
        findings, layer = Findings(table.num_rows), Attention(ask.loaded.model, self.depth)
        for row, trace in enumerate(traces(table)):
            found = context(trace, pattern)
            if found is None:
                continue
            evidence = found.evidence(trace.text if told[row] is None else str(told[row]))
            counts[:, row] = len(found.passages), len(evidence)
            regions = self._regions(found, encoded, row, ask)
            if len(found.passages) < 2 or not evidence or regions is None:
                continue
            ids, rows = _asking(encoded, row)
            ask.tokens += len(ids)
            ratios[row] = ratio(layer.mean(ids, rows), regions, evidence, self.lengths == "free")
            if ratios[row] < self.threshold(len(found.passages), len(evidence)):
                for k in evidence:
                    start, stop = (found.start + c for c in found.passages[k])
                    findings.add(row, "evidence_ignored", start, stop, float(ratios[row]))
        return {
            "utility": ratios, "ratio": ratios, "nll": [mean(nll) for nll in ask.last(table)],
            "passages": counts[0], "evidence": counts[1], "findings": findings.array(),
        }  # fmt: skip

    def threshold(self, passages: int, evidence: int = 1) -> float:
        """The ratio below which the evidence of an item is ignored."""
        known = [k for k in self.thresholds if k <= passages]
        return self.thresholds[max(known)] if known else evidence / passages

    def _regions(
        self, found: Context, encoded: Encoded, row: int, ask: Ask
    ) -> Sequence[Region] | None:
        """The tokens of each passage; None where they cannot be told."""
        if encoded.cut[row]:
            return None
        first, _ = last_run(encoded, row)
        ids = encoded.ids[encoded.offsets[row] : encoded.offsets[row] + first]
        text = ask.loaded.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        at, told = text.rfind(found.prompt), places(text, ids, ask.loaded.tokenizer)
        if at < 0 or told is None:
            return None
        ends = np.array([(token, stop - 1 - at) for token, _, stop in told], dtype=np.int64)
        return [inside(ends, passage) for passage in found.passages]


def inside(ends: npt.NDArray[np.int64], span: Span) -> Region:
    """The tokens that end within a span; `ends` [tokens, 2] are token and last character."""
    within = (ends[:, 1] >= span[0]) & (ends[:, 1] < span[1])
    return np.asarray(ends[within, 0])


def _asking(encoded: Encoded, row: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The ids of a document, and the positions that predict its (last) answer."""
    first, answer = last_run(encoded, row)
    ids = encoded.ids[encoded.offsets[row] : encoded.offsets[row] + first + len(answer)]
    return ids, np.arange(first - 1, first + len(answer) - 1)


def ratio(
    attention: Floats, regions: Sequence[Region], evidence: Sequence[int], free: bool = True
) -> float:
    """The share of the attention to all regions that the evidence gets."""
    masses = np.array([attention[r].sum() / (max(1, len(r)) if free else 1) for r in regions])
    total = masses.sum()
    return float(masses[list(evidence)].sum() / total) if total > 0 else float("nan")
