"""OFMU in its first-order form: ascent on Phi = l_f - beta cos(g_f, g_r), descent on l_r.

    grad Phi = g_f - beta (H_f a + H_r b)
    a = g_r / (|g_f| |g_r|) - cos g_f / |g_f|^2        b = the same with f and r exchanged
    G = alpha g_r - grad Phi                            handed to AdamW

The bilevel method ascends Phi T times and then descends l_r + rho |grad Phi|^2, whose second-order
term 2 rho H_Phi grad Phi is dropped here; T = 1 and both moves made at once is G. Hessian products
are central differences of gradients, so no second-order graph is needed:

    H v = |v| (g(theta + r v/|v|) - g(theta - r v/|v|)) / 2r,      exact for quadratic losses

Cost a step: 6N (3 forget + 3 retain tokens), as g_f and g_r are there and each H takes two more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.unlearn.methods import Method
from foresift.pipeline.unlearn.session import Step, flat, gradient, place

Tensor = torch.Tensor
#: norms below this count as no gradient at all: no direction, cosine 0
_NOTHING = 1e-12


def cosine(forget: Tensor, retain: Tensor) -> Tensor:
    """cos(g_f, g_r) of two vectors; 0 where one of them is zero."""
    norms = forget.norm() * retain.norm()
    return forget @ retain / norms if bool(norms > _NOTHING) else forget.new_zeros(())


def phi(loss: Tensor, forget: Tensor, retain: Tensor, beta: float) -> Tensor:
    """The forgetting objective: loss l_f, gradients g_f and g_r."""
    return loss - beta * cosine(forget, retain)


def cosine_gradient(
    forget: Tensor,
    retain: Tensor,
    forget_hessian: Callable[[Tensor], Tensor],
    retain_hessian: Callable[[Tensor], Tensor],
) -> Tensor:
    """The gradient of cos(g_f, g_r), from two Hessian products."""
    norms = forget.norm() * retain.norm()
    if bool(norms <= _NOTHING):
        return torch.zeros_like(forget)
    cos = forget @ retain / norms
    a = retain / norms - cos * forget / forget.square().sum()
    b = forget / norms - cos * retain / retain.square().sum()
    return forget_hessian(a) + retain_hessian(b)


@dataclass(frozen=True, kw_only=True)
class OFMU(Method):
    """Ascent on forget with a penalty on its alignment with retain gradients."""

    uses = frozenset({"retain"})
    beta: float = 0.1
    """Weight of the cosine; its gradient is some times as long as that of the losses."""
    alpha: float = 1.0
    """Weight of the retain loss."""
    radius: float = 1e-3
    """Norm of the move of the weights for a Hessian product (1e-3: errors near 2e-4 in float32)."""

    def __post_init__(self) -> None:
        if self.radius <= 0 or self.beta < 0 or self.alpha < 0:
            raise ValueError("radius is above 0, beta and alpha at least 0")

    def loss(self, step: Step) -> Tensor:
        """A loss whose value is alpha l_r - Phi and whose gradient is G."""
        session = step.session
        forget, retain = gradient(step.forget.mean, session), gradient(step.retain.mean, session)
        turn = cosine_gradient(
            forget,
            retain,
            lambda v: self._product(step, step.forget_batch, v),
            lambda v: self._product(step, step.retain_batch, v),
        )
        along = self.alpha * retain - (forget - self.beta * turn)
        objective = phi(step.forget.mean, forget, retain, self.beta)
        value = (self.alpha * step.retain.mean - objective).detach()
        joined = torch.cat([p.reshape(-1) for p in session.moving])
        return value + ((joined - joined.detach()) * along).sum()

    def _product(self, step: Step, batch: Batch, vector: Tensor) -> Tensor:
        """The Hessian of the batch's mean NLL times the vector."""
        session = step.session
        before, norm = flat(session.moving), vector.norm()
        if float(norm) == 0.0:
            return torch.zeros_like(vector)
        found = []
        for sign in (1.0, -1.0):
            place(session, before + sign * self.radius * vector / norm)
            found.append(gradient(session.read(batch).mean, session))
        place(session, before)
        product: Tensor = norm * (found[0] - found[1]) / (2.0 * self.radius)
        return product
