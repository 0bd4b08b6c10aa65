"""The live model gives the offline pass's signals, whatever the padding, and leaves no trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.live import LiveModel, compact
from foresift.pipeline.online import IGNORED, Candidates

NAMES = ("nll", "entropy", "top_prob", "margin", "log_variance")
ROWS = [[5, 6, 7, 8, 9], [3, 4], [11, 12, 13, 14], [7]]


def llama(**fields: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, attention_dropout=0.5, **fields,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def candidates(width: int, side: str = "right", prompt: int = 1) -> Candidates:
    """The rows padded to a width; the first `prompt` tokens of each do not count."""
    ids = torch.full((len(ROWS), width), 30)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, tokens in enumerate(ROWS):
        start = 0 if side == "right" else width - len(tokens)
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = 1
        labels[row, start + prompt : start + len(tokens)] = torch.tensor(tokens[prompt:])
    return Candidates(np.arange(len(ROWS)), tuple("abcd"), ids, mask, labels)


def expected(model: Any, prompt: int) -> dict[str, np.ndarray]:
    """From the model's own logits, a row at a time."""
    found: dict[str, list[Any]] = {name: [] for name in NAMES}
    model.eval()
    for tokens in ROWS:
        ids = torch.tensor([tokens])
        log = model(input_ids=ids).logits[0].log_softmax(-1)
        for at in range(max(prompt, 1), len(tokens)):
            line = log[at - 1]
            two = line.exp().topk(2).values
            found["nll"].append(-line[tokens[at]].item())
            found["entropy"].append(-(line.exp() * line).sum().item())
            found["top_prob"].append(two[0].item())
            found["margin"].append((two[0] - two[1]).item())
            mean = (line.exp() * line).sum()
            found["log_variance"].append((line.exp() * (line - mean).square()).sum().item())
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prompt", [0, 1, 2])
def test_signals_are_those_of_the_logits(side: str, prompt: int) -> None:
    model = llama()
    seen = LiveModel(model).look(candidates(9, side, prompt), NAMES)
    for name, values in expected(model, prompt).items():
        np.testing.assert_allclose(seen.signals.token[name], values, rtol=1e-4, atol=1e-5)
    assert seen.signals.counts.tolist() == [max(len(r) - max(prompt, 1), 0) for r in ROWS]
    assert seen.lengths.tolist() == [5, 2, 4, 1]


def test_scoring_leaves_modes_and_dropout_as_they_were() -> None:
    model = llama().train()
    model.model.layers[1].eval()
    before = [m.training for m in model.modules()]
    live = LiveModel(model)
    first, second = (live.look(candidates(6), ("nll",)).signals.token["nll"] for _ in range(2))
    np.testing.assert_array_equal(first, second)  # no dropout
    assert [m.training for m in model.modules()] == before
    drawn = LiveModel(model, mode="train")
    one, other = (drawn.look(candidates(6), ("nll",)).signals.token["nll"] for _ in range(2))
    assert (one != other).any()


def test_hidden_states_stand_where_the_tokens_are() -> None:
    model = llama()
    seen = LiveModel(model).look(candidates(8, "left"), (), hidden=True)
    assert seen.hidden is not None
    assert seen.hidden.shape == (4, 5, 16)
    alone = model.eval().model(input_ids=torch.tensor([ROWS[2]])).last_hidden_state[0]
    torch.testing.assert_close(seen.hidden[2, :4], alone)
    torch.testing.assert_close(
        seen.hidden @ model.lm_head.weight.T, model(input_ids=seen.ids).logits
    )


def test_document_signals_have_no_value_without_a_token_that_counts() -> None:
    seen = LiveModel(llama()).look(candidates(6), ("grad_norm", "hidden_mean"))
    assert np.isnan(seen.signals.document["grad_norm"]).tolist() == [False, False, False, True]
    assert np.isfinite(seen.signals.document["hidden_mean"]).all()


def test_a_head_that_is_not_known_falls_back_to_logits() -> None:
    class Shifted(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits + torch.linspace(0, 1, out.logits.shape[-1])
            return out

    torch.manual_seed(0)
    model = Shifted(llama().config)
    live = LiveModel(model)
    assert live.head is None
    assert "Shifted does something to its logits" in live.reason
    seen = live.look(candidates(7, "left"), NAMES)
    for name, values in expected(model, 1).items():
        np.testing.assert_allclose(seen.signals.token[name], values, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match=r"grad_norm cannot be had: .*Shifted does something"):
        live.look(candidates(7), ("grad_norm",))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_on_the_output_layer_is_read_through_the_logits() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(llama(), config)
    live = LiveModel(model)
    assert live.head is None
    assert "adapter" in live.reason
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    seen = live.look(candidates(7), ("nll",))
    np.testing.assert_allclose(seen.signals.token["nll"], expected(model, 1)["nll"], rtol=1e-4)
    inner = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert LiveModel(inner).head is not None


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_trained_tokens_of_a_tied_output_layer_are_read_through_the_logits() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[1, 2, 3, 4])
    model = get_peft_model(llama(tie_word_embeddings=True), config)
    live = LiveModel(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(1.0)
    seen = live.look(candidates(7), ("nll",))
    np.testing.assert_allclose(seen.signals.token["nll"], expected(model, 1)["nll"], rtol=1e-4)
    assert "adapter" in live.reason


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_learned_prompts_are_refused() -> None:
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ModelError, match="prompt or prefix tuning"):
        LiveModel(get_peft_model(llama(), config))


def test_a_model_that_was_moved_is_scored_with_the_weights_it_has_now() -> None:
    model = llama()
    live = LiveModel(model)
    model.to(torch.float64)
    with torch.no_grad():
        model.lm_head.weight.normal_()
    seen = live.look(candidates(7), ("nll",))
    np.testing.assert_allclose(seen.signals.token["nll"], expected(model, 1)["nll"], rtol=1e-5)


def test_a_model_that_diverged_is_told_apart_from_one_with_an_unknown_head() -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    assert "logits that are not finite" in LiveModel(model).reason


def test_a_soft_cap_goes_through_the_head() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    live = LiveModel(model)
    assert live.head is not None
    assert live.head.softcap == 0.5
    seen = live.look(candidates(6), ("nll",))
    np.testing.assert_allclose(seen.signals.token["nll"], expected(model, 1)["nll"], rtol=1e-4)


def test_pads_are_taken_out_and_a_first_token_never_counts() -> None:
    left, right = (compact(candidates(9, side, prompt=0)) for side in ("left", "right"))
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b)
    ids, _, counted = left
    assert ids.tolist()[1] == [3, 4, 0, 0, 0]
    assert not counted[:, 0].any()
    assert counted.sum(1).tolist() == [4, 1, 3, 0]


def test_candidates_are_taken_in_the_order_given() -> None:
    some = candidates(6).take(np.array([2, 0]))
    assert some.ids == ("c", "a")
    assert some.rows.tolist() == [2, 0]
    assert some.input_ids[0, :4].tolist() == ROWS[2]


def test_a_token_that_the_model_does_not_know_is_told() -> None:
    some = candidates(12)
    some.input_ids[2, 1] = 4000
    with pytest.raises(DataError, match="row c has token 4000, the model knows"):
        LiveModel(llama()).look(some, ("nll",))


def test_tokens_that_a_model_rules_out_leave_the_entropy_finite() -> None:
    model = llama()
    live = LiveModel(model)
    plain = live.look(candidates(12), ("entropy",)).signals.token["entropy"]
    never = torch.zeros(model.config.vocab_size)
    never[-1] = -torch.inf
    model.lm_head.register_forward_hook(lambda _m, _x, out: out + never)
    ruled = LiveModel(model)
    assert ruled.head is None
    found = ruled.look(candidates(12), ("entropy",)).signals.token["entropy"]
    assert np.isfinite(found).all()
    assert (found < plain).mean() > 0.9
