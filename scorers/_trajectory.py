"""An inner training run and its adjoint: what each step of it did for a loss J along the way.

    forward    theta_{t+1} = theta_t - eta grad L_t(theta_t)                          t = 0 .. T-1
    backward   lambda_T = grad J(theta_T)
               lambda_t = lambda_{t+1} + grad J(theta_t) - eta Hess L_t(theta_t) lambda_{t+1}

lambda_t is the derivative of sum_{s=t..T} J(theta_s) with respect to theta_t. Adding w times the
loss l of a document to every L_t therefore changes sum_{s=1..T} J(theta_s), to first order, by
-eta w sum_{t=0..T-1} <lambda_{t+1}, grad l(theta_t)>.

The backward sweep needs every theta_t. Kept are theta_0, theta_s, theta_2s, ... (s the root of T,
rounded up) and theta_T; the steps between are taken again, one segment at a time. With a `Folder`
lambda is kept at the same places, so that a killed sweep goes on at the segment where it was.

Directions and parameters are tensors by name. Errors: DataError where a step leaves the finite
numbers. Memory: s + 3 times the parameters; disk: s + 2 times. Cost: 2 T gradients of L, T of J,
T Hessian-vector products of L.
Source: PDS (Gu et al. 2025), section 3; DELT (2025), equation 8; checkpoints after Griewank 1992.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.batches import Batch, batches
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.gradients import reference as references
from foresift.pipeline.lm.gradients.ghost import ghost
from foresift.pipeline.lm.gradients.hessian import hvp, loss_gradient
from foresift.pipeline.lm.gradients.reference import BACKWARD_TOKENS, ReferenceSet
from foresift.pipeline.lm.gradients.samples import Direction, Parameters, norm, trainable
from foresift.pipeline.lm.model import Loaded
from foresift.pipeline.lm.signals import segment_sums
from foresift.pipeline.store import publish, temporary

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Visit = Callable[[int, Parameters, Parameters | None], None]
Tick = Callable[[], None]


class Problem(Protocol):
    """What is trained on, and what it is for."""

    def descent(self, step: int, theta: Direction) -> Parameters:
        """grad L_t(theta)."""

    def curvature(self, step: int, theta: Direction, vector: Direction) -> Parameters:
        """Hess L_t(theta) v."""

    def aim(self, theta: Direction) -> Parameters:
        """grad J(theta)."""


class Store(Protocol):
    """Where parameters and adjoints are kept between the sweeps."""

    def has(self, name: str, step: int) -> bool: ...
    def put(self, name: str, step: int, values: Direction) -> None: ...
    def get(self, name: str, step: int) -> Parameters: ...
    def drop(self, name: str, step: int) -> None: ...


@dataclass(frozen=True)
class Memory:
    """Keeps tensors in memory."""

    kept: dict[tuple[str, int], Parameters] = field(default_factory=dict)

    def has(self, name: str, step: int) -> bool:
        return (name, step) in self.kept

    def put(self, name: str, step: int, values: Direction) -> None:
        self.kept[name, step] = dict(values)

    def get(self, name: str, step: int) -> Parameters:
        return self.kept[name, step]

    def drop(self, name: str, step: int) -> None:
        self.kept.pop((name, step), None)


@dataclass(frozen=True)
class Folder:
    """Keeps tensors as files, each whole or not at all."""

    path: Path
    device: str = "cpu"

    def _file(self, name: str, step: int) -> Path:
        return self.path / f"{name}-{step:04d}.safetensors"

    def has(self, name: str, step: int) -> bool:
        return self._file(name, step).exists()

    def put(self, name: str, step: int, values: Direction) -> None:
        from safetensors.torch import save_file

        file = self._file(name, step)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({n: v.detach().cpu().contiguous() for n, v in values.items()}, temporary(file))
        publish(temporary(file), file)

    def get(self, name: str, step: int) -> Parameters:
        from safetensors.torch import load_file

        found: Parameters = load_file(self._file(name, step), device=self.device)
        return found

    def drop(self, name: str, step: int) -> None:
        self._file(name, step).unlink(missing_ok=True)


def bounds(steps: int) -> list[int]:
    """Where parameters are kept: 0, s, 2s, ..., T."""
    return [*range(0, steps, math.isqrt(steps - 1) + 1), steps]


def forward(
    problem: Problem, start: Direction, steps: int, rate: float, store: Store, tick: Tick
) -> None:
    """Run from `start`, or from the last parameters that the store has, to theta_T."""
    places = bounds(steps)
    if not store.has("theta", 0):
        store.put("theta", 0, start)
    first = max(t for t in places if store.has("theta", t))
    theta = store.get("theta", first)
    for t in range(first, steps):
        theta = _step(problem, t, theta, rate)
        if t + 1 in places:
            store.put("theta", t + 1, theta)
        tick()


def backward(
    problem: Problem, steps: int, rate: float, store: Store, visit: Visit, tick: Tick
) -> Parameters:
    """Sweep back to lambda_0, calling visit(t, theta_t, lambda_{t+1}) for t = T-1, ..., 0.

    Before them comes visit(T, theta_T, None). A sweep that the store knows goes on.
    """
    places = bounds(steps)
    if not any(store.has("lambda", t) for t in places):
        theta = store.get("theta", steps)
        visit(steps, theta, None)
        store.put("lambda", steps, _finite(problem.aim(theta), steps, rate))
    first = min(t for t in places if store.has("lambda", t))
    along = store.get("lambda", first)
    for start, stop in reversed(list(pairwise(t for t in places if t <= first))):
        segment = [store.get("theta", start)]
        for t in range(start, stop - 1):
            segment.append(_step(problem, t, segment[-1], rate))
        for t in reversed(range(start, stop)):
            theta = segment.pop()
            visit(t, theta, along)
            along = _back(problem, t, theta, along, rate)
            tick()
        store.put("lambda", start, along)
        store.drop("lambda", stop)
    return along


def _step(problem: Problem, t: int, theta: Direction, rate: float) -> Parameters:
    gradient = _finite(problem.descent(t, theta), t, rate)
    return {name: values - rate * gradient[name] for name, values in theta.items()}


def _back(problem: Problem, t: int, theta: Direction, along: Direction, rate: float) -> Parameters:
    aim, bent = problem.aim(theta), problem.curvature(t, theta, along)
    found = {name: along[name] + aim[name] - rate * bent[name] for name in along}
    return _finite(found, t, rate)


def _finite(values: Parameters, t: int, rate: float) -> Parameters:
    if not math.isfinite(norm(values)):
        if t == 0:
            raise ModelError("the model's gradient is not finite before the first inner step")
        raise DataError(
            f"the inner run left the finite numbers at step {t}; lower its `learning_rate` "
            f"(it is {rate:g})"
        )
    return values


@dataclass(frozen=True)
class LanguageModel:
    """The problem of a language model: L_t the mean of document losses, J of reference losses.

    The model's own parameters are overwritten; it needs eager attention and eval mode.
    """

    loaded: Loaded
    pool: Encoded
    inner: Sequence[Integers]
    """The rows of `pool` in each step's batch."""
    aims: Sequence[tuple[ReferenceSet, float]]
    """The references and their weights."""

    def start(self) -> Parameters:
        """The parameters as they are now."""
        return {n: p.detach().clone() for n, p in trainable(self.loaded.model).items()}

    def place(self, theta: Direction) -> None:
        """Write the parameters into the model."""
        with torch.no_grad():
            for name, p in trainable(self.loaded.model).items():
                p.copy_(theta[name])

    def descent(self, step: int, theta: Direction) -> Parameters:
        self.place(theta)
        total = {n: torch.zeros_like(v) for n, v in theta.items()}
        for batch, weights in self._batches(step):
            _add(total, loss_gradient(self.loaded.model, batch, weights))
        return total

    def curvature(self, step: int, theta: Direction, vector: Direction) -> Parameters:
        self.place(theta)
        total = {n: torch.zeros_like(v) for n, v in theta.items()}
        for batch, weights in self._batches(step):
            _add(total, hvp(self.loaded.model, batch, weights, vector))
        return total

    def aim(self, theta: Direction) -> Parameters:
        self.place(theta)
        return references.combined(
            [(references.gradient(aim, self.loaded)[1], weight) for aim, weight in self.aims]
        )

    def loss(self, theta: Direction) -> float:
        """J(theta), nats per token."""
        self.place(theta)
        return sum(weight * references.loss(aim, self.loaded) for aim, weight in self.aims)

    def project(
        self, theta: Direction, documents: Encoded, along: Direction | None, norms: bool
    ) -> tuple[Floats, Floats]:
        """[n] <along, grad l_n(theta)> and [n] |grad l_n(theta)| (zeros for what is not asked)."""
        self.place(theta)
        dots, sizes = np.zeros(len(documents)), np.zeros(len(documents))
        rows = np.flatnonzero(segment_sums(documents.counts, documents.offsets))
        for batch in batches(documents, rows, backward_tokens(self.loaded)):
            found = ghost(self.loaded.model, batch, [] if along is None else [along], norms)
            if along is not None:
                dots[batch.documents] = found.dots[:, 0].cpu().numpy()
            if found.squared_norms is not None:
                squares = found.squared_norms.clamp_min(0)
                sizes[batch.documents] = squares.sqrt().cpu().numpy()
        return dots, sizes

    def _batches(self, step: int) -> Iterator[tuple[Batch, list[float]]]:
        """The step's documents that have a token to predict, each with weight 1 / their number."""
        rows = self.inner[step]
        rows = rows[segment_sums(self.pool.counts, self.pool.offsets)[rows] > 0]
        for batch in batches(self.pool, rows, backward_tokens(self.loaded)):
            yield batch, [1.0 / len(rows)] * len(batch.documents)


def backward_tokens(loaded: Loaded) -> int:
    """Tokens in one forward and backward, padding included."""
    return BACKWARD_TOKENS["cpu" if loaded.device == "cpu" else "cuda"]


def _add(total: Parameters, more: Direction) -> None:
    for name, values in more.items():
        total[name] += values
