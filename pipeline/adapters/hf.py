"""A stream in a transformers Trainer, and in what inherits its batch fetch (TRL's SFT and DPO).

    attached = attach(Trainer(...), method, of=64)
    attached.trainer.train()
    attached.report()

The Trainer fetches the micro-batches of an optimizer step at one point, `get_batch_samples`, when
all gradients are zero and the weights are those of every process. There the stream chooses. (A
sampler is asked one or more batches ahead, with weights of the past, and is replayed on resume.)

    rows trained on, a step      per-device batch x accumulation x processes = keep
    an epoch                     one pass over the candidates: rows // of steps (of an `order`
                                 that is given, its positions // of)
    max_steps, LR schedule       as the Trainer has them, from those steps
    num_items_in_batch           the Trainer's own count, of the chosen rows

The loader of the Trainer is replaced by one that counts steps and holds no rows, so workers,
sampler and length grouping of its arguments have no effect, and skipping batches on resume costs
nothing and draws nothing: `ignore_data_skip` may be on or off. A checkpoint gets a file with the
state of the stream; `train(resume_from_checkpoint=...)` reads it and refuses a checkpoint without.

Where the Trainer takes preference pairs (its columns are prompt_ids, chosen_ids, rejected_ids), a
row is a pair: sizes and counts above are of pairs, two lines of a batch each, and `side` says what
stands for a pair (`pairs.py`). Reference log-probabilities, computed before or by the trainer as it
goes, with a model of their own or without adapters, follow the chosen pairs. Scoring is with the
adapters on.

Candidates are scored in the Trainer's mixed precision (`bf16`, `fp16`), where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from foresift.pipeline.adapters._trainer import (
    REPLACED,
    Counted,
    checkpoint_of,
    columns_of,
    no_rows,
    refuse,
    takes_pairs,
)
from foresift.pipeline.errors import DataError
from foresift.pipeline.given_order import GivenOrder, candidate_order
from foresift.pipeline.lm.live import Mode
from foresift.pipeline.online import BatchMethod, TokenSelector
from foresift.pipeline.pairs import Side, source_of
from foresift.pipeline.stability import StabilityGuard
from foresift.pipeline.stream import Stream
from foresift.pipeline.stream_state import read_state, write_state

STATE_FILE = "foresift_stream.safetensors"
GUARD_FILE = "foresift_guard.safetensors"


def attach(
    trainer: Any,
    method: BatchMethod,
    *,
    of: int,
    keep: int | None = None,
    ids: str = "id",
    seed: int | None = None,
    mode: Mode = "eval",
    tokens: TokenSelector | None = None,
    order: Any = None,
    side: Side | None = None,
    at_once: int = 8,
    check_every: int = 50,
    ledger: str | Path | None = None,
) -> Attached:
    """Let a method choose each step's rows of a Trainer; call it before `train`.

    of      candidates of a step, in all processes together
    keep    rows trained on; what the Trainer's batch size and accumulation give, or an error
    ids     the column of ids of `train_dataset`, or "row" where row numbers never change
    seed    of the order of candidates; by default the Trainer's data_seed, else its seed
    side    of preference pairs: what stands for a pair, "mean" by default, "chosen" or "rejected"

    The rest is as for `Stream`.
    """
    args = trainer.args
    refuse(trainer)
    if takes_pairs(trainer):
        side = side or "mean"
    elif side is not None:
        raise DataError(f"{type(trainer).__name__} takes no preference pairs", where="side")
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if keep is not None and keep != batch:
        raise DataError(
            f"the Trainer trains on {batch} rows a step ({args.train_batch_size} x"
            f" {args.gradient_accumulation_steps} accumulated x {args.world_size} processes),"
            f" keep is {keep}; set per_device_train_batch_size or gradient_accumulation_steps",
            where="keep",
        )
    if not batch <= of:
        raise DataError(f"must be at least the {batch} rows of a step, got {of}", where="of")
    if seed is None:
        seed = args.data_seed if args.data_seed is not None else args.seed
    options = {"keep": batch, "of": of, "ids": ids, "seed": seed, "mode": mode, "tokens": tokens}
    options |= {"order": order, "side": side, "at_once": at_once, "check_every": check_every}
    options["ledger"] = ledger
    options["autocast"] = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    attached = Attached(trainer, method, options)
    for name in REPLACED:
        setattr(trainer, name, getattr(attached, name))
    trainer.add_callback(attached.callback)
    return attached


class Attached:
    """A Trainer whose rows a method chooses; `stream` is there when training has begun."""

    def __init__(self, trainer: Any, method: BatchMethod, options: Mapping[str, Any]) -> None:
        self.trainer, self.method, self.options = trainer, method, dict(options)
        self.data = columns_of(trainer, options["ids"])
        source = source_of(self.data, options["ids"], no_rows, options["side"], options["tokens"])
        order = candidate_order(options["order"], source, options["of"], options["seed"])
        if isinstance(order, GivenOrder):  # a plan is read once
            self.options["order"] = order
        self.steps_per_epoch = order.steps_per_epoch
        self.resumed: Path | None = None
        self.stream: Stream | None = None
        self.callback = _Saving(self)
        self._train = trainer.train
        source.read(order.rows(0)[:1])  # ids are there

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **fields: Any) -> Any:
        """The Trainer's own; every call begins a stream, where it is said from a checkpoint."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.trainer.args.output_dir)
        self.resumed, self.stream = (Path(folder) if folder else None), None
        if self.resumed is not None and not (self.resumed / STATE_FILE).is_file():
            raise DataError(
                f"no {STATE_FILE} here: the checkpoint is of a run without attach(), or was not"
                " finished; resume from another one",
                where=str(self.resumed),
            )
        return self._train(resume_from_checkpoint, *args, **fields)

    def get_train_dataloader(self) -> Any:
        """A loader of as many micro-batches as an epoch has; what it yields is not looked at."""
        micro = self.options["keep"] // self.trainer.args.gradient_accumulation_steps
        return torch.utils.data.DataLoader(
            Counted(self.steps_per_epoch * self.options["keep"]),
            batch_size=micro,
            generator=torch.Generator(),
        )

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """The micro-batches that the method chooses now, and how many tokens count in them."""
        stream = self.stream = self.stream or self._open()
        step = self.trainer.state.global_step
        if stream.step != step:
            raise DataError(
                f"the Trainer is at step {step}, the stream at step {stream.step}; both go on"
                " from a checkpoint by train(resume_from_checkpoint=...)",
                where="attach",
            )
        batches = stream.take(num_batches)
        return batches, self.trainer._get_num_items_in_batch(batches, device)

    def _open(self) -> Stream:
        trainer = self.trainer
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator, "training")
        stream = Stream(
            self.data,
            self.method,
            trainer.model_wrapped,
            collate=collate,
            optimizer=trainer.optimizer,
            rank=trainer.args.process_index,
            world=trainer.args.world_size,
            **self.options,
        )
        if self.resumed is not None:
            stream.load_state_dict(read_state(self.resumed / STATE_FILE))
        return stream

    def save(self, folder: Path) -> None:
        """Keep the state of the stream in a checkpoint."""
        if self.stream is not None:
            write_state(self.stream.state_dict(), folder / STATE_FILE)

    def flush(self) -> None:
        """Write the ledger, where there is one."""
        if self.stream is not None:
            self.stream.flush()

    def report(self) -> dict[str, Any]:
        """`Stream.report` of the training so far; empty before it."""
        return {} if self.stream is None else self.stream.report()

    def detach(self) -> None:
        """Give the Trainer its own batches back."""
        for name in REPLACED:
            delattr(self.trainer, name)
        self.trainer.remove_callback(self.callback)


class _Saving(TrainerCallback):
    """Adds the stream's file to a checkpoint as soon as that is written, and the ledger before."""

    def __init__(self, attached: Attached) -> None:
        self.attached = attached

    def on_step_end(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        if control.should_save:
            self.attached.flush()

    on_epoch_end = on_step_end

    def on_train_end(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        self.attached.flush()

    def on_save(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        if args.should_save:
            self.attached.save(checkpoint_of(args, state))


class GuardCallback(TrainerCallback):
    """A stability guard in a Trainer: `trainer.add_callback(GuardCallback(guard))`.

    Every `train` is a switch, unless it goes on from a checkpoint in the Trainer's `output_dir` in
    which the guard's state lies.
    """

    def __init__(self, guard: StabilityGuard) -> None:
        self.guard = guard

    def on_train_begin(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        file = checkpoint_of(args, state) / GUARD_FILE
        if state.global_step and file.is_file():
            self.guard.load_state_dict(read_state(file))
        else:
            self.guard.switch(fields["model"], state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        self.guard.after_step(fields["model"], state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        if args.should_save:
            write_state(self.guard.state_dict(), checkpoint_of(args, state) / GUARD_FILE)
