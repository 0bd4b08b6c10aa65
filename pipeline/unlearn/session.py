"""What one unlearning run works on: model, documents, batches by (seed, step), counted FLOPs.

    FLOPs = N * (6 * tokens with a backward pass + 2 * tokens without)      N parameters, tied once

Forget documents come in passes, each in an order drawn from (seed, pass); a batch may hold the end
of one pass and the start of the next. Retain documents are drawn anew from (seed, step) without
replacement. Readings of a step are made when they are asked for, and counted then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.rng import Rng
from foresift.pipeline.unlearn.documents import Documents, Reading, read

Indexes = np.ndarray[Any, Any]


@dataclass(eq=False)
class Meter:
    """Floating point operations so far."""

    size: int
    """Parameters of the model."""
    flops: int = 0

    def add(self, batch: Batch, *, per_token: int, size: int = 0) -> None:
        """`per_token` is 2 for a forward, 4 for a backward pass, 6 for both."""
        self.flops += per_token * (size or self.size) * int(batch.lengths.sum())


@dataclass(eq=False)
class Session:
    """One run, as its method sees it."""

    model: Any
    parameters: dict[str, torch.Tensor]
    """What may move, by name."""
    forget: Documents
    retain: Documents
    templates: Documents | None
    """The good answers, aligned with `forget`, prompts included."""
    reference: Any
    """A frozen model, or None where the method needs none."""
    batch: int
    seed: int
    steps: int
    learning_rate: float
    meter: Meter
    state: dict[str, Any] = field(default_factory=dict)
    """What a method carries from step to step."""
    told: Callable[[int, int], None] | None = None
    """Hears of every step: how many are done, of how many."""

    @property
    def moving(self) -> list[torch.Tensor]:
        """The tensors that may move, in a fixed order."""
        return list(self.parameters.values())

    def read(self, batch: Batch, *, per_token: int = 6) -> Reading:
        """The model's reading, with a graph where a backward pass is counted."""
        self.meter.add(batch, per_token=per_token)
        with torch.set_grad_enabled(per_token > 2):
            return read(self.model, batch)

    def generator(self, *names: str | int) -> np.random.Generator:
        """Draws for a place in this run."""
        return Rng(self.seed).at("unlearn", *names).generator()

    def forget_rows(self, step: int) -> Indexes:
        """Which forget documents the step reads."""
        count = len(self.forget)
        size = min(self.batch, count)
        places = np.arange(step * size, (step + 1) * size)
        orders = {
            p: self.generator("forget", int(p)).permutation(count) for p in set(places // count)
        }
        return np.array([orders[p // count][p % count] for p in places], dtype=np.int64)

    def retain_rows(self, step: int, size: int = 0) -> Indexes:
        """Which retain documents the step reads, in ascending order."""
        size = min(size or self.batch, len(self.retain))
        draws = self.generator("retain", step).choice(len(self.retain), size=size, replace=False)
        return np.sort(draws)


@dataclass(eq=False)
class Step:
    """One step: its batches, and what the models say of them."""

    session: Session
    number: int

    @cached_property
    def forget_batch(self) -> Batch:
        """The forget documents of this step."""
        return self.session.forget.batch(self.session.forget_rows(self.number))

    @cached_property
    def retain_batch(self) -> Batch:
        """The retain documents of this step."""
        return self.session.retain.batch(self.session.retain_rows(self.number))

    @cached_property
    def template_batch(self) -> Batch:
        """The good answers to this step's forget documents."""
        assert self.session.templates is not None
        return self.session.templates.batch(self.session.forget_rows(self.number))

    @cached_property
    def forget(self) -> Reading:
        """The forget batch under the model, with its graph."""
        return self.session.read(self.forget_batch)

    @cached_property
    def retain(self) -> Reading:
        """The retain batch under the model, with its graph."""
        return self.session.read(self.retain_batch)

    @cached_property
    def templates(self) -> Reading:
        """The good answers under the model, with their graph."""
        return self.session.read(self.template_batch)

    @cached_property
    def forget_before(self) -> Reading:
        """The forget batch under the reference."""
        return self._before(self.forget_batch)

    @cached_property
    def retain_before(self) -> Reading:
        """The retain batch under the reference."""
        return self._before(self.retain_batch)

    @cached_property
    def templates_before(self) -> Reading:
        """The good answers under the reference."""
        return self._before(self.template_batch)

    def seen(self) -> dict[str, float]:
        """Mean NLL of the readings that were made, nats per token."""
        found = {name: self.__dict__.get(name) for name in ("forget", "retain")}
        return {f"{n}_nll": float(r.mean.detach()) for n, r in found.items() if r is not None}

    def _before(self, batch: Batch) -> Reading:
        self.session.meter.add(batch, per_token=2)
        with torch.no_grad():
            return read(self.session.reference, batch)


def gradient(loss: torch.Tensor, session: Session) -> torch.Tensor:
    """[P] the gradient of a loss for all that may move, as one vector; its graph is kept."""
    found = torch.autograd.grad(
        loss, session.moving, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return flat(found)


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """[P] all entries of the tensors, one after another."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def place(session: Session, values: torch.Tensor) -> None:
    """Write [P] values into all that may move."""
    start = 0
    with torch.no_grad():
        for p in session.moving:
            p.copy_(values[start : start + p.numel()].view_as(p))
            start += p.numel()
