"""Attention to the prompt equals the sum over eager attention maps, for any shape and padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm import attention
from foresift.pipeline.lm.live import LiveModel
from foresift.pipeline.online import IGNORED
from foresift.stages.samplers import _attention
from tests.stages.samplers import token_rows


def plain(shape: str, layer: int, row: str) -> list[float]:
    """From the maps of an eager model, a row, a token and a column at a time."""
    eager, found = token_rows.model(shape, "eager"), []
    for tokens, counts in zip(token_rows.ROWS, token_rows.COUNTS, strict=True):
        out = eager(input_ids=torch.tensor([tokens]), output_attentions=True)
        maps = out.attentions[layer][0].double().mean(0)
        start = 0
        for j, counted in enumerate(counts):
            if counted and not counts[j - 1]:
                start = j
            if counted:
                at = j - 1 if row == "predictor" else j
                found.append(sum(maps[at, i].item() for i in range(start)))
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", token_rows.CONFIGS)
def test_it_is_the_sum_over_eager_maps(shape: str, attention: str, side: str) -> None:
    live = LiveModel(token_rows.model(shape, attention))
    rows = token_rows.candidates(11, side)
    for layer, row in ((-1, "token"), (1, "predictor"), (0, "token")):
        reader: Any = _attention.PromptAttention(live, layer, row)  # type: ignore[arg-type]
        seen, found = reader.look(rows)
        assert reader.reason == ""
        np.testing.assert_allclose(found, plain(shape, layer, row), rtol=1e-5, atol=1e-5)
        nll = live.look(rows, ("nll",)).signals.token["nll"]
        assert (seen.signals.token["nll"] == nll).all()  # watching changes no number


def test_the_model_is_left_as_it_was() -> None:
    model = token_rows.model().train()
    configs = [id(m.config) for m in model.modules() if hasattr(m, "config")]
    _attention.PromptAttention(LiveModel(model)).look(token_rows.candidates())
    assert [id(m.config) for m in model.modules() if hasattr(m, "config")] == configs
    assert model.config._attn_implementation == "sdpa"
    assert model.training


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_uniform_attention_gives_the_share_of_the_prompt(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_attention._BLOCK, "cpu", size * 4 * 9)
    query, key = torch.zeros(1, 4, 9, 8), torch.randn(1, 2, 9, 8)
    starts = torch.tensor([[0, 0, 2, 2, 2, 5, 5, 5, 0]])
    counted = torch.ones(1, 9, dtype=torch.bool)
    found = _attention.prompt_attention(query, key, starts, counted, 1.0)
    expected = [s / (j + 1) for j, s in enumerate(starts[0].tolist())]
    torch.testing.assert_close(found[0, 1:], torch.tensor(expected[1:]))
    before = _attention.prompt_attention(query, key, starts, counted, 1.0, row="predictor")
    assert before[0, 2].item() == pytest.approx(1)
    assert before[0, 5].item() == pytest.approx(1)
    assert before[0, 4].item() == pytest.approx(0.5)


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_blocks_windows_and_caps_match_the_whole_matrix(
    cap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 4, 21, 8, generator=generator)
    key = torch.randn(2, 2, 21, 8, generator=generator)
    starts = torch.randint(0, 21, (2, 21), generator=generator).cummax(1).values
    starts = torch.minimum(starts, torch.arange(21))
    counted = torch.rand(2, 21, generator=generator) < 0.8
    z = query @ key.repeat_interleave(2, 1).mT * 0.3
    z = cap * (z / cap).tanh() if cap else z
    at, column = torch.arange(21)[:, None], torch.arange(21)
    seen = (column <= at) & (column > at - 6)
    maps = z.masked_fill(~seen, -torch.inf).softmax(-1)
    monkeypatch.setitem(_attention._BLOCK, "cpu", 2 * 4 * 21 * 4)
    for given in ({"window": 6}, {"mask": seen[None, None]}):
        found = _attention.prompt_attention(
            query,
            key,
            starts,
            counted,
            0.3,
            cap=cap,
            **given,  # type: ignore[arg-type]
        )
        expected = _attention.summed(maps, starts)
        torch.testing.assert_close(found[:, 1:][counted[:, 1:]], expected[:, 1:][counted[:, 1:]])


def test_what_hands_more_to_its_kernel_is_read_from_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = token_rows.candidates()
    live = LiveModel(token_rows.model("qwen2"))
    expected = _attention.PromptAttention(live).look(rows)[1]
    monkeypatch.setattr(attention, "_KNOWN", {"scaling"})
    reader = _attention.PromptAttention(live)
    found = reader.look(rows)[1]
    assert "Qwen2Attention hands" in reader.reason
    assert live.model.config._attn_implementation == "sdpa"
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    again = reader.look(rows)[1]
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-6)


def test_a_model_without_attention_says_so() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=37, hidden_size=16, num_hidden_layers=1, state_size=4)
    live = LiveModel(MambaForCausalLM(config))
    with pytest.raises(ModelError, match="MambaForCausalLM has no attention layer"):
        _attention.PromptAttention(live).look(token_rows.candidates())


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="layer 3 of 3 does not exist"):
        _attention.PromptAttention(LiveModel(token_rows.model()), 3)


def test_rows_without_a_counted_token() -> None:
    rows = token_rows.candidates()
    rows.labels[:] = IGNORED
    found = _attention.PromptAttention(LiveModel(token_rows.model())).look(rows)[1]
    assert len(found) == 0
