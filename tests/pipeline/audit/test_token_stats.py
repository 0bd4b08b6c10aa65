"""Token statistics: against the plain softmax, for any batch, on three shapes of models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foresift.pipeline.audit import token_stats as tested
from foresift.pipeline.audit.token_stats import statistics, token_stats
from foresift.pipeline.errors import DataError, ModelError

TEXTS = ["alpha beta gamma", "", "Zoë came twice.", "x", "a much longer text " * 5]


def plain(model, ids, counts):
    """The four statistics of the tokens that count, from the whole softmax in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    logp = torch.log_softmax(logits, -1)
    rows = [i for i in range(1, len(ids)) if counts[i]]
    p = logp.exp()
    mean = (p * logp).sum(-1)
    var = (p * logp.square()).sum(-1) - mean.square()
    before = [i - 1 for i in rows]
    at = torch.tensor([ids[i] for i in rows])
    return [
        logp[before].gather(1, at[:, None])[:, 0].numpy(),
        mean[before].numpy(),
        var[before].numpy(),
        (logp[before].argmax(-1) == at).numpy(),
    ]


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen2"])
def test_they_are_those_of_the_plain_softmax(build, tokenizer, shape, monkeypatch) -> None:
    monkeypatch.setitem(tested.heads.TILE, "cpu", (7, 50))  # many tiles of either kind
    model = build(shape)
    found = token_stats(model, tokenizer, TEXTS)
    encoded = tested.encode_items(TEXTS, tokenizer, 256)
    for number, stats in enumerate(found):
        part = slice(encoded.offsets[number], encoded.offsets[number + 1])
        wanted = plain(model, encoded.ids[part].tolist(), encoded.counts[part])
        for ours, theirs in zip(
            (stats.logp, stats.mean, stats.var, stats.hit), wanted, strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_batches_change_nothing(build, tokenizer, batch_tokens) -> None:
    model = build()
    one = token_stats(model, tokenizer, TEXTS, batch_tokens=200)
    other = token_stats(model, tokenizer, TEXTS[::-1], batch_tokens=batch_tokens)[::-1]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)
        np.testing.assert_allclose(a.var, b.var, rtol=1e-4, atol=1e-5)


def test_the_known_answer(fixed) -> None:
    model = fixed([[0.7, 0.2, 0.1]] * 3)
    (stats,) = token_stats(model, None, [[2, 1, 0]])
    np.testing.assert_allclose(stats.mean, -0.8018, atol=1e-4)
    np.testing.assert_allclose(stats.var, 0.4944, atol=1e-4)
    np.testing.assert_allclose(np.exp(stats.logp), [0.2, 0.7], rtol=1e-6)
    assert stats.hit.tolist() == [False, True]


def test_a_token_ruled_out_gives_no_nan() -> None:
    z = torch.tensor([[0.0, -torch.inf, 1.0]])
    logp, mean, var, hit = statistics(iter([(0, z)]), torch.tensor([2]))
    assert torch.isfinite(torch.stack([logp, mean, var])).all()
    assert hit.tolist() == [True]


def test_equal_logits_hit_only_the_first_token() -> None:
    z = torch.zeros(3, 2)
    *_, hit = statistics(iter([(0, z), (2, z)]), torch.tensor([0, 1, 3]))
    assert hit.tolist() == [True, False, False]


def test_texts_that_begin_with_the_response_alone_count_it(build, tokenizer) -> None:
    model = build()
    (pair,) = token_stats(model, tokenizer, [("who?", "me")])
    (whole,) = token_stats(model, tokenizer, ["who?\nme"])
    np.testing.assert_allclose(pair.logp, whole.logp[-3:], atol=1e-5)


def test_what_cannot_be_told_apart_is_refused(build, tokenizer) -> None:
    with pytest.raises(DataError, match="one kind"):
        token_stats(build(), tokenizer, ["a", ("b", "c")])


def test_broken_weights_are_told(build, tokenizer) -> None:
    model = build()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        token_stats(model, tokenizer, ["abc"])


def test_dropout_is_off_and_comes_back(build, tokenizer) -> None:
    model = build("gpt2", resid_pdrop=0.5).train()
    one, other = (token_stats(model, tokenizer, ["some text"])[0] for _ in range(2))
    np.testing.assert_array_equal(one.logp, other.logp)
    assert model.training


def test_texts_are_cut_at_the_positions_that_there_are(build, tokenizer) -> None:
    (stats,) = token_stats(build(), tokenizer, ["y" * 1000])
    assert len(stats) == 255
