"""InfoBatch: fewer of the easy documents, each with more weight; the gradient stays unbiased.

    low = documents with loss < mean(loss)          strictly; losses as last seen, in nats per token
    an epoch visits all others, weight 1, and a uniform (1 - r) of low, weight 1 / (1 - r)

so E[sum of weight * loss over what is visited] = sum of loss over all. The first epoch visits
everything with weight 1 (no loss is known), and so do the last (1 - delta) of the epochs (epoch
number, counted from 1, above delta E). For losses (1, 2, 3, 6) and r = 0.5, low is {1, 2}: one of
them is visited with weight 2, and the expected weighted sum is 12.

The mean is taken in float64 and kept between the least and the largest loss, so that equal losses
are never "below their mean". Where (1 - r) |low| is no whole number it is rounded up or down at
random with the odds that keep the sum unbiased; the released code rounds down. The batch loss is
mean(weight * loss): the weights belong to this epoch only. Schedules of the learning rate have to
be stretched to the documents visited: `forecast` takes half of the documents for low, n (1 - r / 2)
an epoch; it is n (1 - r) at the least. Cost: one permutation an epoch. Source: InfoBatch (Qin et
al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foresift.pipeline.online import EpochPlan, Epochs, Floats, Rows
from foresift.stages.samplers._epochs import (
    LossEpochs,
    Setting,
    Weights,
    anneals,
    check_share,
    equal_weights,
)


@dataclass(frozen=True, kw_only=True)
class InfoBatch(EpochPlan):
    """Visit fewer of the documents with low loss and weight them up."""

    prune: float = 0.5
    """r, the share of the documents of low loss that an epoch leaves out; at least 0, below 1."""
    anneal: float = 0.875
    """delta, the share of the epochs after which everything is visited; from 0 to 1."""
    initial: float = 3.0
    """Loss of a document of which none was told, in nats per token."""

    def __post_init__(self) -> None:
        check_share("prune", self.prune)
        check_share("anneal", self.anneal)
        if self.prune == 1.0:
            raise ValueError("prune must be below 1: a weight of 1 / (1 - prune) is needed")
        if not np.isfinite(self.initial):
            raise ValueError("initial must be a finite number")

    def open(self, n: int, epochs: int, seed: int) -> Epochs:
        setting = Setting.of(self, n, epochs, seed)

        def whole(epoch: int) -> bool:
            return epoch == 0 or anneals(epoch, epochs, self.anneal)

        def visits(epoch: int, losses: Floats, draws: np.random.Generator) -> tuple[Rows, Weights]:
            order = draws.permutation(n)
            return (
                (order, equal_weights(n)) if whole(epoch) else self._thinned(order, losses, draws)
            )

        pruned = n * (1.0 - self.prune / 2)
        forecast = [float(n) if whole(epoch) else pruned for epoch in range(epochs)]
        return LossEpochs(setting, visits, forecast, self.initial)

    def _thinned(
        self, order: Rows, losses: Floats, draws: np.random.Generator
    ) -> tuple[Rows, Weights]:
        share = 1.0 - self.prune
        mean = np.clip(losses.mean(), losses.min(), losses.max())
        low = losses[order] < mean
        places = np.flatnonzero(low)
        number = int(share * len(places) + draws.random())
        visited = ~low
        visited[places[:number]] = True
        return order[visited], np.where(low, 1.0 / share, 1.0)[visited].astype(np.float32)
