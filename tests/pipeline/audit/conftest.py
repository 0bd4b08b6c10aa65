"""Tiny models for the audit: random ones of three shapes, and one that is a table."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from foresift.pipeline.lm.model import load_tokenizer

_LLAMA = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "max_position_embeddings": 256,
}  # fmt: skip
SHAPES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3},
    "llama": _LLAMA,
    "qwen2": {**_LLAMA, "tie_word_embeddings": True},
}

Build = Callable[..., Any]


@pytest.fixture
def build() -> Build:
    """A random model by shape; `vocab_size` and the rest of its configuration may be given."""

    def make(shape: str = "gpt2", seed: int = 0, **fields: Any) -> Any:
        settings = {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256, **SHAPES[shape]}
        config = AutoConfig.for_model(shape, **{**settings, **fields})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(config).eval()

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer("bytes")


class Fixed(torch.nn.Module):
    """Predicts by the last token alone: row `token` of a table of probabilities."""

    def __init__(self, table: Any) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.log(torch.tensor(table, dtype=torch.float32)))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


@pytest.fixture
def fixed() -> type[Fixed]:
    return Fixed
