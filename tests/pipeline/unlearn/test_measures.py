"""Sharpness and forgetting confidence at their known answers and on a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foresift.pipeline.unlearn.documents import documents, read
from foresift.pipeline.unlearn.graceful import confidence, confidences
from foresift.pipeline.unlearn.sharpness import ascent_rise


def test_sharpness_of_a_parabola() -> None:
    x = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    assert ascent_rise(lambda: 2.0 * x.square().sum(), [x], eta=0.1) == pytest.approx(0.22)
    assert x.tolist() == [0.5]
    flat = torch.zeros(1, requires_grad=True)
    assert ascent_rise(lambda: flat.square().sum(), [flat], eta=0.1) == 0.0


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
