"""The training loop: HF Trainer, given whole optimizer steps in plan order.

Trainer keeps what it is good at (optimizer step, clipping, mixed precision, devices); what a batch
is, is decided here. Its loader yields the packed rows of one optimizer step; they are run in
micro-batches whose gradients add up to that of

    loss = sum over the step of w * nll / sum over the step of w          nats per token

so the micro-batch size changes rounding only. Nothing is shuffled, stripped, prefetched or logged
by Trainer. On a CPU the same rows, weights and thread count give the same bits. What a step draws
(dropout) depends on its number, so a training that goes on from a step draws as if it had never
stopped.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from foresift.pipeline.errors import ModelError, StoreError
from foresift.stages.trainers import _packing as packing

Schedule = Literal["constant", "linear", "cosine", "wsd"]
#: share of the steps in which `wsd` (warm-up, stable, decay) goes down to 0
WSD_DECAY = 0.2


@dataclass(frozen=True)
class Done:
    """One optimizer step that was taken."""

    step: int
    rows: list[packing.Row]
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class At:
    """Where a training stands between two steps; float16 leaves a step out now and then."""

    step: int = 0
    scheduled: int = 0
    """Steps of the learning-rate schedule."""
    scaler: dict[str, float] = field(default_factory=dict)
    """State of the loss scaler of float16."""


@dataclass(frozen=True)
class Settings:
    """How to train."""

    steps: int
    micro_rows: int
    clip: float
    mode: packing.Mode
    precision: str
    seed: Callable[[int], int]
    """Of the draws of each step."""
    cpu: bool
    rate: Callable[[int], float]
    """Factor on the learning rate of step k = 0, 1, ..."""
    scratch: Path
    """A folder that Trainer may make."""


class _Steps:
    """A loader without length: each item is the rows of one optimizer step."""

    def __init__(self, steps: Iterator[list[packing.Row]]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[list[packing.Row]]:
        yield from self._steps
        raise StoreError("the plan gave fewer documents than when it was counted: run again")


class _PlanTrainer(Trainer):
    """Trainer whose step is a list of packed rows."""

    settings: Settings
    start: At
    loader: _Steps
    report: Callable[[Done], None]

    def get_train_dataloader(self) -> Any:
        """Our own loader, not prepared by accelerate: no sharding, no look-ahead."""
        return self.loader

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted here."""
        return 0

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Gradients of the weighted mean loss of the step's rows; returns that loss."""
        model.train()
        step = self.start.step + self.state.global_step + 1
        _draw_from(self.settings.seed(step))
        rows, size = inputs, self.settings.micro_rows
        weight = packing.total_weight(rows) or 1.0
        total = torch.zeros((), device=self.args.device)
        for start in range(0, len(rows), size):
            batch = packing.collate(rows[start : start + size], self.settings.mode)
            batch = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
            loss = packing.weighted_loss(packing.logits_of(model, batch), batch) / weight
            self.accelerator.backward(loss)
            total += loss.detach()
        value = float(total)
        if not math.isfinite(value):
            raise ModelError(
                f"the training loss became {value} at step {step}; lower learning_rate or clip",
                where="train",
            )
        assert self.optimizer is not None
        self.report(Done(step, rows, value, self.optimizer.param_groups[0]["lr"]))
        return total


class _After(TrainerCallback):
    """Tells where the training stands, after each optimizer step."""

    def __init__(
        self,
        trainer: _PlanTrainer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        after: Callable[[At], None],
    ) -> None:
        self.trainer, self.scheduler, self.after = trainer, scheduler, after

    def on_step_end(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        start, scaler = self.trainer.start, self.trainer.accelerator.scaler
        scheduled = start.scheduled + self.scheduler.last_epoch
        told = {} if scaler is None else scaler.state_dict()
        self.after(At(start.step + state.global_step, scheduled, told))


def _draw_from(seed: int) -> None:
    """Every generator that a model may draw from (torch.manual_seed keeps a list of its calls)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def optimise(
    model: Any,
    optimizer: torch.optim.Optimizer,
    steps: Iterator[list[packing.Row]],
    settings: Settings,
    report: Callable[[Done], None],
    after: Callable[[At], None],
    start: At,
) -> None:
    """Take the optimizer steps up to `settings.steps`.

    `report` is told of each one before the weights change, `after` when they have.
    """
    if start.step >= settings.steps:  # Trainer takes 0 steps as "without end"
        return
    args = TrainingArguments(
        output_dir=str(settings.scratch),
        max_steps=settings.steps - start.step,
        max_grad_norm=settings.clip,
        bf16=settings.precision == "bfloat16",
        fp16=settings.precision == "float16",
        use_cpu=settings.cpu,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    args._n_gpu = min(args.n_gpu, 1)  # one process is one device; DataParallel would split steps
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: settings.rate(start.scheduled + k)
    )
    trainer = _PlanTrainer(model=model, args=args, optimizers=(optimizer, scheduler))
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.settings, trainer.loader, trainer.report = settings, _Steps(steps), report
    trainer.start = start
    trainer.add_callback(_After(trainer, scheduler, after))
    if start.scaler and trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(start.scaler)
    trainer.train()


def learning_rates(schedule: Schedule, steps: int, warmup: float) -> Callable[[int], float]:
    """Factor on the learning rate of step k = 0, 1, ...; `warmup` is a share of the steps.

    Rises linearly over the warm-up (never 0), then stays, falls to 0 linearly or as a cosine, or
    (wsd) stays and falls linearly over the last fifth. The first step after the end would be 0.
    """
    rising = round(warmup * steps)

    def factor(k: int) -> float:
        if k < rising:
            return (k + 1) / (rising + 1)
        if schedule == "constant":
            return 1.0
        if schedule == "wsd":
            falling = max(1, round(WSD_DECAY * steps))
            return min(1.0, max(0.0, (steps - k) / falling))
        done = min(1.0, (k - rising) / max(1, steps - rising))
        return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))

    return factor


def adamw(
    model: Any, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW; matrices and embeddings decay, vectors (norms, biases) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=learning_rate, betas=betas, eps=1e-8, fused=True
    )
