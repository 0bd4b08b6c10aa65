"""Candidates of a few rows padded on either side, tiny models of four shapes, and plain oracles."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from foresift.pipeline.lm.live import Seen, compact
from foresift.pipeline.lm.signals import Signals
from foresift.pipeline.online import IGNORED, Candidates

VOCABULARY = 37
#: tokens of each row; a token counts where the second list says so
ROWS = [[5, 6, 7, 8, 9, 10, 3, 2], [3, 4, 5], [11, 12, 13, 14, 1, 2], [7, 8]]
COUNTS = [[0, 0, 1, 1, 0, 1, 1, 0], [0, 0, 0], [0, 1, 1, 1, 1, 1], [0, 1]]
IDS = ("a", "b", "c", "d")
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
_WIDTH = {"vocab_size": VOCABULARY, "initializer_range": 0.4}
_BLOCK = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, **_WIDTH, **_HEADS}
CONFIGS = {
    "gpt2": GPT2Config(
        n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0,
        scale_attn_by_inverse_layer_idx=True, **_WIDTH,
    ),
    "llama": LlamaConfig(attention_dropout=0.5, **_BLOCK),
    "mistral": MistralConfig(sliding_window=3, **_BLOCK),
    "qwen2": Qwen2Config(**_BLOCK),
    "qwen3": Qwen3Config(head_dim=16, **_BLOCK),
}  # fmt: skip


def model(shape: str = "llama", attention: str = "sdpa", seed: int = 0) -> Any:
    """A random model of a shape."""
    torch.manual_seed(seed)
    config = copy.deepcopy(CONFIGS[shape])  # a model changes its own
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def candidates(
    width: int = 10,
    side: str = "right",
    rows: list[list[int]] = ROWS,
    counts: list[list[int]] = COUNTS,
    ids: tuple[str, ...] = IDS,
) -> Candidates:
    """The rows, padded to a width."""
    tokens = torch.full((len(rows), width), VOCABULARY - 1)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, IGNORED)
    for i, (row, counted) in enumerate(zip(rows, counts, strict=True)):
        start = 0 if side == "right" else width - len(row)
        tokens[i, start : start + len(row)] = torch.tensor(row)
        mask[i, start : start + len(row)] = 1
        labels[i, start : start + len(row)] = torch.where(
            torch.tensor(counted).bool(), torch.tensor(row), IGNORED
        )
    return Candidates(np.arange(len(rows)), ids, tokens, mask, labels)


def seen(given: Candidates, nll: Any = None) -> Seen:
    """Candidates as if a model with these losses had looked at them."""
    ids, lengths, counted = compact(given)
    offsets = np.concatenate([[0], counted.sum(1).cumsum(0)]).astype(np.int64)
    token = {} if nll is None else {"nll": np.asarray(nll, dtype=np.float32)}
    return Seen(given, Signals(token, {}, offsets), lengths, ids, counted, None)


def flat(labels: torch.Tensor, given: Candidates) -> list[bool]:
    """Whether each counted token of the candidates still counts."""
    return (labels[given.labels != IGNORED] != IGNORED).tolist()


def top(scores: Any, share: float) -> list[bool]:
    """The plain version of the largest share, ties by position."""
    n = len(scores)
    best = sorted(range(n), key=lambda i: (-scores[i], i))[: math.ceil(share * n - 1e-9)]
    return [i in best for i in range(n)]
