"""Sharpness of a document (CUPID): how much one normalised ascent step raises its own loss.

    w(x) = l(theta + eta g(x) / |g(x)|, x) - l(theta, x)         nats per token; g = grad of l(., x)

Low sharpness means hard to forget: what is flat is easy to learn and spread over many weights. The
evidence is from images; for text it is a hypothesis. A document with zero gradient has w = 0.
Cost: two forwards and a backward a document, one document at a time (10N a token).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.lm.gradients.samples import trainable
from foresift.pipeline.unlearn.documents import Documents, read


def ascent_rise(
    loss: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor], eta: float
) -> float:
    """w for a loss of these parameters, which are left as they were."""
    before = loss()
    found = torch.autograd.grad(before, parameters, allow_unused=True, materialize_grads=True)
    norm = torch.stack([g.norm() for g in found]).norm()
    if float(norm) == 0.0:
        return 0.0
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, g in zip(parameters, found, strict=True):
            p.add_(g, alpha=eta / float(norm))
        after = loss()
        for p, old in zip(parameters, kept, strict=True):
            p.copy_(old)
    return float(after - before.detach())


def sharpness(model: Any, given: Documents, eta: float = 0.1) -> npt.NDArray[np.float64]:
    """[n] w of each document, in the order of `given`."""
    parameters = list(trainable(model).values())
    return np.array([_one(model, given, i, parameters, eta) for i in range(len(given))])


def _one(
    model: Any, given: Documents, i: int, parameters: Sequence[torch.Tensor], eta: float
) -> float:
    batch = given.batch([i])
    return ascent_rise(lambda: read(model, batch).mean, parameters, eta)
