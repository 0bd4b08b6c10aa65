"""The closed form of the stability mask: known answers, autograd, finite differences."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.head import Head
from foresift.pipeline.lm.live import LiveModel
from foresift.stages.samplers.stability_mask import StabilityMask, power_sums, shifts
from tests.stages.samplers import token_rows


def closed(p: Any, a: int, h: Any, eta: float, advantage: float = 1.0) -> tuple[float, float]:
    p, h = np.asarray(p, dtype=np.float64), np.asarray(h, dtype=np.float64)
    sums = [np.array([x]) for x in (p[a], (p**2).sum(), (p**3).sum(), h @ h)]
    m_h, m_f = shifts(sums[0], sums[1], sums[2], sums[3], eta, advantage)
    return float(m_h[0]), float(m_f[0])


def test_known_answers() -> None:
    assert closed((0.5, 0.5), 0, (1,), 0.1) == pytest.approx((0.05, 0.00125))
    found = closed((0.7, 0.2, 0.1), 2, (1, 2), 0.1, -0.5)
    assert found == pytest.approx((0.1431688, 0.0561125), abs=1e-7)
    assert closed((0, 1, 0), 1, (3, 4), 1.0) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.sampled_from([1.0, -0.7]))
def test_the_change_is_that_of_the_objective(seed: int, vocabulary: int, advantage: float) -> None:
    """First and second derivative of A p_new(a) / p(a) along the step, by finite differences."""
    generator = np.random.default_rng(seed)
    z, h = generator.normal(size=vocabulary), generator.normal(size=3)
    p, a = np.exp(z) / np.exp(z).sum(), int(generator.integers(vocabulary))
    v = np.eye(vocabulary)[a] - p
    u = advantage * (h @ h) * v

    def objective(t: float) -> float:
        new = np.exp(z + t * u)
        return float(advantage * new[a] / new.sum() / p[a])

    t = 1e-3 / max(1.0, float(np.abs(u).max()))
    slope = (objective(t) - objective(-t)) / (2 * t)
    bend = (objective(t) - 2 * objective(0) + objective(-t)) / t**2
    m_h, m_f = closed(p, a, h, 0.1, advantage)
    scale = abs(slope) + abs(bend) + 1
    assert m_h == pytest.approx(0.1 * slope + 0.005 * bend, abs=1e-4 * scale)
    norm = np.linalg.norm(np.outer(v, h))
    assert m_f == pytest.approx(0.005 * advantage**2 * norm**4)


def test_power_sums_are_those_of_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator)
    weight = 3 * torch.randn(50, 8, generator=generator)
    head = Head(weight, torch.randn(50, generator=generator), scale=0.7)
    targets = torch.randint(0, 50, (23,), generator=generator)
    p = (((hidden @ weight.T) + head.bias) * 0.7).double().softmax(1)
    for tile in ((512, 1024), (4, 7), (1, 1)):
        monkeypatch.setattr(Head, "tile", tile)
        found = power_sums(head, hidden, targets)
        expected = (p.gather(1, targets[:, None])[:, 0], (p**2).sum(1), (p**3).sum(1))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert [len(x) for x in power_sums(head, hidden[:0], targets[:0])] == [0, 0, 0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_shift_is_the_gradient_of_the_output_layer(side: str) -> None:
    model = token_rows.model("qwen2")
    live = LiveModel(model)
    rows = token_rows.candidates(11, side)
    masker: Any = StabilityMask(learning_rate=0.5).open(live)
    m_h, m_f = masker.measure(live.look(rows, (), hidden=True))
    weight, norms = model.lm_head.weight, []
    for tokens, counts in zip(token_rows.ROWS, token_rows.COUNTS, strict=True):
        hidden = model.model(input_ids=torch.tensor([tokens])).last_hidden_state[0].detach()
        for j, counted in enumerate(counts):
            if counted:
                loss = -(hidden[j - 1] @ weight.T).log_softmax(0)[tokens[j]]
                norms.append(torch.autograd.grad(loss, weight)[0].norm().item())
    np.testing.assert_allclose(m_f, 0.125 * np.array(norms) ** 4, rtol=1e-3)
    tau = float(np.median(m_f))
    part = StabilityMask(learning_rate=0.5, tau_f=tau, tau_h=1e9)
    seen = live.look(rows, (), hidden=True)
    assert token_rows.flat(part.open(live).labels(seen, 0), rows) == (m_f < tau).tolist()
    limit = float(np.median(np.abs(m_h)))
    part = StabilityMask(learning_rate=0.5, tau_f=1e9, tau_h=limit, one_sided=True)
    expected = (m_h >= 0) & (m_h < limit)
    assert token_rows.flat(part.open(live).labels(seen, 0), rows) == expected.tolist()


def test_a_share_is_rejected_whatever_the_rate() -> None:
    live, rows = LiveModel(token_rows.model()), token_rows.candidates()
    seen = live.look(rows, (), hidden=True)
    masks = []
    for rate in (0.0, 1e-5, 3.0):
        masker: Any = StabilityMask(reject=0.2, learning_rate=rate).open(live)
        masks.append(token_rows.flat(masker.labels(seen, 0), rows))
        m_f = masker.measure(seen)[1]
        assert masks[-1] == token_rows.top(-m_f, 0.8)
        assert masker.facts["kept"] == 8
        assert masker.facts["m_f"]["1.0"] == m_f.max()
    assert masks[0] == masks[1] == masks[2]


def test_the_rate_is_the_optimizers() -> None:
    model, rows = token_rows.model(), token_rows.candidates()
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
    live = LiveModel(model, optimizer=optimizer)
    seen = live.look(rows, (), hidden=True)
    masker: Any = StabilityMask().open(live)
    first = masker.measure(seen)[1]
    optimizer.param_groups[0]["lr"] = 0.25
    np.testing.assert_allclose(masker.measure(seen)[1], first / 4)
    with pytest.raises(ModelError, match="learning_rate: no optimizer"):
        StabilityMask().open(LiveModel(model))


def test_a_soft_cap_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    with pytest.raises(ModelError, match="soft cap"):
        StabilityMask(learning_rate=1).open(LiveModel(Gemma2ForCausalLM(config)))


@pytest.mark.parametrize(
    "fields", [{"tau_f": 0}, {"tau_h": -1}, {"reject": 1}, {"learning_rate": float("nan")}]
)
def test_fields_that_make_no_sense(fields: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        StabilityMask(**fields)
