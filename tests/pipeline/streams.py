"""What the tests of online selection share: a tiny model, rows, and small batch methods."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.online import (
    IGNORED,
    BatchMethod,
    Chooser,
    Floats,
    Masker,
    Rows,
    State,
    TokenSelector,
)


def model(seed: int = 0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, **fields,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """n rows of 3 to 9 tokens with ids that do not sort as the rows stand."""
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(1, 31, size=rng.integers(3, 10)).tolist() for _ in range(n)]
    return [{"id": f"d{(i * 37) % 1009}", "input_ids": t} for i, t in enumerate(tokens)]


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Padded on the right; every token counts."""
    width = max(len(e["input_ids"]) for e in examples)
    ids = torch.zeros((len(examples), width), dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for line, example in enumerate(examples):
        assert set(example) == {"input_ids"}
        size = len(example["input_ids"])
        ids[line, :size] = labels[line, :size] = torch.tensor(example["input_ids"])
        mask[line, :size] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass(frozen=True, kw_only=True)
class Highest(BatchMethod):
    """Trains on the rows of the highest mean loss, lowered where much was chosen before."""

    memory: float = 0.0
    """How much the mean utility of what was chosen so far pulls towards itself."""

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll",)

    def open(self, live: LiveModel) -> Chooser:
        return _Highest(self.memory)


class _Highest(Chooser):
    def __init__(self, memory: float) -> None:
        self.memory, self.mean = memory, torch.zeros(1, dtype=torch.float64)

    def measure(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        ends = seen.signals.offsets
        values = seen.signals.token["nll"].astype(np.float64)
        means = [values[a:b].mean() if b > a else np.nan for a, b in itertools.pairwise(ends)]
        return {"loss": torch.tensor(means)}

    def utility(self, measured: Mapping[str, torch.Tensor], step: int) -> Floats:
        values = measured["loss"].numpy()
        drawn = -np.abs(values - 100 * float(self.mean) * self.memory)
        return np.asarray(drawn if self.memory else values)

    def observe(self, measured: Mapping[str, torch.Tensor], chosen: Rows) -> None:
        self.mean = 0.9 * self.mean + 0.1 * measured["loss"][chosen].mean()

    def state_dict(self) -> State:
        return {"mean": self.mean}

    def load_state_dict(self, state: State) -> None:
        self.mean = torch.as_tensor(state["mean"])


@dataclass(frozen=True, kw_only=True)
class Given(BatchMethod):
    """Utilities of rows by their first token; tokens named in `unknown` cannot be judged."""

    unknown: tuple[int, ...] = ()
    """First tokens of rows that cannot be judged."""
    level: bool = False
    """Whether all that can be judged have one utility."""

    @property
    def signals(self) -> tuple[str, ...]:
        return ()

    def open(self, live: LiveModel) -> Chooser:
        return _Given(self)


class _Given(Chooser):
    def __init__(self, part: Given) -> None:
        self.part = part

    def measure(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        return {"first": seen.ids[:, 0]}

    def utility(self, measured: Mapping[str, torch.Tensor], step: int) -> Floats:
        first = measured["first"].numpy().astype(np.float64)
        values = np.zeros_like(first) if self.part.level else first
        return np.where(np.isin(first, self.part.unknown), np.nan, values)


@dataclass(frozen=True, kw_only=True)
class Hardest(TokenSelector):
    """Only the token of the highest loss in each row counts."""

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll",)

    def open(self, live: LiveModel) -> Masker:
        return _Hardest()


class _Hardest(Masker):
    def labels(self, seen: Seen, step: int) -> torch.Tensor:
        labels = torch.full_like(seen.candidates.labels, IGNORED)
        ends = seen.signals.offsets
        for row, (a, b) in enumerate(itertools.pairwise(ends)):
            if b > a:  # the rows are padded on the right
                highest = int(seen.signals.token["nll"][a:b].argmax())
                at = int(seen.counted[row].nonzero()[highest, 0])
                labels[row, at] = seen.candidates.labels[row, at]
        return labels


def leave() -> None:
    """End a process of a group at once, when all have come here.

    Taking a DistributedDataParallel apart can wait for ever: its destructor joins gloo's threads
    while they wait for the interpreter that it holds.
    """
    with contextlib.suppress(RuntimeError):  # the others may be gone already
        dist.barrier()
    os._exit(0)
