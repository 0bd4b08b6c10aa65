"""The loss of a reference and its gradient: hand-worked weights, definitions, what is refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.gradients.reference import (
    ReferenceSet,
    combined,
    document_weights,
    gradient,
    loss,
    reference_set,
)
from tests.pipeline.lm.gradients.documents import encoded, gradients, joined, means, ready
from tests.pipeline.lm.gradients.models import build

REDUCTIONS: list[Any] = ["sample_mean", "token_mean", "batch_mean_of_token_mean"]
COUNTS = [1, 0, 2, 5, 0, 0, 3]


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sample_mean", ["1/4", 0, "1/8", "1/20", 0, 0, "1/12"]),
        ("token_mean", ["1/11", 0, "1/11", "1/11", 0, 0, "1/11"]),
        # batches of two: 1 token, 7 tokens, none (which is no batch), 3 tokens
        ("batch_mean_of_token_mean", ["1/3", 0, "1/21", "1/21", 0, 0, "1/9"]),
    ],
)
def test_weights_are_those_worked_by_hand(reduction: Any, expected: list[Any]) -> None:
    found = document_weights(np.array(COUNTS, dtype=np.float64), reduction, batch=2)
    np.testing.assert_allclose(found, [float(Fraction(e)) for e in expected], rtol=1e-15)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_documents_that_lose_the_same_for_each_token_have_that_mean(reduction: Any) -> None:
    counts = np.random.default_rng(0).integers(0, 9, 101).astype(np.float64)
    assert document_weights(counts, reduction) @ counts == pytest.approx(1, rel=1e-12)


def test_the_batches_of_the_third_reduction_have_32_documents() -> None:
    counts = np.arange(1.0, 97.0)
    found = document_weights(counts, "batch_mean_of_token_mean")
    np.testing.assert_allclose(found[[0, 31]], 1 / 3 / counts[:32].sum())
    np.testing.assert_allclose(found[32], 1 / 3 / counts[32:64].sum())


def by_hand(reduction: str, nll: np.ndarray, counts: np.ndarray) -> float:
    if reduction == "sample_mean":
        return float(nll.mean())
    if reduction == "token_mean":
        return float((nll * counts).sum() / counts.sum())
    groups = [slice(0, 32), slice(32, 40)]
    return float(np.mean([(nll[g] * counts[g]).sum() / counts[g].sum() for g in groups]))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_and_gradient_are_those_of_the_definition(reduction: Any) -> None:
    documents, loaded = encoded([3 + k % 9 for k in range(40)]), ready()
    aim = reference_set(documents, reduction)
    counts = documents.lengths - 1.0
    expected = by_hand(reduction, means(documents, loaded), counts)
    assert loss(aim, loaded) == pytest.approx(expected, rel=1e-6)
    value, found = gradient(aim, loaded)
    assert value == pytest.approx(expected, rel=1e-12)
    weights = torch.from_numpy(aim.weights * counts)
    for name, each in gradients(documents, loaded).items():
        want = torch.tensordot(weights, each, 1)
        torch.testing.assert_close(found[name], want, rtol=1e-9, atol=1e-12)


def test_a_gradient_does_not_depend_on_batches() -> None:
    aim, loaded = reference_set(encoded([3, 9, 1, 30, 12, 2])), ready()
    whole, pieces = gradient(aim, loaded, 10_000), gradient(aim, loaded, 12)
    assert pieces[0] == pytest.approx(whole[0], rel=1e-12)
    for name, g in whole[1].items():
        torch.testing.assert_close(pieces[1][name], g, rtol=1e-9, atol=1e-12)


def test_tokens_that_do_not_count_are_not_in_the_loss() -> None:
    loaded = ready()
    half = encoded([12, 9], masked=6)
    other = encoded([12, 9], masked=6)
    other.ids[:] = np.where(other.counts, other.ids, 3)
    whole = reference_set(encoded([12, 9]))
    assert reference_set(half).weights[0] == pytest.approx(1 / 9)
    assert loss(reference_set(half), loaded) != pytest.approx(loss(whole, loaded), rel=1e-3)
    # what does not count is still read
    assert loss(reference_set(half), loaded) != loss(reference_set(other), loaded)


def test_the_combined_direction_is_the_weighted_sum_of_each() -> None:
    loaded, tables = ready(), [encoded([5, 8, 3], seed=1), encoded([4, 4], seed=2)]
    each = [gradient(reference_set(t), loaded)[1] for t in tables]
    found = combined([(each[0], 2.0), (each[1], 0.5)])
    for name, g in found.items():
        torch.testing.assert_close(g, 2 * each[0][name] + 0.5 * each[1][name], rtol=1e-12, atol=0)
    one = joined(*tables)
    weights = [2 * reference_set(tables[0]).weights, 0.5 * reference_set(tables[1]).weights]
    _, same = gradient(ReferenceSet(one, np.concatenate(weights)), loaded)
    for name, g in same.items():
        torch.testing.assert_close(found[name], g, rtol=1e-9, atol=1e-12)


def test_gradients_of_half_precision_are_added_in_float32() -> None:
    _, found = gradient(reference_set(encoded([5, 6])), ready(dtype=torch.bfloat16))
    assert {g.dtype for g in found.values()} == {torch.float32}


def test_frozen_parameters_have_no_gradient() -> None:
    loaded = ready(build("llama"))
    loaded.model.model.embed_tokens.requires_grad_(False)
    _, found = gradient(reference_set(encoded([5, 6])), loaded)
    assert set(found) == {n for n, p in loaded.model.named_parameters() if p.requires_grad}


def test_a_gradient_of_zero_is_refused() -> None:
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # nothing behind it matters, and it is frozen itself
    model.lm_head.requires_grad_(False)
    with pytest.raises(DataError, match="news: the gradient of the loss on it is zero"):
        gradient(reference_set(encoded([5, 6]), name="news"), ready(model))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_found(value: float) -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = value
    with pytest.raises(DataError, match=r"news: the model's loss on it is (nan|inf) and its grad"):
        gradient(reference_set(encoded([5, 6]), name="news"), ready(model))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([5, 1, 1], "news: 1 of its 3 documents have a token to predict; .* at least 2"),
        ([1, 1], "news: 0 of its 2 documents"),
    ],
)
def test_fewer_than_two_documents_are_refused(lengths: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        reference_set(encoded(lengths), name="news")


def test_tokens_of_a_reference_are_all_that_are_read() -> None:
    assert reference_set(encoded([5, 6], masked=4)).tokens == 11
