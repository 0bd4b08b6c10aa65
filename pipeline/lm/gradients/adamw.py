"""One AdamW step from a checkpoint's own moments, exactly and to first order.

With moments m, v after s - 1 updates, gradient g of the probed document, learning rate eta:

    m' = b1 m + (1 - b1) g        v' = b2 v + (1 - b2) g^2
    theta' = theta (1 - eta wd) - eta (m' / (1 - b1^s)) / (sqrt(v' / (1 - b2^s)) + eps)

g is clipped to norm `clip` first (0: never). A fresh optimizer (m = v = 0, s = 1) would make every
coordinate move by eta whatever the document says, so probes restore the checkpoint's moments.

To first order in g, with v' held fixed, the step moves theta by a constant less P g, where

    P = eta (1 - b1) / (1 - b1^s) / (sqrt((b2 v + (1 - b2) mean v) / (1 - b2^s)) + eps)

and mean v, over the parameter's tensor, stands for the g^2 that a document adds to v. Without it
the coordinates that training hardly touched (the row of a rare token: v = 0, P = eta / eps) would
outweigh all others, while the step itself moves none of them by much more than eta.

The document thus lowers the reference loss J by  u = <P grad J, clip(g)>  more than an empty one
(nats per token; larger is better): a dot product with the one direction `preconditioned(grad J)`.
Without moments P = eta, plain SGD. Weight decay is the same for every document and ranks nothing.

Sources: Loshchilov and Hutter 2019 (AdamW); MATES (Yu, Das, Xiong 2024), locally probed oracle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.gradients.samples import norm, trainable
from foresift.pipeline.lm.model import ModelSpec, local

OPTIMIZER = "optimizer.safetensors"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class AdamW:
    """The update rule of a probe."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True)
class Moments:
    """AdamW's state by parameter name, and the updates it has seen."""

    first: Mapping[str, torch.Tensor]
    second: Mapping[str, torch.Tensor]
    steps: int


def load_moments(spec: ModelSpec, model: Any) -> Moments | None:
    """The moments beside a checkpoint's weights; None where there are none.

    A ModelError where they do not fit the model, parameter by parameter.
    """
    folder = local(spec.init)
    path = (folder or Path(spec.init)) / OPTIMIZER
    if folder is None or not path.is_file():
        return None
    found = _read(path, trainable(model))
    _check(found, str(path))
    return found


def _read(path: Path, parameters: Tensors) -> Moments:
    from safetensors import SafetensorError, safe_open

    moments: dict[str, Tensors] = {"exp_avg": {}, "exp_avg_sq": {}}
    try:
        with safe_open(path, framework="pt") as file:
            steps = (file.metadata() or {}).get("step", "0")
            known = set(file.keys())
            for name, parameter in parameters.items():
                for kind, into in moments.items():
                    key = f"{kind}.{name}"
                    if key not in known:
                        raise ModelError(f"has no {key}: it is of another model", where=str(path))
                    value = file.get_tensor(key)
                    if value.shape != parameter.shape:
                        raise ModelError(
                            f"{key} has shape {tuple(value.shape)}, the parameter "
                            f"{tuple(parameter.shape)}",
                            where=str(path),
                        )
                    into[name] = value.to(parameter.device, torch.float32)
    except SafetensorError as error:
        raise ModelError(f"its moments are damaged: {error}", where=str(path)) from error
    taken = int(steps) if steps.isdecimal() else 0
    return Moments(moments["exp_avg"], moments["exp_avg_sq"], taken)


def _check(found: Moments, where: str) -> None:
    if found.steps < 1:
        raise ModelError("does not say after how many steps it was taken", where=where)
    for name, first in found.first.items():
        second = found.second[name]
        if not (first.isfinite().all() and second.isfinite().all()):
            raise ModelError(f"the moments of {name} are not finite numbers", where=where)
        if (second < 0).any():
            raise ModelError(f"the second moment of {name} is negative", where=where)


def preconditioned(gradient: Tensors, moments: Moments | None, rule: AdamW) -> Tensors:
    """P times a gradient, by parameter name."""
    if moments is None:
        return {n: g * rule.learning_rate for n, g in gradient.items()}
    b1, b2 = rule.betas
    s = moments.steps + 1
    factor = rule.learning_rate * (1 - b1) / (1 - b1**s)
    out = {}
    for name, g in gradient.items():
        v = moments.second[name].to(g.dtype)
        v = b2 * v + (1 - b2) * v.mean()
        out[name] = factor * g / ((v / (1 - b2**s)).sqrt() + rule.eps)
    return out


def clip_factor(gradient: Mapping[str, torch.Tensor], rule: AdamW) -> float:
    """What a gradient is multiplied with so that its norm is at most `clip`."""
    length = norm(gradient)
    return min(1.0, rule.clip / length) if rule.clip and length > 0 else 1.0


def update(
    theta: torch.Tensor,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    steps: int,
    rule: AdamW,
    *,
    decay: bool = True,
) -> torch.Tensor:
    """theta' of one tensor after update number `steps` + 1; the moments are left as they are."""
    b1, b2 = rule.betas
    s = steps + 1
    m = b1 * first + (1 - b1) * gradient
    v = b2 * second + (1 - b2) * gradient.square()
    denominator = (v / (1 - b2**s)).sqrt() + rule.eps
    kept = 1 - rule.learning_rate * rule.weight_decay if decay else 1.0
    moved: torch.Tensor = theta * kept - rule.learning_rate * (m / (1 - b1**s)) / denominator
    return moved


class Snapshot:
    """The parameters of a model kept in memory, to be put back bit for bit."""

    def __init__(self, model: Any) -> None:
        self._parameters = trainable(model)
        self.values = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put every parameter back in place."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.values[name])

    @torch.no_grad()
    def step(self, gradient: Tensors, moments: Moments | None, rule: AdamW) -> None:
        """Take one update from the kept values; without moments, a plain SGD step.

        As in training, matrices decay and vectors do not.
        """
        factor = clip_factor(gradient, rule)
        for name, parameter in self._parameters.items():
            theta, g = self.values[name], gradient[name] * factor
            if moments is None:
                parameter.copy_(theta - rule.learning_rate * g)
                continue
            first, second = moments.first[name], moments.second[name]
            decay = parameter.dim() >= 2
            parameter.copy_(update(theta, g, first, second, moments.steps, rule, decay=decay))
