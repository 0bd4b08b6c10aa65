"""GU: the projection's known answer, its conditions for several constraints, its runs."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.unlearn.gu import metric_of, project
from foresift.pipeline.unlearn.run import unlearn


def test_the_known_answer() -> None:
    change, multipliers = project(
        torch.tensor([1.0, 1.0]), torch.tensor([[1.0, 1.0]]), torch.tensor([4.0, 1.0])
    )
    assert multipliers.tolist() == pytest.approx([1.6])
    assert change.tolist() == pytest.approx([0.6, -0.6])
    assert float(change.sum()) == pytest.approx(0.0, abs=1e-6)


def test_a_proposal_that_harms_nothing_is_taken_as_it_is() -> None:
    proposed = torch.tensor([-1.0, 0.5])
    change, multipliers = project(proposed, torch.eye(2)[:1], torch.ones(2))
    assert torch.equal(change, proposed)
    assert multipliers.tolist() == [0.0]


def test_a_gradient_that_repeats_changes_nothing() -> None:
    proposed, metric = torch.tensor([1.0, 1.0]), torch.tensor([4.0, 1.0])
    g = torch.tensor([[1.0, 1.0]])
    once, _ = project(proposed, g, metric)
    thrice, _ = project(proposed, g.repeat(3, 1), metric)
    assert torch.allclose(once, thrice, atol=1e-6)


def best_of_all_active_sets(proposed: Any, gradients: Any, metric: Any) -> Any:
    """The plain solution: try every set of constraints that hold with equality."""
    best, at = np.inf, proposed
    for size in range(len(gradients) + 1):
        for chosen in combinations(range(len(gradients)), size):
            g = gradients[list(chosen)]
            change = proposed
            if size:
                gram = (g / metric) @ g.T
                lam = np.linalg.lstsq(gram, g @ proposed, rcond=None)[0]
                change = proposed - lam @ (g / metric)
            cost = 0.5 * float(((change - proposed) ** 2 * metric).sum())
            if (gradients @ change <= 1e-7).all() and cost < best:
                best, at = cost, change
    return at


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_several_constraints_against_all_active_sets(seed: int, count: int) -> None:
    draws = np.random.default_rng(seed)
    proposed, gradients = draws.normal(size=6), draws.normal(size=(count, 6))
    metric = draws.uniform(0.1, 5.0, size=6)
    change, multipliers = project(*(torch.from_numpy(a) for a in (proposed, gradients, metric)))
    expected = best_of_all_active_sets(proposed, gradients, metric)
    assert change.numpy() == pytest.approx(expected, abs=1e-5)
    slack = gradients @ change.numpy()
    assert (multipliers >= 0).all()
    assert (slack <= 1e-7).all()
    assert (np.abs(multipliers * slack) <= 1e-6).all()


def test_the_metric_is_the_denominator_of_adam() -> None:
    p = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.0)
    for scale in (1.0, 3.0):
        p.grad = scale * torch.tensor([0.5, -4.0])
        before = p.detach().clone()
        optimizer.step()
    first = optimizer.state[p]["exp_avg"] / (1 - 0.9**2)
    assert torch.allclose(p - before, -0.1 * first / metric_of(optimizer, [p]), atol=1e-6)


@pytest.mark.parametrize("base", ["graddiff", "npo", "ofmu"])
def test_it_corrects_steps_of_a_base_and_keeps_more(memorised: Any, base: str) -> None:
    sets = (memorised.forget, memorised.retain)
    fields: dict[str, Any] = {"steps": 15, "learning_rate": 3e-4}
    plain = unlearn(memorised.model, *sets, base, **fields)
    corrected = unlearn(memorised.model, *sets, "gu", options={"base": base}, **fields)
    assert corrected.facts["active"] > 0
    assert corrected.facts["retain_nll_after"] < plain.facts["retain_nll_after"]
    assert corrected.facts["forget_nll_after"] > 2 * corrected.facts["forget_nll_before"]
    assert corrected.flops > plain.flops


def test_the_check_never_lets_the_retain_batch_rise(memorised: Any) -> None:
    """With one batch of all retain documents its loss is the log's own."""
    outcome = unlearn(
        memorised.model, memorised.forget, memorised.retain, "gu", batch=24, steps=12,
        learning_rate=2e-3, options={"base": "ga", "memory": 0, "check": True},
    )  # fmt: skip
    losses = [line["retain_nll"] for line in outcome.log]
    assert max(np.diff(losses)) <= 1e-4 + 1e-6
    assert outcome.facts["retain_nll_after"] <= losses[-1] + 1e-4 + 1e-6
