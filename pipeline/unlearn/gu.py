"""GU: correct what Adam proposes so that no remembered retain loss rises, to first order.

    Delta0 = theta_after - theta_before of the optimizer's own step (momentum, clipping, decay)
    min_Delta  1/2 |Delta - Delta0|_M^2   s.t.   G' Delta <= 0,      M = diag(sqrt(v) + eps)

Projecting the gradient would not do: Adam's step is not along it. G holds the retain gradient at
theta_before and at most `memory` older ones, each with norm one, not orthogonalised (another basis
is another cone). With multipliers lambda >= 0 the solution is Delta = Delta0 - M^-1 G lambda, and

    lambda = argmin |A lambda - b|^2,   A'A = G' M^-1 G,   A'b = G' Delta0        (Lawson-Hanson)

which is solved exactly by non-negative least squares on (memory + 1) unknowns. For one constraint
lambda = max(0, g.Delta0 / (g' M^-1 g)). `check` then tries s in 1, 1/2, .., 1/64 and applies the
largest s * Delta under which the retain batch's loss rises by at most 1e-4, or nothing.

Cost a step: the base's, a backward (4N) or a pass (6N) of the retain batch, memory + 1 vectors of
the model's size; with `check` up to 8 forwards of the retain batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls  # type: ignore[import-untyped]

from foresift.pipeline.unlearn.methods import Amending, Method, needs
from foresift.pipeline.unlearn.session import Step, flat, gradient, place

Tensor = torch.Tensor
_TRIES = tuple(0.5**k for k in range(7))
_RISE = 1e-4
#: eigenvalues of G' M^-1 G below this share of the largest are directions that repeat
_REPEATED = 1e-12


def project(
    proposed: Tensor, gradients: Tensor, metric: Tensor
) -> tuple[Tensor, npt.NDArray[np.float64]]:
    """(Delta [P], lambda [k]) for gradients [k, P] and the diagonal `metric` [P] of M."""
    inverse = gradients / metric
    gram = (inverse.double() @ gradients.double().T).cpu().numpy()
    rises = (gradients.double() @ proposed.double()).cpu().numpy()
    multipliers = _dual(gram, rises)
    weights = torch.from_numpy(multipliers).to(proposed)
    return proposed - weights @ inverse, multipliers


def _dual(gram: npt.NDArray[np.float64], rises: npt.NDArray[np.float64]) -> Any:
    """argmin 1/2 l' gram l - l' rises over l >= 0."""
    values, basis = np.linalg.eigh(gram)
    kept = values > _REPEATED * max(values[-1], 0.0)
    if values[-1] <= 0.0 or not np.any(rises > 0):
        return np.zeros(len(rises))
    roots = np.sqrt(values[kept])
    directions = basis[:, kept].T
    a, b = roots[:, None] * directions, directions @ rises / roots
    return nnls(a, b)[0]


def metric_of(optimizer: Any, parameters: Sequence[Tensor]) -> Tensor:
    """[P] sqrt(v) + eps of an Adam, with its bias correction."""
    group = optimizer.param_groups[0]
    found = []
    for p in parameters:
        state = optimizer.state.get(p, {})
        if not state:
            found.append(torch.full_like(p, group["eps"]))
            continue
        correction = 1.0 - group["betas"][1] ** float(state["step"])
        found.append((state["exp_avg_sq"] / correction).sqrt() + group["eps"])
    return flat(found)


@dataclass(frozen=True, kw_only=True)
class GU(Amending):
    """Another method's steps, corrected so that retain losses do not rise."""

    uses = frozenset({"retain"})
    base: Method
    """The method whose steps are corrected."""
    memory: int = 8
    """Older retain gradients that are kept."""
    check: bool = False
    """Whether the retain loss is measured before a step is applied."""

    def __post_init__(self) -> None:
        if self.memory < 0:
            raise ValueError("memory is at least 0")

    def loss(self, step: Step) -> Tensor:
        """The base's loss; the retain gradient here is put first among those remembered."""
        session = step.session
        found = gradient(step.retain.mean, session)
        if "retain" in needs(self.base):  # its own backward pass through the same reading
            session.meter.add(step.retain_batch, per_token=4)
        norm = found.norm()
        if float(norm) > 0.0 and bool(torch.isfinite(norm)):
            older = session.state.get("gradients", [])[: self.memory]
            session.state["gradients"] = [found / norm, *older]
        return self.base.loss(step)

    def amend(self, step: Step, before: Tensor, change: Tensor, optimizer: Any) -> Tensor:
        """The nearest change under which no remembered retain loss rises."""
        session = step.session
        gradients = session.state.get("gradients", [])
        if not gradients:
            return change
        metric = metric_of(optimizer, session.moving)
        found, multipliers = project(change, torch.stack(gradients), metric)
        session.state["active"] = session.state.get("active", 0) + int(np.any(multipliers > 0))
        return self._checked(step, before, found) if self.check else found

    def _checked(self, step: Step, before: Tensor, change: Tensor) -> Tensor:
        session, limit = step.session, float(step.retain.mean.detach()) + _RISE
        for share in _TRIES:
            place(session, before + share * change)
            if float(session.read(step.retain_batch, per_token=2).mean) <= limit:
                return share * change
        session.state["skipped"] = session.state.get("skipped", 0) + 1
        return torch.zeros_like(change)
