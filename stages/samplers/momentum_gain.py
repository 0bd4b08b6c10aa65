"""Momentum gain: train on the rows that go the optimizer's way, and see which go against it.

    utility = l(x; theta) - l(x; theta + n d)        nats per token

d is the update that the optimizer makes if the next gradient is like those it remembers, which is
the update that it made last:

    Adam, AdamW   d = -lr (m / (1 - b1^s)) / (sqrt(v / (1 - b2^s)) + eps)        s steps done
    SGD           d = -lr momentum

without weight decay. Larger is kept first: the loss of these rows falls along the way the weights
are moving, so their gradients agree with those of late. Rows whose utility is below 0 are what the
next update makes the model forget, if nothing is done about it: `facts` counts them, and
`keep: opposing` trains on them instead.

Before the optimizer's first step, and at a learning rate of 0, utility is 0 for every row. The
weights are put back bit for bit. Weights in half precision round away updates smaller than 2^-8
(bfloat16) or 2^-11 (float16) of a weight: keep float32 weights, or raise `updates`.

Cost: two forwards without gradients, and twice the weights of memory. State: the counts. Source:
Nesterov's (1983) look-ahead along the momentum, asked of data: GREATS (Wang et al. 2024) asks how a
row and a reference agree to first order, this how a row and the training of late do, in full.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from foresift.pipeline.lm.gradients.samples import norm
from foresift.pipeline.online import BatchMethod, Floats, Rows, State
from foresift.stages.samplers._directions import losses_at, momentum
from foresift.stages.samplers._rows import RowChooser, row_means

if TYPE_CHECKING:
    from foresift.pipeline.lm.live import LiveModel, Seen

_COUNTS = ("judged", "rising", "chosen", "chosen_rising")


@dataclass(frozen=True, kw_only=True)
class MomentumGain(BatchMethod):
    """Rows whose loss falls most along the optimizer's own next update."""

    keep: Literal["agreeing", "opposing"] = "agreeing"
    """Rows whose loss falls along the update, or those whose loss rises."""
    updates: float = 1.0
    """n, how many such updates are looked ahead."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.updates) and self.updates > 0):
            raise ValueError("updates must be a positive number")

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll",)

    def open(self, live: LiveModel) -> MomentumGainChooser:
        return MomentumGainChooser(self, live)


class MomentumGainChooser(RowChooser):
    """What was judged, and how much of it the updates work against."""

    def __init__(self, part: MomentumGain, live: LiveModel) -> None:
        live.whole("momentum_gain")
        self.part, self.live = part, live
        self.counts = dict.fromkeys(_COUNTS, 0)

    @property
    def facts(self) -> dict[str, Any]:
        """Candidates and chosen rows that were judged, and those whose loss would rise."""
        return dict(self.counts)

    def values(self, seen: Seen) -> Floats:
        here = row_means(seen.signals, "nll")
        direction = momentum(self.live, "momentum_gain")
        if not direction or norm(direction) == 0:
            return here * 0.0
        return here - losses_at(self.live, seen.candidates, direction, self.part.updates)

    def utility(self, measured: Mapping[str, torch.Tensor], step: int) -> Floats:
        gain = super().utility(measured, step)
        self.counts["judged"] += int(np.isfinite(gain).sum())
        self.counts["rising"] += int((gain < 0).sum())
        return -gain if self.part.keep == "opposing" else gain

    def observe(self, measured: Mapping[str, torch.Tensor], chosen: Rows) -> None:
        gain = super().utility(measured, 0)[chosen]
        self.counts["chosen"] += int(np.isfinite(gain).sum())
        self.counts["chosen_rising"] += int((gain < 0).sum())

    def state_dict(self) -> State:
        return dict(self.counts)

    def load_state_dict(self, state: State) -> None:
        self.counts = {name: int(state[name]) for name in _COUNTS}
