"""The recursion under LQS and PDS on quadratics that can be worked by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.gradients.samples import Direction, Parameters
from foresift.scorers._trajectory import Memory, backward, forward
from foresift.scorers.lqs import gammas, labels, visited
from tests.inputs import texts

Floats = npt.NDArray[np.float64]
X, A = torch.tensor([0.5, -1, 2]).double(), torch.tensor([1.0, 2, 1]).double()
RATE = 0.1
AIM = texts(6, seed=9)


@dataclass(frozen=True)
class Quadratics:
    """l_n = a_n (theta - x_n)^2 / 2, L their mean, J = theta^2 / 2."""

    x: torch.Tensor = X
    a: torch.Tensor = A

    def gradients(self, theta: Direction) -> torch.Tensor:
        return self.a * (theta["w"] - self.x)

    def descent(self, step: int, theta: Direction) -> Parameters:
        return {"w": self.gradients(theta).mean()[None]}

    def curvature(self, step: int, theta: Direction, vector: Direction) -> Parameters:
        return {"w": self.a.mean() * vector["w"]}

    def aim(self, theta: Direction) -> Parameters:
        return {"w": theta["w"].clone()}


@dataclass
class Looks:
    """Takes down what a sweep shows of the documents of Quadratics, by step."""

    problem: Quadratics
    thetas: dict[int, float]
    along: dict[int, float]
    dots: dict[int, Floats]
    norms: dict[int, Floats]

    @classmethod
    def of(cls, steps: int, problem: Quadratics | None = None, rate: float = RATE) -> Looks:
        looks = cls(problem or Quadratics(), {}, {}, {}, {})
        store = Memory()
        forward(looks.problem, {"w": torch.ones(1).double()}, steps, rate, store, nothing)
        last = backward(looks.problem, steps, rate, store, looks, nothing)
        looks.along[0] = float(last["w"])
        return looks

    def __call__(self, t: int, theta: Parameters, along: Parameters | None) -> None:
        g = self.problem.gradients(theta).numpy()
        self.thetas[t], self.norms[t] = float(theta["w"]), np.abs(g)
        if along is not None:
            self.along[t + 1] = float(along["w"])
            self.dots[t] = g * float(along["w"])

    def told(self, interval: int = 1, variant: Any = "lqs", compat: bool = False) -> Floats:
        """Labels as the scorer makes them, but not standardised."""
        end = max(self.norms)
        at = visited(end, interval, variant, compat)
        dots, norms = (np.stack([by[t] for t in at]) for by in (self.dots, self.norms))
        if compat:
            return RATE * gammas(dots, norms, np.ones(3))
        return labels(dots, norms, self.norms[end], variant, RATE, False)


def nothing() -> None:
    pass


def test_the_recursion_has_its_known_answers() -> None:
    looks = Looks.of(3)
    expected = [1, 0.883333, 0.782222, 0.694593]
    np.testing.assert_allclose([looks.thetas[t] for t in range(4)], expected, atol=5e-7)
    expected = [2.805245, 2.082975, 1.384202, 0.694593]
    np.testing.assert_allclose([looks.along[t] for t in range(4)], expected, atol=5e-7)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"variant": "pds"}, [1.768128, 16.021568, -4.474528]),
        ({}, [2.887502, 2.193244, -1.917239]),
        ({"compat": True}, [0.479307, 0.615058, -0.398048]),
    ],
)
def test_labels_have_their_known_answers(options: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(Looks.of(3).told(**options), expected, atol=5e-7)


def test_pds_is_the_derivative_of_the_losses_to_come() -> None:
    def total(weights: Floats) -> float:
        theta, found = 1.0, 0.0
        for _ in range(3):
            theta -= RATE * float(weights @ (A.numpy() * (theta - X.numpy())))
            found += theta**2 / 2
        return found

    eye = 1e-6 * np.eye(3)
    slopes = [(total(1 / 3 + e) - total(1 / 3 - e)) / 2e-6 for e in eye]
    np.testing.assert_allclose(slopes, -RATE * Looks.of(3).told(variant="pds"), rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 17])
def test_segments_give_what_the_whole_trajectory_gives(steps: int) -> None:
    thetas, problem = [torch.ones(1).double()], Quadratics()
    for t in range(steps):
        thetas.append(thetas[-1] - RATE * problem.descent(t, {"w": thetas[-1]})["w"])
    along, expected = thetas[-1], {steps: float(thetas[-1])}
    for t in reversed(range(steps)):
        along = along + thetas[t] - RATE * A.mean() * along
        expected[t] = float(along)
    looks = Looks.of(steps)
    assert looks.along == expected
    assert looks.thetas == {t: float(theta) for t, theta in enumerate(thetas)}


def test_the_denominator_is_the_norm_at_the_next_visited_step() -> None:
    looks = Looks.of(6)
    by_hand = looks.dots[2] / looks.norms[4] + looks.dots[4] / looks.norms[6]
    np.testing.assert_allclose(looks.told(interval=2), by_hand, rtol=1e-12)
    own = sum(looks.along[t + 1] * np.sign(looks.dots[t]) for t in (2, 4))
    assert not np.allclose(looks.told(interval=2), own, rtol=0.05)
    assert visited(6, 4, "lqs", False) == [4]  # whose later step is the last one, 6
    ragged = looks.dots[4] / looks.norms[6]
    np.testing.assert_allclose(looks.told(interval=4), ragged, rtol=1e-12)


def test_a_zero_gradient_contributes_nothing_and_nan_stays() -> None:
    dots, norms = np.array([[1.0, 0, 4], [2.0, 0, np.nan]]), np.array([[1.0, 0, 1], [4.0, 0, 2]])
    assert gammas(dots, norms, np.array([0.0, 0, 1])).tolist()[:2] == [0.25, 0.0]
    scored = labels(np.array([[0.0, 1, 2, np.nan]]), np.ones((1, 4)), np.ones(4), "pds", 0.1, True)
    np.testing.assert_allclose(scored, [-np.sqrt(1.5), 0, np.sqrt(1.5), np.nan], atol=1e-12)
    many = np.zeros((1, 100))
    many[0, 0] = 1
    cut = labels(many, many, many[0], "pds", 0.1, True)
    assert cut[0] == 3.0
    same = labels(np.ones((1, 3)), np.ones((1, 3)), np.ones(3), "pds", 0.1, True)
    assert same.tolist() == [0, 0, 0]


def test_a_run_that_leaves_the_finite_numbers_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"finite numbers at step \d\d.*lower its `learning_rate`"):
        Looks.of(400, rate=50.0)
    with pytest.raises(ModelError, match="not finite before the first inner step"):
        Looks.of(2, Quadratics(X, A * torch.inf))


# a small language model
