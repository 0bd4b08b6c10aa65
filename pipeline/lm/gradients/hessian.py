"""Gradient and Hessian-vector product of a weighted loss, without the Hessian.

    J(theta) = sum_i w_i loss_i(theta)              loss_i: mean NLL of document i (nats per token)
    loss_gradient   grad J
    hvp             H v = d/de grad J(theta + e v) at e = 0             forward over reverse: exact
    hvp_difference  H v ~ (grad J(theta + e v) - grad J(theta - e v)) / 2e,     |e v| = r |theta|

Only parameters that require a gradient count, in theta, in v and in the result; the model is not
changed. The difference takes any attention kernel. Its error is O(r^2) plus rounding O(eps / r),
and the first depends on v: along a gradient the loss bends far more than along random numbers.
Relative error of H v in float32, on a 1M-parameter Llama after 100 steps:

    r                        1e-3    3e-4    1e-4    3e-5    1e-5    3e-6
    v a loss gradient        0.7     0.6     0.2     3e-2    4e-3    4e-4
    v random                 6e-3    6e-4    1e-3    4e-3    7e-3    2e-2

Weights in bfloat16 round theta + e v itself, so hold them in float32.

Cost: `loss_gradient` a forward and a backward, `hvp_difference` two of them, `hvp` three.
Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
"""

from __future__ import annotations

from typing import Any

import torch
from torch.func import grad

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.lm.gradients.samples import (
    Direction,
    Parameters,
    Weights,
    derivative,
    known,
    losses_at,
    norm,
    require_eager,
    sample_losses,
    tangents,
    trainable,
)


def loss_gradient(model: Any, batch: Batch, weights: Weights) -> Parameters:
    """Gradient of sum_i weights_i * loss_i, for each trainable parameter."""
    parameters = trainable(model)
    with torch.enable_grad():
        total = _total(sample_losses(model, batch), weights)
        values = torch.autograd.grad(total, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, values, strict=True))


def hvp(model: Any, batch: Batch, weights: Weights, vector: Direction) -> Parameters:
    """Hessian of sum_i weights_i * loss_i times the vector; needs eager attention."""
    require_eager(model, "`hvp_difference`")
    parameters = {name: p.detach() for name, p in trainable(model).items()}
    losses = losses_at(model, batch)

    def total(at: Parameters) -> torch.Tensor:
        return _total(losses(at), weights)

    along = tangents(parameters, known(model, vector))
    product: Parameters = derivative(grad(total), parameters, along)
    return {name: values.detach() for name, values in product.items()}


def hvp_difference(
    model: Any, batch: Batch, weights: Weights, vector: Direction, radius: float = 1e-5
) -> Parameters:
    """As `hvp`, from the gradients at two points `radius` * |theta| away; any attention kernel."""
    if radius <= 0:
        raise ModelError(f"the radius of a central difference must be positive, not {radius}")
    parameters = {name: p.detach() for name, p in trainable(model).items()}
    along = tangents(parameters, known(model, vector))
    length = norm(along)
    if length == 0:
        return along
    step = radius * norm(parameters) / length
    ahead, behind = (_gradient_at(model, batch, weights, along, e) for e in (step, -step))
    return {name: (ahead[name] - behind[name]) / (2 * step) for name in parameters}


def _gradient_at(
    model: Any, batch: Batch, weights: Weights, along: Parameters, step: float
) -> Parameters:
    moved = {
        name: (p.detach() + step * along[name]).requires_grad_()
        for name, p in trainable(model).items()
    }
    with torch.enable_grad():
        total = _total(losses_at(model, batch)(moved), weights)
        values = torch.autograd.grad(total, list(moved.values()), materialize_grads=True)
    return dict(zip(moved, values, strict=True))


def _total(losses: torch.Tensor, weights: Weights) -> torch.Tensor:
    factors = torch.as_tensor(weights, dtype=losses.dtype, device=losses.device)
    if factors.shape != losses.shape:
        raise DataError(
            f"the batch has {len(losses)} documents and the weights have shape "
            f"{tuple(factors.shape)}; give one weight a document"
        )
    return (losses * factors).sum()
