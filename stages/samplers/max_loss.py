"""Maximal loss: train on the rows that the model predicts worst at this moment.

    utility = (1 / T) sum_t -log p(x_t | x_<t)        nats per token, over T counted tokens

Larger is kept first. What is noise, or in another language than the rest, has a large loss at all
times: `rho_loss` takes off what cannot be learned. A row without a counted token is NaN.

Cost: one forward without gradients. Source: online hard example mining (Shrivastava, Gupta,
Girshick 2016) and Loshchilov and Hutter 2015, online batch selection; on rows, not regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foresift.pipeline.online import BatchMethod, Chooser, Floats
from foresift.stages.samplers._rows import RowChooser, row_means

if TYPE_CHECKING:
    from foresift.pipeline.lm.live import LiveModel, Seen


@dataclass(frozen=True, kw_only=True)
class MaxLoss(BatchMethod):
    """Rows with the largest mean loss under the model as it is now."""

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll",)

    def open(self, live: LiveModel) -> Chooser:
        return _MaxLossChooser()


class _MaxLossChooser(RowChooser):
    def values(self, seen: Seen) -> Floats:
        return row_means(seen.signals, "nll")
