"""SeTa: a random subset in groups of like loss, of which a window slides from easy to hard.

    epoch q = 0, 1, ... of E, until q + 1 > delta E; s = the last loss of each document (nats/token)
    1  a uniform subset of floor((1 - r) n) documents, in random order
    2  k groups of it by s, from low to high                       (`grouping`)
    3  q = 0: all groups.   Else groups start .. start + w - 1,    start = q mod (k - w + 1)
    4  an epoch on their union; every loss counts once
    from then on (annealing) an epoch is step 1 alone

w is alpha k, rounded as Python rounds (half to even, as the released code does) or up (the paper):

    k, alpha     round                          ceil
    5, 0.9       4: start 1, 0, 1, 0, ...       5: the window never moves
    5, 0.6       3: start 1, 2, 0, 1, ...       3
    10, 0.5      5: start 1 .. 5, 0, 1, ...     5
    10, 0.25     2: start 1 .. 8, 0, ...        3: start 1 .. 7, 0, ...

so the first window begins at group 1, not at the easiest. With `kmeans` the groups are very unequal
(most losses lie close together), so that epochs have very different lengths; with `quantile` a
window holds w / k of the subset. Where fewer than k losses differ, as at the start, the groups are
equal parts of the ranking and equal losses fall into them at random. r = 0, k = 1, alpha = 1 is
plain shuffled training, and k = 1, alpha = 1 is `dynamic_random`.

`forecast` is exact with `quantile`. With `kmeans` the sizes are not known before the losses are: it
gives the same w / k of the subset for a window, and the whole subset is the bound. Step schedules
by documents visited. It needs many epochs: a window passes over the groups in k - w + 1 of them.
Cost: one sort and O(k m log m) for m different losses (`_one_dimensional.py`), no model compute.
Errors: as many groups as documents in the subset, or more. Source: SeTa (Scale Efficient Training,
2025), released code where it and the paper differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foresift.pipeline.errors import DataError
from foresift.pipeline.online import EpochPlan, Epochs, Floats, Rows
from foresift.stages.samplers._epochs import (
    LossEpochs,
    Setting,
    Weights,
    anneals,
    check_share,
    equal_weights,
    kept,
)
from foresift.stages.samplers._one_dimensional import equal_part, grouped


@dataclass(frozen=True, kw_only=True)
class SeTa(EpochPlan):
    """Slide a window from low to high loss over groups of a random subset."""

    prune: float = 0.0
    """r, the share of the documents that each epoch leaves out at random; from 0 to 0.9."""
    groups: int = 10
    """k, groups of like loss; at least 1."""
    window: float = 0.5
    """alpha, the share of the groups that an epoch visits; above 0, at most 1."""
    anneal: float = 0.875
    """delta, the share of the epochs after which the window is given up; from 0 to 1."""
    window_rounding: Literal["round", "ceil"] = "round"
    """How alpha k becomes a number of groups: rounded as in the released code, or up (paper)."""
    grouping: Literal["kmeans", "quantile"] = "kmeans"
    """Groups of like loss by k-means in one dimension, or of equal size."""
    initial: float = 3.0
    """Loss of a document of which none was told, in nats per token."""

    def __post_init__(self) -> None:
        check_share("prune", self.prune, 0.9)
        check_share("window", self.window)
        check_share("anneal", self.anneal)
        if self.groups < 1:
            raise ValueError("groups must be at least 1")
        if self.width < 1:
            raise ValueError(
                f"window: {self.window:g} of {self.groups} groups is none; raise window or groups"
            )
        if not math.isfinite(self.initial):
            raise ValueError("initial must be a finite number")

    @property
    def width(self) -> int:
        """w, the groups that an epoch visits."""
        wide = self.groups * self.window
        return round(wide) if self.window_rounding == "round" else math.ceil(wide - 1e-9)

    def start(self, epoch: int) -> int:
        """The first group that an epoch visits, where a window is in use (not epoch 0)."""
        return epoch % (self.groups - self.width + 1)

    def open(self, n: int, epochs: int, seed: int) -> Epochs:
        setting = Setting.of(self, n, epochs, seed)
        size = kept(n, self.prune)
        if self.groups >= size:
            raise DataError(
                f"{self.groups} groups of {size} documents ({n} less {self.prune:g} of them): "
                "there must be fewer groups than documents",
                where="groups",
            )

        def whole(epoch: int) -> bool:
            return epoch == 0 or anneals(epoch, epochs, self.anneal)

        def visits(epoch: int, losses: Floats, draws: np.random.Generator) -> tuple[Rows, Weights]:
            rows = draws.permutation(n)[:size]
            if not whole(epoch):
                rows = self._inside(rows, losses[rows], self.start(epoch))
            return rows, equal_weights(len(rows))

        forecast = [
            float(size) if whole(epoch) else self._share(size, self.start(epoch))
            for epoch in range(epochs)
        ]
        return LossEpochs(setting, visits, forecast, self.initial)

    def _inside(self, rows: Rows, losses: Floats, start: int) -> Rows:
        """Rows of the groups in the window, in the order given, which is a random one."""
        group = grouped(losses, self.groups, self.grouping)
        return rows[(group >= start) & (group < start + self.width)]

    def _share(self, size: int, start: int) -> float:
        if self.grouping == "quantile":
            return float(equal_part(size, self.groups, start, self.width))
        return size * self.width / self.groups
