"""Train a causal language model on the plan, exactly in its order, with HF Trainer.

    loss of a step = sum of w * nll / sum of w over its counted tokens        nats per token

A step holds `batch_tokens` tokens: rows of `length` tokens packed in plan order without attention
across documents (`_packing.py`). `tokens` is rounded down to whole steps; without it every token of
the plan is used once and the last step may be smaller. The tokens available are counted before the
first step (tokenising at most the budget), so that the schedule fits the run.

Writes `checkpoint/`, `ledger.parquet` and `curve.parquet` (`_checkpoint.py`), whole or not at all,
and every `checkpoint_every` steps a folder in `checkpoints/`, from which an interrupted training
goes on (`_resume.py`). It takes as much room as the final one: three times the weights in float32.
`tune` lets some tensors move only (`_tune.py`); `probe` writes `stability.parquet` (`_probe.py`).
Cost: 6 x parameters x tokens floating-point operations, and tokenising the documents twice.
The same inputs on the same number of CPU threads give the same bytes, interrupted or not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from foresift.pipeline import checkpoints
from foresift.pipeline.choice import Budget
from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.model import ModelSpec, local
from foresift.pipeline.nouns import Inputs, Job, Stage
from foresift.pipeline.parts import digest, tuning
from foresift.pipeline.store import Facts, StepDir, temporary
from foresift.stages.trainers import _checkpoint, _documents, _packing, _resume, _setup, _tune

if TYPE_CHECKING:
    from foresift.stages.trainers import _probe
    from foresift.stages.trainers._loop import At, Done

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
    checkpoint_every: int = 0
    """Optimizer steps from one checkpoint to the next; 0 keeps none but the last."""
    tune: _tune.Tune = "all"
    """Which tensors move: all, the best-conditioned (kappa), or those that moved before (fpf)."""
    tune_most: int = 20
    """How many: matrices of kappa, modules of fpf."""
    tune_from: str = ""
    """Of fpf: the checkpoint since which the model's modules moved."""
    probe: int = 0
    """Held-out documents of each source whose loss is measured, closely at first; 0: none."""
    seed: int = 0
    """Seed of dropout, where the model has any, and of the probe."""
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
        if self.checkpoint_every < 0:
            raise ValueError("checkpoint_every is a number of steps, or 0")
        if self.probe < 0:
            raise ValueError("probe is a number of documents, or 0")
        _tune.check(self.tune, self.tune_most, self.tune_from)

    @property
    def fingerprint(self) -> str:
        """What every part has, and the contents of the checkpoint that `tune_from` names."""
        return digest([super().fingerprint, _tune.contents(self.tune_from)])

    def run(self, inputs: Inputs, out: StepDir, job: Job) -> Facts:
        """Train, and publish checkpoint, ledger and curve."""
        if inputs.model is None:
            raise ModelError("training needs a model; name one with `model:`", where="train")
        work = temporary(out.path / "train")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            with _setup.isolated(self.threads or os.cpu_count() or 1):
                return _Training(self, inputs, inputs.model, job, work, out.path).run()
        finally:
            shutil.rmtree(work, ignore_errors=True)


class _Training:
    """One run: what it needs to know at each step."""

    def __init__(
        self, part: CausalLM, inputs: Inputs, spec: ModelSpec, job: Job, work: Path, out: Path
    ) -> None:
        self.part, self.inputs, self.job, self.work, self.out = part, inputs, job, work, out
        self.source = replace(spec, dtype="float32")
        self.precision = spec.dtype
        self.spec = replace(spec, max_length=part.max_document)
        self.seen, self.trail = _documents.Seen(), _resume.Trail()

    def run(self) -> Facts:
        self.loaded = _setup.own_model(self.source, self.part.length)
        self.total, short = self._extent(self.loaded.tokenizer)
        self.steps = -(-self.total // self._step_tokens)
        start = _resume.find(self.out, self.steps, self.total, self._batches(_documents.Seen()))
        self.planned = {
            "planned_steps": start.told.get("planned_steps", self.steps),
            "planned_tokens": start.told.get("planned_tokens", self.total),
        }
        self.log = _resume.open_log(self.out, start, self._batches(_documents.Seen()))
        try:
            mode = self._train(start)
        except BaseException:
            if not checkpoints.checkpoints(self.out):
                self.log.discard()
            raise
        self.log.flush()  # no checkpoint holds more than the ledger says
        _checkpoint.publish(self.work, self.out)
        _resume.seal(self.out, self.log, self.trail, self._batches(_documents.Seen()))
        return self._facts(mode, short or self.total < self.planned["planned_tokens"])

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

    def _train(self, start: _resume.Start) -> _packing.Mode:
        """Take the steps that are left and save the checkpoint; returns the attention mode."""
        from foresift.stages.trainers import _loop

        part, model, batches = self.part, self.loaded.model, self._batches(self.seen)
        mode = _packing.attention_mode(model)
        self.tuned = _tune.free(model, part.tune, part.tune_most, part.tune_from, self.source)
        self.optimizer = _loop.adamw(model, part.learning_rate, part.betas, part.weight_decay)
        self.at = self._begin(start, batches)
        if start.final:
            return mode
        draws = self.job.rng.at("train", part.seed)
        settings = _loop.Settings(
            steps=self.steps,
            micro_rows=part.micro_tokens // part.length,
            clip=part.clip,
            mode=mode,
            precision=self.precision,
            seed=lambda step: draws.at(step).key % 2**32,
            cpu=self.loaded.device == "cpu",
            rate=_loop.learning_rates(part.schedule, self.planned["planned_steps"], part.warmup),
            scratch=self.work / "scratch",
        )
        _loop.optimise(model, self.optimizer, batches, settings, self._report, self._after, self.at)
        shutil.rmtree(settings.scratch, ignore_errors=True)
        _resume.write_curve(self.work / _resume.CURVE, self.trail)
        if self.probe:
            self.probe.write(self.work)
        self._save(self.work / checkpoints.FINAL)
        return mode

    def _begin(self, start: _resume.Start, batches: Iterator[list[_packing.Row]]) -> At:
        """Stand where the checkpoint stands; without one, at the beginning."""
        from foresift.stages.trainers._loop import At

        self.probe = self._probe()
        if start.path is None:
            self.before = self._restore() if self.part.continue_optimizer else 0
            if self.probe:
                self.probe.begin()
            return At()
        self.job.log.info("training goes on from the checkpoint of step %d", start.step)
        for step in range(1, start.step + 1):
            self.trail.consume(step, next(batches))
        self.trail.curve = start.curve()
        start.restore(self.loaded.model, self.optimizer, self.source)
        self.before = int(start.told["steps_before"])
        if self.probe:
            self.probe.restore(start.path.parent if start.final else start.path)
        return At(**{name: start.told[name] for name in ("step", "scheduled", "scaler")})

    def _probe(self) -> _probe.Probe | None:
        part, corpus = self.part, self.inputs.corpus
        if not part.probe or corpus is None:
            return None
        from foresift.stages.trainers import _probe

        spec, rng = replace(self.spec, max_length=part.length), self.job.rng.at("probe", part.seed)
        return _probe.Probe(corpus, part.probe, self.loaded, spec, rng)

    def _restore(self) -> int:
        """The moments of the model that training begins with; returns the steps that they took."""
        path = local(self.spec.init)
        if path is None or not (path / _checkpoint.OPTIMIZER).exists():
            self.job.log.warning(
                "%s has no optimizer.safetensors: the optimizer starts anew", self.spec.init
            )
            return 0
        moments = path / _checkpoint.OPTIMIZER
        return _checkpoint.restore_moments(moments, self.loaded.model, self.optimizer)

    def _batches(self, seen: _documents.Seen) -> Iterator[list[_packing.Row]]:
        """The rows of each optimizer step, in plan order."""
        documents = _documents.documents(
            self.inputs, self.loaded.tokenizer, self.spec, seen, repeat=self.part.repeat
        )
        rows = _packing.pack(documents, self.part.length, self.total)
        count = self.part.batch_tokens // self.part.length
        while batch := list(islice(rows, count)):
            yield batch

    def _report(self, done: Done) -> None:
        self.log.add(self.trail.consume(done.step, done.rows))
        self.trail.curve.append((done.step, self.trail.tokens, done.loss, done.learning_rate))

    def _after(self, at: At) -> None:
        self.at, every = at, self.part.checkpoint_every
        if self.probe:
            self.probe.after(at.step)
        if every and at.step % every == 0 and at.step < self.steps:
            self.log.flush()
            target = self.out / checkpoints.FOLDER / checkpoints.folder_name(at.step)
            folder = temporary(target)
            shutil.rmtree(folder, ignore_errors=True)
            self._save(folder)
            _resume.write_curve(folder / _resume.CURVE, self.trail)
            if self.probe:
                self.probe.write(folder)
            _checkpoint.place(folder, target)
        self.job.progress(at.step, self.steps, "")

    def _save(self, folder: Path) -> None:
        """Weights, tokenizer, moments and what they have seen."""
        model, taken = self.loaded.model, self.before + self.at.scheduled
        _checkpoint.save(folder, model, self.loaded.tokenizer, self.optimizer, taken)
        facts = {**asdict(self.at), "steps_before": self.before, **self.planned}
        _resume.describe(folder, self.trail, facts)

    def _facts(self, mode: _packing.Mode, short: bool) -> Facts:
        if self.seen.cut:
            self.job.log.warning(
                "%d documents were cut after %d tokens", self.seen.cut, self.part.max_document
            )
        losses = [loss for _, _, loss, _ in self.trail.curve]
        whole = _documents.entries(self.inputs)
        seen = asdict(self.seen)
        parameters = sum(p.numel() for p in self.loaded.model.parameters())
        kept = {c.step for c in checkpoints.intermediate(self.out)}
        return {
            "steps": self.steps,
            "steps_before": self.before,
            "steps_planned": self.planned["planned_steps"],
            "checkpoints": sorted(kept | {self.steps}),
            "tokens": self.trail.tokens,
            "documents": self.trail.documents,
            "entries": whole,
            "skipped": seen["skipped"],
            "cut": seen["cut"],
            "epochs": round(seen["entries"] / whole, 6),
            "loss_first": float(np.mean(losses[:ENDS])),
            "loss_last": float(np.mean(losses[-ENDS:])),
            "parameters": parameters,
            "flops": {"train": training_flops(parameters, self.trail.tokens)},
            "packing": mode,
            "short": short,
            **({"tuned": self.tuned} if self.tuned else {}),
            **({"stability": self.probe.facts()} if self.probe else {}),
        }


def training_flops(parameters: int, tokens: int) -> float:
    """Operations of training on so many tokens: two in the forward pass and four in the backward
    pass for each parameter and token (attention's own products are left out)."""
    return 6.0 * parameters * tokens
