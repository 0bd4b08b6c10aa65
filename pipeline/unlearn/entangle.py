"""Retain entanglement: the share of a document's gradient that lies in the retain gradients' span.

    e(x) = |Q Q' g(x)|^2 / |g(x)|^2  in 0 .. 1          Q [P, r] orthonormal, of retain gradients

Near 1: deleting x by gradient must hurt what is kept, so decide up front. Near 0: cheap to delete.
`cosine` with the mean retain gradient is the form in one number. A zero gradient gives NaN.

Long gradients are first sketched to `width` entries: each coordinate goes with a random sign to a
random entry (Charikar, Chen, Farach-Colton 2002), which keeps inner products in expectation with a
standard error of about 1 / sqrt(width), and adds about r / width to e. Seeded, no matrix is stored.
Cost: 6N a token, P additions a gradient, P r^2 for Q. Source: derived from GU and OFMU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.gradients.samples import trainable
from foresift.pipeline.rng import Rng
from foresift.pipeline.unlearn.documents import Documents, read
from foresift.pipeline.unlearn.session import flat

Tensor = torch.Tensor
#: a column of R whose diagonal is below this share of the largest adds no direction
_REPEATED = 1e-5


class Sketch:
    """A seeded projection of [P] vectors to [width]."""

    def __init__(self, length: int, width: int, seed: int) -> None:
        draws = Rng(seed).at("unlearn", "sketch", length, width).generator()
        self.width = min(width, length)
        self.whole = width >= length
        if not self.whole:
            self._place = torch.from_numpy(draws.integers(width, size=length))
            self._sign = torch.from_numpy(draws.integers(2, size=length) * 2.0 - 1.0).float()

    def __call__(self, vector: Tensor) -> Tensor:
        """[width] the projection; the vector itself where it is no longer than that."""
        if self.whole:
            return vector
        signed = vector * self._sign.to(vector)
        found = torch.zeros(self.width, dtype=vector.dtype, device=vector.device)
        return found.index_add(0, self._place.to(vector.device), signed)


def basis(gradients: Tensor) -> Tensor:
    """[P, r] an orthonormal basis of the span of [k, P] gradients, r <= k, by QR."""
    columns = gradients.double().T
    norms = columns.norm(dim=0)
    columns = columns[:, norms > 0] / norms[norms > 0]
    kept: list[Tensor] = []
    for column in columns.T:  # drops what repeats, which QR without pivots would turn into noise
        joined = torch.stack([*kept, column], dim=1)
        if float(torch.linalg.qr(joined).R.diagonal()[-1].abs()) > _REPEATED:
            kept.append(column)
    if not kept:
        return torch.zeros(gradients.shape[1], 0, dtype=torch.float64, device=gradients.device)
    q: Tensor = torch.linalg.qr(torch.stack(kept, dim=1)).Q
    return q


def entanglement(gradient: Tensor, q: Tensor) -> float:
    """e of one [P] gradient; NaN where it is zero."""
    g = gradient.double()
    total = float(g.square().sum())
    return float((q.T @ g).square().sum()) / total if total > 0 else float("nan")


def cosine(gradient: Tensor, other: Tensor) -> float:
    """cos(g_f, g_r); NaN where one of them is zero."""
    norms = float(gradient.norm() * other.norm())
    return float(gradient @ other) / norms if norms > 0 else float("nan")


def entanglements(
    model: Any,
    documents: Documents,
    retain: Documents,
    *,
    rank: int = 16,
    width: int = 4096,
    seed: int = 0,
) -> np.ndarray[Any, Any]:
    """[n] e of each document against the gradients of `rank` groups of retain documents."""
    if len(retain) == 0:
        raise DataError("entanglement needs retain documents", where="retain")
    parameters = list(trainable(model).values())
    sketch = Sketch(sum(p.numel() for p in parameters), width, seed)
    order = Rng(seed).at("unlearn", "entangle").generator().permutation(len(retain))
    groups = [order[i::rank] for i in range(min(rank, len(retain)))]
    rows = [sketch(_gradient(model, retain, g, parameters)) for g in groups]
    q = basis(torch.stack(rows))
    found = (
        sketch(_gradient(model, documents, np.array([i]), parameters))
        for i in range(len(documents))
    )
    return np.array([entanglement(g, q.to(g.device)) for g in found])


def _gradient(model: Any, given: Documents, chosen: Any, parameters: list[Tensor]) -> Tensor:
    """[P] gradient of the mean token NLL of the chosen documents, read one by one."""
    total, tokens = torch.zeros((), device=parameters[0].device), 0
    for i in chosen:
        reading = read(model, given.batch([i]))
        found = torch.autograd.grad(
            reading.sums.sum(), parameters, allow_unused=True, materialize_grads=True
        )
        total, tokens = total + flat(found), tokens + int(reading.lengths.sum())
    return total / tokens
