"""What a step would cost, before it runs: bytes of text to pass over, or floating-point operations.

    a pass over text      bytes of the data set (of its input files, until it has been read)
    a model score         2 x parameters x tokens        tokens: n_tokens, else bytes / 4
    training              6 x parameters x tokens        tokens: the budget, else n_tokens

Upper bounds: what earlier decisions will drop is not known yet.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, cast

from foresift.pipeline.choice import Budget
from foresift.pipeline.lm.model import ModelSpec, load_config, load_tokenizer
from foresift.pipeline.plan import Plan, Step
from foresift.pipeline.store import StepDir


def costs(plan: Plan) -> dict[Path, str]:
    """Step directory -> its cost in words."""
    reads = {s.path: _size(s) for s in plan.steps if s.verb == "read"}
    known = plan.recipe.model_specs().get("init")
    return {s.path: _cost(s, reads, known) for s in plan.steps}


def _size(step: Step) -> tuple[int, int]:
    """(bytes, tokens) of a data set: from its facts, or from the sizes of its files."""
    if step.done:
        facts = StepDir(step.path).facts()["facts"]
        size = int(facts.get("n_bytes", 0))
        return size, int(facts.get("n_tokens", size // 4))
    files = [Path(name) for name, _ in cast(Any, step.part).inputs()]
    size = sum(f.stat().st_size for f in files if f.is_file())
    return size, size // 4


def _cost(step: Step, reads: dict[Path, tuple[int, int]], known: ModelSpec | None) -> str:
    if step.done:
        return ""
    if step.verb == "read":
        return f"{_scaled(reads[step.path][0])}B"
    corpus = step.inputs.corpus
    size, tokens = reads[corpus.base] if corpus else (0, 0)
    if step.inputs.model is not None and step.verb in ("score", "evaluate", "train"):
        # a checkpoint that is yet to be trained has the size of the model it starts from
        to_come = step.inputs.model.init.endswith("/checkpoint")
        parameters = count_parameters(known if to_come and known else step.inputs.model)
        if step.verb != "train":
            return f"{_scaled(2.0 * parameters * tokens)}FLOP"
        budget = getattr(step.part, "tokens", None)
        tokens = int(Budget.parse(budget).amount) if budget is not None else tokens
        return f"{_scaled(6.0 * parameters * tokens)}FLOP"
    return "columns" if step.verb in ("select", "order") else f"{_scaled(size)}B"


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


def _scaled(value: float) -> str:
    if not value:  # a part of the installation, say, whose size is known once it has been read
        return "? "
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} E"
