"""How well the model predicts a document.

    nll = (1 / T) sum_t -log p(x_t | x_<t)        perplexity = exp(nll)

over the T counted tokens (of a text all but its start token; of a conversation the assistant's
turns; of an instruction pair the response). Utility is -nll: predictable first, as in perplexity
filtering; sort by `nll` for the opposite. A document without counted tokens gets NaN.

Cost: one forward. Source: CCNet (Wenzek et al. 2020, section 3.3) for perplexity as a filter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.lm.signals import Signals, Tokens
from foresift.pipeline.nouns import Arrays, ModelScorer
from foresift.pipeline.tables import Column


@dataclass(frozen=True, kw_only=True)
class Loss(ModelScorer):
    """Mean negative log-likelihood and perplexity of a document under the model."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "-nats per token", "higher"),
        "nll": Column(pa.float32(), "nats per token", "lower"),
        "perplexity": Column(pa.float32(), "exp(nats per token)", "lower"),
        "tokens": Column(pa.int64(), "counted tokens"),
    }

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll",)

    def score(self, tokens: Tokens, signals: Signals) -> Arrays:
        nll = signals.mean("nll")
        with np.errstate(over="ignore"):
            perplexity = np.exp(nll)
        return {"utility": -nll, "nll": nll, "perplexity": perplexity, "tokens": signals.counts}
