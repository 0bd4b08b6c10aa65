"""The pass against a plain oracle: one document at a time, full logits, float64, autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from foresift.pipeline.lm import head as heads
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.forward import compute
from foresift.pipeline.lm.model import Loaded, load
from foresift.pipeline.lm.signals import DOCUMENT, TOKEN
from tests.pipeline.lm.conftest import SHAPES, Make

NAMES = [*TOKEN, *DOCUMENT]
TEXTS = ["", "a", "the cat sat on the mat", "x" * 70, "Grüße aus Köln", "0123456789" * 9, "b"]
TABLE = pa.table({"prompt": ["say", "", "go on:", "why?", "a b c", "p", ""], "response": TEXTS})


def oracle(encoded: Encoded, loaded: Loaded) -> dict[str, list[Any]]:
    """Every signal of every document, the slow way."""
    out: dict[str, list[Any]] = {name: [] for name in NAMES}
    layer = loaded.model.get_output_embeddings()
    for start, stop in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True):
        ids = torch.tensor(encoded.ids[start:stop].astype(np.int64))[None]
        counted = torch.tensor(encoded.counts[start:stop])
        seen: list[torch.Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.enable_grad():
            logits = loaded.model(ids).logits[0].double()
        hook.remove()
        positions = counted.nonzero()[:, 0] - 1
        logp = logits[positions].log_softmax(-1)
        nll = -logp.gather(1, ids[0, positions + 1, None])[:, 0]
        two = logp.exp().topk(2).values.detach().numpy()
        out["nll"].append(nll.detach().numpy())
        out["entropy"].append(-(logp.exp() * logp).sum(-1).detach().numpy())
        out["top_prob"].append(two[:, 0])
        out["margin"].append(two[:, 0] - two[:, 1])
        hidden = seen[0][0].detach().double().numpy()
        out["hidden_mean"].append(hidden.mean(0))
        out["hidden_mean_response"].append(hidden[counted.numpy()].mean(0))
        out["grad_norm"].append(head_gradient(loaded, hidden, positions, ids).numpy())
    return out


def head_gradient(loaded: Loaded, hidden: Any, positions: Any, ids: Any) -> torch.Tensor:
    """Autograd through the output use of the matrix alone, which is what the signal means."""
    layer, config = loaded.model.get_output_embeddings(), loaded.model.config
    weight = layer.weight.detach().double().requires_grad_()
    with torch.enable_grad():
        z = torch.tensor(hidden)[positions] @ weight.T
        z = z * (getattr(config, "logit_scale", None) or 1.0)
        z = z / (getattr(config, "logits_scaling", None) or 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        z = cap * torch.tanh(z / cap) if cap else z
        torch.nn.functional.cross_entropy(z, ids[0, positions + 1]).backward()
    assert weight.grad is not None
    return weight.grad.norm()


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(heads.TILE, "cpu", (48, 100))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["text", "pairs"])
@pytest.mark.usefixtures("small_tiles")
def test_signals_equal_the_oracle(make: Make, shape: str, kind: str) -> None:
    spec = make(shape, max_length=80)
    loaded = load(spec)
    table = pa.table({"text": TEXTS}) if kind == "text" else TABLE
    encoded = encode(table, loaded.tokenizer, spec)
    found = compute(encoded, loaded, NAMES, 200)
    expected = oracle(encoded, loaded)
    for name in TOKEN:
        np.testing.assert_allclose(
            found.token[name], np.concatenate(expected[name]), rtol=1e-5, atol=1e-5, err_msg=name
        )
    for name in DOCUMENT:
        np.testing.assert_allclose(
            found.document[name], np.stack(expected[name]), rtol=2e-5, atol=1e-5, err_msg=name
        )
