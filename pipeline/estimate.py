"""What a step would cost, before it runs: bytes of text to pass over, or floating-point operations.

    a pass over text      bytes of the data set (of its input files, until it has been read)
    a model score         2 x parameters x tokens, once for scores that share a forward
    one that is fitted    what it says itself: references, labels, its own forwards over the pool
    training              6 x parameters x tokens

Tokens of training are its budget; of a score those left by the token budgets of earlier decisions;
otherwise n_tokens, or bytes / 4 until the data set has been read. Upper bounds: what filters and
deduplication will drop is not known yet.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from foresift.pipeline.choice import Budget
from foresift.pipeline.corpus import Corpus
from foresift.pipeline.lm.model import ModelSpec, load_config, load_tokenizer
from foresift.pipeline.nouns import FittedModelScorer, ModelScorer
from foresift.pipeline.parts import Part
from foresift.pipeline.plan import MAIN, Plan, Step
from foresift.pipeline.store import StepDir


@dataclass(frozen=True)
class Cost:
    """What one step would take."""

    bytes: float = 0.0
    flops: float = 0.0
    columns: bool = False

    def __str__(self) -> str:
        if self.columns:
            return "columns"
        return f"{scaled(self.flops)}FLOP" if self.flops else f"{scaled(self.bytes)}B"


def costs(plan: Plan) -> dict[Path, Cost]:
    """Step directory -> its cost, whether it is done or not."""
    return _Estimate(plan).costs()


def selection_ratio(plan: Plan) -> tuple[float, float] | None:
    """(FLOPs of scoring, FLOPs of training) in the rounds of the selection; None: no such work."""
    found = costs(plan)
    rounds = [s for s in plan.steps if s.round and s.line == MAIN and not s.repeat]
    scoring = sum(found[s.path].flops for s in rounds if s.verb == "score")
    training = sum(found[s.path].flops for s in rounds if s.verb == "train")
    return (scoring, training) if scoring and training else None


class _Estimate:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.known = plan.recipe.model_specs().get("init")
        self.steps = {s.path: s for s in plan.steps}
        self.reads = {s.path: _size(s) for s in plan.steps if s.verb == "read"}

    def costs(self) -> dict[Path, Cost]:
        shared: set[str] = set()
        found = {}
        for step in self.plan.steps:
            found[step.path] = self._cost(step, step.group in shared)
            if _passes(step.part):
                shared.add(step.group)
        return found

    def _cost(self, step: Step, shared: bool) -> Cost:
        if step.verb == "read":
            return Cost(bytes=self.reads[step.path][0])
        corpus, model = step.inputs.corpus, step.inputs.model
        if model is not None and step.verb in ("score", "evaluate", "train"):
            # a checkpoint that is yet to be trained has the size of the model it starts from
            to_come = model.init.endswith("/checkpoint")
            parameters = count_parameters(self.known if to_come and self.known else model)
            return Cost(flops=self._flops(step, parameters, self._tokens(corpus), shared))
        if step.verb in ("select", "order"):
            return Cost(columns=True)
        return Cost(bytes=self.reads[corpus.base][0] if corpus else 0)

    def _flops(self, step: Step, parameters: int, tokens: int, shared: bool) -> float:
        if step.verb == "train":
            budget = getattr(step.part, "tokens", None)
            return 6.0 * parameters * (Budget.parse(budget).amount if budget else tokens)
        forward = 2.0 * parameters * tokens
        if isinstance(step.part, FittedModelScorer):
            aimed = sum(self._tokens(r.corpus) for r in step.inputs.references)
            fit, forwards = step.part.estimate(parameters, tokens, aimed)
            return fit + forward * (forwards - (1.0 if shared and step.part.shares else 0.0))
        return 0.0 if shared else forward

    def _tokens(self, corpus: Corpus | None) -> int:
        """Tokens that the budgets of earlier decisions leave of a data set."""
        if corpus is None:
            return 0
        tokens = float(self.reads[corpus.base][1])
        for mask in corpus.masks:
            budget = self.steps[mask.path].budget
            if budget is None or budget.cost != "n_tokens":
                continue
            taken = tokens * budget.amount if budget.relative else min(budget.amount, tokens)
            tokens = taken if mask.want else tokens - taken
        return int(tokens)


def _passes(part: Part) -> bool:
    """Whether a score makes the forward that others of its group share."""
    if isinstance(part, FittedModelScorer):
        return part.shares
    return isinstance(part, ModelScorer)


def _size(step: Step) -> tuple[int, int]:
    """(bytes, tokens) of a data set: from its facts, or from the sizes of its files."""
    if step.done:
        facts = StepDir(step.path).facts()["facts"]
        size = int(facts.get("n_bytes", 0))
        return size, int(facts.get("n_tokens", size // 4))
    files = [Path(name) for name, _ in cast(Any, step.part).inputs()]
    size = sum(f.stat().st_size for f in files if f.is_file())
    return size, size // 4


@functools.lru_cache(maxsize=8)
def count_parameters(spec: ModelSpec) -> int:
    """Parameters of a model, from its configuration alone."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(spec)
    config.vocab_size = max(config.vocab_size, len(load_tokenizer(spec.tokenizer or spec.init)))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters())


def scaled(value: float) -> str:
    """`1.5 G`: three digits and the letter of the thousands; `?` for what is not known."""
    if not value:  # a part of the installation, say, whose size is known once it has been read
        return "? "
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} E"
