"""RMU (Li et al. 2024): steer the activations of forget documents to one random direction.

    loss = mean (h_layer(x_f) - c u)^2 + alpha mean (h_layer(x_r) - h_layer(x_r; reference))^2

u is uniform on [0, 1)^d, normalised: |c u| = c in the positive orthant. Means run over counted
tokens and dimensions. Only the blocks layer-2 .. layer move. c belongs to the length that
activations have: some two to ten times it. Cost: 6 N' a token of both batches and
2 N' a retain token, N' the parameters up to the layer (later blocks are not computed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foresift.pipeline.rng import Rng
from foresift.pipeline.unlearn.blocks import activations, blocks
from foresift.pipeline.unlearn.methods import Method
from foresift.pipeline.unlearn.session import Step

_MOVED = 3


def control(width: int, coefficient: float, seed: int) -> torch.Tensor:
    """[width] the vector c u."""
    u = Rng(seed).at("unlearn", "rmu").generator().random(width)
    found = torch.from_numpy(u / (u**2).sum() ** 0.5)
    return (coefficient * found).float()


@dataclass(frozen=True, kw_only=True)
class RMU(Method):
    """Representation misdirection: forget activations go to a random vector."""

    uses = frozenset({"retain", "reference"})
    layer: int | None = None
    """Block whose output is steered, from 0; None = number L // 2 of L (published: 7 of 32)."""
    coefficient: float = 2.0
    """c, the length of the control vector (OpenUnlearning: 2, its class default 20)."""
    alpha: float = 1.0
    """Weight of the retain activations."""

    def __post_init__(self) -> None:
        if self.coefficient <= 0 or self.alpha < 0:
            raise ValueError("coefficient is above 0, alpha at least 0")

    def moved(self, model: Any) -> Sequence[int]:
        """The blocks that move."""
        last = self._layer(model)
        return range(max(0, last - _MOVED + 1), last + 1)

    def loss(self, step: Step) -> torch.Tensor:
        """Both mean squared distances."""
        session, layer = step.session, self._layer(step.session.model)
        forget = activations(session.model, step.forget_batch, layer)
        retain = activations(session.model, step.retain_batch, layer)
        with torch.no_grad():
            frozen = activations(session.reference, step.retain_batch, layer)
        size = _up_to(session.model, layer)
        session.meter.add(step.forget_batch, per_token=6, size=size)
        session.meter.add(step.retain_batch, per_token=8, size=size)
        wanted = control(forget.shape[1], self.coefficient, session.seed).to(forget)
        return (forget - wanted).square().mean() + self.alpha * (retain - frozen).square().mean()

    def _layer(self, model: Any) -> int:
        count = len(blocks(model))
        layer = count // 2 if self.layer is None else self.layer
        if not 0 <= layer < count:
            raise ValueError(f"layer {layer}: the model has blocks 0 to {count - 1}")
        return layer


def _up_to(model: Any, layer: int) -> int:
    """Parameters of the embeddings and of the blocks up to the layer."""
    parts = [model.get_input_embeddings(), *blocks(model)[: layer + 1]]
    return sum(p.numel() for part in parts for p in part.parameters())
