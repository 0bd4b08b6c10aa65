"""How unsure the model is of a document, and D3's Uncertainty-based Prediction Difficulty (UPD).

With L_t the NLL and H_t the entropy of counted token t, both in nats, and V the tokenizer's size:

    upd_t = sigmoid(L_t) max(0, 1 - H_t / (log V)^beta)        upd = (1 / T) sum_t upd_t

`level: sample` puts the means of L and H into the same formula instead. UPD is large where the
model is confident and wrong. It is not monotone in difficulty: as sigmoid(0) = 0.5, a token that is
predicted well and confidently scores about 0.5, and one under a flat distribution about 0.
`entropy`, `top_prob` and `margin` are means over counted tokens. Without any, everything is NaN.

Cost: one forward. Source: D3 (arXiv 2503.11441); level and beta are not settled by the paper's
text, the defaults follow its open re-implementation in OpenDataArena.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from foresift.pipeline.lm.signals import Floats, Signals, Tokens, segment_means
from foresift.pipeline.nouns import Arrays, ModelScorer
from foresift.pipeline.tables import Column


@dataclass(frozen=True, kw_only=True)
class Uncertainty(ModelScorer):
    """UPD (confident and wrong), entropy, top probability and margin of a document."""

    level: Literal["token", "sample"] = "token"
    """Whether UPD is computed for each token and averaged, or once from the averages."""
    beta: float = 1.0
    """Power of log V in UPD; larger moves the entropy at which UPD reaches zero."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "upd, 0 to 1", "higher"),
        "upd": Column(pa.float32(), "upd, 0 to 1", "higher"),
        "entropy": Column(pa.float32(), "nats per token"),
        "top_prob": Column(pa.float32(), "mean probability"),
        "margin": Column(pa.float32(), "mean probability difference"),
    }

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError("beta must be positive")

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll", "entropy", "top_prob", "margin")

    def score(self, tokens: Tokens, signals: Signals) -> Arrays:
        entropy = signals.mean("entropy")
        if self.level == "sample":
            value = upd(signals.mean("nll"), entropy, signals.vocab_size, self.beta)
        else:
            each = upd(
                signals.token["nll"], signals.token["entropy"], signals.vocab_size, self.beta
            )
            value = segment_means(each, signals.offsets)
        means = {name: signals.mean(name) for name in ("top_prob", "margin")}
        return {"utility": value, "upd": value, "entropy": entropy, **means}


def upd(nll: Floats, entropy: Floats, vocab_size: int, beta: float = 1.0) -> Floats:
    """UPD of each token (or document), elementwise; all in nats."""
    bracket = np.maximum(0, 1 - entropy.astype(np.float64) / np.log(max(vocab_size, 2)) ** beta)
    values: Floats = (bracket / (1 + np.exp(-nll.astype(np.float64)))).astype(np.float32)
    return values
