"""Which tensors of a model may move: the well-conditioned ones, or those that move anyway.

    kappa(W) = sigma_1 / sigma_k, sigma_k the least singular value above `tolerance` sigma_1
               (tensors of more than two axes are flattened behind the first)
    KappaTune: train only the n tensors with the smallest kappa

    movement(m) = mean over the parameters of module m of |after - before|
    k-FPF:     replay only into the modules that moved most across a switch, in k bursts a run

A matrix of small kappa passes all directions alike, so it holds little that is particular and can
take new content; one of large kappa holds what training put into few directions. Without the
tolerance a singular value that is rounding would send kappa to infinity. Embeddings are no maps of
directions and are skipped, and with them an output layer that is tied to one.

Known answers: diag(3, 1): kappa 3; the identity: 1; movements of (1, 1) and (0, 4) over sizes two:
1 and 2. Cost: one SVD a matrix, m n min(m, n). Sources: KappaTune (its released code); k-FPF
(frequently changing parameters; which modules of a transformer these are is measured here).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from foresift.pipeline.errors import ModelError

Tensors = Mapping[str, torch.Tensor]


def kappa(weight: torch.Tensor, tolerance: float | None = None) -> float:
    """Condition number of a tensor of two axes or more; infinite where it is zero.

    `tolerance` is a share of the largest singular value; by default what rounding may leave.
    """
    if weight.ndim < 2:
        raise ModelError(f"a tensor of shape {tuple(weight.shape)} has no condition number")
    matrix = weight.detach().flatten(1)
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    values = torch.linalg.svdvals(matrix)
    if tolerance is None:
        tolerance = max(matrix.shape) * torch.finfo(matrix.dtype).eps
    known = values[values > tolerance * values[0]]
    return float(values[0] / known[-1]) if len(known) else float("inf")


def kappas(model: Any, widest: int = 0, tolerance: float | None = None) -> dict[str, float]:
    """kappa of every tensor that has one, by its name.

    Embeddings are skipped; `widest` skips matrices with a side above it too (0: none).
    """
    skipped = {
        id(p)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
        for p in module.parameters(recurse=False)
    }
    return {
        name: kappa(p, tolerance)
        for name, p in model.named_parameters()
        if p.ndim >= 2
        and id(p) not in skipped
        and not (widest and max(p.flatten(1).shape) > widest)
    }


def smallest(values: Mapping[str, float], n: int) -> list[str]:
    """The n names of smallest value, equal ones by name."""
    return sorted(values, key=lambda name: (values[name], name))[:n]


def movement(before: Tensors, after: Tensors) -> dict[str, float]:
    """How far each module's own tensors moved, per parameter, by the module's name.

    A module is a tensor's name without its last part. Both hold the same names and shapes.
    """
    sums: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for name, value in after.items():
        other = before.get(name)
        if other is None or other.shape != value.shape:
            shape = "none" if other is None else f"one of shape {tuple(other.shape)}"
            raise ModelError(f"{name} has shape {tuple(value.shape)}, and before there was {shape}")
        moved = (value.detach().double() - other.detach().to(value.device).double()).abs().sum()
        module = name.rpartition(".")[0]
        sums[module] = sums.get(module, 0.0) + float(moved)
        sizes[module] = sizes.get(module, 0) + value.numel()
    return {module: total / max(1, sizes[module]) for module, total in sums.items()}


def most_moved(before: Tensors, after: Tensors, n: int) -> list[str]:
    """Names of the tensors of the n modules that moved most, equal ones by name."""
    moved = movement(before, after)
    chosen = sorted(moved, key=lambda module: (-moved[module], module))[:n]
    return [name for name in after if name.rpartition(".")[0] in chosen]


def bursts(steps: int, k: int) -> list[int]:
    """The steps (from 1) after which buffered data are replayed: k, evenly, the last at the end."""
    if k < 0 or steps < 0:
        raise ValueError(f"{k} bursts in {steps} steps")
    return sorted({steps * (j + 1) // k for j in range(k)} - {0})


def freeze(model: Any, chosen: Iterable[str]) -> int:
    """Let only the named tensors move; returns how many parameters they have."""
    names = set(chosen)
    known = dict(model.named_parameters())
    if not names or (unknown := sorted(names - set(known))):
        told = f"no tensor {unknown[0]!r}" if names else "no tensor at all was chosen to move"
        raise ModelError(f"{told}; it has {len(known)}, such as {min(known)!r}", where="tune")
    for name, parameter in known.items():
        parameter.requires_grad_(name in names)
    return sum(known[name].numel() for name in names)
