"""Hessian-vector products against a dense Hessian, and the difference against the exact one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.lm.gradients.hessian import hvp, hvp_difference, loss_gradient
from foresift.pipeline.lm.gradients.oracle import per_sample_gradients
from foresift.pipeline.lm.gradients.samples import Direction, dot, norm, sample_losses, trainable
from tests.pipeline.lm.gradients.models import build, direction, ragged

WEIGHTS = [0.5, -1.0, 2.0, 3.0]


def distance(a: Direction, b: Direction) -> float:
    """|a - b| / |b|"""
    return norm({n: a[n] - b[n] for n in b}) / norm(b)


def smallest() -> tuple[Any, Batch]:
    """A GPT-2 of some 200 parameters, and three short documents."""
    size = {"n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 4, "vocab_size": 5, "n_inner": 4}
    ids = np.array([[2, 3, 4, 2], [4, 4, 1, 0], [3, 0, 0, 0]])
    lengths = np.array([4, 3, 1])
    counted = (np.arange(4) < lengths[:, None]) & (np.arange(4) > 0)
    return build("gpt2", tied=True, **size), Batch(np.arange(3), ids, lengths, counted)


def test_product_is_that_of_the_dense_hessian() -> None:
    model, batch = smallest()
    weights = [0.5, -1.0, 3.0]
    parameters = list(trainable(model).values())
    total = (sample_losses(model, batch) * torch.tensor(weights)).sum()
    first = torch.autograd.grad(total, parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in first])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True) for g in flat]
    dense = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    vector = direction(model)
    expected = dense @ torch.cat([v.flatten() for v in vector.values()])
    found = hvp(model, batch, weights, vector)
    assert list(found) == list(trainable(model))
    product = torch.cat([v.flatten() for v in found.values()])
    torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", ["gpt2", "qwen3"])
def test_hessian_is_symmetric(shape: str) -> None:
    model, batch = build(shape, tied=True), ragged()
    u, v = direction(model, 1), direction(model, 2)
    left, right = (hvp(model, batch, WEIGHTS, d) for d in (u, v))
    assert dot(v, left) == pytest.approx(dot(u, right), rel=1e-5)


def test_error_of_the_difference_is_of_second_order() -> None:
    model, batch = build("gpt2"), ragged()
    vector = direction(model)
    exact = hvp(model, batch, WEIGHTS, vector)
    errors = [
        distance(hvp_difference(model, batch, WEIGHTS, vector, radius), exact)
        for radius in (1e-3, 1e-4)
    ]
    assert errors[1] < 1e-5
    assert 80 < errors[0] / errors[1] < 120


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3"])
def test_difference_in_float32_with_a_kernel_that_refuses_forward_mode(shape: str) -> None:
    model, batch = build(shape, tied=True), ragged()
    vector = direction(model)
    exact = hvp(model, batch, WEIGHTS, vector)
    single = build(shape, tied=True, dtype=torch.float32, kernel="sdpa")
    found = hvp_difference(single, batch, WEIGHTS, vector)
    assert distance(found, exact) < 1e-2
    with pytest.raises(ModelError, match="uses 'sdpa'; load it with attention `eager`, or use"):
        hvp(single, batch, WEIGHTS, vector)


def test_gradient_is_the_weighted_sum_of_those_of_the_samples() -> None:
    model, batch = build("mistral", tied=True), ragged()
    found = loss_gradient(model, batch, WEIGHTS)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    for name, each in per_sample_gradients(model, batch).items():
        torch.testing.assert_close(found[name], torch.tensordot(weights, each, 1))


@pytest.mark.parametrize("product", [hvp, hvp_difference])
def test_only_trainable_parameters_count(product: Any) -> None:
    model, batch = build("gpt2"), ragged()
    for name, p in model.named_parameters():
        p.requires_grad_("mlp" in name)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    whole = direction(model)
    some = {n: v for n, v in whole.items() if "mlp" in n}
    a, b = (product(model, batch, WEIGHTS, v) for v in (whole, some))
    assert a.keys() == some.keys()
    assert norm(a) > 0
    assert distance(a, b) == 0
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_zero_vector_and_bad_input() -> None:
    model, batch = build("gpt2"), ragged()
    zeros = {n: torch.zeros_like(p) for n, p in trainable(model).items()}
    assert norm(hvp_difference(model, batch, WEIGHTS, zeros)) == 0
    with pytest.raises(ModelError, match="must be positive, not 0"):
        hvp_difference(model, batch, WEIGHTS, zeros, radius=0)
    with pytest.raises(DataError, match=r"has 4 documents and the weights have shape \(2,\)"):
        loss_gradient(model, batch, [1.0, 2.0])
    with pytest.raises(ModelError, match="names 'x', which is no parameter"):
        hvp(model, batch, WEIGHTS, {"x": torch.ones(1)})
