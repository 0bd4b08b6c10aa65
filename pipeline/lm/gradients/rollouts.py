"""Rollouts: documents trained one after another, and what each added (Group-MATES's oracle).

From one checkpoint, AdamW takes a step on each document of a rollout in turn, its moments going on;
u_i is the fall of the reference loss by step i (nats per token, larger is better). The next rollout
starts from the checkpoint again. A document that repeats what an earlier one taught adds less than
its own influence: that difference is what relations are learned from.

Cost: 6 P T + 2 P R a document (P parameters, T its tokens, R those of the reference); memory of two
copies of the weights and two of the moments. Source: Group-MATES (Yu et al. 2025), its code: ten
documents a rollout, clip 1, moments restored at the start of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.lm.batches import batches
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.gradients import reference as references
from foresift.pipeline.lm.gradients.adamw import AdamW, Moments, Snapshot, Tensors, clip_factor
from foresift.pipeline.lm.gradients.hessian import loss_gradient
from foresift.pipeline.lm.gradients.reference import ReferenceSet
from foresift.pipeline.lm.gradients.samples import trainable
from foresift.pipeline.lm.model import Loaded

Floats = npt.NDArray[np.float64]


class Rollout:
    """AdamW on a model of somebody else's, step after step, until `reset` puts everything back."""

    def __init__(self, model: Any, moments: Moments | None, rule: AdamW) -> None:
        self._start, self._moments, self.rule = Snapshot(model), moments, rule
        self._parameters = trainable(model)
        self.reset()

    def reset(self) -> None:
        """Back to the checkpoint, weights bit for bit."""
        self._start.restore()
        kept = self._moments
        self._first = {n: (kept.first[n] if kept else torch.zeros_like(p)).clone()
                       for n, p in self._parameters.items()}  # fmt: skip
        self._second = {n: (kept.second[n] if kept else torch.zeros_like(p)).clone()
                        for n, p in self._parameters.items()}  # fmt: skip
        self._steps = kept.steps if kept else 0

    @torch.no_grad()
    def step(self, gradient: Tensors) -> None:
        """One update; matrices decay and vectors do not."""
        rule, (b1, b2) = self.rule, self.rule.betas
        self._steps += 1
        factor, s = clip_factor(gradient, rule), self._steps
        for name, parameter in self._parameters.items():
            g, m, v = gradient[name] * factor, self._first[name], self._second[name]
            m.mul_(b1).add_(g, alpha=1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            if parameter.dim() >= 2:
                parameter.mul_(1 - rule.learning_rate * rule.weight_decay)
            move = (m / (1 - b1**s)) / ((v / (1 - b2**s)).sqrt() + rule.eps)
            parameter.sub_(rule.learning_rate * move)


def increments(
    rollouts: Sequence[Sequence[int]],
    encoded: Encoded,
    aims: Sequence[tuple[ReferenceSet, float]],
    loaded: Loaded,
    rule: AdamW,
    moments: Moments | None,
) -> list[Floats]:
    """u_i of each document of each rollout (row numbers of `encoded`); the model is as before."""
    run = Rollout(loaded.model, moments, rule)
    start = _loss(aims, loaded)
    found = []
    try:
        for rows in rollouts:
            losses = [start]
            for row in rows:
                batch = next(batches(encoded, np.array([row]), 1))
                run.step(loss_gradient(loaded.model, batch, [1.0]))
                losses.append(_loss(aims, loaded))
            found.append(-np.diff(np.array(losses)))
            run.reset()
    finally:
        run.reset()
    return found


def _loss(aims: Sequence[tuple[ReferenceSet, float]], loaded: Loaded) -> float:
    return sum(weight * references.loss(aim, loaded) for aim, weight in aims)
