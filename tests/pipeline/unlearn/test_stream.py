"""FIT: the redundancy filter, classes by importance, layers by what they carry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.unlearn.blocks import blocks, matrices, names_in
from foresift.pipeline.unlearn.documents import documents, read
from foresift.pipeline.unlearn.run import METHODS, unlearn
from foresift.pipeline.unlearn.stream import (
    SETTINGS,
    classes,
    importance,
    layer_scores,
    redundant,
    top_layers,
)

HISTORY = [[1.0, 0.0]]
CHUNKS = [[2.0, 0.1], [0.0, 1.0], [1.0, 0.9], [0.1, 1.0]]


def test_chunks_like_the_history_are_redundant_unless_the_loss_needs_them() -> None:
    assert redundant(CHUNKS, HISTORY, lambda i: 0.0).tolist() == [True, False, False, True]
    needed = redundant(CHUNKS, HISTORY, lambda i: -0.5 if i == 0 else 0.001)
    assert needed.tolist() == [False, False, False, True]
    assert not redundant(CHUNKS, HISTORY, lambda i: 0.0, tau=0.999).any()


def test_the_loss_is_asked_only_where_something_is_alike() -> None:
    asked: list[int] = []
    redundant(CHUNKS[:2], HISTORY, lambda i: asked.append(i) or 0.0)  # type: ignore[func-returns-value]
    assert asked == [0]
    assert redundant(CHUNKS[:2], np.empty((0, 2)), lambda i: 0.0).tolist() == [False, False]


def test_classes_by_terciles() -> None:
    assert classes([3.0, 1.0, 2.0]) == ["npo_kl", "random_labels", "npo"]
    assert classes([1.0, 1.0]) == ["npo", "npo"]
    assert classes([]) == []
    with pytest.raises(DataError, match="finite"):
        classes([1.0, float("nan")])
    assert {method for method, _ in SETTINGS.values()} <= set(METHODS)


def test_importance_is_the_gradient_at_the_embedded_tokens(memorised: Any) -> None:
    given = documents([*memorised.forget[:2], [1, 2, 3]])[0]
    found = importance(memorised.trained, given)
    for i, row in enumerate(given.rows):
        embedded = memorised.trained.get_input_embeddings()(torch.tensor([row])).detach()
        embedded.requires_grad_()
        logits = memorised.trained(inputs_embeds=embedded).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]))
        assert found[i] == pytest.approx(float(torch.autograd.grad(loss, embedded)[0].norm()))


def test_layer_scores_are_differences_without_the_block(memorised: Any) -> None:
    given, model = documents(memorised.forget)[0], memorised.model
    whole = float(read(model, given.batch(range(8))).mean.detach())
    found = layer_scores(model, given, size=3)
    assert float(read(model, given.batch(range(8))).mean.detach()) == whole
    for layer in range(2):
        shorter = memorised.model
        del shorter.model.layers[layer]
        loss = float(read(shorter, given.batch(range(8))).mean.detach())
        assert found[layer] == pytest.approx(abs(loss - whole), rel=1e-4)


def test_top_layers_with_ties() -> None:
    assert top_layers([0.1, 0.5, 0.5, 0.9], 2) == (1, 3)
    assert top_layers([1.0, 1.0], 8) == (0, 1)


def test_only_the_chosen_layers_move(memorised: Any) -> None:
    outcome = unlearn(
        memorised.model, memorised.forget, memorised.retain, "npo", steps=3, layers=[1]
    )
    before = dict(memorised.trained.named_parameters())
    moved = {n for n, p in outcome.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert moved <= names_in(outcome.model, [1])


def test_blocks_and_matrices_of_another_architecture() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=8, n_layer=3, n_head=2)).eval()
    assert len(blocks(model)) == 3
    names = matrices(model)
    assert all(".h." in name and ".ln_" not in name for name in names)
    assert "transformer.h.0.attn.c_attn.weight" in names
    assert layer_scores(model, documents([[1, 2, 3, 4]])[0]).shape == (3,)
