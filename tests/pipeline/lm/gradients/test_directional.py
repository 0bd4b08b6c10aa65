"""Loss differences against derivatives, the step they are taken with, and that nothing moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.batches import batches
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.gradients import directional
from foresift.pipeline.lm.gradients.directional import (
    COARSE,
    STEPS,
    TOLERANCE,
    Step,
    choose_step,
    losses,
    sample,
    shifted,
    slopes,
    step_size,
)
from foresift.pipeline.lm.gradients.oracle import jvp_dots
from foresift.pipeline.lm.gradients.samples import norm, scaled, trainable
from foresift.pipeline.lm.model import Loaded
from tests.pipeline.lm.gradients.documents import (
    bits,
    encoded,
    gradients,
    in_double,
    joined,
    means,
    ready,
)
from tests.pipeline.lm.gradients.models import SHAPES, build, direction, products

DOCUMENTS = encoded([12, 9, 5, 7, 30])


def at(relative: float, loaded: Loaded, along: Any, central: bool = True) -> Step:
    return Step(relative, step_size(loaded.model, along, relative), central, 0.0)


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest error, over the largest number."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_a_step_is_a_share_of_the_parameters_norm() -> None:
    model = build("llama")
    along = direction(model)
    size = step_size(model, along, 1e-3)
    assert size * norm(along) == pytest.approx(1e-3 * norm(trainable(model)))
    assert step_size(model, scaled(along, 10.0), 1e-3) == pytest.approx(size / 10)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_direction_without_a_length_is_refused(value: float) -> None:
    model = build("llama")
    along = {n: torch.full_like(d, value) for n, d in direction(model).items()}
    with pytest.raises(ModelError, match=r"direction: a direction of length \S+ leads nowhere"):
        step_size(model, along, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_go_there_and_come_back_bit_for_bit(dtype: torch.dtype, tied: bool) -> None:
    model = build("gpt2", tied=tied, dtype=dtype)
    before, along = bits(model), direction(model)
    theta = {n: p.detach().clone() for n, p in trainable(model).items()}
    with shifted(model, along, 0.37):
        for name, p in trainable(model).items():
            torch.testing.assert_close(p.detach(), theta[name] + 0.37 * along[name])
        assert bits(model) != before
    assert bits(model) == before


def test_weights_come_back_when_the_work_fails() -> None:
    model = build("llama", dtype=torch.float32)
    before = bits(model)
    with pytest.raises(RuntimeError, match="out of memory"), shifted(model, direction(model), 1.0):
        raise RuntimeError("out of memory")
    assert bits(model) == before


def test_only_what_the_direction_names_is_moved() -> None:
    model = build("llama")
    name = "model.norm.weight"
    before = bits(model)
    with shifted(model, {name: torch.ones(16)}, 0.5):
        moved = {n for n, b in bits(model).items() if b != before[n]}
    assert moved == {name}


def test_losses_are_means_over_counted_tokens_and_nan_without_any() -> None:
    documents, loaded = joined(DOCUMENTS, encoded([1, 4])), ready()
    found = losses(documents, loaded)
    np.testing.assert_allclose(np.delete(found, 5), np.delete(means(documents, loaded), 5), 1e-6)
    assert np.isnan(found[5])
    np.testing.assert_allclose(losses(documents, loaded, 13), found, rtol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_central_slopes_are_the_dot_products(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    in_double(monkeypatch)
    loaded = ready(build("gpt2", tied=tied))
    along = direction(loaded.model)
    expected = products(gradients(DOCUMENTS, loaded), along).numpy()
    found = slopes(DOCUMENTS, loaded, along, at(1e-5, loaded, along))
    assert off(found, expected) < 1e-6
    batch = next(batches(DOCUMENTS, np.arange(len(DOCUMENTS)), 1000))
    forward = np.empty(len(DOCUMENTS))
    forward[batch.documents] = jvp_dots(loaded.model, batch, along).numpy()
    assert off(found, forward) < 1e-6


def test_the_error_falls_with_the_step_and_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    in_double(monkeypatch)
    loaded = ready()
    along = direction(loaded.model)
    expected = products(gradients(DOCUMENTS, loaded), along).numpy()

    def error(relative: float, central: bool) -> float:
        step = at(relative, loaded, along, central)
        return off(slopes(DOCUMENTS, loaded, along, step), expected)

    # ten times nearer: a tenth of the forward error, a hundredth of the central one
    assert error(1e-4, False) / error(1e-5, False) == pytest.approx(10, rel=0.05)
    assert error(1e-3, True) / error(1e-4, True) == pytest.approx(100, rel=0.1)
    assert error(1e-5, False) > 100 * error(1e-5, True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("central", [False, True])
def test_slopes_of_float32_models_are_near(shape: str, central: bool) -> None:
    loaded = ready(build(shape, tied=True, dtype=torch.float32))
    along = direction(loaded.model)
    expected = products(gradients(DOCUMENTS, loaded), along).numpy()
    found = slopes(DOCUMENTS, loaded, along, at(3e-4, loaded, along, central))
    assert off(found, expected) < 0.02


def test_a_known_loss_is_not_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = ready()
    along = direction(loaded.model)
    step = at(1e-3, loaded, along, central=False)
    base = losses(DOCUMENTS, loaded)
    expected = slopes(DOCUMENTS, loaded, along, step)
    taken: list[int] = []

    def counting(*given: Any) -> Any:
        taken.append(1)
        return losses(*given)

    monkeypatch.setattr(directional, "losses", counting)
    np.testing.assert_array_equal(slopes(DOCUMENTS, loaded, along, step, base), expected)
    assert len(taken) == 1


def test_slopes_do_not_depend_on_the_other_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    in_double(monkeypatch)
    loaded = ready()
    along = direction(loaded.model)
    step = at(1e-5, loaded, along)
    whole = slopes(DOCUMENTS, loaded, along, step)
    few = slopes(sample(DOCUMENTS, [3, 1]), loaded, along, step)
    np.testing.assert_allclose(few, whole[[3, 1]], rtol=1e-9)


# -- the choice of the step --------------------------------------------------------------------


class Toy(torch.nn.Module):
    """One number, 1; losses are made from it below."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.ones(1, dtype=dtype))


SLOPE = np.array([1.0, 2.0, -1.0, 0.5, 3.0])
BEND = np.array([2.0, -1.0, 0.5, 1.0, -2.0])
ALONG = {"x": torch.ones(1, dtype=torch.float64)}
Make = Callable[..., Loaded]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Losses slope * h + bend * h^2 + noise at 1 + h; the step is then h itself."""

    def make(bend: float = 0.0, noise: float = 0.0, dtype: torch.dtype = torch.float64) -> Loaded:
        loaded = Loaded(Toy(dtype), None, "cpu")

        def found(documents: Encoded, given: Loaded, batch_tokens: int = 0) -> np.ndarray:
            h = float(given.model.x.detach()) - 1
            draw = np.random.default_rng(2 * round(1e9 * abs(h)) + (h > 0))
            values = 5 + SLOPE * h + bend * BEND * h * h + noise * draw.standard_normal(5)
            return values[: len(documents)]

        monkeypatch.setattr(directional, "losses", found)
        return loaded

    return make


FIVE = encoded([3, 3, 3, 3, 3])


def test_gentle_losses_are_followed_with_one_forward(toy: Make) -> None:
    loaded = toy(bend=1.0)
    step = choose_step(FIVE, loaded, ALONG)
    assert not step.central
    assert step.relative in STEPS[torch.float64]
    assert step.size == pytest.approx(step.relative)
    expected = step.size * np.sqrt(np.mean(BEND**2)) / SLOPE.std()
    assert step.error == pytest.approx(expected, rel=1e-3)
    found = slopes(FIVE, loaded, ALONG, step)
    np.testing.assert_allclose(found, SLOPE, atol=1e-4)


def test_sharply_curved_losses_need_both_sides(toy: Make) -> None:
    loaded = toy(bend=1e6)
    step = choose_step(FIVE, loaded, ALONG)
    assert step.central
    assert step.error < 1e-3
    np.testing.assert_allclose(slopes(FIVE, loaded, ALONG, step), SLOPE, rtol=1e-3)
    forward = choose_step(FIVE, loaded, ALONG, central=False)
    assert not forward.central
    assert forward.relative == min(STEPS[torch.float64])
    assert forward.error == pytest.approx(1.0 * np.sqrt(np.mean(BEND**2)) / SLOPE.std(), rel=1e-3)
    assert forward.error > TOLERANCE


def test_a_central_step_is_taken_where_it_is_asked_for(toy: Make) -> None:
    assert choose_step(FIVE, toy(), ALONG, central=True).central


def test_steps_that_drown_in_rounding_are_passed_over(toy: Make) -> None:
    for seed in (1e-8, 2e-8):
        step = choose_step(FIVE, toy(noise=seed), ALONG, central=True)
        assert step.relative > min(STEPS[torch.float64])
        assert step.error < 0.05
    # where every step drowns, the error says so
    assert choose_step(FIVE, toy(noise=1e-2), ALONG).error > 1


def test_coarse_weights_take_coarse_steps(toy: Make) -> None:
    step = choose_step(FIVE, toy(dtype=torch.bfloat16), ALONG)
    assert step.relative in COARSE


def test_the_choice_does_not_depend_on_the_length_of_the_direction(toy: Make) -> None:
    loaded = toy(bend=1e6)
    short = choose_step(FIVE, loaded, ALONG)
    long = choose_step(FIVE, loaded, scaled(ALONG, 1000.0))
    assert long.relative == short.relative
    assert long.size == pytest.approx(short.size / 1000)
    assert long.error == pytest.approx(short.error, rel=1e-3)


def test_documents_without_a_loss_do_not_disturb_the_choice() -> None:
    loaded = ready(build("llama", dtype=torch.float32))
    along = direction(loaded.model)
    plain = choose_step(DOCUMENTS, loaded, along)
    with_empty = choose_step(joined(encoded([1]), DOCUMENTS), loaded, along)
    assert with_empty == replace(plain, error=with_empty.error)
    assert with_empty.error == pytest.approx(plain.error, rel=0.2)


def test_a_sample_without_any_loss_is_refused() -> None:
    loaded = ready()
    with pytest.raises(DataError, match="probing: none of 2 documents of the pool has a finite"):
        choose_step(encoded([1, 1]), loaded, direction(loaded.model))


def test_a_real_model_is_left_alone_and_the_step_serves() -> None:
    loaded = ready(build("llama", dtype=torch.float32))
    along, before = direction(loaded.model), bits(loaded.model)
    step = choose_step(DOCUMENTS, loaded, along)
    assert bits(loaded.model) == before
    assert step.error < 0.1
    expected = products(gradients(DOCUMENTS, loaded), along).numpy()
    assert off(slopes(DOCUMENTS, loaded, along, step), expected) < 0.1
    assert step.facts() == {
        "relative": step.relative, "size": step.size, "central": step.central, "error": step.error
    }  # fmt: skip


def test_sample_takes_documents_in_the_order_asked_for() -> None:
    few = sample(DOCUMENTS, [4, 0, 0])
    assert few.lengths.tolist() == [30, 12, 12]
    np.testing.assert_array_equal(few.ids[30:42], DOCUMENTS.ids[:12])
    np.testing.assert_array_equal(few.counts[:30], DOCUMENTS.counts[-30:])
    assert len(sample(DOCUMENTS, [])) == 0
