"""Labels: the exact probe against its limits, the linear one against its definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.forward import compute
from foresift.pipeline.lm.gradients import probes, reference
from foresift.pipeline.lm.gradients.adamw import AdamW, Moments, preconditioned
from foresift.pipeline.lm.gradients.directional import Step, sample, slopes, step_size
from foresift.pipeline.lm.gradients.probes import Probe, exact, gradient_norms, linear, prepare
from foresift.pipeline.lm.gradients.reference import ReferenceSet, combined, gradient, reference_set
from foresift.pipeline.lm.gradients.samples import trainable
from foresift.pipeline.lm.model import Loaded
from foresift.pipeline.lm.regress import agreement
from tests.pipeline.lm.gradients.documents import (
    bits,
    encoded,
    gradients,
    in_double,
    joined,
    ready,
)
from tests.pipeline.lm.gradients.models import build, products, square_norms

POOL = encoded([12, 9, 5, 7, 30, 15, 8, 11])
AIM = reference_set(encoded([14, 10, 6], seed=1), name="aim")
OTHER = reference_set(encoded([9, 9], seed=2), "sample_mean", name="other")
PLAIN = AdamW(learning_rate=1e-3, clip=0.0)


def moments_of(loaded: Loaded, steps: int = 20) -> Moments:
    """Those of an optimizer that saw a few other documents."""
    first, second = {}, {}
    for name, g in gradients(encoded([10, 8, 12], seed=7), loaded).items():
        first[name] = 0.1 * g.mean(0)
        second[name] = 0.1 * g.square().mean(0) + 1e-6
    return Moments(first, second, steps)


def probe_at(loaded: Loaded, rule: AdamW, moments: Moments | None = None, central: bool = True,
             relative: float = 1e-5, aim: ReferenceSet = AIM) -> Probe:  # fmt: skip
    """A probe with a step of our own, unclipped."""
    along = preconditioned(gradient(aim, loaded)[1], moments, rule)
    step = Step(relative, step_size(loaded.model, along, relative), central, 0.0)
    return Probe((along,), (1.0,), (step,), 0.0, None)


# -- exact -------------------------------------------------------------------------------------


def test_the_error_of_the_first_order_is_linear_in_the_learning_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_double(monkeypatch)
    loaded = ready()
    dots = products(gradients(POOL, loaded), gradient(AIM, loaded)[1]).numpy()
    errors = []
    for rate in (1e-3, 1e-4, 1e-5, 1e-6):
        found = exact([AIM], POOL, loaded, replace(PLAIN, learning_rate=rate), None)[:, 0]
        errors.append(np.abs(found - rate * dots).max() / (rate * np.abs(dots).max()))
    ratios = np.divide(errors[:-1], errors[1:])
    np.testing.assert_allclose(ratios[1:], 10, rtol=0.1)
    assert errors[-1] < 1e-3


def test_labels_do_not_remember_earlier_ones_and_leave_the_model_alone() -> None:
    loaded = ready(build("llama", dtype=torch.float32))
    before, moments, rule = bits(loaded.model), moments_of(loaded), AdamW()
    x, y = sample(POOL, [0]), sample(POOL, [4])
    first = exact([AIM], x, loaded, rule, moments)
    assert bits(loaded.model) == before
    other = exact([AIM], y, loaded, rule, moments)
    again = exact([AIM], x, loaded, rule, moments)
    assert first.tobytes() == again.tobytes() != other.tobytes()
    # in one table or alone, before or behind others
    together = exact([AIM], joined(y, x, y), loaded, rule, moments)
    np.testing.assert_array_equal(together, np.concatenate([other, first, other]))
    assert bits(loaded.model) == before


def test_the_model_comes_back_when_the_evaluation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = ready(build("llama", dtype=torch.float32))
    before, calls = bits(loaded.model), []
    real = reference.loss

    def failing(*given: Any) -> float:
        calls.append(bits(loaded.model) != before)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return real(*given)

    monkeypatch.setattr(reference, "loss", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        exact([AIM], POOL, loaded, AdamW(), moments_of(loaded))
    assert calls == [False, True, True]  # it failed at a model that was moved
    assert bits(loaded.model) == before


def test_the_document_that_is_aimed_at_helps_most() -> None:
    loaded = ready(build("llama", dtype=torch.float32))
    goal = encoded([20], seed=11)
    aim = reference_set(joined(goal, goal))
    pool = joined(POOL, goal, encoded([20, 20, 20], seed=12))
    for moments, rule in ((None, PLAIN), (moments_of(loaded), AdamW())):
        found = exact([aim], pool, loaded, rule, moments)[:, 0]
        assert np.argmax(found) == len(POOL)
        assert found[len(POOL)] > 0
        probe, _ = prepare([(aim, 1.0)], loaded, rule, moments, pool)
        assert np.argmax(linear(probe, pool, loaded)[:, 0]) == len(POOL)


def test_labels_spread_far_more_than_they_repeat() -> None:
    """Repeated with other batches, that is other roundings of float32."""
    loaded = ready(build("llama", dtype=torch.float32))
    moments, rule = moments_of(loaded), AdamW()
    aim = reference_set(encoded([14, 10, 6, 25, 3, 17], seed=1))
    found = [exact([aim], POOL, loaded, rule, moments, size)[:, 0] for size in (1, 1000)]
    assert found[0].std() > 20 * np.abs(found[0] - found[1]).max()
    probe, _ = prepare([(aim, 1.0)], loaded, rule, moments, POOL)
    labels = [linear(probe, POOL, loaded, batch_tokens=size)[:, 0] for size in (1, 1000)]
    assert labels[0].std() > 20 * np.abs(labels[0] - labels[1]).max()


def test_each_reference_has_its_own_exact_label() -> None:
    loaded = ready(build("llama", dtype=torch.float32))
    both = exact([AIM, OTHER], POOL, loaded, PLAIN, None)
    for column, aim in enumerate((AIM, OTHER)):
        alone = exact([aim], POOL, loaded, PLAIN, None)[:, 0]
        np.testing.assert_array_equal(both[:, column], alone)
    assert not np.allclose(both[:, 0], both[:, 1], rtol=0.01)


def test_documents_with_nothing_that_counts_have_no_label() -> None:
    loaded = ready(build("llama", dtype=torch.float32))
    hidden = encoded([6], masked=6)
    pool = joined(encoded([1]), POOL, hidden, encoded([1]))
    bare = [0, len(POOL) + 1, len(POOL) + 2]
    probe, _ = prepare([(AIM, 1.0)], loaded, AdamW(), None, POOL)
    for found, expected in (
        (exact([AIM], pool, loaded, AdamW(), None), exact([AIM], POOL, loaded, AdamW(), None)),
        (linear(probe, pool, loaded), linear(probe, POOL, loaded)),
    ):
        assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == bare
        # those of linear labels are differences of float32 losses in batches of other widths
        close = 0.01 * np.abs(expected).max()
        np.testing.assert_allclose(np.delete(found, bare, 0), expected, atol=close)


# -- linear ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("preconditions", [False, True])
def test_central_labels_are_the_preconditioned_dot_products(
    tied: bool, preconditions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_double(monkeypatch)
    loaded = ready(build("gpt2", tied=tied))
    moments = moments_of(loaded) if preconditions else None
    probe = probe_at(loaded, PLAIN, moments)
    each = gradients(POOL, loaded)
    factor = 1e-3
    if moments:
        s = moments.steps + 1
        factor = 1e-3 * 0.1 / (1 - 0.9**s)
        held = {n: 0.95 * v + 0.05 * v.mean() for n, v in moments.second.items()}
        each = {n: g / ((held[n] / (1 - 0.95**s)).sqrt() + 1e-8) for n, g in each.items()}
    expected = factor * products(each, gradient(AIM, loaded)[1]).numpy()
    found = linear(probe, POOL, loaded)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_linear_labels_rank_as_exact_ones() -> None:
    loaded = ready(build("llama", dtype=torch.float32))
    pool = joined(POOL, encoded([6 + k % 20 for k in range(32)], seed=5))
    # moments of a long training: what one document adds to the second ones is frozen out
    trained = moments_of(loaded)
    trained = replace(trained, second={n: v + 0.1 for n, v in trained.second.items()})
    for moments, rule in ((None, PLAIN), (trained, AdamW())):
        probe, _ = prepare([(AIM, 1.0)], loaded, rule, moments, POOL)
        found = linear(probe, pool, loaded)[:, 0]
        truth = exact([AIM], pool, loaded, rule, moments)[:, 0]
        assert agreement(truth, found)["spearman"] > 0.97
        assert np.std(found) == pytest.approx(np.std(truth), rel=0.5)


def test_parameters_that_training_never_touched_do_not_outweigh_all_others() -> None:
    """Rows of unseen tokens have no second moment; a step moves them by little all the same."""
    loaded = ready(build("llama", dtype=torch.float32))
    pool = joined(POOL, encoded([6 + k % 20 for k in range(24)], seed=5))
    first, second = {}, {}
    for name, g in gradients(encoded([8, 9, 10], seed=7), loaded).items():
        first[name], second[name] = 0.1 * g.mean(0), 0.05 * g.mean(0).square()
    unseen = (second["model.embed_tokens.weight"] == 0).all(1)
    assert gradient(AIM, loaded)[1]["model.embed_tokens.weight"][unseen].any()
    moments = Moments(first, second, 20)
    probe = probe_at(loaded, AdamW(), moments, relative=1e-4)
    found = linear(probe, pool, loaded)[:, 0] / np.maximum(1, gradient_norms(pool, loaded))
    truth = exact([AIM], pool, loaded, AdamW(), moments)[:, 0]
    assert agreement(truth, found)["spearman"] > 0.7
    assert np.std(found) < 4 * np.std(truth)


def test_clipping_is_exact_for_a_document_that_settled_it_alone() -> None:
    loaded = ready()
    one = sample(POOL, [4])
    norms = square_norms(gradients(one, loaded)).sqrt().numpy()
    assert (norms > 1).all()
    probe, _ = prepare([(AIM, 1.0)], loaded, AdamW(clip=1.0), None, one)
    free = replace(probe, norm=None, clip=0.0)
    factors = linear(probe, one, loaded) / linear(free, one, loaded)
    np.testing.assert_allclose(factors[:, 0], 1 / norms, rtol=1e-5)


def test_clipping_is_near_for_documents_that_it_did_not_see() -> None:
    loaded = ready(build("llama", dtype=torch.float32))
    seen = encoded([6 + k % 20 for k in range(16)], seed=5)
    probe, _ = prepare([(AIM, 1.0)], loaded, AdamW(clip=1.0), None, seen)
    free = replace(probe, norm=None, clip=0.0)
    norms = square_norms(gradients(POOL, loaded)).sqrt().numpy()
    factors = (linear(probe, POOL, loaded) / linear(free, POOL, loaded))[:, 0]
    np.testing.assert_allclose(factors * norms, 1, atol=0.5)


def test_short_gradients_are_not_clipped() -> None:
    loaded = ready()
    probe, _ = prepare([(AIM, 1.0)], loaded, AdamW(clip=1e6), None, POOL)
    free = replace(probe, norm=None, clip=0.0)
    np.testing.assert_array_equal(linear(probe, POOL, loaded), linear(free, POOL, loaded))


def test_norms_are_those_of_per_sample_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, pool = ready(), joined(encoded([1]), POOL)
    expected = square_norms(gradients(pool, loaded)).sqrt().numpy()
    np.testing.assert_allclose(gradient_norms(pool, loaded), expected, rtol=1e-9)

    def unknown(*given: Any, **more: Any) -> None:
        raise ModelError("a layer that nobody knows")

    monkeypatch.setattr(probes, "ghost", unknown)
    np.testing.assert_allclose(gradient_norms(pool, loaded), expected, rtol=1e-9)


def test_signals_that_are_there_are_not_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = ready(build("llama", dtype=torch.float32))
    probe, _ = prepare([(AIM, 1.0)], loaded, AdamW(), None, POOL)
    assert probe.signals == ("nll", "grad_norm")
    expected = linear(probe, POOL, loaded)
    seen = compute(POOL, loaded, ("entropy", "nll", "grad_norm"), 0)
    monkeypatch.setattr(probes, "compute", None)
    np.testing.assert_array_equal(linear(probe, POOL, loaded, seen), expected)


def test_forward_labels_start_from_the_loss_in_float64() -> None:
    """A loss rounded to float32 would be off by more than the difference is worth."""
    loaded = ready(build("llama", dtype=torch.float32))
    probe = probe_at(loaded, PLAIN, central=False, relative=1e-4)
    found = linear(probe, POOL, loaded, compute(POOL, loaded, ("nll",), 0))[:, 0]
    expected = slopes(POOL, loaded, probe.directions[0], probe.steps[0])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("central", "norm", "signals", "forwards"),
    [
        ((True,), None, (), 2),
        ((False,), None, ("nll",), 1),
        ((True, False), None, ("nll",), 3),
        ((True,), 1.0, ("nll", "grad_norm"), 2),
    ],
)
def test_a_probe_says_what_it_needs(
    central: tuple[bool, ...], norm: Any, signals: tuple[str, ...], forwards: int
) -> None:
    steps = tuple(Step(1e-3, 1.0, c, 0.0) for c in central)
    probe = Probe(({},) * len(steps), (1.0,) * len(steps), steps, 1.0, norm)
    assert (probe.signals, probe.forwards) == (signals, forwards)


# -- several references ------------------------------------------------------------------------


def test_one_direction_is_the_weighted_sum_of_each() -> None:
    loaded = ready()
    aims = [(AIM, 2.0), (OTHER, 0.5)]
    moments = moments_of(loaded)
    one, losses = prepare(aims, loaded, AdamW(), moments, POOL)
    each, same = prepare(aims, loaded, AdamW(), moments, POOL, each=True)
    assert losses == same == [gradient(a, loaded)[0] for a in (AIM, OTHER)]
    assert (one.weights, each.weights) == ((1.0,), (2.0, 0.5))
    assert (len(one.directions), len(each.directions)) == (1, 2)
    parts = zip(each.directions, each.weights, strict=True)
    for name, d in combined(list(parts)).items():
        torch.testing.assert_close(one.directions[0][name], d, rtol=1e-9, atol=1e-15)


def test_labels_of_each_reference_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    in_double(monkeypatch)
    loaded = ready()
    aims = [(AIM, 2.0), (OTHER, 0.5)]
    one, _ = prepare(aims, loaded, AdamW(), None, POOL)
    each, _ = prepare(aims, loaded, AdamW(), None, POOL, each=True)
    found = linear(each, POOL, loaded)
    assert found.shape == (len(POOL), 2)
    whole = linear(one, POOL, loaded)[:, 0]
    added = found @ np.array(each.weights)
    np.testing.assert_allclose(added, whole, atol=1e-3 * np.abs(whole).max())


# -- on disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [AdamW(), PLAIN])
def test_a_probe_comes_back_as_it_was_saved(rule: AdamW, tmp_path: Path) -> None:
    loaded = ready(build("gpt2", tied=True, dtype=torch.float32))
    aims = [(AIM, 2.0), (OTHER, 0.5)]
    probe, _ = prepare(aims, loaded, rule, None, POOL, each=True)
    probes.save(probe, tmp_path / "probe")
    found = probes.load(tmp_path / "probe")
    assert replace(found, directions=()) == replace(probe, directions=())
    for ours, theirs in zip(probe.directions, found.directions, strict=True):
        assert ours.keys() == theirs.keys() == trainable(loaded.model).keys()
        assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    before, after = (linear(p, POOL, loaded) for p in (probe, found))
    np.testing.assert_array_equal(before, after)


def test_preparing_a_probe_leaves_the_model_alone() -> None:
    loaded = ready(build("llama", dtype=torch.float32))
    before = bits(loaded.model)
    empty: Encoded = encoded([1])
    probe, _ = prepare([(AIM, 1.0)], loaded, AdamW(), None, joined(POOL, empty))
    linear(probe, POOL, loaded)
    assert bits(loaded.model) == before
    assert all(p.grad is None for p in loaded.model.parameters())
