"""A few tokens that the model did not expect in a text that it otherwise finds easy.

With l_t the NLL of counted token t under the step's model, in nats,

    p99     99th percentile of l_t (linear between order statistics)       median   of l_t
    peak    p99 - median                                                   utility = -peak
    priming max l_t over the tokens that begin a word or hold a digit
    flagged peak >= `high` and median <= `low`

A text that contradicts what the model knows has a low median and a few tokens of high l_t; shuffled
or foreign text has both high, so it is not flagged. What primes unrelated prompts later is the
improbable keyword, whose own surprise `priming` bounds from above. Utility is smaller peak first,
for a trusted stream without review; the signal finds poison and genuine discoveries alike, so use
`flagged` to send documents to review or a check of provenance, not to delete them.

Findings of a flagged document: its most surprising words (`surprising`, value: nats), in the last
answer of a conversation; the document as a whole where the tokens cannot be brought under the
characters. `priming` is NaN there. All is NaN without a counted token. Of a document that is longer
than the model reads, the part that was read counts.

Percentiles of ordinary text depend on model and tokenizer (a large model over a vocabulary of 50k:
p99 about 8 to 10; bytes: 4 to 6), so set `high` and `low` from a sample that you trust. With random
weights the numbers mean nothing. A text under about 100 tokens has its largest l_t as p99.

Cost: one forward, 2 N FLOPs a token, shared with the other model scores of its step; content is
tokenised a second time for the places of tokens.
Source: persistence of outlandish knowledge and priming ("How new data permeates LLM knowledge",
arXiv 2504.09522: a keyword's probability before learning predicts priming); the peak is ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.lm.signals import Signals, Tokens
from foresift.pipeline.nouns import Arrays, ModelScorer
from foresift.pipeline.tables import Column
from foresift.scorers._steps import Span, Trace, traces
from foresift.scorers._steps_fit import last_run, places

Floats = npt.NDArray[np.float64]
#: (nats, first character, one behind the last) of each token of a trace
Placed = list[tuple[float, int, int]]
HIGH = 99.0


@dataclass(frozen=True, kw_only=True)
class Surprise(ModelScorer):
    """Peak of a document's token losses above their median: knowledge at odds with the model."""

    high: float = 8.0
    """Peak, in nats, from which on a document with a low median is flagged."""
    low: float = 2.5
    """Largest median, in nats, of a flagged document."""
    spans: int = 3
    """Most surprising words that are told of a flagged document."""

    reads_content: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "-peak, nats", "higher"),
        "peak": Column(pa.float32(), "nats", "lower"),
        "p99": Column(pa.float32(), "nats", "lower"),
        "median": Column(pa.float32(), "nats", "lower"),
        "priming": Column(pa.float32(), "nats", "lower"),
        "flagged": Column(pa.bool_(), "whether to review it", "lower"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        if not (self.high > 0 and self.low > 0 and self.spans >= 1):
            raise ValueError("high and low must be positive, and spans at least 1")

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll",)

    def score(self, tokens: Tokens, signals: Signals) -> Arrays:
        assert tokens.encoded is not None
        p99, median = percentiles(signals.token["nll"], signals.offsets)
        peak = p99 - median
        flagged = (peak >= self.high) & (median <= self.low)  # NaN is neither
        priming, findings = np.full(len(tokens), math.nan), Findings(len(tokens))
        for row, trace in enumerate(traces(tokens.table)):
            placed = _placed(row, trace, tokens, signals)
            starts = [nll for nll, a, b in placed if telling(trace.text, (a, b))]
            priming[row] = max(starts, default=math.nan)
            if not flagged[row]:
                continue
            for (start, stop), nll in words(trace.text, placed, self.spans).items():
                findings.add(row, "surprising", trace.start + start, trace.start + stop, nll)
            if not placed:
                findings.add(row, "surprising", value=float(p99[row]))
        return {
            "utility": -peak, "peak": peak, "p99": p99, "median": median, "priming": priming,
            "flagged": flagged, "findings": findings.array(),
        }  # fmt: skip


def percentiles(
    nll: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """[n] 99th percentile and median of each document's tokens; NaN without tokens."""
    found = np.full((2, len(offsets) - 1), math.nan)
    for row, (start, stop) in enumerate(itertools.pairwise(offsets)):
        if stop > start:
            found[:, row] = np.percentile(nll[start:stop].astype(np.float64), (HIGH, 50))
    return found[0], found[1]


def _placed(row: int, trace: Trace, tokens: Tokens, signals: Signals) -> Placed:
    """The loss of each token of a trace, under its characters; empty where that cannot be told."""
    assert tokens.encoded is not None
    _, ids = last_run(tokens.encoded, row)
    first = int(signals.offsets[row + 1]) - len(ids)
    nll = signals.token["nll"]
    found = places(trace.text, ids, tokens.tokenizer) or ()
    return [(float(nll[first + token]), start, stop) for token, start, stop in found]


def telling(text: str, span: Span) -> bool:
    """Whether a token begins a word, or holds a digit."""
    piece = text[span[0] : span[1]]
    bare = piece.lstrip()
    if not bare or any(c.isdigit() for c in bare):
        return bool(bare)
    if not bare[0].isalnum():
        return False
    return len(bare) < len(piece) or span[0] == 0 or not text[span[0] - 1].isalnum()


def words(text: str, placed: Sequence[tuple[float, int, int]], most: int) -> dict[Span, float]:
    """The words in which the most surprising tokens lie, each with its largest loss."""
    found: dict[Span, float] = {}
    for nll, start, stop in sorted(placed, key=lambda t: (-t[0], t[1])):
        while start < stop and text[start].isspace():
            start += 1
        while start < stop and text[stop - 1].isspace():
            stop -= 1
        if start == stop:
            continue
        while start > 0 and text[start].isalnum() and text[start - 1].isalnum():
            start -= 1
        while stop < len(text) and text[stop - 1].isalnum() and text[stop].isalnum():
            stop += 1
        found.setdefault((start, stop), nll)
        if len(found) == most:
            break
    return found
