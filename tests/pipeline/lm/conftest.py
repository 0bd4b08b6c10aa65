"""Tiny random models of five shapes, with the byte tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from foresift.pipeline.lm.model import ModelSpec

_WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
_SPREAD = {"initializer_range": 0.3, "max_position_embeddings": 512}
SHAPES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.3},
    "gpt_neox": {**_WIDTH, **_SPREAD, "num_attention_heads": 4},
    "llama": {**_WIDTH, **_HEADS, **_SPREAD},
    "qwen2": {**_WIDTH, **_HEADS, **_SPREAD, "tie_word_embeddings": True},
    "mistral": {**_WIDTH, **_HEADS, **_SPREAD, "sliding_window": 8},
    "granite": {**_WIDTH, **_HEADS, **_SPREAD, "logits_scaling": 3.0},
    "cohere": {**_WIDTH, **_HEADS, **_SPREAD, "logit_scale": 0.25},
    "gemma2": {
        **_WIDTH, **_HEADS, **_SPREAD, "head_dim": 8, "query_pre_attn_scalar": 8,
        "sliding_window": 8, "final_logit_softcapping": 2.0,
    },
}  # fmt: skip

Make = Callable[..., ModelSpec]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a configuration and give its ModelSpec."""

    def build(shape: str = "llama", **fields: object) -> ModelSpec:
        path = tmp_path / f"{shape}.json"
        path.write_text(json.dumps({"model_type": shape, **SHAPES[shape]}))
        kernel = "eager" if shape == "gemma2" else "sdpa"
        settings = {"init": str(path), "tokenizer": "bytes", "device": "cpu", "attention": kernel}
        settings |= fields
        return ModelSpec.parse(settings, "model")

    return build
