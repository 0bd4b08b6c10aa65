"""A bandit with contexts: what an arm is worth in a context, and how little is known of it.

With x_i, s_i, w_i the contexts, rewards and weights of an arm's observations, W = diag(w):

    mu(x)    = k_x^T (K + alpha W^-1)^-1 s
    sigma(x) = alpha^-1/2 sqrt(max(0, k(x, x) - k_x^T (K + alpha W^-1)^-1 k_x))
    ucb(x)   = mu(x) + eta sigma(x),       eta = sqrt(2 log(2 T G / delta))

Weights of 1 are the paper's; w = discount^age lets what is old count less, as rewards of a model in
training do. An arm without observations has mu 0 and sigma sqrt(k(x, x) / alpha).

    linear  x.y        rbf  exp(-gamma |x - y|^2)        polynomial  (gamma x.y + 1)^3

Cost: n^3 for n observations of an arm; there are as many as pulls. Source: PAK-UCB (Hu, Leung and
Farnia 2025), whose code updates inverses and offers random features for long runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Kernel = Literal["linear", "rbf", "polynomial"]
DEGREE = 3


def kernel(kind: Kernel, gamma: float, x: Floats, y: Floats) -> Floats:
    """[n, m] similarities of the rows of x and y."""
    product: Floats = x @ y.T
    if kind == "linear":
        return product
    if kind == "polynomial":
        cubed: Floats = (gamma * product + 1.0) ** DEGREE
        return cubed
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2.0 * product
    near: Floats = np.exp(-gamma * np.maximum(squares, 0.0))
    return near


def exploration(pulls: int, arms: int, delta: float) -> float:
    """eta for so many pulls in all."""
    return math.sqrt(2.0 * math.log(2.0 * pulls * arms / delta))


@dataclass(frozen=True)
class KernelUcb:
    """How observations of one arm tell of it."""

    kernel: Kernel = "rbf"
    gamma: float = 1.0
    alpha: float = 1.0

    def predict(
        self, x: Floats, seen: Floats, rewards: Floats, weights: Floats | None = None
    ) -> tuple[Floats, Floats]:
        """(mu, sigma) at the contexts `x` [m, d], from those `seen` [n, d] and their rewards."""
        own = np.array([self._similar(row[None], row[None])[0, 0] for row in x])
        if not len(seen):
            return np.zeros(len(x)), np.sqrt(np.maximum(own, 0.0) / self.alpha)
        noise = self.alpha / (np.ones(len(seen)) if weights is None else weights)
        cross = self._similar(seen, x)
        solved = np.linalg.solve(self._similar(seen, seen) + np.diag(noise), cross)
        left = np.maximum(own - (cross * solved).sum(0), 0.0)
        return solved.T @ rewards, np.sqrt(left / self.alpha)

    def _similar(self, x: Floats, y: Floats) -> Floats:
        return kernel(self.kernel, self.gamma, x, y)


def pull(upper: Sequence[float], observed: Sequence[bool], pending: Sequence[int]) -> int:
    """The arm to pull: each once first, in their order, then the largest upper bound.

    `pending` counts pulls whose reward is not known yet; ties go to the first arm.
    """
    new = [a for a, seen in enumerate(observed) if not seen and not pending[a]]
    if new:
        return new[0]
    if not any(observed):
        return int(np.argmin(pending))
    return int(np.argmax(np.where(observed, upper, -np.inf)))


def scaled(gains: Floats) -> Floats:
    """Rewards in [0, 1]: from the smallest gain seen to the largest; 1/2 where all are equal."""
    if not len(gains):
        return gains
    low, high = gains.min(), gains.max()
    if high == low:
        return np.full(len(gains), 0.5)
    rewards: Floats = (gains - low) / (high - low)
    return rewards
