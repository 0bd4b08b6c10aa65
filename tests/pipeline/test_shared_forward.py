"""The forward that scores the candidates is the one that is trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from foresift.pipeline.errors import DataError
from foresift.pipeline.stream import Stream
from foresift.stages.samplers.max_loss import MaxLoss
from foresift.stages.samplers.momentum_gain import MomentumGain
from foresift.stages.samplers.random import Random
from foresift.stages.samplers.random_tokens import RandomTokens
from foresift.stages.samplers.uds import UDS
from tests.pipeline.streams import collate, model, rows

STEPS = 6
SMALL = UDS(d1=8, d2=2, memory=16, max_length=16)


def net(shape: str) -> Any:
    if shape == "llama":
        return model()
    torch.manual_seed(0)
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2, **off))


def opened(trained: Any, method: Any, **fields: Any) -> Stream:
    given: dict[str, Any] = {"keep": 3, "of": 12, "collate": collate, "seed": 4, "mode": "train"}
    return Stream(rows(40), method, trained, **{**given, **fields})


def train(shape: str, method: Any, shared: bool, at_once: int) -> tuple[Any, list[str]]:
    trained = net(shape)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.5)
    stream = opened(trained, method, at_once=at_once)
    trained.train()
    chosen = []
    for _ in range(STEPS):
        loss = stream.loss() if shared else trained(**next(stream)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        chosen.append(stream.report()["agreement"])
    return trained.state_dict(), chosen


@pytest.mark.parametrize("at_once", [1, 5])
@pytest.mark.parametrize("method", [MaxLoss(), SMALL, Random()], ids=["loss", "uds", "random"])
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_it_trains_as_batches_do(shape: str, method: Any, at_once: int) -> None:
    weights, chosen = train(shape, method, True, at_once)
    usual, expected = train(shape, method, False, at_once)
    assert chosen == expected
    torch.testing.assert_close(weights, usual, rtol=1e-4, atol=2e-5)


def test_methods_that_move_the_weights_leave_the_graphs_usable() -> None:
    """Known answer: without a graph in between, the same weights."""
    found = []
    for shared in (True, False):
        trained = net("llama")
        optimizer = torch.optim.AdamW(trained.parameters(), lr=0.01)
        stream = opened(trained, MomentumGain(), optimizer=optimizer, at_once=1)
        trained.train()
        for _ in range(STEPS):
            (stream.loss() if shared else trained(**next(stream)).loss).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert stream.report()["method"]["judged"] == 12 * STEPS
        found.append(trained.state_dict())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_the_layers_run_once_forwards_and_only_chosen_rows_go_back() -> None:
    trained = net("llama")
    forwards, backwards = [], []
    layer = trained.model.layers[0].mlp
    layer.register_forward_hook(lambda *_: forwards.append(1))
    layer.register_full_backward_hook(lambda *_: backwards.append(1))
    stream = opened(trained, MaxLoss(), at_once=1)
    forwards.clear()  # what was looked at when the stream was opened
    stream.loss().backward()
    assert (len(forwards), len(backwards)) == (12, 3)


def test_it_goes_on_from_a_state() -> None:
    first, second = (opened(net("llama"), SMALL) for _ in range(2))
    expected = [float(first.loss().detach()) for _ in range(2)]
    state = first.state_dict()
    expected += [float(first.loss().detach())]
    second.load_state_dict(state)
    assert float(second.loss().detach()) == expected[2]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"mode": "eval"}, 'say mode="train"'),
        ({"tokens": RandomTokens(share=0.5)}, "token selector looks"),
        ({"rank": 0, "world": 2, "gather": lambda x: torch.cat([x, x]), "keep": 4}, "processes"),
    ],
)
def test_what_cannot_share_it_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        opened(net("llama"), Random(), **fields).loss()


def test_an_unknown_output_layer_is_refused() -> None:
    trained = net("llama")
    trained.lm_head.register_forward_hook(lambda _m, _x, out: out * 3 + 1)
    with pytest.raises(DataError, match="output layer is not known"):
        opened(trained, Random()).loss()


def test_a_model_with_a_loss_of_its_own_beside_that_of_tokens_is_refused() -> None:
    trained = net("llama")
    trained.config.output_router_logits = True
    with pytest.raises(DataError, match="balance of its experts"):
        opened(trained, MaxLoss()).loss()
    trained.config.output_router_logits = False
    assert torch.isfinite(opened(trained, MaxLoss()).loss())
