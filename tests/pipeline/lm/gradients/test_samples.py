"""Losses, arithmetic on directions, and the plain gradients against one another."""

from __future__ import annotations

import math

import pytest
import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.gradients.oracle import (
    jvp_dots,
    per_sample_gradients,
    vmap_gradients,
)
from foresift.pipeline.lm.gradients.samples import (
    dot,
    norm,
    sample_losses,
    scaled,
    sum_losses,
    trainable,
)
from tests.pipeline.lm.gradients.models import (
    SHAPES,
    VOCABULARY,
    build,
    direction,
    products,
    ragged,
)


def test_a_uniform_model_loses_the_log_of_the_vocabulary() -> None:
    model, batch = build("llama"), ragged()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    nats = math.log(VOCABULARY)
    assert sample_losses(model, batch).tolist() == pytest.approx([nats, nats, nats, 0])
    assert sum_losses(model, batch).tolist() == pytest.approx([11 * nats, 8 * nats, 2 * nats, 0])


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_equal_those_of_each_document_alone(shape: str) -> None:
    model, batch = build(shape, kernel="sdpa"), ragged()
    found = sample_losses(model, batch).tolist()
    for i, length in enumerate(batch.lengths):
        ids = torch.tensor(batch.ids[i, :length])
        logp = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        nll = [-logp[t - 1, ids[t]] for t in range(length) if batch.counted[i, t]]
        expected = float(torch.stack(nll).mean().detach()) if nll else 0.0
        assert found[i] == pytest.approx(expected, rel=1e-12)


def test_losses_of_half_precision_are_summed_in_float32() -> None:
    model = build("llama", dtype=torch.bfloat16)
    assert sample_losses(model, ragged()).dtype == torch.float32
    assert sample_losses(build("llama"), ragged()).dtype == torch.float64


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tied", [False, True])
def test_plain_gradients_agree(shape: str, tied: bool) -> None:
    model, batch = build(shape, tied), ragged()
    loop, vectorised = per_sample_gradients(model, batch), vmap_gradients(model, batch)
    assert loop.keys() == vectorised.keys() == dict(model.named_parameters()).keys()
    for name, gradients in loop.items():
        size = float(gradients.abs().max())
        torch.testing.assert_close(vectorised[name], gradients, rtol=1e-10, atol=1e-12 * size)
        assert not gradients[3].any()  # nothing counted, no gradient


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_mode_gives_the_dot_products(shape: str) -> None:
    model, batch = build(shape, tied=True), ragged()
    along = direction(model)
    expected = products(per_sample_gradients(model, batch), along)
    # transformers takes softmax and some norms in float32, whose tangents round differently
    found = jvp_dots(model, batch, along)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_forward_mode_refuses_a_kernel_without_it() -> None:
    model = build("llama", kernel="sdpa")
    with pytest.raises(ModelError, match="needs eager attention and this model uses 'sdpa'"):
        jvp_dots(model, ragged(), direction(model))


def test_dot_is_summed_in_float64() -> None:
    a = {"x": torch.tensor([1e8, 1.0]), "y": torch.tensor([[-1e8]])}
    ones = {name: torch.ones_like(values) for name, values in a.items()}
    assert dot(a, ones) == 1.0
    assert norm({"x": torch.tensor([3.0]), "y": torch.tensor([4.0])}) == 5.0
    assert dot(scaled(a, -2.0), ones) == -2.0
    assert dot(a, {"y": torch.ones(1, 1)}) == -1e8


def test_directions_of_different_models_are_refused() -> None:
    with pytest.raises(ModelError, match=r"share no parameter: one has 'x', the other 'model\.x'"):
        dot({"x": torch.ones(1)}, {"model.x": torch.ones(1)})


def test_trainable_names_a_tied_matrix_once_and_no_frozen_one() -> None:
    model = build("gpt2", tied=True)
    assert "lm_head.weight" not in trainable(model)
    model.transformer.wte.weight.requires_grad_(False)
    assert "transformer.wte.weight" not in trainable(model)
    with pytest.raises(ModelError, match="no parameter of the model requires a gradient"):
        trainable(model.requires_grad_(False))
