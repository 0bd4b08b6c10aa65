"""Rewards that a process reward model gives to the steps of a chain of thought.

The checkpoint is one of
- a token classifier (`AutoModelForTokenClassification`): probability of class `good`, by softmax
  over its classes (one output: its sigmoid), at each step's separator;
- a causal language model with `tokens: [good, bad]`: p(good) / (p(good) + p(bad)) of the token that
  it would write behind each separator.

It reads `prompt`, a newline, and the steps each followed by `separator`. A trace is cut into steps
at empty lines (`by`); a step of fewer than `shortest` tokens is joined to the one after it, as
single characters are no steps.

    mean, min, product, final   of the step rewards r_t; final = r_T
    trajectory                  mean + alpha * outcome    utility = trajectory
    rewards                     r_1 .. r_T                finding `low_reward`: r_t < threshold

Mean hides one fatal step, so look at `min` too. ReasonFlux-PRM's trajectory reward adds the share
of right answers that follow the trajectory's plan: where a column has it, name it in `outcome`,
which takes the place of `final` in `trajectory`. Steps behind `max_length` tokens have no reward
and are not counted; without any, everything is NaN. Rows are read one by one, so no batch changes a
number. Random weights (a folder with a configuration only) give numbers that mean nothing: they are
for tests. A checkpoint without the layer that is read is refused.

Cost: one forward of the checkpoint over each trace. Source: ReasonFlux-PRM (arXiv 2506.18896).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.lm.model import ModelSpec, load_config, load_tokenizer, local, pick_device
from foresift.pipeline.nouns import Arrays, Scorer
from foresift.pipeline.parts import tuning
from foresift.pipeline.tables import Column
from foresift.scorers._steps import By, Span, Trace, steps, traces

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ProcessReward(Scorer):
    """Mean, least and last reward of the steps of a trace, from a process reward model."""

    checkpoint: str
    """A folder with weights, a folder or `.json` with a configuration, or a hub id."""
    tokens: tuple[str, str] | None = None
    """Of a causal language model: what means a good and a bad step; none: it is a classifier."""
    good: int = 1
    """Of a token classifier: the class of good steps."""
    separator: str = "<extra_0>"
    """What stands behind each step; its last token is where the reward is read."""
    by: By = "blank_line"
    """Steps are every `line`, `sentence` or `blank_line` (paragraph), or lines else sentences."""
    shortest: int = 20
    """Tokens below which a step is joined to the next."""
    alpha: float = 1.0
    """Weight of the outcome in `trajectory`."""
    outcome: str = ""
    """Column with the reward of the whole trajectory; empty: that of the last step."""
    threshold: float = 0.5
    """Reward below which a step is a finding."""
    max_length: int = 8192
    """Tokens that are read."""
    trust_remote_code: bool = False
    """Whether code that comes with the checkpoint may run. Off unless you ask for it."""
    device: str = tuning("auto")
    """`auto` (a GPU where there is one), `cpu`, `cuda`, ..."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "mean + alpha * outcome", "higher"),
        "mean": Column(pa.float32(), "reward, 0 to 1", "higher"),
        "min": Column(pa.float32(), "reward, 0 to 1", "higher"),
        "product": Column(pa.float32(), "product of rewards", "higher"),
        "final": Column(pa.float32(), "reward, 0 to 1", "higher"),
        "trajectory": Column(pa.float32(), "mean + alpha * outcome", "higher"),
        "rewards": Column(pa.list_(pa.float32()), "reward of each step"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        if self.shortest < 1 or self.max_length < 2 or not self.separator:
            raise ValueError("shortest is at least 1, max_length 2, and separator is not empty")
        if not 0 <= self.threshold <= 1 or self.good < 0:
            raise ValueError("threshold is a share, good a class")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.outcome,) if self.outcome else ()

    def score(self, batch: pa.Table) -> Arrays:
        model = _load(self)
        told = batch[self.outcome].to_pylist() if self.outcome else [None] * batch.num_rows
        findings, rows = Findings(batch.num_rows), []
        for row, trace in enumerate(traces(batch)):
            spans, ids, places = read(trace, model.tokenizer, self)
            seen = [p for p in places if p < self.max_length]
            rewards = model.rewards(ids[: self.max_length], seen) if seen else np.empty(0)
            for t in np.flatnonzero(rewards < self.threshold).tolist():
                start, stop = (trace.start + c for c in spans[t])
                findings.add(row, "low_reward", start, stop, float(rewards[t]))
            rows.append((*summary(rewards, self._outcome(rewards, told[row]), self.alpha), rewards))
        names = ["mean", "min", "product", "final", "trajectory", "rewards"]
        columns: dict[str, Any] = {name: [r[k] for r in rows] for k, name in enumerate(names)}
        return {**columns, "utility": columns["trajectory"], "findings": findings.array()}

    def _outcome(self, rewards: Floats, told: float | None) -> float:
        if self.outcome:
            return math.nan if told is None else float(told)
        return float(rewards[-1]) if len(rewards) else math.nan


def summary(rewards: Floats, outcome: float, alpha: float = 1.0) -> tuple[float, ...]:
    """mean, min, product, final, trajectory; NaN without steps."""
    if not len(rewards):
        return (math.nan,) * 5
    mean, final = float(rewards.mean()), float(rewards[-1])
    return mean, float(rewards.min()), float(rewards.prod()), final, mean + alpha * outcome


def read(
    trace: Trace, tokenizer: Any, part: ProcessReward
) -> tuple[list[Span], list[int], list[int]]:
    """Steps in the trace, token ids of all, and the places at which their rewards are read."""
    long = 32 * part.max_length
    text = trace.text[:long]
    spans: list[Span] = []
    lengths: list[int] = []
    pieces = steps(text, part.by)
    tokens = _ids([text[a:b] for a, b in pieces], tokenizer)
    open_ = False
    for (start, stop), some in zip(pieces, tokens, strict=True):
        if open_:
            spans[-1], lengths[-1] = (spans[-1][0], stop), lengths[-1] + len(some)
        else:
            spans.append((start, stop))
            lengths.append(len(some))
        open_ = lengths[-1] < part.shortest
    if open_ and len(spans) > 1:
        spans[-2:] = [(spans[-2][0], spans[-1][1])]
    if not spans:
        return [], [], []
    before = f"{trace.before[:long]}\n" if trace.before else ""
    start = tokenizer.bos_token_id
    ids = ([] if start is None else [start]) + (_ids([before], tokenizer)[0] if before else [])
    places = []
    for some in _ids([text[a:b] + part.separator for a, b in spans], tokenizer):
        ids += some
        places.append(len(ids) - 1)
    return spans, ids, places


def _ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    if not texts:
        return []
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return found


class _Model:
    """A loaded checkpoint."""

    def __init__(self, part: ProcessReward, model: Any, tokenizer: Any) -> None:
        self.part, self.model, self.tokenizer = part, model, tokenizer
        self.words: list[int] = []
        for token in part.tokens or ():
            ids = _ids([token], tokenizer)[0]
            if len(ids) != 1:
                raise DataError(f"{token!r} is {len(ids)} tokens, not one", where="tokens")
            self.words += ids

    def rewards(self, ids: Sequence[int], places: Sequence[int]) -> Floats:
        """The reward at each place."""
        import torch

        with torch.inference_mode():
            tokens = torch.tensor([list(ids)], device=self.model.device)
            logits = self.model(input_ids=tokens).logits[0, list(places)].double()
        if self.words:
            logits = logits[:, self.words[::-1]]  # bad, good
        if logits.shape[1] == 1:
            found: Floats = logits[:, 0].sigmoid().cpu().numpy()
            return found
        good = 1 if self.words else self.part.good
        if good >= logits.shape[1]:
            raise DataError(f"the checkpoint has {logits.shape[1]} classes", where="good")
        found = logits.softmax(-1)[:, good].cpu().numpy()
        return found


@functools.lru_cache(maxsize=1)
def _cached(checkpoint: str, causal: bool, trust: bool, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

    spec = ModelSpec(init=checkpoint, trust_remote_code=trust)
    config, tokenizer = load_config(spec), load_tokenizer(checkpoint, trust)
    kind = AutoModelForCausalLM if causal else AutoModelForTokenClassification
    path = local(checkpoint)
    try:
        if path is not None and not (path.is_dir() and any(path.glob("*.safetensors"))):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = kind.from_config(config)
        else:
            model, told = kind.from_pretrained(
                str(path or checkpoint), trust_remote_code=trust, use_safetensors=True,
                output_loading_info=True,
            )  # fmt: skip
            if told["missing_keys"]:
                raise ValueError(f"its weights have no {min(told['missing_keys'])}")
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"does not load: {error}", where=checkpoint) from error
    return model.to(pick_device(device)).eval(), tokenizer


def _load(part: ProcessReward) -> _Model:
    causal = part.tokens is not None
    return _Model(part, *_cached(part.checkpoint, causal, part.trust_remote_code, part.device))
