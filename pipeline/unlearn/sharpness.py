"""Sharpness of a document (CUPID): how much one normalised ascent step raises its own loss.

    w(x) = l(theta + eta g(x) / |g(x)|, x) - l(theta, x)         nats per token; g = grad of l(., x)

Low sharpness means hard to forget: what is flat is easy to learn and spread over many weights. The
evidence is from images; for text it is a hypothesis. A document with zero gradient has w = 0.
Cost: two forwards and a backward. Of the documents of a corpus: `scorers/sharpness.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


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
