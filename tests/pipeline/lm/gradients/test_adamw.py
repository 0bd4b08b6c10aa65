"""AdamW's update: a known answer, torch's own, its first order, and the moments of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.gradients.adamw import (
    OPTIMIZER,
    AdamW,
    Moments,
    Snapshot,
    clip_factor,
    load_moments,
    preconditioned,
    update,
)
from foresift.pipeline.lm.gradients.samples import dot, scaled, trainable
from foresift.pipeline.lm.model import ModelSpec
from tests.pipeline.lm.gradients.documents import bits
from tests.pipeline.lm.gradients.models import build, direction

Tensors = dict[str, torch.Tensor]


def test_one_scalar_update_has_its_known_answer() -> None:
    theta, g, m, v = (torch.tensor(x, dtype=torch.float64) for x in (1.0, 0.2, 0.1, 0.04))
    found = update(theta, g, m, v, 9, AdamW(1e-3, (0.9, 0.95), 1e-8, 0.1))
    assert float(found) == pytest.approx(0.9993650886510765, abs=1e-16)
    assert (float(theta), float(m), float(v)) == (1.0, 0.1, 0.04)


def torch_step(theta: Tensors, g: Tensors, moments: Moments, rule: AdamW) -> Tensors:
    """The same update by torch.optim.AdamW with its state put back; vectors do not decay."""
    leaves = {n: t.detach().clone().requires_grad_() for n, t in theta.items()}
    groups = [
        {"params": [p], "weight_decay": rule.weight_decay if p.dim() >= 2 else 0.0}
        for p in leaves.values()
    ]
    optimizer = torch.optim.AdamW(groups, rule.learning_rate, rule.betas, rule.eps)
    for name, p in leaves.items():
        p.grad = g[name].clone()
        optimizer.state[p] = {
            "step": torch.tensor(float(moments.steps)),
            "exp_avg": moments.first[name].clone(),
            "exp_avg_sq": moments.second[name].clone(),
        }
    if rule.clip:
        torch.nn.utils.clip_grad_norm_(list(leaves.values()), rule.clip)
    optimizer.step()
    return {n: p.detach() for n, p in leaves.items()}


def made_moments(like: Any, steps: int = 7) -> Moments:
    draw = torch.Generator().manual_seed(3)

    def random(p: torch.Tensor) -> torch.Tensor:
        return torch.randn(p.shape, generator=draw, dtype=torch.float64).to(p.dtype)

    first = {n: 0.1 * random(p) for n, p in like.items()}
    return Moments(first, {n: 0.01 * (0.1 + random(p).square()) for n, p in like.items()}, steps)


@pytest.mark.parametrize("steps", [0, 1, 10, 5000])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.8, 0.999)])
def test_random_tensors_move_as_torch_moves_them(
    steps: int, decay: float, betas: tuple[float, float]
) -> None:
    draw = torch.Generator().manual_seed(0)
    theta, g = (torch.randn(6, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    moments = made_moments({"w": theta}, steps)
    rule = AdamW(3e-3, betas, 1e-8, decay, clip=0.0)
    found = update(theta, g, moments.first["w"], moments.second["w"], steps, rule)
    torch.testing.assert_close(
        found, torch_step({"w": theta}, {"w": g}, moments, rule)["w"], rtol=1e-13, atol=1e-15
    )
    still = update(
        theta, g, moments.first["w"], moments.second["w"], steps, rule, decay=False
    )  # fmt: skip
    torch.testing.assert_close(still - found, 3e-3 * decay * theta, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("clip", [0.0, 1.0, 1e6])
def test_a_step_of_a_model_is_torchs_clipped_one(clip: float) -> None:
    model = build("llama")
    parameters, g = trainable(model), direction(model, 5)
    before = {n: p.detach().clone() for n, p in parameters.items()}
    moments, rule = made_moments(parameters), AdamW(clip=clip)
    Snapshot(model).step(g, moments, rule)
    expected = torch_step(before, g, moments, rule)
    for name, p in parameters.items():
        moved = expected[name] - before[name]
        # torch divides by the norm plus 1e-6
        torch.testing.assert_close(p.detach() - before[name], moved, rtol=1e-5, atol=1e-12)
    assert any(p.dim() == 1 for p in parameters.values())


def test_a_step_without_moments_is_plain_descent() -> None:
    model = build("llama")
    g, snapshot = direction(model, 5), Snapshot(model)
    snapshot.step(g, None, AdamW(learning_rate=0.1, clip=0.0, weight_decay=0.5))
    for name, p in trainable(model).items():
        torch.testing.assert_close(p.detach(), snapshot.values[name] - 0.1 * g[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_snapshot_puts_every_bit_back(dtype: torch.dtype) -> None:
    model = build("gpt2", tied=True, dtype=dtype)
    before, snapshot = bits(model), Snapshot(model)
    snapshot.step(direction(model, 1), made_moments(trainable(model)), AdamW(learning_rate=0.1))
    assert bits(model) != before
    snapshot.restore()
    assert bits(model) == before


def test_steps_start_from_the_kept_values_not_from_one_another() -> None:
    model = build("llama")
    snapshot, rule = Snapshot(model), AdamW()
    moments = made_moments(trainable(model))
    snapshot.step(direction(model, 1), moments, rule)
    once = bits(model)
    snapshot.step(direction(model, 2), moments, rule)
    snapshot.step(direction(model, 1), moments, rule)
    assert bits(model) == once


def test_preconditioning_is_the_derivative_of_the_update() -> None:
    model = build("llama")
    theta, g, along = trainable(model), direction(model, 5), direction(model, 6)
    moments, rule = made_moments(theta), AdamW(1e-2, (0.9, 0.95), 1e-8, 0.1)
    # the mean second moment of each tensor stands for what the document adds
    held = {n: v + 0.05 / 0.95 * v.mean() for n, v in moments.second.items()}
    tiny = 1e-5

    def moved(factor: float) -> Tensors:
        return {
            n: update(p, factor * g[n], moments.first[n], held[n], 7, rule).detach()
            for n, p in theta.items()
        }

    # symmetric, so that the change of the second moment cancels
    ahead, behind = moved(tiny), moved(-tiny)
    fall = {n: (behind[n] - ahead[n]) / (2 * tiny) for n in theta}
    expected = dot(along, fall)
    assert dot(preconditioned(along, moments, rule), g) == pytest.approx(expected, rel=1e-6)


def test_without_moments_a_gradient_is_scaled_by_the_learning_rate() -> None:
    g = {"a": torch.tensor([2.0, -4.0])}
    assert preconditioned(g, None, AdamW(learning_rate=0.5))["a"].tolist() == [1.0, -2.0]


def test_a_fresh_optimizer_forgets_how_long_a_gradient_is() -> None:
    """The trap: from zero moments every coordinate moves by the learning rate."""
    g = torch.tensor([1e-3, -5.0, 2.0], dtype=torch.float64)
    zero, rule = torch.zeros(3, dtype=torch.float64), AdamW(0.1, weight_decay=0.0)
    found = update(zero, g, zero, zero, 0, rule)
    torch.testing.assert_close(found, -0.1 * g.sign(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("clip", "factor", "expected"),
    [(1.0, 1.0, 0.2), (0.0, 1.0, 1.0), (10.0, 1.0, 1.0), (5.0, 1.0, 1.0), (1.0, 0.0, 1.0)],
)
def test_gradients_are_cut_to_the_norm(clip: float, factor: float, expected: float) -> None:
    g = scaled({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}, factor)
    assert clip_factor(g, AdamW(clip=clip)) == pytest.approx(expected)


Keep = Callable[..., ModelSpec]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Write moments of a model beside it, with some tensors replaced (None: left out)."""

    def write(model: Any, metadata: Any = (("step", "12"),), **changed: Any) -> ModelSpec:
        moments = made_moments(trainable(model))
        tensors = {f"exp_avg.{n}": t.float() for n, t in moments.first.items()}
        tensors |= {f"exp_avg_sq.{n}": t.float() for n, t in moments.second.items()}
        for name, value in changed.items():
            key = name.replace("__", ".")
            if value is None:
                del tensors[key]
            else:
                tensors[key] = value(tensors[key].clone())
        save_file(tensors, tmp_path / OPTIMIZER, metadata=dict(metadata))
        return ModelSpec(init=str(tmp_path))

    return write


def test_moments_come_back_as_they_were_written(keep: Keep) -> None:
    model = build("gpt2", tied=True, dtype=torch.float32)
    found = load_moments(keep(model), model)
    assert found is not None
    expected = made_moments(trainable(model))
    assert found.steps == 12
    for name in trainable(model):
        torch.testing.assert_close(found.first[name], expected.first[name], rtol=0, atol=0)
        torch.testing.assert_close(found.second[name], expected.second[name], rtol=0, atol=0)


def test_frozen_parameters_need_no_moments(keep: Keep) -> None:
    model = build("llama")
    spec = keep(model, exp_avg__lm_head__weight=None)
    model.lm_head.requires_grad_(False)
    found = load_moments(spec, model)
    assert found is not None
    assert "lm_head.weight" not in found.first


def test_a_checkpoint_without_moments_has_none(tmp_path: Path) -> None:
    model = build("llama")
    assert load_moments(ModelSpec(init=str(tmp_path)), model) is None
    assert load_moments(ModelSpec(init="somebody/model-on-the-hub"), model) is None


def put(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t.index_fill(0, torch.tensor([0]), value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"exp_avg__lm_head__weight": None}, "has no exp_avg.lm_head.weight: it is of another"),
        ({"exp_avg_sq__lm_head__weight": None}, "has no exp_avg_sq.lm_head.weight"),
        (
            {"exp_avg__lm_head__weight": lambda t: t[:-1]},
            r"exp_avg.lm_head.weight has shape \(39, 16\), the parameter \(40, 16\)",
        ),
        ({"exp_avg__model__norm__weight": put(float("nan"))}, "of model.norm.weight are not fin"),
        ({"exp_avg_sq__model__norm__weight": put(float("nan"))}, "of model.norm.weight are not"),
        ({"exp_avg_sq__model__norm__weight": put(float("inf"))}, "of model.norm.weight are not"),
        ({"exp_avg_sq__model__norm__weight": put(-1.0)}, "moment of model.norm.weight is negat"),
        ({"metadata": {}}, "does not say after how many steps"),
        ({"metadata": {"step": "0"}}, "does not say after how many steps"),
        ({"metadata": {"step": "many"}}, "does not say after how many steps"),
    ],
)
def test_moments_that_do_not_fit_are_refused_by_name(
    keep: Keep, changed: dict[str, Any], message: str
) -> None:
    model = build("llama")
    spec = keep(model, **changed)
    with pytest.raises(ModelError, match=rf"{OPTIMIZER}.*{message}"):
        load_moments(spec, model)


def test_damaged_moments_are_refused(keep: Keep) -> None:
    model = build("llama")
    spec = keep(model)
    path = Path(spec.init) / OPTIMIZER
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match=rf"{OPTIMIZER}: its moments are damaged"):
        load_moments(spec, model)
