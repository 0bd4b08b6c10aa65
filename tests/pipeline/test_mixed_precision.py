"""Candidates are scored in mixed precision, and the training keeps its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.live import LiveModel
from foresift.pipeline.online import Candidates
from foresift.pipeline.stream import Stream
from tests.pipeline.streams import Highest, collate, model, rows


def stream(net: Any, **fields: Any) -> Stream:
    return Stream(rows(30), Highest(), net, keep=4, of=12, collate=collate, **fields)


def test_the_training_keeps_its_gradients() -> None:
    net = model()
    mixed = stream(net, autocast=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):  # which keeps the weights it has cast
        net(**next(mixed)).loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


def test_a_state_of_another_precision_is_refused() -> None:
    state = stream(model(), autocast=torch.bfloat16).state_dict()
    with pytest.raises(DataError, match="autocast"):
        stream(model()).load_state_dict(state)


def test_hidden_states_are_those_of_layers_in_that_precision() -> None:
    net = model().eval()
    batch = collate([{k: r[k] for k in ("input_ids",)} for r in rows(4)])
    some = Candidates(np.arange(4), tuple("abcd"), **batch)
    seen = LiveModel(net, autocast=torch.bfloat16).look(some, ("nll",), hidden=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = net.base_model(input_ids=seen.ids, use_cache=False).last_hidden_state
    assert seen.hidden is not None
    assert seen.hidden.dtype == torch.float32
    assert seen.hidden.equal(states.float())
    plain = LiveModel(net).look(some, ("nll",), hidden=True)
    assert plain.hidden is not None
    assert not seen.hidden.equal(plain.hidden)
    np.testing.assert_allclose(seen.signals.token["nll"], plain.signals.token["nll"], rtol=0.05)
