"""Tiny models and padded rows that the tests of batch methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.online import IGNORED, BatchMethod, Candidates

VOCABULARY = 61
SHAPES = ("gpt2", "llama", "qwen")


def model(shape: str = "llama", seed: int = 0, **fields: Any) -> Any:
    """A model with random weights in eval mode, strong enough to be far from uniform."""
    torch.manual_seed(seed)
    small = {"vocab_size": VOCABULARY, "initializer_range": 0.3, **fields}
    if shape == "gpt2":
        config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **small)
        return GPT2LMHeadModel(config).eval()
    kinds = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen": (Qwen2Config, Qwen2ForCausalLM)}
    kind, build = kinds[shape]
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, **heads}
    return build(kind(**sizes, tie_word_embeddings=shape == "qwen", **small)).eval()


def draw(n: int, longest: int = 9, seed: int = 0, shortest: int = 2) -> list[list[int]]:
    """Rows of random tokens, `shortest` to `longest` long."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(shortest, longest + 1, n)
    return [generator.integers(1, VOCABULARY, size).tolist() for size in sizes]


def candidates(
    rows: Sequence[Sequence[int]],
    width: int = 0,
    side: str = "right",
    prompt: int = 1,
    ids: Sequence[str] = (),
) -> Candidates:
    """The rows padded to a width; the first `prompt` tokens of each do not count."""
    width = width or max(map(len, rows))
    tokens = torch.full((len(rows), width), VOCABULARY - 1)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, IGNORED)
    for row, content in enumerate(rows):
        start = 0 if side == "right" else width - len(content)
        tokens[row, start : start + len(content)] = torch.tensor(content, dtype=torch.int64)
        mask[row, start : start + len(content)] = 1
        counted = torch.tensor(content[prompt:], dtype=torch.int64)
        labels[row, start + prompt : start + prompt + len(counted)] = counted
    names = tuple(ids) or tuple(f"row{i}" for i in range(len(rows)))
    return Candidates(np.arange(len(rows)), names, tokens, mask, labels)


def look(method: BatchMethod, live: LiveModel, some: Candidates) -> Seen:
    """What the method asks of the model."""
    return live.look(some, method.signals, hidden=method.hidden)
