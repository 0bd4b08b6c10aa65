"""OFMU's first-order form: Phi, and the gradient of its cosine by differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foresift.pipeline.unlearn.documents import documents, read
from foresift.pipeline.unlearn.ofmu import OFMU, cosine, cosine_gradient, phi
from foresift.pipeline.unlearn.session import Meter, Session, Step


def test_orthogonal_gradients_leave_the_forget_loss() -> None:
    x, a, b = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]), torch.tensor([1.0, 5.0])
    loss = 0.5 * (x - a).square().sum()
    assert float(cosine(x - a, x - b)) == 0.0
    assert float(phi(loss, x - a, x - b, beta=0.7)) == float(loss)
    assert float(phi(loss, x - a, x - a, beta=0.7)) == pytest.approx(float(loss) - 0.7)


def test_no_gradient_has_no_direction() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    assert float(cosine(zero, one)) == 0.0
    assert torch.equal(cosine_gradient(zero, one, lambda v: v, lambda v: v), zero)


def test_the_cosines_gradient_is_that_of_autograd() -> None:
    x = torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    h = torch.diag(torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64))
    a = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    forget, retain = h @ (x - a), 2.0 * (x + a)  # gradients of two quadratics
    (expected,) = torch.autograd.grad(cosine(forget, retain), x)
    found = cosine_gradient(forget.detach(), retain.detach(), lambda v: h @ v, lambda v: 2.0 * v)
    assert torch.allclose(found, expected)


def test_a_step_has_the_gradient_of_its_objective(memorised: Any) -> None:
    """Against second-order autograd on a float64 model (its norms compute in float32)."""
    model = memorised.model.double()
    model.set_attn_implementation("eager")
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    forget, retain = documents(memorised.forget)[0], documents(memorised.retain)[0]
    session = Session(
        model, parameters, forget, retain, None, None, batch=4, seed=0, steps=1,
        learning_rate=1.0, meter=Meter(1),
    )  # fmt: skip
    step = Step(session, 0)
    before = [p.detach().clone() for p in session.moving]
    method = OFMU(beta=0.8, radius=1e-3)
    loss = method.loss(step)
    found = torch.autograd.grad(loss, session.moving)
    assert all(torch.equal(p, old) for p, old in zip(session.moving, before, strict=True))

    def joined(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss = read(model, batch).mean
        grads = torch.autograd.grad(loss, session.moving, create_graph=True)
        return loss, torch.cat([g.reshape(-1) for g in grads])

    (l_f, g_f), (l_r, g_r) = joined(step.forget_batch), joined(step.retain_batch)
    value = l_r - (l_f - 0.8 * g_f @ g_r / (g_f.norm() * g_r.norm()))
    expected = torch.autograd.grad(value, session.moving)
    assert float(loss.detach()) == pytest.approx(float(value.detach()), rel=1e-6)
    flat = [torch.cat([g.reshape(-1) for g in gs]) for gs in (found, expected)]
    assert (
        float((flat[0] - flat[1]).norm() / flat[1].norm()) < 1e-3
    )  # norms in the model are float32
