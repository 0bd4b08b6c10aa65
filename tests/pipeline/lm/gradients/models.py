"""Tiny models of the shapes the gradient kernels know, and batches of every kind of document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.lm.gradients.samples import Direction, Parameters

VOCABULARY = 40
_COMMON = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "head_dim": 4}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": _COMMON,
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 4},
}
#: found by probing alone: zero-centred norms, a scaled embedding, norms over [B, heads, T, d]
OTHERS: dict[str, dict[str, Any]] = {
    "gemma3_text": {**_GROUPED, "query_pre_attn_scalar": 4, "sliding_window": 4},
    "olmo2": _GROUPED,
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
}


def build(
    shape: str,
    tied: bool = False,
    dtype: torch.dtype = torch.float64,
    kernel: str = "eager",
    **fields: Any,
) -> Any:
    """A model with random weights, none of them at a special value such as 0 or 1."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {
        "vocab_size": VOCABULARY, "tie_word_embeddings": tied, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": None, **{**SHAPES, **OTHERS}[shape], **fields,
    }  # fmt: skip
    config = AutoConfig.for_model(shape, **fields)
    settings = {"attn_implementation": kernel, "dtype": torch.float64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, **settings)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))
    model = model.to(dtype)
    return model.eval()


def ragged(lengths: Sequence[int] = (12, 9, 5, 1), width: int = 0) -> Batch:
    """Documents with repeated tokens, a masked prompt, and (length 1) nothing counted."""
    draw = np.random.default_rng(0)
    sizes = np.array(lengths)
    width = width or max(lengths)
    real = np.arange(width) < sizes[:, None]
    ids = draw.integers(2, VOCABULARY, (len(sizes), 512))[:, :width]
    ids[0, 1::2] = 7
    ids[real.sum(1) == 9, :6] = 7
    counted = real.copy()
    counted[:, 0] = False
    counted[real.sum(1) == 5, :3] = False
    return Batch(np.arange(len(sizes)), np.where(real, ids, 0), sizes, counted)


def direction(model: Any, seed: int = 0) -> Parameters:
    """Random numbers for each parameter of the model."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=draw, dtype=torch.float64).to(p.dtype)
        for name, p in model.named_parameters()
    }


def products(gradients: Direction, along: Direction) -> torch.Tensor:
    """[B] dot product of each sample's gradient with a direction, the plain way."""
    each = [(g.double() * along[n].double()).flatten(1).sum(1) for n, g in gradients.items()]
    return torch.stack(each).sum(0)


def square_norms(gradients: Direction) -> torch.Tensor:
    """[B] squared norm of each sample's gradient, the plain way."""
    return torch.stack([g.double().flatten(1).square().sum(1) for g in gradients.values()]).sum(0)
