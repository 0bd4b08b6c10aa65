"""A stream in a Lightning Trainer: a data module whose batches the live model chooses.

    chosen = data_module(rows, method, keep=8, of=32, collate=collate)
    trainer.fit(module, datamodule=chosen)
    chosen.report()

    rows trained on, a step   keep, in all processes together, cut into accumulate_grad_batches
                              micro-batches: one choice an optimizer step
    an epoch                  one pass over the candidates: rows // of steps
    max_steps, max_epochs     as the Trainer has them, from those steps

Lightning's fetcher asks one batch ahead where a loader has no length, which would be a choice with
weights of the past; the loader here has one, and every choice checks that the Trainer has made all
steps before it.

The state of the stream is that of the data module in a checkpoint, and so is read by every resume.
(That of a loader is read only where an epoch was left unfinished.) A checkpoint saved within a step
(by a signal, an exception, between two micro-batches) holds the state from before its choice, so
that the same rows are chosen again; the gradients of micro-batches already seen are in none.

Candidates are scored in the Trainer's mixed precision, where it has one.
Errors: DataError with the reason, where the Trainer cannot work with it.
"""

from __future__ import annotations

import copy
import functools
import inspect
import operator
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.given_order import GivenOrder, candidate_order
from foresift.pipeline.lm.live import Mode
from foresift.pipeline.online import BatchMethod, State, TokenSelector
from foresift.pipeline.stream import Stream
from foresift.pipeline.stream_rows import Collate, RowSource
from foresift.pipeline.stream_state import read_state, write_state

#: what Lightning calls the precisions that were tried here; others bring layers of their own
_PRECISIONS = ("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed")
_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def data_module(
    data: Any,
    method: BatchMethod,
    *,
    keep: int,
    of: int,
    collate: Collate,
    model: str = "model",
    validation: Any = None,
    ids: str = "id",
    seed: int = 0,
    mode: Mode = "eval",
    tokens: TokenSelector | None = None,
    order: Any = None,
    at_once: int = 8,
    check_every: int = 50,
    ledger: str | Path | None = None,
) -> Any:
    """A LightningDataModule of the rows that a method chooses, for `Trainer.fit`.

    model       attribute of the LightningModule that holds the causal language model
    validation  loaders for validation_step, as `val_dataloader` would give them
    keep, of    rows trained on and candidates of an optimizer step, in all processes together

    The rest is as for `Stream`.
    """
    if isinstance(data, torch.utils.data.IterableDataset):
        raise DataError(
            "an IterableDataset has no rows by number; candidates need len() and []", where="data"
        )
    source = RowSource(data, ids, collate)
    made = candidate_order(order, source, of, seed)
    source.read(made.rows(0)[:1])  # ids are there
    options = {"keep": keep, "of": of, "ids": ids, "seed": seed, "mode": mode, "tokens": tokens}
    options |= {"at_once": at_once, "check_every": check_every, "collate": collate}
    options["ledger"] = ledger
    options["order"] = made if isinstance(made, GivenOrder) else order  # a plan is read once
    return _kind()(data, method, model, validation, made.steps_per_epoch, options)


class Batches:
    """The loader: one choice an optimizer step; its length is that of an epoch."""

    def __init__(self, owner: Any, length: int) -> None:
        self.owner, self.length = owner, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self  # asked for more than once at the start, when nothing may be chosen yet

    def __next__(self) -> Any:
        return self.owner.next_batch()

    def state_dict(self) -> State:
        """Nothing: the data module has it; Lightning warns of loaders that cannot go on."""
        return {}

    def load_state_dict(self, state: State) -> None:
        return None


class _Choosing:
    """Rows of a data set that a method chooses; `stream` is there when training has begun."""

    trainer: Any  # set by Lightning

    def __init__(
        self,
        data: Any,
        method: BatchMethod,
        model: str,
        validation: Any,
        steps: int,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.data, self.method, self.model, self.validation = data, method, model, validation
        self.steps_per_epoch, self.options = steps, options
        self.stream: Stream | None = None
        self._resumed: State = {}
        self._before: tuple[int, State] = (-1, {})
        self._window: list[Any] | None = None
        if validation is not None:  # a hook that is there without validation_step is warned of
            self.val_dataloader = self._validation

    def setup(self, stage: str) -> None:
        """Begin; a further `fit` of one Trainer goes on from its steps."""
        if stage == "fit":
            _refuse(self.trainer)
            self.load_state_dict(self.state_dict() if self.trainer.global_step else {})

    def teardown(self, stage: str) -> None:
        """Write the ledger, where there is one."""
        if self.stream is not None:
            self.stream.flush()

    def train_dataloader(self) -> Batches:
        return Batches(self, self.steps_per_epoch * self.trainer.accumulate_grad_batches)

    def _validation(self) -> Any:
        return self.validation

    def next_batch(self) -> Any:
        """The micro-batch that the Trainer is at; the choice comes with the first of a step."""
        cut = self.trainer.accumulate_grad_batches
        place = (self.trainer.fit_loop.batch_idx + 1) % cut
        if place == 0 or self._window is None:
            self._window = self._choose(cut)
        return self._window[place]

    def _choose(self, cut: int) -> list[Any]:
        trainer = self.trainer
        if cut > 1 and trainer.num_training_batches % cut:
            raise DataError(
                f"an epoch of {trainer.num_training_batches} batches ends within a step of"
                f" {cut} micro-batches; set limit_train_batches to a multiple of {cut}",
                where="fit",
            )
        stream = self.stream = self.stream or self._open()
        if stream.step != trainer.global_step:
            raise DataError(
                f"the Trainer is at step {trainer.global_step}, the stream at step"
                f" {stream.step}: the checkpoint is of a run without this data module, or a"
                " batch was asked for before the one before it was trained on, or left out",
                where="fit",
            )
        self._before = (stream.step, copy.deepcopy(stream.standing()))
        return stream.take(cut)

    def _open(self) -> Stream:
        trainer = self.trainer
        module = trainer.lightning_module
        try:
            model = operator.attrgetter(self.model)(module)
        except AttributeError:
            raise DataError(
                f"{type(module).__name__} has no attribute {self.model!r}; name the one that"
                ' holds the causal language model with model="..."',
                where="model",
            ) from None
        ranks: dict[str, Any] = {"rank": trainer.global_rank, "world": trainer.world_size}
        optimizer = trainer.optimizers[0]
        ranks["autocast"] = _MIXED.get(trainer.precision)
        stream = Stream(self.data, self.method, model, optimizer=optimizer, **ranks, **self.options)
        if self._resumed:
            stream.load_state_dict(_unpacked(self._resumed["stream"]))
        return stream

    def state_dict(self) -> State:
        """Where the stream stands; within a step, where it stood before the choice."""
        if self.stream is None:
            return self._resumed
        self.stream.flush()
        step, before = self._before
        within = step == self.trainer.global_step
        return {"stream": _packed(before if within else self.stream.standing())}

    def load_state_dict(self, state: State) -> None:
        self.stream, self._window = None, None
        self._resumed, self._before = dict(state), (-1, {})

    def report(self) -> dict[str, Any]:
        """`Stream.report` of the training so far; empty before it."""
        return {} if self.stream is None else self.stream.report()


@functools.cache
def _kind() -> Any:
    """The class of the data modules; made when asked for, as it needs the lightning package."""
    from lightning.pytorch import LightningDataModule

    # its name is that of its state in a checkpoint
    return type("ChosenRows", (_Choosing, LightningDataModule), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    if name == "ChosenRows":  # pickle asks, where processes are spawned
        return _kind()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _packed(state: State) -> torch.Tensor:
    """A state as bytes in a tensor: torch.load takes that where arrays are not trusted."""
    with tempfile.TemporaryDirectory() as folder:
        write_state(state, Path(folder) / "state")
        return torch.frombuffer(
            bytearray((Path(folder) / "state").read_bytes()), dtype=torch.uint8
        ).clone()


def _unpacked(packed: torch.Tensor) -> State:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "state").write_bytes(packed.cpu().numpy().tobytes())
        return read_state(Path(folder) / "state")


def _refuse(trainer: Any) -> None:
    """DataError with the reason, where a stream cannot choose for this Trainer."""
    from lightning.pytorch.callbacks import GradientAccumulationScheduler
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

    module, strategy = trainer.lightning_module, trainer.strategy
    scheduled = any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks)
    asked = inspect.signature(module.training_step).parameters
    reasons = {
        f"{type(strategy).__name__} may share out the weights; scoring needs whole weights in each"
        " process: one device or DDP":
            not isinstance(strategy, (DDPStrategy, SingleDeviceStrategy)),
        f"precision {trainer.precision!r} was never tried; take one of {', '.join(_PRECISIONS)}":
            trainer.precision not in _PRECISIONS,
        "with manual optimization nobody can tell which batches make a step":
            not module.automatic_optimization,
        "GradientAccumulationScheduler changes what a step is within a run; accumulate by"
        " accumulate_grad_batches": scheduled,
        "overfit_batches wants the same batches again, which the model does not choose":
            bool(trainer.overfit_batches),
        "training_step takes a dataloader_iter, and may read ahead of its steps":
            "dataloader_iter" in asked,
    }  # fmt: skip
    for reason, holds in reasons.items():
        if holds:
            raise DataError(reason, where="fit")
