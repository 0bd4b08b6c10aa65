"""How far one document would move the model's output layer.

    norm = | d nll / d W |_F = | (1 / T) sum_t (p_t - onehot(x_t)) h_t' |_F

with W [V, d] the output matrix, h_t the final hidden state before counted token t, and p_t the
predicted distribution. Exact, in closed form, without a backward pass. With tied embeddings this is
the gradient through the output use of the matrix. Utility is the norm: large means informative or
noisy, which is why it is usually combined with a quality filter. NaN without counted tokens.

Cost: one forward, and the output layer two or three times. Source: EL2N and GraNd (Paul et al.
2021) for the gradient norm as an example's importance; last-layer form as in Katharopoulos and
Fleuret 2018, section 3.2.
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
class GradientNorm(ModelScorer):
    """Norm of a document's gradient at the output layer of the model."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "nats per unit of weight", "higher"),
        "norm": Column(pa.float32(), "nats per unit of weight"),
    }

    @property
    def signals(self) -> tuple[str, ...]:
        return ("grad_norm",)

    def score(self, tokens: Tokens, signals: Signals) -> Arrays:
        norm = np.asarray(signals.document["grad_norm"], dtype=np.float32)
        return {"utility": norm, "norm": norm}
