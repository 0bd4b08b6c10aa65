"""Train a causal language model on the plan, exactly in its order, with HF Trainer.

    loss of a step = sum of w * nll / sum of w over its counted tokens        nats per token

A step holds `batch_tokens` tokens: rows of `length` tokens packed in plan order without attention
across documents (`_packing.py`). `tokens` is rounded down to whole steps; without it every token of
the plan is used once and the last step may be smaller. The tokens available are counted before the
first step (tokenising at most the budget), so that the schedule fits the run.

Writes `checkpoint/`, `ledger.parquet` and `curve.parquet` (`_checkpoint.py`), whole or not at all.
Cost: 6 x parameters x tokens floating-point operations, and tokenising the documents twice.
The same inputs on the same number of CPU threads give the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from foresift.pipeline.choice import Budget
from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.model import Loaded, ModelSpec, load, local
from foresift.pipeline.nouns import Inputs, Job, Stage
from foresift.pipeline.parts import tuning
from foresift.pipeline.store import Facts, ShardWriter, StepDir, temporary, write_shard
from foresift.stages.trainers import _checkpoint, _documents, _packing

if TYPE_CHECKING:
    from foresift.stages.trainers._loop import Done

#: steps at each end of the curve that are averaged in the facts
ENDS = 10


@dataclass(frozen=True, kw_only=True)
class CausalLM(Stage):
    """Trains a causal language model on the plan, in its order, and writes the ledger."""

    tokens: str | int | None = None
    """Training budget in tokens (`500k`, `1M`), rounded down to whole steps; none: all once."""
    repeat: bool = False
    """Begin the plan again, in the same order, when it is shorter than the budget."""
    batch_tokens: int = 8192
    """Tokens in one optimizer step."""
    length: int = 512
    """Tokens in one packed row, at most the positions of the model."""
    max_document: int = 65_536
    """Tokens after which one document is cut (counted and warned of)."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and embeddings; vectors do not decay."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises linearly."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """The learning rate after the warm-up: stays, falls to 0, or (wsd) falls in the last fifth."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    continue_optimizer: bool = False
    """Go on with the optimizer's moments of the checkpoint, where it has any."""
    seed: int = 0
    """Seed of dropout, where the model has any."""
    micro_tokens: int = 4096
    """Tokens in one forward and backward; changes memory, and rounding only."""
    threads: int = tuning(0)
    """CPU threads; 0 takes all cores. Equal bytes need equal threads."""

    def __post_init__(self) -> None:
        if self.tokens is not None:
            budget = Budget.parse(self.tokens, "tokens")
            if budget.relative or budget.cost != "n_tokens" or budget.amount < 2:
                raise ValueError("tokens is an absolute number of tokens, such as '500k'")
        for name, low in (("length", 2), ("batch_tokens", self.length), ("max_document", 2)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}")
        if self.micro_tokens < self.length:
            raise ValueError("micro_tokens must hold one row of `length` tokens")
        if not 0 <= self.warmup <= 1 or self.learning_rate <= 0 or self.clip < 0:
            raise ValueError("warmup is a share, learning_rate is positive, clip is not negative")

    def run(self, inputs: Inputs, out: StepDir, job: Job) -> Facts:
        """Train, and publish checkpoint, ledger and curve."""
        if inputs.model is None:
            raise ModelError("training needs a model; name one with `model:`", where="train")
        work = temporary(out.path / "train")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            with _isolated(self.threads or os.cpu_count() or 1):
                facts = _Training(self, inputs, inputs.model, job, work).run()
            _checkpoint.publish(work, out.path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return facts


@contextlib.contextmanager
def _isolated(threads: int) -> Iterator[None]:
    """Threads, random state and progress bars of the process are as before when it is left."""
    import torch
    from transformers.utils import logging as bars

    before, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(before)
        if shown:
            bars.enable_progress_bar()
        random.setstate(python)
        np.random.set_state(numpy)


class _Training:
    """One run: what it needs to know at each step."""

    def __init__(
        self, part: CausalLM, inputs: Inputs, spec: ModelSpec, job: Job, work: Path
    ) -> None:
        self.part, self.inputs, self.job, self.work = part, inputs, job, work
        self.source = replace(spec, dtype="float32")
        self.precision = spec.dtype
        self.spec = replace(spec, max_length=part.max_document)
        self.seen = _documents.Seen()
        self.curve: list[tuple[int, int, float, float]] = []
        self.tokens = 0

    def run(self) -> Facts:
        loaded = _load(self.source, self.part.length)
        total, short = self._extent(loaded.tokenizer)
        steps = -(-total // self._step_tokens)
        schema = _checkpoint.LEDGER
        with ShardWriter(self.work / "ledger.parquet", schema) as writer:
            self.ledger = _checkpoint.Ledger(writer)
            before, mode = self._train(loaded, total, steps)
            self.ledger.flush()
        curve = _checkpoint.rows_table(self.curve, _checkpoint.CURVE)
        write_shard(self.work / "curve.parquet", curve)
        return self._facts(loaded.model, steps, before, mode, short)

    @property
    def _step_tokens(self) -> int:
        return self.part.batch_tokens // self.part.length * self.part.length

    def _extent(self, tokenizer: Any) -> tuple[int, bool]:
        """Tokens to train on, and whether they are fewer than asked for."""
        wanted = None
        if self.part.tokens is not None:
            wanted = int(Budget.parse(self.part.tokens).amount)
            wanted = wanted // self._step_tokens * self._step_tokens or wanted
        count = _documents.Seen()
        for _ in _documents.documents(self.inputs, tokenizer, self.spec, count):
            if wanted is not None and count.tokens >= wanted:
                return wanted, False
        if count.documents == 0:
            raise DataError(
                f"nothing to train on: {count.entries} documents, of them "
                f"{count.skipped['empty']} empty and {count.skipped['zero_weight']} of weight 0",
                where="train",
            )
        if wanted is None:
            return count.tokens, False
        outcome = "it is repeated" if self.part.repeat else "training stops at its end"
        self.job.log.warning(
            "the plan has %d tokens, the budget is %d: %s", count.tokens, wanted, outcome
        )
        return (wanted, False) if self.part.repeat else (count.tokens, True)

    def _train(self, loaded: Loaded, total: int, steps: int) -> tuple[int, _packing.Mode]:
        """Take the steps and save the checkpoint; returns earlier steps and the attention mode."""
        from foresift.stages.trainers import _loop

        part, model = self.part, loaded.model
        mode = _packing.attention_mode(model)
        optimizer = _loop.adamw(model, part.learning_rate, part.betas, part.weight_decay)
        before = self._restore(model, optimizer) if part.continue_optimizer else 0
        self.steps = steps
        settings = _loop.Settings(
            steps=steps,
            micro_rows=part.micro_tokens // part.length,
            clip=part.clip,
            mode=mode,
            precision=self.precision,
            seed=self.job.rng.at("train", part.seed).key % 2**32,
            cpu=loaded.device == "cpu",
        )
        rate = _loop.learning_rates(part.schedule, steps, part.warmup)
        scratch = self.work / "scratch"
        _loop.optimise(
            model, optimizer, rate, self._batches(loaded.tokenizer, total), settings,
            self._report, scratch,
        )  # fmt: skip
        shutil.rmtree(scratch, ignore_errors=True)
        folder = self.work / "checkpoint"
        _checkpoint.save(folder, model, loaded.tokenizer, optimizer, before + steps)
        return before, mode

    def _restore(self, model: Any, optimizer: Any) -> int:
        path = local(self.spec.init)
        if path is None or not (path / _checkpoint.OPTIMIZER).exists():
            self.job.log.warning(
                "%s has no optimizer.safetensors: the optimizer starts anew", self.spec.init
            )
            return 0
        return _checkpoint.restore_moments(path / _checkpoint.OPTIMIZER, model, optimizer)

    def _batches(self, tokenizer: Any, total: int) -> Iterator[list[_packing.Row]]:
        """The rows of each optimizer step, in plan order."""
        documents = _documents.documents(
            self.inputs, tokenizer, self.spec, self.seen, repeat=self.part.repeat
        )
        rows = _packing.pack(documents, self.part.length, total)
        count = self.part.batch_tokens // self.part.length
        while batch := list(islice(rows, count)):
            yield batch

    def _report(self, done: Done) -> None:
        self.tokens += self.ledger.add(done.step, done.rows)
        self.curve.append((done.step, self.tokens, done.loss, done.learning_rate))
        self.job.progress(done.step, self.steps, "")

    def _facts(
        self, model: Any, steps: int, before: int, mode: _packing.Mode, short: bool
    ) -> Facts:
        if self.seen.cut:
            self.job.log.warning(
                "%d documents were cut after %d tokens", self.seen.cut, self.part.max_document
            )
        losses = [loss for _, _, loss, _ in self.curve]
        whole = _documents.entries(self.inputs)
        seen = asdict(self.seen)
        parameters = sum(p.numel() for p in model.parameters())
        return {
            "steps": steps,
            "steps_before": before,
            "tokens": self.tokens,
            "documents": self.ledger.documents,
            "entries": whole,
            "skipped": seen["skipped"],
            "cut": seen["cut"],
            "epochs": round(seen["entries"] / whole, 6),
            "loss_first": float(np.mean(losses[:ENDS])),
            "loss_last": float(np.mean(losses[-ENDS:])),
            "parameters": parameters,
            "flops": {"train": training_flops(parameters, self.tokens)},
            "packing": mode,
            "short": short,
        }


def training_flops(parameters: int, tokens: int) -> float:
    """Operations of training on so many tokens: two in the forward pass and four in the backward
    pass for each parameter and token (attention's own products are left out)."""
    return 6.0 * parameters * tokens


def _load(spec: ModelSpec, length: int) -> Loaded:
    """A model of our own to change (never the one that scorers share), checked for its length."""
    loaded = load.__wrapped__(spec)
    if spec.device not in ("auto", "cpu", "cuda", "cuda:0"):
        raise ModelError(
            f"training runs on the first visible GPU, not on {spec.device}; set "
            "CUDA_VISIBLE_DEVICES",
            where=spec.init,
        )
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    if positions and length > positions:
        raise ModelError(
            f"rows of {length} tokens, but the model has {positions} positions; lower `length`",
            where=spec.init,
        )
    return loaded
