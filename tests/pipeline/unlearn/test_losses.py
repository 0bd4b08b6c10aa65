"""The losses at their known answers, against plain sums, and their gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.unlearn import losses

SUMS = torch.tensor([3.0, 8.0])
LENGTHS = torch.tensor([3, 4])


def logits(seed: int = 0, tokens: int = 5, words: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(tokens, words, generator=generator, dtype=torch.float64)
    return drawn.requires_grad_(), torch.arange(tokens) % words


def test_npo_at_the_reference_is_two_log_two_over_beta_with_the_gradient_of_ascent() -> None:
    sums = SUMS.double().requires_grad_()
    loss = losses.npo(sums, SUMS.double(), 0.1)
    assert float(loss.detach()) == pytest.approx(13.863, abs=5e-4)
    (found,) = torch.autograd.grad(loss, sums)
    (ascent,) = torch.autograd.grad(losses.gradient_ascent(sums, torch.tensor([1, 1])), sums)
    assert torch.allclose(found, ascent)  # both are -1 / B of each sequence


@pytest.mark.parametrize("lost", [-3.0, 0.5, 30.0, 400.0])
def test_npo_weighs_the_ascent_by_what_is_left_of_the_sequence(lost: float) -> None:
    sums, before, beta = torch.tensor([5.0 + lost]).double().requires_grad_(), 5.0, 0.1
    loss = losses.npo(sums, torch.tensor([before]).double(), beta)
    p, q = math.exp(-beta * (before + lost)), math.exp(-beta * before)  # p^beta, p_ref^beta
    (found,) = torch.autograd.grad(loss, sums)
    assert float(found) == pytest.approx(-2 * p / (p + q))


def test_simnpo_of_a_sure_sequence_and_its_margin() -> None:
    sure = torch.zeros(2)
    assert float(losses.simnpo(sure, LENGTHS)) == pytest.approx(2 * math.log(2) / 4.5)
    even = losses.simnpo(1.5 * LENGTHS, LENGTHS, beta=2.0, delta=1.5)
    assert float(even) == pytest.approx(math.log(2))
    expected = -(2 / 4.5) * np.mean([math.log(1 / (1 + math.exp(-4.5 * x))) for x in (1.0, 2.0)])
    assert float(losses.simnpo(SUMS, LENGTHS)) == pytest.approx(expected, rel=1e-5)


def test_dpo_is_npo_where_nothing_wins_and_falls_when_the_refusal_gains() -> None:
    at = losses.dpo(SUMS, SUMS, SUMS, SUMS)
    assert float(at) == pytest.approx(20 * math.log(2))
    assert torch.allclose(losses.dpo(SUMS, SUMS, SUMS + 2, SUMS), losses.npo(SUMS + 2, SUMS))
    assert losses.dpo(SUMS - 1, SUMS, SUMS, SUMS) < at < losses.dpo(SUMS + 1, SUMS, SUMS, SUMS)


def test_gradient_ascent_weighs_tokens_alike() -> None:
    assert float(losses.gradient_ascent(SUMS, LENGTHS)) == pytest.approx(-11 / 7)


def test_weighted_ascent_with_detached_weights() -> None:
    nll = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    p = np.exp([-0.5, -2.0])
    assert float(losses.weighted_ascent(nll.detach())) == pytest.approx(-np.mean(p * [0.5, 2.0]))
    loss = losses.weighted_ascent(nll, 5.0, 1.0)
    (found,) = torch.autograd.grad(loss, nll)
    assert found.numpy() == pytest.approx(-(p**5) * (1 - p) / 2)
    assert float(losses.weighted_ascent(nll.detach(), 0.0, 0.0)) == pytest.approx(-1.25)


def test_flattening_is_the_squared_lead_and_zero_for_even_logits() -> None:
    assert float(losses.flattening(torch.full((3, 4), 2.5))) == 0.0
    assert float(losses.flattening(torch.tensor([[3.0, 0.0, 0.0]]))) == pytest.approx(4.0)


def test_the_dual_moves_with_the_excess_and_stays_above_zero() -> None:
    assert losses.dual_update(1.0, retain=0.7, bound=0.5) == pytest.approx(1.2)
    assert losses.dual_update(1.0, retain=0.5, bound=0.5) == 1.0
    assert losses.dual_update(0.1, retain=0.0, bound=0.5, step=2.0) == 0.0


@pytest.mark.parametrize(
    ("divergence", "apart", "nothing"),
    [("tv", -0.3808, 0.0), ("kl", -1 + 1 / math.e, 1 / math.e), ("pearson", -1.0, 0.0),
     ("js", -math.log(2) + math.log1p(math.exp(-1)), 0.0)],
)  # fmt: skip
def test_flat_at_its_known_answers(divergence: str, apart: float, nothing: float) -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    assert float(losses.flat(one, zero, divergence)) == pytest.approx(apart, abs=5e-5)
    assert float(losses.flat(zero, zero, divergence)) == pytest.approx(nothing, abs=1e-6)


@pytest.mark.parametrize(
    ("divergence", "conjugate"),
    [("tv", lambda u: u), ("kl", lambda u: math.exp(u - 1)), ("pearson", lambda u: u * u / 4 + u),
     ("js", lambda u: -math.log(2 - math.exp(u)))],
)  # fmt: skip
def test_flat_takes_the_conjugate_of_its_own_activation(divergence: str, conjugate: Any) -> None:
    good, bad = torch.tensor([0.7]), torch.tensor([0.4])
    zero = torch.zeros(1)
    none = float(losses.flat(zero, zero, divergence))
    active = {"tv": lambda p: math.tanh(p) / 2, "js": lambda p: math.log(2 / (1 + math.exp(-p)))}
    at = active.get(divergence, lambda p: p)
    assert none == pytest.approx(conjugate(at(0.0)) - at(0.0), abs=1e-6)
    expected = conjugate(at(0.4)) - at(0.7)
    assert float(losses.flat(good, bad, divergence)) == pytest.approx(expected, abs=1e-6)


def test_flat_tv_of_equal_answers_is_zero() -> None:
    p = torch.tensor([0.3, 0.9])
    assert float(losses.flat(p, p)) == 0.0


def test_undial_lowers_the_true_token_of_the_reference_alone() -> None:
    z, targets = logits()
    reference, _ = logits(1)
    kept = reference.detach().clone()
    found = losses.undial(z, reference, targets, 10.0)
    expected = []
    for t, target in enumerate(targets):
        lowered = kept[t].numpy().copy()
        lowered[target] -= 10.0
        q = np.exp(lowered) / np.exp(lowered).sum()
        expected.append(-(q * z[t].detach().log_softmax(-1).numpy()).sum())
    assert float(found.detach()) == pytest.approx(np.mean(expected))
    assert torch.equal(reference, kept)


def test_unlikely_target_pushes_the_true_token_down_and_keeps_the_others_in_proportion() -> None:
    z, targets = logits()
    (g,) = torch.autograd.grad(losses.unlikely_target(z, targets), z)
    p = z.detach().softmax(-1)
    rows = torch.arange(len(targets))
    assert torch.allclose(g[rows, targets] * len(targets), p[rows, targets])
    others = g * len(targets) / p
    others[rows, targets] = torch.nan  # the same factor for all other tokens of a row
    assert np.nanstd(others.numpy(), axis=1) == pytest.approx(np.zeros(len(targets)), abs=1e-12)


def test_entropy_and_divergence_from_the_reference() -> None:
    z = logits()[0].detach()
    assert float(losses.entropy(torch.zeros(2, 8))) == pytest.approx(math.log(8))
    assert float(losses.kl(z, z)) == pytest.approx(0.0, abs=1e-12)
    other = logits(1)[0].detach()
    assert float(losses.kl(z, other)) > 0
    assert torch.allclose(losses.kl(z + 3.0, other), losses.kl(z, other))  # not of raw logits
