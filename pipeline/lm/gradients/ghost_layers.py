"""What each kind of layer contributes to a sample's gradient, from its input and output gradient.

With a layer's input a [B, T, m] and the loss gradient b [B, T, n] at its output, for each sample:

    linear        G = b' a  [n, m]                bias: sum_t b_t
    Conv1D        G = a' b  [m, n]                bias: sum_t b_t
    embedding     G[v] = sum_{t: i_t = v} b_t     a linear layer whose inputs are unit vectors
    scale, shift  G = sum_t b_t * x_t             shift: sum_t b_t

A position table whose output has batch size 1 is expanded to the batch before it is added, so that
its gradient too comes a sample at a time. `scale, shift` is every module whose only parameters are
vectors `weight` (and `bias`) and whose output is c + weight * x (+ bias): LayerNorm, every RMSNorm,
the zero-centred ones too. That is found out by calling a copy of the module on a probe; x is its
output at weight 1 less that at weight 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.gradients.ghost_terms import Outer, Term
from foresift.pipeline.lm.gradients.samples import wide

#: (module, input, output gradient) -> what each of the module's parameters is given, by local name
Rule = Callable[[Any, torch.Tensor, torch.Tensor], dict[str, Term]]


@dataclass(frozen=True)
class Layer:
    """A module that owns trainable parameters, and how their gradients come about."""

    name: str
    module: Any
    rule: Rule
    names: dict[str, str]
    """Local name of each trainable parameter -> its name in the model (tied ones share it)."""


def find_layers(model: Any) -> list[Layer]:
    """Every module with trainable parameters of its own; refuses those without a rule."""
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    layers = []
    for name, module in model.named_modules():
        own = {
            local: names[id(p)]
            for local, p in module.named_parameters(recurse=False)
            if id(p) in names
        }
        if own:
            layers.append(Layer(name, module, _rule(name, module), own))
    return layers


def refusal(name: str, module: Any, why: str) -> ModelError:
    """The error for a module whose per-sample gradient has no shortcut here."""
    return ModelError(
        f"module {name!r} ({type(module).__name__}) {why}; freeze its parameters, or use "
        "`per_sample_gradients`, which works for every model"
    )


def _rule(name: str, module: Any) -> Rule:
    from transformers.pytorch_utils import Conv1D

    forward = type(module).forward
    if forward is torch.nn.Linear.forward:
        return _linear
    if forward is Conv1D.forward:
        return _conv1d
    if forward is torch.nn.Embedding.forward:
        if module.max_norm is not None or module.scale_grad_by_freq:
            raise refusal(name, module, "rescales its rows or their gradients")
        return _embedding
    return _scale(name, module)


def _linear(_: Any, a: torch.Tensor, b: torch.Tensor) -> dict[str, Term]:
    a, b = a.flatten(1, -2), b.flatten(1, -2)
    return {"weight": Outer(b, a), "bias": b.sum(1)}


def _conv1d(_: Any, a: torch.Tensor, b: torch.Tensor) -> dict[str, Term]:
    a, b = a.flatten(1, -2), b.flatten(1, -2)
    return {"weight": Outer(a, b), "bias": b.sum(1)}


def _embedding(module: Any, ids: torch.Tensor, b: torch.Tensor) -> dict[str, Term]:
    if module.padding_idx is not None:  # torch gives this row no gradient
        b = b.masked_fill((ids == module.padding_idx)[..., None], 0)
    return {"weight": Outer(ids, b)}


def _scale(name: str, module: Any) -> Rule:
    """The rule of a module that scales (and shifts) vectors; refuses every other one."""
    vectors = dict(module.named_parameters(recurse=False))
    if (
        "weight" not in vectors
        or not vectors.keys() <= {"weight", "bias"}
        or any(p.ndim != 1 for p in vectors.values())
        or any(True for _ in module.children())
    ):
        raise refusal(name, module, "has trainable parameters of a kind the ghost identities lack")
    one, zero = _twin(module, 1.0), _twin(module, 0.0)
    if not _is_affine(module, one, zero):
        raise refusal(name, module, "does more than to scale and shift its normalised input")

    def rule(_: Any, a: torch.Tensor, b: torch.Tensor) -> dict[str, Term]:
        normalised = wide(one.forward(a)) - wide(zero.forward(a))
        products = (b * normalised).flatten(1, -2)
        return {"weight": products.sum(1), "bias": b.flatten(1, -2).sum(1)}

    return rule


@torch.no_grad()
def _twin(module: Any, weight: float) -> Any:
    """A copy of the module with this weight everywhere and no bias."""
    twin = copy.deepcopy(module)
    twin.weight.fill_(weight)
    if getattr(twin, "bias", None) is not None:
        twin.bias.zero_()
    return twin


@torch.no_grad()
def _is_affine(module: Any, one: Any, zero: Any) -> bool:
    weight, bias = module.weight, getattr(module, "bias", None)
    probe = torch.arange(6 * len(weight), device=weight.device).mul(1.7).sin()
    probe = probe.view(2, 3, len(weight)).to(weight.dtype)
    try:
        output, base = wide(module.forward(probe)), wide(zero.forward(probe))
        expected = base + wide(weight) * (wide(one.forward(probe)) - base)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    if bias is not None:
        expected = expected + wide(bias)
    slack = 1e-5 if weight.dtype in (torch.float32, torch.float64) else 5e-2
    return output.shape == probe.shape and torch.allclose(
        output, expected, rtol=slack, atol=slack * float(expected.abs().max())
    )
