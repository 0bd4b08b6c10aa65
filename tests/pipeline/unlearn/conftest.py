"""A two-layer model that has memorised some token strings, made once for the folder."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from foresift.pipeline.unlearn.documents import documents, read

VOCABULARY, LENGTH = 24, 16


@dataclass(frozen=True)
class Memorised:
    """The model and what it was trained on."""

    trained: Any
    forget: list[list[int]]
    retain: list[list[int]]

    @property
    def model(self) -> Any:
        """A copy of its own for each test."""
        return copy.deepcopy(self.trained)


def llama(**fields: Any) -> Any:
    """Two layers, random weights from seed 0."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(settings | fields)))


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def memorised() -> Memorised:
    """Eight strings to forget among 32, learned by heart."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = np.random.default_rng(0).integers(VOCABULARY, size=(32, LENGTH)).tolist()
    model, (given, _) = llama(), documents(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    whole = given.batch(range(len(given)))
    for _ in range(150):
        optimizer.zero_grad()
        read(model, whole).mean.backward()
        optimizer.step()
    torch.set_num_threads(before)
    return Memorised(model.eval(), rows[:8], rows[8:])
