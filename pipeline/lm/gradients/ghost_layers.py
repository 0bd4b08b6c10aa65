"""What each kind of layer contributes to a sample's gradient, from its input and output gradient.

With a layer's input a [B, T, m] and the loss gradient b [B, T, n] at its output, for each sample:

    linear        G = b' a  [n, m]                bias: sum_t b_t
    Conv1D        G = a' b  [m, n]                bias: sum_t b_t
    embedding     G[v] = sum_{t: i_t = v} b_t     a linear layer whose inputs are unit vectors
    scale, shift  G = sum_t b_t * x_t             shift: sum_t b_t

A position table whose output has batch size 1 is expanded to the batch before it is added, so that
its gradient too comes a sample at a time. Subclasses that override `forward` are called on a probe
and must give what the kind does (an embedding may be multiplied by its `embed_scale`). `scale,
shift` is every module whose only parameters are vectors `weight` (and `bias`) and whose output is
c + weight * x (+ bias): LayerNorm, every RMSNorm, the zero-centred ones too. That too is found out
on a probe; x is the output of a copy with weight 1 less that of a copy with weight 0.
"""

from __future__ import annotations

import copy
import math
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

    if isinstance(module, torch.nn.Linear) and _is_linear(module):
        return _linear
    if type(module).forward is Conv1D.forward:
        return _conv1d
    if isinstance(module, torch.nn.Embedding):
        return _embedding(name, module)
    return _scale(name, module)


@torch.no_grad()
def _is_linear(module: Any) -> bool:
    """Whether the module, of whatever subclass, computes what a linear layer does."""
    if type(module).forward is torch.nn.Linear.forward:
        return True
    probe = _waves(2, 3, module.in_features).to(module.weight)
    return _agree(module, probe, torch.nn.functional.linear(probe, module.weight, module.bias))


def _linear(_: Any, a: torch.Tensor, b: torch.Tensor) -> dict[str, Term]:
    a, b = a.flatten(1, -2), b.flatten(1, -2)
    return {"weight": Outer(b, a), "bias": b.sum(1)}


def _conv1d(_: Any, a: torch.Tensor, b: torch.Tensor) -> dict[str, Term]:
    a, b = a.flatten(1, -2), b.flatten(1, -2)
    return {"weight": Outer(a, b), "bias": b.sum(1)}


@torch.no_grad()
def _embedding(name: str, module: Any) -> Rule:
    """The rule of a table of rows, which some models multiply by a number (Gemma)."""
    ids = torch.arange(6, device=module.weight.device).view(2, 3) % len(module.weight)
    factor = 1.0
    if type(module).forward is not torch.nn.Embedding.forward:
        factor = float(getattr(module, "embed_scale", 1.0))
        if not _agree(module, ids, wide(module.weight[ids]) * factor):
            raise refusal(name, module, "does more than to look its rows up")
    if module.max_norm is not None or module.scale_grad_by_freq:
        raise refusal(name, module, "rescales its rows or their gradients")

    def rule(_: Any, ids: torch.Tensor, b: torch.Tensor) -> dict[str, Term]:
        b = b * factor if factor != 1.0 else b
        if module.padding_idx is not None:  # torch gives this row no gradient
            b = b.masked_fill((ids == module.padding_idx)[..., None], 0)
        return {"weight": Outer(ids, b)}

    return rule


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
    probe = _waves(2, 3, len(weight)).to(weight)
    try:
        base = wide(zero.forward(probe))
        expected = base + wide(weight) * (wide(one.forward(probe)) - base)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    return _agree(module, probe, expected if bias is None else expected + wide(bias))


def _waves(*shape: int) -> torch.Tensor:
    """Numbers without a pattern that a layer might keep, the same at every call."""
    return torch.arange(math.prod(shape)).mul(1.7).sin().view(shape)


def _agree(module: Any, probe: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether the module gives the expected output, to the precision of its weights."""
    try:
        output = wide(module.forward(probe))
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    slack = 1e-5 if module.weight.dtype in (torch.float32, torch.float64) else 5e-2
    atol = slack * float(expected.abs().max())
    return output.shape == expected.shape and torch.allclose(
        output, wide(expected), rtol=slack, atol=atol
    )
