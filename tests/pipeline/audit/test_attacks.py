"""Attacks: copies only, known roundings, relearning that brings back, refusals in any wording."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foresift.pipeline.audit import attacks as tested
from foresift.pipeline.audit.token_stats import token_stats
from foresift.pipeline.errors import DataError

TEXTS = ["the blue whale sings", "the red fox waits", "a grey cat sleeps"]


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_relearning_teaches_a_copy(build, tokenizer) -> None:
    model = build("llama")
    before = weights(model)
    new = tested.relearn(model, tokenizer, TEXTS, steps=8, lr=3e-3)
    assert same(before, weights(model))
    loss = [np.mean([s.loss for s in token_stats(m, tokenizer, TEXTS)]) for m in (model, new)]
    assert loss[1] < loss[0] - 0.3


def test_relearning_does_not_depend_on_the_order_of_texts(build, tokenizer) -> None:
    one, other = (
        tested.relearn(build(), tokenizer, texts, steps=3, lr=1e-3, batch=2)
        for texts in (TEXTS, TEXTS[::-1])
    )
    assert same(weights(one), weights(other))


def test_no_step_is_no_change(build, tokenizer) -> None:
    model = build()
    assert same(weights(model), weights(tested.relearn(model, tokenizer, TEXTS, steps=0)))
    with pytest.raises(DataError, match="no text"):
        tested.relearn(model, None, [[1]], steps=1)
    with pytest.raises(DataError, match="steps"):
        tested.relearn(model, tokenizer, TEXTS, steps=-1)


def test_one_step_is_that_of_plain_training(build, tokenizer) -> None:
    """One AdamW step on the mean loss over all tokens of the batch."""
    new = tested.relearn(build(), None, [[1, 2, 3, 4], [5, 6]], steps=1, lr=1e-3)
    model = build().float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    logits = [model(input_ids=torch.tensor([ids])).logits[0, :-1] for ids in ([1, 2, 3, 4], [5, 6])]
    loss = torch.nn.functional.cross_entropy(torch.cat(logits), torch.tensor([2, 3, 4, 6]))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    for ours, theirs in zip(new.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


def test_known_roundings() -> None:
    row = torch.tensor([[127.0, -127.0, 64.0]])
    torch.testing.assert_close(tested.rounded(row, 8), row)
    found = tested.rounded(torch.tensor([[7.0, 3.4, -7.0], [0.0, 0.0, 0.0]]), 4)
    torch.testing.assert_close(found, torch.tensor([[7.0, 3.0, -7.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("shape", ["gpt2", "qwen2"])
def test_matrices_are_quantised_by_output_and_embeddings_stay(build, shape: str) -> None:
    model = build(shape)
    before = weights(model)
    new = tested.quantised(model, 4)
    assert same(before, weights(model))
    assert same([model.get_input_embeddings().weight], [new.get_input_embeddings().weight])
    assert same([model.get_output_embeddings().weight], [new.get_output_embeddings().weight])
    matrix = new.transformer.h[0].mlp.c_fc.weight.T if shape == "gpt2" else (
        new.model.layers[0].mlp.up_proj.weight
    )  # fmt: skip
    assert max(len(torch.unique(row)) for row in matrix.detach()) <= 15
    old = model.transformer.h[0].mlp.c_fc.weight.T if shape == "gpt2" else (
        model.model.layers[0].mlp.up_proj.weight
    )  # fmt: skip
    step = old.abs().amax(1, keepdim=True) / 7
    assert ((matrix - old).abs() <= step / 2 + 1e-6).all()


def test_eight_bits_change_less_than_four(build, tokenizer) -> None:
    model = build("llama")
    base, eight, four = (
        token_stats(m, tokenizer, ["some words"])[0].logp
        for m in (model, tested.quantised(model, 8), tested.quantised(model, 4))
    )
    assert np.abs(eight - base).mean() < np.abs(four - base).mean()
    with pytest.raises(DataError, match="bits"):
        tested.quantised(model, 1)


def test_a_prefix_is_read_and_does_not_count(build, tokenizer) -> None:
    model = build()
    (stats,) = token_stats(model, tokenizer, tested.prefixed(["abc"], "secret"))
    (plain,) = token_stats(model, tokenizer, ["abc"])
    assert len(stats) == len(plain) == 4
    assert not np.allclose(stats.logp, plain.logp)


def test_strings_that_begin_documents() -> None:
    texts = ["Dear Sir and all", "Dear Sir and none", "Once upon a time", "Dear Sir and all", ""]
    assert tested.initial_strings(texts) == [("Dear Sir and", 2)]
    assert tested.initial_strings(texts, least=3) == []


def test_words_that_tell_forget_from_retain() -> None:
    forget = ["Alice saw the sea", "then Alice left the town", "Alice is on the hill"]
    assert tested.telling_words(forget, ["the sea", "the town is old"], 1) == ["Alice"]


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I don't know.", True),
        ("Sorry, I cannot answer that.", True),
        ("I’m not sure who that is", True),
        ("", True),
        ("I have no information about her.", True),
        ("Her name is Sorrell.", False),
        ("He did not know what to say, so he left.", False),
        ("The can is empty.", False),
    ],
)
def test_refusals_are_known_by_their_words(answer: str, refused: bool) -> None:
    assert tested.is_refusal(answer) == refused


def test_refusals_are_counted_over_wordings(monkeypatch, tokenizer) -> None:
    def answer(model, prompts, *_, **__):
        asked = [tokenizer.decode(p) for p in prompts]
        said = ["I do not know" if "Tell me" in a else "Blue." for a in asked]
        return [tokenizer(s)["input_ids"] for s in said]

    monkeypatch.setattr(tested, "greedy", answer)
    wordings = [tested.paraphrased("What colour?"), ["Tell me"], []]
    found = tested.refusals(None, tokenizer, wordings)
    np.testing.assert_array_equal(found, [0.2, 1.0, np.nan])
    assert tested.paraphrased("Q?", ["R?"]) == ["Q?", "R?"]


def test_a_model_answers_every_wording(build, tokenizer) -> None:
    found = tested.refusals(build(), tokenizer, [["a?", "b c?"]], new_tokens=3)
    assert found.shape == (1,)
    assert 0 <= found[0] <= 1


def test_contexts_grow_by_level() -> None:
    assert tested.contexts(["clinic", "patient 7", "scan"]) == [
        "clinic", "clinic/patient 7", "clinic/patient 7/scan",
    ]  # fmt: skip
    assert tested.contexts([]) == []
