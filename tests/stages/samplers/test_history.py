"""Losses of the past: tables by id, earlier weights, moving averages, adapters switched off."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.live import LiveModel
from foresift.pipeline.lm.model import load_tokenizer
from foresift.stages.samplers import _history
from tests.stages.samplers import token_rows


def nll(model: Any, rows: Any) -> Any:
    return LiveModel(model).look(rows, ("nll",)).signals.token["nll"]


def learn(model: Any, steps: int = 1) -> None:
    """Move the weights that are trained."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.3)
    rows = token_rows.candidates()
    for _ in range(steps):
        given = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
        model(**given, labels=rows.labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adapted(**fields: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, **fields)
    with warnings.catch_warnings():  # peft reads a deprecated attribute of transformers
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(token_rows.model(), config).train()


def test_a_table_is_read_by_id_in_any_order_and_padding(tmp_path: Path) -> None:
    model, path = token_rows.model(), tmp_path / "losses.parquet"
    rows = token_rows.candidates()
    batches = [rows.take(np.array([3, 1])), rows.take(np.array([0, 2, 3]))]
    _history.cache_history(LiveModel(model), batches, path)
    table = _history.Table(path)
    turned = token_rows.candidates(14, "left").take(np.array([2, 3, 1, 0]))
    found = table.losses(token_rows.seen(turned), 0)
    np.testing.assert_allclose(found, nll(model, turned), rtol=1e-5, atol=1e-5)


def test_half_precision_is_close(tmp_path: Path) -> None:
    losses = np.array([0.1, 2.7, 11.03], dtype=np.float32)
    _history.write_history(tmp_path / "half.parquet", ["a"], [losses], [4], "float16")
    found = _history.Table(tmp_path / "half.parquet").of("a")
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, losses, rtol=5e-4)


def test_other_tokens_than_were_cached_are_an_error(tmp_path: Path) -> None:
    path, rows = tmp_path / "losses.parquet", token_rows.candidates()
    seen = token_rows.seen(rows)
    losses = [np.zeros(n) for n in (4, 0, 5, 1)]
    _history.write_history(path, list("abcd"), losses, [8, 3, 6, 3])
    with pytest.raises(DataError, match="row d has 2 tokens of which 1 count, the cache 3 and 1"):
        _history.Table(path, "here").losses(seen, 0)
    _history.write_history(path, list("abc"), losses[:3], [8, 3, 6])
    with pytest.raises(DataError, match="here: row d has no cached losses"):
        _history.Table(path, "here").losses(seen, 0)
    with pytest.raises(DataError, match="no table of losses"):
        _history.Table(tmp_path / "none.parquet")


@pytest.mark.parametrize("tied", [False, True])
def test_earlier_weights_give_earlier_losses_and_are_put_back(tied: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    model, rows = LlamaForCausalLM(config), token_rows.candidates()
    live = LiveModel(model)
    past, first = _history.Weights(live), nll(model, rows)
    learn(model, 2)
    moved = nll(model, rows)
    assert (first != moved).any()
    np.testing.assert_array_equal(past.losses(token_rows.seen(rows), 5), first)
    np.testing.assert_array_equal(nll(model, rows), moved)
    resumed = _history.Weights(live)
    resumed.load_state_dict(past.state_dict())
    np.testing.assert_array_equal(resumed.losses(token_rows.seen(rows), 6), first)


def test_weights_come_back_when_scoring_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = token_rows.model(), token_rows.candidates()
    past = _history.Weights(LiveModel(model))
    learn(model)
    moved = nll(model, rows)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(past.live, "look", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        past.losses(token_rows.seen(rows), 0)
    np.testing.assert_array_equal(nll(model, rows), moved)


def test_a_moving_average_moves_once_a_step() -> None:
    model = token_rows.model()
    past = _history.Weights(LiveModel(model), decay=0.75)
    name, weight = next(iter(past.now.items()))
    expected = weight.detach().clone()
    for step in range(3):
        learn(model)
        expected = 0.75 * expected + 0.25 * weight.detach()
        for _ in range(2):  # two micro-batches
            past.losses(token_rows.seen(token_rows.candidates()), step)
    torch.testing.assert_close(past.then[name], expected)
    state = past.state_dict()
    resumed = _history.Weights(LiveModel(model), decay=0.75)
    resumed.load_state_dict(state)
    resumed.advance(2)
    torch.testing.assert_close(resumed.then[name], expected)


def test_weights_of_another_model_are_refused() -> None:
    state = _history.Weights(LiveModel(token_rows.model("gpt2"))).state_dict()
    with pytest.raises(DataError, match=r"history: .* another model"):
        _history.Weights(LiveModel(token_rows.model())).load_state_dict(state)


def test_adapters_are_switched_off_and_on_again() -> None:
    model, rows = adapted(), token_rows.candidates()
    base = nll(token_rows.model(), rows)
    live = LiveModel(model)
    past = _history.Adapters(live)
    np.testing.assert_array_equal(nll(model, rows), base)  # the second factor begins at zero
    np.testing.assert_array_equal(past.losses(token_rows.seen(rows), 0), base)
    learn(model, 2)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    moved = nll(model, rows)
    assert (moved != base).any()
    np.testing.assert_array_equal(past.losses(token_rows.seen(rows), 1), base)
    np.testing.assert_array_equal(nll(model, rows), moved)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    assert all("lora" in n for n in _history.Weights(live).then)  # a copy of the adapter alone


def test_history_is_read_without_dropout() -> None:
    rows = token_rows.candidates()
    live = LiveModel(adapted(), mode="train")
    learn(live.wrapped, 2)
    for past in (_history.Adapters(live), _history.Weights(live)):
        one, other = (past.losses(token_rows.seen(rows), 0) for _ in range(2))
        np.testing.assert_array_equal(one, other)
    assert live.wrapped.training


def test_adapters_are_found_inside_wrappers() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module

    model = adapted()
    assert _history.Adapters(LiveModel(Wrapper(model))).peft is model
    with pytest.raises(ModelError, match="needs a PEFT model"):
        _history.Adapters(LiveModel(token_rows.model()))


def test_a_loaded_model(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    other = LlamaForCausalLM(config)
    other.save_pretrained(tmp_path)
    load_tokenizer("bytes").save_pretrained(tmp_path)
    rows = token_rows.candidates()
    past = _history.reference(str(tmp_path), LiveModel(token_rows.model()), "here")
    np.testing.assert_array_equal(past.losses(token_rows.seen(rows), 0), nll(other, rows))
    config.vocab_size = 300
    with pytest.raises(ModelError, match=r"here: .* knows 257 tokens, the model in training 300"):
        _history.reference(str(tmp_path), LiveModel(LlamaForCausalLM(config)), "here")
