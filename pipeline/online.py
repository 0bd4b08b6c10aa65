"""The nouns of online selection: what is trained on next is chosen while the model learns.

    BatchMethod    open(live) -> Chooser     which candidates of a step are trained on
    EpochPlan      open(n, epochs, seed) -> Epochs    which rows an epoch visits, their weights
    TokenSelector  open(live) -> Masker      which tokens of the chosen rows count in the loss

A part is configuration; what it opens carries the state. State is numbers and arrays that go into a
checkpoint and come back from it (`state_dict`, `load_state_dict`), and everything random in it is
keyed by the seed and the step, so that a run that was interrupted goes on as if it had not been.

A Chooser measures rows by themselves, so that each process may measure its share; the measurements
of all are then put together in the order of the candidates, and every process makes one and the
same choice of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foresift.pipeline.parts import Part

if TYPE_CHECKING:
    import torch

    from foresift.pipeline.lm.live import LiveModel, Seen

State = dict[str, Any]
Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
#: the label of a token that does not count in the loss
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Candidates:
    """B rows that a step may train on, as the collator made them; padded on either side."""

    rows: Rows
    """[B] row numbers in the data set."""
    ids: tuple[str, ...]
    """[B] ids, the same in every run over the data set."""
    input_ids: torch.Tensor
    """[B, L] int64 token ids."""
    attention_mask: torch.Tensor
    """[B, L] 1 where there is a token, 0 where there is padding."""
    labels: torch.Tensor
    """[B, L] the token where it counts in the loss, else IGNORED; not shifted."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: Rows) -> Candidates:
        """Some of them, in the order given."""
        places = np.asarray(which, dtype=np.int64).tolist()
        return Candidates(
            self.rows[which],
            tuple(self.ids[i] for i in places),
            self.input_ids[places],
            self.attention_mask[places],
            self.labels[places],
        )


class Stateful(ABC):
    """Something that a checkpoint keeps."""

    @abstractmethod
    def state_dict(self) -> State:
        """Numbers, strings, arrays and tensors by name; what `load_state_dict` needs."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Go on from there; DataError where the state is another configuration's."""


class Running(Stateful):
    """The running side of a part; it keeps nothing unless it says so."""

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Looking(Part):
    """A part that is told what one forward of the live model says of its rows."""

    @property
    @abstractmethod
    def signals(self) -> tuple[str, ...]:
        """Names from `pipeline/lm/signals.py`; `nll` is the loss of each counted token."""

    @property
    def hidden(self) -> bool:
        """Whether the final hidden states are read as well (`Seen.hidden`)."""
        return False


class Chooser(Running):
    """The running side of a BatchMethod."""

    @abstractmethod
    def measure(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        """Name -> [b, ...] of some of the candidates; each row by itself, nothing remembered."""

    @abstractmethod
    def utility(self, measured: Mapping[str, torch.Tensor], step: int) -> Floats:
        """[B] larger = train on it; NaN where a row cannot be judged (it is taken last)."""

    def observe(self, measured: Mapping[str, torch.Tensor], chosen: Rows) -> None:
        """Told which candidates were chosen."""
        return None


@dataclass(frozen=True, kw_only=True)
class BatchMethod(Looking):
    """Chooses which candidates of a step are trained on."""

    @abstractmethod
    def open(self, live: LiveModel) -> Chooser:
        """Begin, with the model that is being trained."""


class Epochs(Stateful):
    """The running side of an EpochPlan."""

    @abstractmethod
    def epoch(self, number: int) -> tuple[Rows, npt.NDArray[np.float32]]:
        """(positions in training order, loss weight of each) of an epoch, counted from 0."""

    @abstractmethod
    def update(self, positions: Rows, losses: Floats) -> None:
        """Told the training losses of documents as they come, in nats per token."""

    @abstractmethod
    def forecast(self) -> list[float]:
        """Documents that each epoch is expected to visit, before training."""


@dataclass(frozen=True, kw_only=True)
class EpochPlan(Part):
    """Chooses which rows an epoch visits, from the losses of the epochs before."""

    @abstractmethod
    def open(self, n: int, epochs: int, seed: int) -> Epochs:
        """Begin, for n documents (positions 0 .. n-1) and so many epochs."""


class Masker(Running):
    """The running side of a TokenSelector."""

    @abstractmethod
    def labels(self, seen: Seen, step: int) -> torch.Tensor:
        """[B, L] the labels of the candidates, IGNORED where a token shall not count."""


@dataclass(frozen=True, kw_only=True)
class TokenSelector(Looking):
    """Chooses which tokens of the rows that are trained on count in the loss."""

    @abstractmethod
    def open(self, live: LiveModel) -> Masker:
        """Begin, with the model that is being trained."""
