"""Kernels of gradient similarities: plain loops over per-sample gradients, known answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.batches import batches
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.gradients import samples
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.scorers import _gradient_features
from foresift.scorers._gradient_features import Adam, Similarity, flatten, mean_gradient
from foresift.scorers._projection import Projection
from tests.scorers.tiny import AIM, GPT2, POOL, SUMS, gradients, llama, losses, unit


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return llama(tmp_path)


@pytest.fixture
def double(spec: ModelSpec, tmp_path: Path) -> Loaded:
    """In float64 throughout (the norms of other models are float32 whatever the model is)."""
    path = tmp_path / "gpt2.json"
    path.write_text(json.dumps(GPT2))
    loaded = load.__wrapped__(replace(spec, init=str(path)))
    return replace(loaded, model=loaded.model.double())


@pytest.fixture
def encoded(spec: ModelSpec, double: Loaded) -> Callable[[Sequence[str]], Encoded]:
    return lambda texts: encode(pa.table({"text": list(texts)}), double.tokenizer, spec)


def some_moments(model: Any) -> Adam:
    size = sum(p.numel() for p in samples.trainable(model).values())
    draws = np.random.default_rng(0)
    first, second = draws.normal(0, 0.1, size), draws.exponential(0.01, size)
    return Adam(torch.from_numpy(first), torch.from_numpy(second), 9, (0.9, 0.95), True)


@pytest.mark.parametrize("variant", ["tracin", "grad_dot", "cosin"])
def test_ghost_products_are_the_explicit_sums(
    variant: Any, double: Loaded, encoded: Callable[[Sequence[str]], Encoded]
) -> None:
    pool, aim = encoded(POOL), encoded(AIM)
    g, z = gradients(pool, double), gradients(aim, double)
    if variant == "cosin":
        g, z = unit(g), unit(z)
    kind = Similarity(variant)
    found = kind.values(pool, double, None, kind.aim(aim, double, "aim")[None])[:, 0]
    np.testing.assert_allclose(found, g @ z.mean(0), rtol=1e-10, atol=1e-12)


def test_a_document_has_cosine_one_with_itself_and_at_most_one_with_others(
    double: Loaded, encoded: Callable[[Sequence[str]], Encoded]
) -> None:
    pool = encoded(POOL)
    kind = Similarity("cosin")
    for number in (0, 2, 5):
        aim = kind.aim(encoded([POOL[number]]), double, "aim")
        found = kind.values(pool, double, None, aim[None])[:, 0]
        assert found[number] == pytest.approx(1, abs=1e-10)
        assert np.nanmax(np.abs(found)) <= 1 + 1e-12
        assert np.nanmax(np.delete(found, number)) < 0.999


@pytest.mark.parametrize("dimension", [0, 64])
@pytest.mark.parametrize("compat", [True, False])
def test_less_is_the_plain_loop(
    dimension: int, compat: bool, double: Loaded, encoded: Callable[[Sequence[str]], Encoded]
) -> None:
    pool, aim, adam = encoded(POOL), encoded(AIM), some_moments(double.model)
    kind = Similarity("less", Projection(dimension) if dimension else None)
    found = kind.values(
        pool, double, replace(adam, compat=compat), kind.aim(aim, double, "aim")[None]
    )
    m, v = adam.first.numpy(), adam.second.numpy()
    size = len(m)
    signs = Projection(dimension).signs(0, size, adam.first).numpy()
    for x, value in zip(gradients(pool, double), found[:, 0], strict=True):
        moved, squared = 0.9 * m + 0.1 * x, 0.95 * v + 0.05 * x * x
        if compat:
            feature = moved / np.sqrt(squared + 1e-8)
        else:
            feature = moved / (1 - 0.9**10) / (np.sqrt(squared / (1 - 0.95**10)) + 1e-8)
        both = [np.stack([feature, z]) for z in gradients(aim, double)]
        cosines = [np.prod(unit(r @ signs if dimension else r), 0).sum() for r in both]
        assert value == pytest.approx(np.mean(cosines), rel=1e-9, abs=1e-12, nan_ok=True)


def test_the_feature_is_the_step_of_adam() -> None:
    one = torch.ones(1, dtype=torch.float64)
    adam = Adam(0.1 * one, 0.04 * one, 9, (0.9, 0.95), compat=False)
    moved = 1 - 1e-3 * 0.1 - 1e-3 * float(adam(0.2 * one[None]))
    assert moved == pytest.approx(0.9993650886510765, abs=1e-15)
    released = float(replace(adam, compat=True)(0.2 * one[None]))
    assert released == pytest.approx(0.11 / np.sqrt(0.04 + 1e-8), abs=1e-15)


def test_a_larger_loss_is_no_louder_voice_in_less_but_is_in_grad_dot(
    double: Loaded,
    encoded: Callable[[Sequence[str]], Encoded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aim, adam = encoded([*AIM, *SUMS]), some_moments(double.model)
    less, dots = Similarity("less", Projection(32)), Similarity("less")
    before = less.aim(aim, double, "aim")
    plain = less.values(aim, double, None, before[None])
    stepped = less.values(aim, double, adam, before[None])
    norms = [f.norm(dim=1) for _, _, f in dots.features(aim, double)]
    scale = torch.arange(1.0, 6.0).double()
    calls = iter(list(scale) * 4)
    true = samples.sample_losses
    monkeypatch.setattr(
        _gradient_features, "sample_losses", lambda model, batch: next(calls) * true(model, batch)
    )
    np.testing.assert_allclose(less.aim(aim, double, "aim"), before, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(less.values(aim, double, None, before[None]), plain, rtol=1e-10)
    assert not np.allclose(less.values(aim, double, adam, before[None]), stepped, rtol=1e-3)
    louder = [f.norm(dim=1) for _, _, f in dots.features(aim, double)]
    np.testing.assert_allclose(torch.cat(louder), torch.cat(norms) * scale, rtol=1e-10)


@pytest.mark.parametrize("dimension", [4, 48])
def test_trak_is_the_dense_formula(
    dimension: int, double: Loaded, encoded: Callable[[Sequence[str]], Encoded]
) -> None:
    texts = [t for t in POOL if t] + SUMS
    pool, aim = encoded(texts), encoded(AIM)
    kind = Similarity("trak", Projection(dimension, seed=3), ridge=0.02)
    rows = kind.whiten(kind.aim(aim, double, "aim")[None], pool, double)
    found = kind.values(pool, double, None, rows)[:, 0]
    g, p = gradients(pool, double), np.exp(-losses(pool, double))
    z, q = gradients(aim, double), np.exp(-losses(aim, double))
    signs = Projection(dimension, 3).signs(0, g.shape[1], torch.zeros(1).double()).numpy()
    signs = signs / np.sqrt(dimension)
    phi, target = -g @ signs / (1 - p)[:, None], -z @ signs / (1 - q)[:, None]
    kernel = phi.T @ phi / len(phi)
    kernel += 0.02 * np.trace(kernel) / dimension * np.eye(dimension)
    expected = (1 - p) * (phi @ np.linalg.inv(kernel) @ target.mean(0))
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_trak_differentiates_the_margin(
    double: Loaded, encoded: Callable[[Sequence[str]], Encoded]
) -> None:
    one = encoded([POOL[0]])
    batch = next(batches(one, np.array([0]), 100))
    loss = samples.sample_losses(double.model, batch)[0]
    p = torch.exp(-loss)
    margin = torch.log(p / (1 - p))
    exact = torch.autograd.grad(margin, list(samples.trainable(double.model).values()))
    flat = torch.cat([g.flatten() for g in exact]).numpy()
    np.testing.assert_allclose(
        -gradients(one, double)[0] / (1 - p.item()), flat, rtol=1e-8, atol=1e-12
    )


# -- the whole scorer ------------------------------------------------------------------------------


def test_a_document_without_counted_tokens_has_no_similarity(
    double: Loaded, encoded: Callable[[Sequence[str]], Encoded]
) -> None:
    pool, aim = encoded(POOL), encoded(AIM)
    counts = pool.counts.copy()
    counts[pool.offsets[2] : pool.offsets[3]] = False
    none = replace(pool, counts=counts)
    for variant in ("tracin", "cosin", "less", "trak"):
        kind = Similarity(variant, Projection(16) if variant == "trak" else None)
        aims = kind.aim(aim, double, "aim")[None]
        found, whole = (kind.values(e, double, None, aims)[:, 0] for e in (none, pool))
        assert np.isnan(found).nonzero()[0].tolist() == [2]
        np.testing.assert_allclose(np.delete(found, 2), np.delete(whole, 2), rtol=1e-10)


def test_a_reference_without_a_gradient_is_refused(
    double: Loaded, encoded: Callable[[Sequence[str]], Encoded]
) -> None:
    with torch.no_grad():
        for p in double.model.parameters():
            p.zero_()
    for variant in ("tracin", "cosin", "less", "trak"):
        with pytest.raises(DataError, match=r"^aim: .*rank"):
            Similarity(variant).aim(encoded(AIM), double, "aim")
    with pytest.raises(ModelError, match="a direction of 3 numbers"):
        _gradient_features.unflatten(double.model, torch.zeros(3))


def test_the_mean_gradient_has_one_order_of_parameters(
    double: Loaded, encoded: Callable[[Sequence[str]], Encoded]
) -> None:
    row = mean_gradient(encoded(AIM), double, "aim")
    named = _gradient_features.unflatten(double.model, row)
    assert list(named) == list(samples.trainable(double.model))
    torch.testing.assert_close(flatten(named), row, rtol=0, atol=0)
