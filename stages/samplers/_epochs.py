"""What epoch plans share: their random orders, the losses they remember, what a checkpoint keeps.

An epoch is planned from the losses that were known when it began. Losses that come during it are
kept beside them until the next one is asked for; so a run that was interrupted inside an epoch
asks for that epoch again and gets the same rows in the same order. A document told twice keeps the
last loss; one that was not visited keeps its old loss; a loss that is not finite is passed over.

Memory: 16 bytes a document. Draws are keyed by (seed, epoch) alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foresift.pipeline.errors import DataError
from foresift.pipeline.online import EpochPlan, Epochs, Floats, Rows, State
from foresift.pipeline.rng import Rng

Weights = npt.NDArray[np.float32]
#: (epoch, losses of all documents, source of draws) -> positions, weights
Visits = Callable[[int, Floats, np.random.Generator], tuple[Rows, Weights]]


@dataclass(frozen=True)
class Setting:
    """One opening of a plan: its part's fingerprint, n documents, so many epochs, a seed."""

    plan: str
    n: int
    epochs: int
    seed: int

    @classmethod
    def of(cls, part: EpochPlan, n: int, epochs: int, seed: int) -> Setting:
        """DataError where there is nothing to plan."""
        if n < 1:
            raise DataError(f"{n} documents: there must be at least 1", where="n")
        if epochs < 1:
            raise DataError(f"{epochs} epochs: there must be at least 1", where="epochs")
        return cls(part.fingerprint, int(n), int(epochs), int(seed))

    def generator(self, epoch: int) -> np.random.Generator:
        """The source of an epoch's draws."""
        if not 0 <= epoch < self.epochs:
            raise DataError(f"epoch {epoch} of {self.epochs}, counted from 0", where="epochs")
        return Rng(self.seed).at("epoch", epoch).generator()

    def state(self) -> State:
        """What a checkpoint says of it."""
        return {"plan": self.plan, "n": self.n, "epochs": self.epochs, "seed": self.seed}

    def check(self, state: State, *names: str) -> None:
        """DataError where the state is another opening's, or lacks one of these names."""
        own = self.state()
        absent = [name for name in (*own, *names) if name not in state]
        if absent:
            raise DataError(f"the state has no {', '.join(absent)}", where="epoch plan")
        other = [f"{k} is {state[k]!r}, not {own[k]!r}" for k in own if state[k] != own[k]]
        if other:
            raise DataError(f"the state is another plan's: {'; '.join(other)}", where="epoch plan")


class LossEpochs(Epochs):
    """Epochs that are planned from the last loss of each document."""

    def __init__(
        self, setting: Setting, visits: Visits, forecast: list[float], initial: float
    ) -> None:
        self._setting = setting
        self._visits = visits
        self._forecast = forecast
        self._epoch = -1
        self._losses = np.full(setting.n, initial)
        self._latest = self._losses.copy()

    def epoch(self, number: int) -> tuple[Rows, Weights]:
        draws = self._setting.generator(number)
        if number == self._epoch + 1:
            self._losses = self._latest.copy()
            self._epoch = number
        elif number != self._epoch:
            raise DataError(
                f"epoch {number} was asked for where epoch {self._epoch + 1} comes next; "
                "load the state that was saved with the model",
                where="epoch plan",
            )
        return self._visits(number, self._losses, draws)

    def update(self, positions: Rows, losses: Floats) -> None:
        rows = np.asarray(positions, dtype=np.int64)
        values = np.asarray(losses, dtype=np.float64)
        if rows.shape != values.shape or rows.ndim != 1:
            raise DataError(f"{rows.shape} positions, {values.shape} losses", where="losses")
        if len(rows) and (rows.min() < 0 or rows.max() >= self._setting.n):
            raise DataError(
                f"positions {rows.min()} .. {rows.max()} of {self._setting.n} documents",
                where="positions",
            )
        finite = np.isfinite(values)
        self._latest[rows[finite]] = values[finite]

    def forecast(self) -> list[float]:
        return list(self._forecast)

    def state_dict(self) -> State:
        arrays = {"losses": self._losses.copy(), "latest": self._latest.copy()}
        return {**self._setting.state(), "epoch": self._epoch, **arrays}

    def load_state_dict(self, state: State) -> None:
        self._setting.check(state, "epoch", "losses", "latest")
        losses, latest = (np.array(state[x], dtype=np.float64) for x in ("losses", "latest"))
        if losses.shape != latest.shape or losses.shape != (self._setting.n,):
            raise DataError(f"{losses.shape} losses, {latest.shape} latest", where="epoch plan")
        self._epoch, self._losses, self._latest = int(state["epoch"]), losses, latest


def kept(n: int, prune: float) -> int:
    """floor((1 - prune) n); 0.2 of 10 is 2, whatever 1 - 0.8 is in binary."""
    return math.floor((1.0 - prune) * n + 1e-9)


def anneals(epoch: int, epochs: int, delta: float) -> bool:
    """Whether epoch + 1, counted from 1, lies beyond delta of all epochs."""
    return epoch + 1 > math.floor(delta * epochs + 1e-9)


def equal_weights(n: int) -> Weights:
    """Each loss counts once."""
    return np.ones(n, dtype=np.float32)


def check_share(name: str, value: float, highest: float = 1.0) -> None:
    """ValueError unless the field lies in 0 .. highest."""
    if not 0.0 <= value <= highest:
        raise ValueError(f"{name} must be a number from 0 to {highest:g}")
