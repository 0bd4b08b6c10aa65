"""The loss of each sample, differentiable, and arithmetic on directions in parameter space.

    sum_losses(x)_i    = sum_t -log p(x_t | x_<t)     nats, over document i's T_i counted tokens
    sample_losses(x)_i = sum_losses(x)_i / T_i        nats per token; 0 where T_i = 0

A direction d is a tensor for each parameter name (names of `model.named_parameters()`, where a tied
tensor stands once); a name that it lacks counts as zero. Its dot products are summed in float64.

The model is taken as it stands: call `model.eval()` first, or dropout makes the losses random.
Padding stands on the right, so causal attention needs no mask (see `pipeline/lm/batches.py`).

Cost: one forward, with the logits of all positions in memory.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.func import functional_call, jvp

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.batches import Batch

Direction = Mapping[str, torch.Tensor]
Parameters = dict[str, torch.Tensor]
Weights = Sequence[float] | torch.Tensor


def sample_losses(model: Any, batch: Batch) -> torch.Tensor:
    """[B] mean NLL of each document's counted tokens, in float32 (float64 of a float64 model)."""
    return _mean(sum_losses(model, batch), batch)


def sum_losses(model: Any, batch: Batch) -> torch.Tensor:
    """[B] summed NLL of each document's counted tokens."""
    ids = torch.as_tensor(batch.ids, device=device_of(model))
    return _sums(model(input_ids=ids, use_cache=False).logits, batch)


def losses_at(model: Any, batch: Batch) -> Callable[[Parameters], torch.Tensor]:
    """`sample_losses` as a function of the parameters given to it; the others stay the model's."""
    ids = torch.as_tensor(batch.ids, device=device_of(model))

    def losses(parameters: Parameters) -> torch.Tensor:
        inputs = {"input_ids": ids, "use_cache": False}
        return _mean(_sums(functional_call(model, parameters, (), inputs).logits, batch), batch)

    return losses


def _sums(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    positions, targets = (torch.as_tensor(a, device=logits.device) for a in batch.shift())
    chosen = wide(logits.flatten(0, 1)[positions])
    nll = torch.nn.functional.cross_entropy(chosen, targets, reduction="none")
    rows = positions // batch.ids.shape[1]
    return nll.new_zeros(len(batch.ids)).index_add(0, rows, nll)


def _mean(sums: torch.Tensor, batch: Batch) -> torch.Tensor:
    return sums / torch.as_tensor(batch.counted.sum(1).clip(1), device=sums.device)


def wide(values: torch.Tensor) -> torch.Tensor:
    """The values in the precision that sums are taken in: float64 as it is, all else float32."""
    return values if values.dtype == torch.float64 else values.float()


def device_of(model: Any) -> torch.device:
    """Where the model's parameters lie."""
    device: torch.device = next(model.parameters()).device
    return device


def trainable(model: Any) -> Parameters:
    """The parameters that require a gradient, by name."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ModelError("no parameter of the model requires a gradient; unfreeze some")
    return found


def known(model: Any, direction: Direction) -> Direction:
    """The direction, once every name and shape in it is one of the model's."""
    parameters = dict(model.named_parameters())
    for name, values in direction.items():
        if name not in parameters:
            raise ModelError(
                f"a direction names {name!r}, which is no parameter of this model; build it from "
                "`trainable(model)` of the same model"
            )
        if values.shape != parameters[name].shape:
            raise ModelError(
                f"a direction has shape {tuple(values.shape)} for {name!r}, "
                f"the model has {tuple(parameters[name].shape)}"
            )
    return direction


def tangents(parameters: Parameters, direction: Direction) -> Parameters:
    """The direction's tensor for each of these parameters, zeros where it has none."""
    return {
        name: direction[name].detach().to(p) if name in direction else torch.zeros_like(p)
        for name, p in parameters.items()
    }


def require_eager(model: Any, instead: str) -> None:
    """Refuse a model whose attention kernel has no forward-mode derivative."""
    kernel = getattr(model.config, "_attn_implementation", None)
    if kernel != "eager":
        raise ModelError(
            f"forward-mode differentiation needs eager attention and this model uses {kernel!r}; "
            f"load it with attention `eager`, or use {instead}"
        )


def derivative(f: Callable[[Parameters], Any], at: Parameters, along: Parameters) -> Any:
    """d/de f(at + e along) at e = 0, in forward mode."""
    with warnings.catch_warnings():  # torch compiles its formulas with what it calls deprecated
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        return jvp(f, (at,), (along,))[1]


def dot(a: Direction, b: Direction) -> float:
    """<a, b> over the names that both have, summed in float64."""
    names = [name for name in a if name in b]
    if a and b and not names:
        raise ModelError(
            f"two directions share no parameter: one has {next(iter(a))!r}, the other "
            f"{next(iter(b))!r}; both must be named by the same model"
        )
    return sum(float((a[n].detach().double() * b[n].detach().to(a[n].device)).sum()) for n in names)


def norm(a: Direction) -> float:
    """|a|, summed in float64."""
    return math.sqrt(dot(a, a))


def scaled(a: Direction, factor: float) -> Parameters:
    """factor * a, in the precision of `a`."""
    return {name: values.detach() * factor for name, values in a.items()}
