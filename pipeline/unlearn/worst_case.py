"""Worst-case forget sets: the documents whose loss stays lowest after unlearning.

    lower level   theta_u(w) = sign-SGD on sum_i (1 - w_i) l_i(theta)           w in [0, 1]^n
    upper level   w <- Proj(w - lr_w (l_i(theta_u) + 2 gamma w))
    Proj          clip(a - mu, 0, 1) with mu such that the sum is m             by bisection

The gradient of the upper level is just the loss of each document after unlearning, so one round is
informative already. Weights stand for groups, since a near copy left among the others makes its
group trivially hard: cluster first, pass the clusters as `groups`, and their mean loss is taken.
Defaults of the authors' code: 10 rounds of 10 steps, lr 1e-2, lr_w 1e-2, gamma 0.
Cost: rounds * (6N a token of each step + 2N a token of all documents); one copy of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.gradients.samples import trainable
from foresift.pipeline.rng import Rng
from foresift.pipeline.unlearn.documents import Documents, document_losses, read

Floats = npt.NDArray[np.float64]
_BISECTIONS = 100


def project(values: npt.ArrayLike, total: float) -> tuple[Floats, float]:
    """(w, mu): the nearest point of {0 <= w <= 1, sum w = total}."""
    a = np.asarray(values, dtype=np.float64)
    if not 0.0 <= total <= len(a):
        raise ValueError(f"weights in 0 .. 1 of {len(a)} members cannot sum to {total:g}")
    low, high = float(a.min()) - 1.0, float(a.max())
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if np.clip(a - middle, 0.0, 1.0).sum() > total:
            low = middle
        else:
            high = middle
    mu = (low + high) / 2.0
    return np.clip(a - mu, 0.0, 1.0), mu


@dataclass(frozen=True)
class Round:
    """What one round of the outer level gave."""

    weights: Floats
    """[G] of the groups, summing to m."""
    losses: Floats
    """[n] nats per token of each document after unlearning."""
    groups: npt.NDArray[np.int64]
    """[n] the group of each document, 0 .. G - 1."""

    def hardest(self) -> npt.NDArray[np.int64]:
        """Groups, the hardest to forget first: largest weight, then lowest loss."""
        return np.lexsort((_by_group(self.losses, self.groups), -self.weights)).astype(np.int64)


def one_round(
    model: Any,
    given: Documents,
    total: float,
    *,
    weights: npt.ArrayLike | None = None,
    groups: Sequence[int] | None = None,
    steps: int = 10,
    batch: int = 16,
    learning_rate: float = 1e-3,
    weight_rate: float = 1e-2,
    gamma: float = 0.0,
    seed: int = 0,
) -> Round:
    """Unlearn softly on a copy of the model, measure, and move the weights (even ones at first)."""
    if len(given) == 0:
        raise DataError("no documents to choose a worst case from", where="documents")
    _, place = np.unique(
        np.arange(len(given)) if groups is None else np.asarray(groups), return_inverse=True
    )
    count = int(place.max()) + 1
    w = np.full(count, total / count) if weights is None else np.asarray(weights, dtype=float)
    unlearned = _soft(model, given, 1.0 - w[place], steps, batch, learning_rate, seed)
    losses = document_losses(unlearned, given, batch).double().cpu().numpy()
    moved = w - weight_rate * (_by_group(losses, place) + 2.0 * gamma * w)
    return Round(project(moved, total)[0], losses, place.astype(np.int64))


def _by_group(losses: Floats, groups: npt.NDArray[Any]) -> Floats:
    sums: Floats = np.bincount(groups, weights=losses) / np.bincount(groups)
    return sums


def _soft(
    model: Any, given: Documents, kept: Floats, steps: int, size: int, rate: float, seed: int
) -> Any:
    """A copy of the model after sign-SGD on the loss weighted by `kept` [n]."""
    copied = copy.deepcopy(model).eval()
    parameters = list(trainable(copied).values())
    for step in range(steps):
        draws = Rng(seed).at("unlearn", "worst", step).generator()
        chosen = np.sort(draws.choice(len(given), size=min(size, len(given)), replace=False))
        reading = read(copied, given.batch(chosen))
        weight = torch.as_tensor(kept[chosen], device=reading.sums.device).float()
        loss = (weight * reading.sums / reading.lengths).sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            for p, g in zip(parameters, found, strict=True):
                p.sub_(g.sign(), alpha=rate)
    return copied
