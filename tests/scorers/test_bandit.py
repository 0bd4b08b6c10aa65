"""The bandit against its known answers, random-feature form, and rivals in a simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.scorers._bandit import KernelUcb, exploration, kernel, pull, scaled

Floats = np.ndarray


def unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def features(phi: Floats, seen: Floats, rewards: Floats, weights: Floats, alpha: float) -> Any:
    """The same bandit in a feature space: A = alpha I + sum w phi phi^T, b = sum w s phi."""
    a = alpha * np.eye(seen.shape[1]) + (seen * weights[:, None]).T @ seen
    inverse = np.linalg.inv(a)
    mu = phi @ inverse @ (seen.T @ (weights * rewards))
    return mu, np.sqrt(np.einsum("ij,jk,ik->i", phi, inverse, phi))


@pytest.mark.parametrize("kind", ["linear", "rbf"])
def test_one_observation(kind: Any) -> None:
    x = np.array([[1.0]])
    mu, sigma = KernelUcb(kind).predict(x, x, np.array([2.0]))
    assert mu[0] == pytest.approx(1.0)
    assert sigma[0] == pytest.approx(0.707107, abs=1e-6)


def test_nothing_seen() -> None:
    mu, sigma = KernelUcb("polynomial", alpha=4.0).predict(
        np.array([[1.0, 0.0]]), np.empty((0, 2)), np.empty(0)
    )
    assert mu.tolist() == [0.0]
    assert sigma[0] == pytest.approx(math.sqrt(8 / 4))


def test_exploration() -> None:
    assert exploration(1000, 3, 0.05) == pytest.approx(4.8364, abs=1e-4)


def test_kernels_by_hand() -> None:
    x, y = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8], [1.0, 0.0]])
    np.testing.assert_allclose(kernel("linear", 9, x, y), [[0.6, 1.0]])
    np.testing.assert_allclose(kernel("polynomial", 10, x, y), [[7.0**3, 11.0**3]])
    np.testing.assert_allclose(kernel("rbf", 2, x, y), [[math.exp(-1.6), 1.0]])


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_kernel_and_feature_forms_agree(alpha: float) -> None:
    rng = np.random.default_rng(0)
    seen, x, rewards = unit(rng.normal(size=(20, 5))), unit(rng.normal(size=(7, 5))), rng.random(20)
    weights = 0.9 ** np.arange(20.0)
    expected = features(x, seen, rewards, weights, alpha)
    found = KernelUcb("linear", alpha=alpha).predict(x, seen, rewards, weights)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    plain = features(x, seen, rewards, np.ones(20), alpha)
    np.testing.assert_allclose(KernelUcb("linear", 1, alpha).predict(x, seen, rewards), plain)


def test_random_fourier_features_come_near() -> None:
    rng = np.random.default_rng(1)
    seen, x, rewards = unit(rng.normal(size=(30, 4))), unit(rng.normal(size=(9, 4))), rng.random(30)
    gamma, size = 1.5, 20_000
    turns, phases = (
        rng.normal(size=(4, size)) * math.sqrt(2 * gamma),
        rng.uniform(0, 2 * np.pi, size),
    )

    def phi(rows: Floats) -> Floats:
        return math.sqrt(2 / size) * np.cos(rows @ turns + phases)

    k, cross = phi(seen) @ phi(seen).T, phi(seen) @ phi(x).T
    mu = cross.T @ np.linalg.solve(k + np.eye(30), rewards)
    np.testing.assert_allclose(KernelUcb("rbf", gamma).predict(x, seen, rewards)[0], mu, atol=0.03)


@given(st.integers(0, 10**6), st.floats(0.2, 1.0))
def test_more_is_known_after_more_is_seen(seed: int, discount: float) -> None:
    rng = np.random.default_rng(seed)
    seen, x = unit(rng.normal(size=(6, 3))), unit(rng.normal(size=(4, 3)))
    rewards = rng.random(6)
    model = KernelUcb("rbf")
    sigmas = [model.predict(x, seen[:n], rewards[:n])[1] for n in range(7)]
    for before, after in itertools.pairwise(sigmas):
        assert (after <= before + 1e-12).all()
    faded = model.predict(x, seen, rewards, discount ** np.arange(6.0))[1]
    assert (faded >= sigmas[-1] - 1e-12).all()


@pytest.mark.parametrize(
    ("upper", "observed", "pending", "expected"),
    [
        ([9, 0, 0], [False] * 3, [0, 0, 0], 0),
        ([9, 0, 0], [False] * 3, [1, 1, 0], 2),
        ([9, 0, 0], [False] * 3, [2, 1, 1], 1),
        ([1, 5, 9], [True, True, False], [0, 0, 0], 2),
        ([1, 5, 9], [True, True, False], [0, 0, 1], 1),
        ([5, 5, 2], [True] * 3, [7, 0, 0], 0),
    ],
)
def test_each_arm_once_first_then_the_largest_bound(
    upper: list[float], observed: list[bool], pending: list[int], expected: int
) -> None:
    assert pull(upper, observed, pending) == expected


def test_rewards_lie_between_zero_and_one() -> None:
    assert scaled(np.array([0.1, -0.1, 0.0])).tolist() == pytest.approx([1.0, 0.0, 0.5])
    assert scaled(np.array([0.3, 0.3])).tolist() == [0.5, 0.5]
    assert scaled(np.empty(0)).shape == (0,)


Chooser = Callable[[Floats, list[list[Floats]], list[list[float]], np.random.Generator], int]


def bandit(eta: float) -> Chooser:
    def choose(x: Floats, seen: Any, rewards: Any, rng: np.random.Generator) -> int:
        told = [
            KernelUcb().predict(x[None], np.array(c).reshape(-1, 3), np.array(r))
            for c, r in zip(seen, rewards, strict=True)
        ]
        upper = [float(mu[0] + eta * sigma[0]) for mu, sigma in told]
        return pull(upper, [bool(r) for r in rewards], [0] * 3)

    return choose


def greedy(x: Floats, seen: Any, rewards: Any, rng: np.random.Generator) -> int:
    """The best arm so far, whatever the context; one in ten at random."""
    if rng.random() < 0.1 or not all(rewards):
        return int(rng.integers(3))
    return int(np.argmax([np.mean(r) for r in rewards]))


def anyone(x: Floats, seen: Any, rewards: Any, rng: np.random.Generator) -> int:
    return int(rng.integers(3))


def regret(choose: Chooser, pulls: int) -> float:
    """Mean over 5 seeds: three sources, each best by 0.4 in one of three kinds of context."""
    total = 0.0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        seen: list[list[Floats]] = [[], [], []]
        rewards: list[list[float]] = [[], [], []]
        for _ in range(pulls):
            kind = int(rng.integers(3))
            x = unit(np.eye(3)[kind] + 0.15 * rng.normal(size=3))
            arm = choose(x, seen, rewards, rng)
            seen[arm].append(x)
            mean = 0.7 if arm == kind else 0.3
            rewards[arm].append(float(np.clip(mean + 0.1 * rng.normal(), 0, 1)))
            total += 0.7 - mean
    return total / 5


def test_contexts_pay() -> None:
    pulls = 60
    paper = regret(bandit(exploration(pulls, 3, 0.05)), pulls)
    rivals = regret(greedy, pulls), regret(anyone, pulls)
    assert paper < 0.9 * min(rivals)
    assert regret(bandit(1.0), pulls) < 0.5 * paper
