"""Gradient norm: train on the rows that would move the output layer most at this moment.

    utility = | d nll / d W |_F = | (1 / T) sum_t (p_t - onehot(x_t)) h_t' |_F

with W [V, d] the output matrix, h_t the final hidden state before counted token t and p_t the
predicted distribution: exact and in closed form, without a backward pass. Larger is kept first;
noise has large gradients too. A row without a counted token is NaN. The scorer of the same name
computes the same number for a whole pool. An output layer that is not known is a ModelError.

Cost: one forward without gradients, and the output layer two or three times. Source: Katharopoulos
and Fleuret 2018, Not all samples are created equal, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foresift.pipeline.online import BatchMethod, Chooser, Floats
from foresift.stages.samplers._rows import RowChooser

if TYPE_CHECKING:
    from foresift.pipeline.lm.live import LiveModel, Seen


@dataclass(frozen=True, kw_only=True)
class GradientNorm(BatchMethod):
    """Rows with the largest gradient at the output layer as it is now."""

    @property
    def signals(self) -> tuple[str, ...]:
        return ("grad_norm",)

    def open(self, live: LiveModel) -> Chooser:
        return _GradientNormChooser()


class _GradientNormChooser(RowChooser):
    def values(self, seen: Seen) -> Floats:
        return np.asarray(seen.signals.document["grad_norm"], dtype=np.float64)
