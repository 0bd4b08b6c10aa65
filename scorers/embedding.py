"""A vector for each document: the mean of the model's final hidden states.

    vector = (1 / n) sum_t h_t,  divided by its L2 norm if `normalise`

over all n tokens, or over the counted ones (the response). A document without such tokens has null.
`vector` has the model's width, in float32. It carries no utility: clustering, nearest neighbours
and diversity read it.

Cost: one forward without the output layer. Source: mean pooling as in SentenceBERT (Reimers and
Gurevych 2019) and, for causal models, D3 and Cherry (see `ifd`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from foresift.pipeline.lm.signals import Signals, Tokens
from foresift.pipeline.nouns import Arrays, ModelScorer
from foresift.pipeline.tables import Column
from foresift.pipeline.vectors import vector_column


@dataclass(frozen=True, kw_only=True)
class Embedding(ModelScorer):
    """Mean-pooled final hidden state of a document under the model."""

    span: Literal["all", "response"] = "all"
    """Tokens that are averaged: all, or the counted ones."""
    normalise: bool = True
    """Whether the vector is brought to length 1, so that a dot product is a cosine."""

    columns: ClassVar[Mapping[str, Column]] = {
        "vector": Column(pa.list_(pa.float32()), "hidden state"),
    }

    @property
    def signals(self) -> tuple[str, ...]:
        return ("hidden_mean" if self.span == "all" else "hidden_mean_response",)

    def score(self, tokens: Tokens, signals: Signals) -> Arrays:
        vectors = np.asarray(signals.document[self.signals[0]], dtype=np.float32)
        if self.normalise:
            norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            vectors = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
        return {"vector": vector_column(vectors)}
