"""An epoch plan in a transformers Trainer, and in TRL's SFTTrainer.

    attached = attach_epochs(Trainer(...), InfoBatch(prune=0.5))
    attached.forecast()             # steps, and the share that is saved against full epochs
    attached.trainer.train()
    attached.report()

The rows of every optimizer step come from an `EpochStream` by way of `get_batch_samples`; a step is
per-device batch x accumulation x processes rows, and there are `num_train_epochs` epochs of the
plan, each as long as it makes it (`state.epoch`, and what is done once an epoch, follow it).

Losses for the plan are taken from the forward that trains: what the model put out is seen by a hook
while `compute_loss` runs, and no second forward is made. A row's loss is the mean over its counted
tokens, in nats, from `logits` or, where a fused head gives none (TRL), from `log_probs`. The plan
is told once a step, by all processes; evaluation tells it nothing.

Weights. The Trainer's loss is a mean over tokens. With S_i the sum over the counted tokens of row i
and N what the Trainer divides by (`num_items_in_batch`, the counted tokens of the whole step; of
the micro-batch, for a model that does not take it), a plan that gives row i the weight w_i makes it

    sum_i w_i S_i / N  =  the Trainer's own loss  +  sum_i (w_i - 1) S_i / N

N is not weighted. So a weight multiplies the gradient of each token of its row, a long row still
counts for more than a short one, and the expectation over InfoBatch's draw is the sum over all rows
of S_i (at one N). Where all weights are 1 the loss is the Trainer's own, to the bit. Terms that are
not of tokens (the balance of experts) are not weighted.

Schedule. Where the user gave no `max_steps`, the schedule of the learning rate is made for the
steps of the forecast, and every epoch gets the stretch of it that was forecast for that epoch:
where the epoch has fewer steps or more (k-means groups, `infobatch`), they are longer or shorter.
So the plan is always trained to its end and the schedule ends there too, neither cut off nor at
its end value for long; where the forecast holds, each step has the rate that it would have had.
(Schedules made of `get_scheduler`; one that is given to the Trainer is left as it is.) A
`max_steps` of the user is kept, schedule included: training ends there or with the plan, whichever
is first.

A checkpoint gets a file with the state of the plan; `train(resume_from_checkpoint=...)` reads it
and refuses a checkpoint without. The Trainer's loader is replaced by one that counts steps, as in
`hf.py`. Cost a step: the cross entropy of each row once more without gradients (not for TRL), with
gradients for rows of a weight other than 1, one row's logits in float32 at a time; one gather.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import DefaultFlowCallback
from transformers.trainer_utils import get_last_checkpoint

from foresift.pipeline.adapters._epochs_fit import refuse_trainer, refuse_weights, whole_epochs
from foresift.pipeline.adapters._pace import Pace
from foresift.pipeline.adapters._row_losses import row_sums, watched
from foresift.pipeline.adapters._trainer import Counted, checkpoint_of, columns_of, no_rows
from foresift.pipeline.epoch_stream import EpochStream, Visit
from foresift.pipeline.errors import DataError
from foresift.pipeline.online import EpochPlan, Rows, State
from foresift.pipeline.stream_rows import RowSource
from foresift.pipeline.stream_state import read_state, write_state

STATE_FILE = "foresift_epochs.safetensors"
_REPLACED = (
    "train", "get_train_dataloader", "set_initial_training_values", "_init_training_state",
    "create_scheduler", "get_batch_samples", "compute_loss",
)  # fmt: skip


class Forecast(NamedTuple):
    """What a plan expects of a training, before it."""

    steps: int
    """Optimizer steps of all epochs."""
    by_epoch: tuple[int, ...]
    """Optimizer steps of each."""
    full: int
    """Optimizer steps of as many epochs over all rows."""

    @property
    def saved(self) -> float:
        """The share of the steps of full epochs that is left out."""
        return 1.0 - self.steps / self.full


def attach_epochs(
    trainer: Any,
    plan: EpochPlan,
    *,
    ids: str = "id",
    seed: int | None = None,
    ledger: str | Path | None = None,
) -> AttachedEpochs:
    """Let a plan say which rows each epoch of a Trainer visits; call it before `train`.

    ids     the column of ids of `train_dataset`, or "row" where row numbers never change
    seed    of the plan; by default the Trainer's data_seed, else its seed
    ledger  folder in which it is kept which rows entered which step (`stream_ledger.py`)
    """
    args = trainer.args
    refuse_trainer(trainer)
    if seed is None:
        seed = args.data_seed if args.data_seed is not None else args.seed
    attached = AttachedEpochs(trainer, plan, ids, seed, ledger)
    refuse_weights(trainer, plan, len(attached.data))
    for name in _REPLACED:
        setattr(trainer, name, getattr(attached, name))
    trainer.add_callback(attached.callback)
    return attached


class AttachedEpochs:
    """A Trainer whose epochs are a plan's; `stream` is that of the training begun last."""

    def __init__(
        self, trainer: Any, plan: EpochPlan, ids: str, seed: int, ledger: str | Path | None = None
    ) -> None:
        self.trainer, self.plan, self.ids, self.seed = trainer, plan, ids, seed
        self.ledger = ledger
        self.data = columns_of(trainer, ids)
        RowSource(self.data, ids, no_rows).read(np.array([0]))  # ids are there
        self.own: dict[str, Callable[..., Any]] = {n: getattr(trainer, n) for n in _REPLACED}
        self.callback = _Following(self)
        self._begin(None)
        if not self.forecast().steps:
            raise DataError(
                f"no epoch of the plan fills one step of {self.stream.batch} rows; lower"
                " per_device_train_batch_size or gradient_accumulation_steps, or prune less",
                where="plan",
            )

    def forecast(self) -> Forecast:
        """Steps that the plan expects of the whole training, and those of full epochs."""
        stream = self._open()
        planned = tuple(stream.planned_steps_by_epoch)
        return Forecast(sum(planned), planned, stream.count * (len(self.data) // stream.batch))

    def _open(self) -> EpochStream:
        trainer, args = self.trainer, self.trainer.args
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator, "training")
        return EpochStream(
            self.data,
            self.plan,
            batch=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            epochs=whole_epochs(args),
            collate=collate,
            seed=self.seed,
            ids=self.ids,
            rank=args.process_index,
            world=args.world_size,
            ledger=self.ledger,
        )

    def _begin(self, checkpoint: Path | None) -> None:
        """A fresh stream, or the one that a checkpoint keeps."""
        self.stream, self.resumed = self._open(), checkpoint
        self.pace = Pace(self.stream.planned_steps_by_epoch)
        self._visits: deque[Visit] = deque()
        self._told: list[tuple[Rows, torch.Tensor]] = []
        if checkpoint is not None:
            state = read_state(checkpoint / STATE_FILE)
            self.stream.load_state_dict(state["stream"])
            self.pace.found = [int(steps) for steps in state["found"]]
        self._reached, self._more = (0, 0.0), self._advance()

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **fields: Any) -> Any:
        """The Trainer's own; every call begins the plan, where it is said from a checkpoint."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.trainer.args.output_dir)
        if folder and not (Path(folder) / STATE_FILE).is_file():
            raise DataError(
                f"no {STATE_FILE} here: the checkpoint is of a run without attach_epochs(), or was"
                " not finished; resume from another one",
                where=str(folder),
            )
        self._begin(Path(folder) if folder else None)
        return self.own["train"](resume_from_checkpoint, *args, **fields)

    def get_train_dataloader(self) -> Any:
        """A loader with the micro-batches of a full epoch; what it yields is not looked at."""
        accumulated = self.trainer.args.gradient_accumulation_steps
        steps = len(self.data) // self.stream.batch
        return torch.utils.data.DataLoader(
            Counted(steps * self.stream.batch),
            batch_size=self.stream.batch // accumulated,
            generator=torch.Generator(),
        )

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """The Trainer's own, with the epochs of the plan and the steps of its forecast."""
        values = list(self.own["set_initial_training_values"](args, dataloader))
        values[0] = self.stream.count
        if args.max_steps <= 0:
            values[6] = self.stream.planned_steps
            values[3] = values[6] * self.stream.batch
        return tuple(values)

    def _init_training_state(self, *args: Any, **fields: Any) -> tuple[int, int]:
        """The Trainer's own; where the plan stands, not where equal epochs would."""
        found = self.own["_init_training_state"](*args, **fields)
        trainer, stream = self.trainer, self.stream
        if self.resumed is not None:
            self._check()
            skipped = 0 if trainer.args.ignore_data_skip else stream.step
            found = stream.epoch, skipped * trainer.args.gradient_accumulation_steps
            if not stream.more():
                found = stream.count, 0
        self._expect(trainer.state)
        return found[0], found[1]

    def create_scheduler(self, num_training_steps: int, *args: Any, **fields: Any) -> Any:
        """The Trainer's own, made for the forecast and followed at the pace of the epochs."""
        before = self.trainer.lr_scheduler
        made = self.own["create_scheduler"](num_training_steps, *args, **fields)
        ours = made is not before and self.trainer.args.max_steps <= 0
        if ours and isinstance(made, torch.optim.lr_scheduler.LambdaLR):
            made.lr_lambdas = [self._paced(rate) for rate in made.lr_lambdas]
        return made

    def _paced(self, rate: Callable[[Any], float]) -> Callable[[int], float]:
        return lambda step: rate(self.pace.at(step))

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """The micro-batches that the plan visits now, and how many tokens count in them."""
        self._check()
        visits = self.stream.take(num_batches)
        self._visits, self._told = deque(visits), []
        batches = [visit.batch for visit in visits]
        return batches, self.trainer._get_num_items_in_batch(batches, device)

    def _check(self) -> None:
        step = self.trainer.state.global_step
        if self.stream.done != step:
            raise DataError(
                f"the Trainer is at step {step}, the plan at step {self.stream.done}; both go on"
                " from a checkpoint by train(resume_from_checkpoint=...)",
                where="attach_epochs",
            )

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **fields: Any,
    ) -> Any:
        """The Trainer's own, plus what weights add to it; keeps the loss of each row."""
        own = self.own["compute_loss"]
        fields |= {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        if not (self._visits and model.training):
            return own(model, inputs, **fields)
        visit = self._visits.popleft()
        labels = inputs.get("labels")  # the Trainer takes them out where it smooths them
        with watched(model) as seen:
            found = own(model, inputs, **fields)
        loss, outputs = found if return_outputs else (found, None)
        weighs = visit.weights != 1
        sums, counts = row_sums(seen, labels, weighs.tolist())
        self._told.append((visit.positions, (sums / counts).detach()))
        if weighs.any():
            excess = ((visit.weights.to(sums) - 1) * sums).sum()
            loss = loss + excess * self._scale(num_items_in_batch, counts)
        return (loss, outputs) if return_outputs else loss

    def _scale(self, items: Any, counts: torch.Tensor) -> Any:
        """What the Trainer multiplies the sum over the tokens of a micro-batch by."""
        if items is None:
            return 1 / counts.sum().clamp(min=1)
        averaged = self.trainer.args.average_tokens_across_devices
        return (self.trainer.accelerator.num_processes if averaged else 1) / items

    def observe(self) -> None:
        """Tell the plan the losses of a step, before the schedule takes its next one."""
        stream = self.stream
        if not self._told or self._visits:
            raise DataError(
                f"{len(self._told)} losses of {len(self._told) + len(self._visits)} micro-batches:"
                " the Trainer does not train by compute_loss, once a micro-batch",
                where="attach_epochs",
            )
        rows, losses = zip(*self._told, strict=True)
        stream.observe(np.concatenate(rows), torch.cat(losses))
        self._told = []
        self._reached = stream.epoch, stream.step / stream.steps_of_epoch
        self._more = self._advance()

    def step_done(self, args: Any, state: Any, control: Any) -> None:
        """Tell the Trainer where the plan stands after a step."""
        epoch, share = self._reached
        state.epoch = epoch + share
        self._expect(state)
        control.should_epoch_stop |= self.stream.epoch != epoch
        if not self._more:  # ends as at max_steps, with the last evaluation and checkpoint
            state.max_steps = state.global_step
            DefaultFlowCallback().on_step_end(args, state, control)

    def _advance(self) -> bool:
        """Go on to the epoch of the next step; False where there is none."""
        more, stream = self.stream.more(), self.stream
        if stream.steps_of_epoch > len(self.data) // stream.batch:
            raise DataError(
                f"epoch {stream.epoch} visits more rows than the {len(self.data)} of the data",
                where="plan",
            )
        self.pace.learn(stream.epoch, stream.steps_of_epoch)
        return more

    def _expect(self, state: Any) -> None:
        """The last step, as far as it is known; never the next one while it may go on after."""
        if self.trainer.args.max_steps <= 0:
            last = self.stream.epoch + 1 == self.stream.count
            least = 0 if last else state.global_step + 2
            state.max_steps = max(self.pace.steps, least)

    def state_dict(self) -> State:
        """What a checkpoint keeps."""
        return {"stream": self.stream.state_dict(), "found": self.pace.found}

    def report(self) -> dict[str, Any]:
        """`EpochStream.report`, the steps of the epochs begun, and the share that they save."""
        full = len(self.data) // self.stream.batch
        begun = self.pace.found
        return {
            **self.stream.report(),
            "steps_by_epoch": list(begun),
            "saved": 1.0 - sum(begun) / (full * len(begun)),
        }

    def detach(self) -> None:
        """Give the Trainer its own epochs back."""
        for name in _REPLACED:
            delattr(self.trainer, name)
        self.trainer.remove_callback(self.callback)


class _Following(TrainerCallback):
    """Follows the steps of a Trainer, and adds the plan's file to its checkpoints."""

    def __init__(self, attached: AttachedEpochs) -> None:
        self.attached = attached

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        self.attached.observe()

    def on_step_end(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        self.attached.step_done(args, state, control)
        self._keep(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        self._keep(control)

    def on_train_end(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        self.attached.stream.flush()

    def _keep(self, control: Any) -> None:
        """Write the ledger before the Trainer writes the weights."""
        if control.should_save:
            self.attached.stream.flush()

    def on_save(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        if args.should_save:
            write_state(self.attached.state_dict(), checkpoint_of(args, state) / STATE_FILE)
