"""Scores of membership: known answers, directions, oracles."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from foresift.pipeline.audit import membership
from foresift.pipeline.audit.token_stats import TokenStats, token_stats
from foresift.pipeline.errors import DataError


def stats(logp, mean=None, var=None) -> TokenStats:
    logp = np.asarray(logp, dtype=float)
    zero, one = np.zeros(len(logp)), np.ones(len(logp))
    return TokenStats(
        logp, zero if mean is None else np.asarray(mean), one if var is None else np.asarray(var),
        zero > 1,
    )  # fmt: skip


def test_the_known_answers_of_min_k_plus_plus() -> None:
    p = np.array([0.7, 0.2, 0.1])
    mu = float((p * np.log(p)).sum())
    var = float((p * np.log(p) ** 2).sum() - mu**2)
    found = [membership.min_k_plus_plus(stats([np.log(p[i])], [mu], [var]), 1.0) for i in (1, 0)]
    np.testing.assert_allclose(found, [-1.1486, 0.6331], atol=1e-4)


def test_the_lowest_share() -> None:
    logp = [-1.0, -5.0, -2.0, -4.0, -3.0]
    assert membership.min_k(stats(logp), 0.2) == -5.0
    assert membership.min_k(stats(logp), 0.4) == -4.5
    assert membership.min_k(stats(logp), 0.01) == -5.0
    assert membership.min_k(stats(logp), 1.0) == -3.0


def test_a_share_of_tokens_is_not_lost_to_rounding() -> None:
    logp = -np.arange(10.0)
    assert membership.min_k(stats(logp), 0.7) == pytest.approx(logp[3:].mean())


def test_positions_that_the_model_is_sure_of_give_no_nan() -> None:
    assert np.isfinite(membership.min_k_plus_plus(stats([0.0], [0.0], [0.0])))


def test_larger_is_a_member_everywhere() -> None:
    """What the model predicts better scores higher, whatever the score."""
    good, bad = stats([-0.1] * 5, [-1.0] * 5), stats([-3.0] * 5, [-1.0] * 5)
    other = stats([-2.0] * 5)
    both = membership.scores([good, bad], ["a text", "a text"], [other, other])
    assert set(both) == {
        "loss", "zlib", "reference", "min_k_20", "min_k_40", "min_k_pp_20", "min_k_pp_40",
    }  # fmt: skip
    assert all(values[0] > values[1] for values in both.values())


def test_zlib_is_the_loss_by_packed_bytes() -> None:
    text = "abab" * 50
    found = membership.zlib(stats([-2.0, -4.0]), text)
    assert found == pytest.approx(-3.0 / len(zlib.compress(text.encode())))


def test_nothing_has_no_score() -> None:
    assert np.isnan(membership.min_k(stats([])))
    assert np.isnan(membership.loss(stats([])))


@pytest.mark.parametrize("k", [0.0, 1.5, -1.0])
def test_a_share_is_one(k: float) -> None:
    with pytest.raises(DataError, match="share"):
        membership.min_k(stats([-1.0]), k)


def test_gradient_norms_are_those_of_backward(build, tokenizer) -> None:
    model = build()
    items = [[3, 1, 4, 1, 5], [9, 2]]
    found = membership.grad_norm(model, None, items)
    for ids, value in zip(items, found, strict=True):
        model.zero_grad()
        x = torch.tensor([ids])
        model(input_ids=x, labels=x).loss.backward()
        norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
        assert value == pytest.approx(-np.mean(norms), rel=1e-4)


def test_gradients_that_the_model_holds_are_left_alone(build) -> None:
    model = build()
    membership.grad_norm(model, None, [[1, 2, 3]])
    assert all(p.grad is None for p in model.parameters())


def test_a_model_against_itself_tells_nothing(build, tokenizer) -> None:
    found = token_stats(build(), tokenizer, ["a b c", "d e f"])
    np.testing.assert_array_equal(membership.scores(found, other=found)["reference"], 0)
