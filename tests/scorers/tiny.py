"""Tiny models and texts that the tests of gradient scores share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from foresift.pipeline.lm.batches import batches
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.gradients import samples
from foresift.pipeline.lm.gradients.oracle import per_sample_gradients
from foresift.pipeline.lm.model import Loaded, ModelSpec

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.3, "tie_word_embeddings": True,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64,
    "initializer_range": 0.3,
}  # fmt: skip
POOL = ["the cat sat", "a", "1 + 1 = 2, 2 + 2 = 4", "", "the dog sat on the mat", "zzzz", "x = y"]
AIM = ["the cow sat down", "a bird sat"]
SUMS = ["3 + 3 = 6", "5 + 1 = 6", "7 + 2 = 9"]
FORMED = ("less", "trak")


def llama(folder: Path) -> ModelSpec:
    """A small Llama over bytes, with random weights."""
    path = folder / "llama.json"
    path.write_text(json.dumps(LLAMA))
    return ModelSpec(init=str(path), tokenizer="bytes", device="cpu", max_length=48)


def gradients(encoded: Encoded, loaded: Loaded) -> np.ndarray:
    """[n, P] by the definition, NaN for a document without counted tokens."""
    size = sum(p.numel() for p in samples.trainable(loaded.model).values())
    out = np.full((len(encoded), size), np.nan)
    for batch in batches(encoded, np.flatnonzero(encoded.counts.sum() * encoded.lengths), 10**6):
        rows = per_sample_gradients(loaded.model, batch).values()
        out[batch.documents] = torch.cat([r.flatten(1) for r in rows], 1).numpy()
    return out


def losses(encoded: Encoded, loaded: Loaded) -> np.ndarray:
    out = np.full(len(encoded), np.nan)
    for batch in batches(encoded, np.flatnonzero(encoded.lengths), 10**6):
        out[batch.documents] = samples.sample_losses(loaded.model, batch).detach().numpy()
    return out


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
