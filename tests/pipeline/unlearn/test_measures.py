"""Sharpness, entanglement and forgetting confidence at their known answers and on a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.unlearn.documents import documents, read
from foresift.pipeline.unlearn.entangle import Sketch, basis, cosine, entanglement, entanglements
from foresift.pipeline.unlearn.graceful import confidence, confidences
from foresift.pipeline.unlearn.sharpness import ascent_rise, sharpness


def test_sharpness_of_a_parabola() -> None:
    x = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    assert ascent_rise(lambda: 2.0 * x.square().sum(), [x], eta=0.1) == pytest.approx(0.22)
    assert x.tolist() == [0.5]
    flat = torch.zeros(1, requires_grad=True)
    assert ascent_rise(lambda: flat.square().sum(), [flat], eta=0.1) == 0.0


def test_sharpness_leaves_the_model_and_does_not_depend_on_the_order(memorised: Any) -> None:
    rows = memorised.forget[:3] + memorised.retain[:2]
    model = memorised.model
    found = sharpness(model, documents(rows)[0])
    assert (found > 0).all()
    again = sharpness(model, documents(rows[::-1])[0])
    assert found == pytest.approx(again)
    after = dict(model.named_parameters())
    assert all(torch.equal(p, after[n]) for n, p in memorised.trained.named_parameters())


def test_entanglement_at_its_known_answer() -> None:
    g = torch.tensor([3.0, 4.0])
    assert entanglement(g, basis(torch.tensor([[1.0, 0.0]]))) == pytest.approx(0.36)
    assert entanglement(g, basis(torch.eye(2))) == pytest.approx(1.0)
    assert np.isnan(entanglement(torch.zeros(2), torch.eye(2).double()))
    assert cosine(g, torch.tensor([1.0, 0.0])) == pytest.approx(0.6)


def test_a_basis_drops_what_repeats() -> None:
    rows = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, 0.0]])
    q = basis(rows)
    assert q.shape == (3, 2)
    assert torch.allclose(q.T @ q, torch.eye(2).double(), atol=1e-12)
    assert entanglement(torch.tensor([0.0, 0.0, 1.0]), q) == pytest.approx(0.0, abs=1e-12)


def test_a_sketch_keeps_inner_products_about() -> None:
    draws = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 20_000, generator=draws)
    sketch = Sketch(20_000, 4096, seed=1)
    assert float(sketch(a) @ sketch(a + b)) == pytest.approx(float(a @ (a + b)), rel=0.1)
    assert torch.allclose(sketch(a + b), sketch(a) + sketch(b), atol=1e-4)
    assert torch.equal(sketch(a), Sketch(20_000, 4096, seed=1)(a))
    assert torch.equal(Sketch(5, 8, seed=0)(a[:5]), a[:5])


def test_entanglements_of_a_retain_document_and_by_sketch(memorised: Any) -> None:
    retain, forget = documents(memorised.retain[:4])[0], documents(memorised.forget[:4])[0]
    own = entanglements(memorised.trained, retain, retain, rank=4, width=10**6)
    assert own == pytest.approx(np.ones(4), abs=1e-4)
    exact = entanglements(memorised.trained, forget, retain, rank=4, width=10**6)
    rough = entanglements(memorised.trained, forget, retain, rank=4, width=2048)
    assert ((exact > 0) & (exact < 0.9)).all()
    assert rough == pytest.approx(exact, abs=0.1)
    with pytest.raises(DataError, match="retain"):
        entanglements(memorised.trained, forget, documents([])[0])


def test_forgetting_confidence_at_its_known_answer() -> None:
    g, task = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0])
    assert confidence(g, task, torch.ones(2), eta=0.1) == pytest.approx(0.095)
    assert confidence(-g, task, torch.ones(2), eta=0.1) == pytest.approx(-0.105)


def test_unlearning_a_documents_own_task_never_helps(memorised: Any) -> None:
    given = documents(memorised.forget[:3])[0]
    alone = [confidences(memorised.trained, documents([r])[0], documents([r])[0])[0]
             for r in given.rows]  # fmt: skip
    assert max(alone) < 0
    model = memorised.trained
    loss = read(model, given.batch([0])).mean
    g = torch.cat([x.reshape(-1) for x in torch.autograd.grad(loss, list(model.parameters()))])
    expected = -float(0.1 * g @ g + 0.5 * 0.01 * (g**4).sum())
    assert alone[0] == pytest.approx(expected, rel=1e-4)
