"""Reducible loss (RHO-LOSS): what is left to learn of a document, and can be learned.

    utility = nll - irreducible

`nll` is the mean NLL under this step's model. `irreducible` is the same under a model that was
trained on held-out or trusted data: a column that an earlier `score: loss` step under that model
has given. Noise is high in both and scores about 0; what is learned already scores about 0 or
below; what is learnable and not yet learned scores high. NaN where either loss is missing.

Cost: one forward. Source: Mindermann et al. 2022 (ICML), eq. 3.
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
class ExcessLoss(ModelScorer):
    """Loss under this model beyond the loss under a reference model (RHO-LOSS)."""

    against: str
    """Column with the irreducible loss in nats per token, such as `irreducible.nll`."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "nats per token", "higher"),
        "nll": Column(pa.float32(), "nats per token", "lower"),
        "irreducible": Column(pa.float32(), "nats per token", "lower"),
    }

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.against,)

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll",)

    def score(self, tokens: Tokens, signals: Signals) -> Arrays:
        nll = signals.mean("nll")
        column = tokens.table[self.against].cast(pa.float32())
        irreducible = np.array(column.to_numpy(), dtype=np.float32)
        return {"utility": nll - irreducible, "nll": nll, "irreducible": irreducible}
