"""REMIND's features: known answers, same walks for copies, queries alone."""

from __future__ import annotations

import numpy as np
import pytest

from foresift.pipeline.audit import remind as tested
from foresift.pipeline.audit.token_stats import loss_of
from foresift.pipeline.errors import DataError

NEAREST = {i: np.array([(i + j) % 50 for j in range(1, 6)]) for i in range(50)}
TEXT = np.arange(12)


def test_a_constant_loss_has_no_features() -> None:
    found = tested.measure(lambda items: np.full(len(items), 2.5), [TEXT], NEAREST)
    np.testing.assert_array_equal(found, np.zeros((1, len(tested.FEATURES))))


def test_a_text_known_by_heart() -> None:
    def losses(items):
        return np.array([0.0 if list(item) == list(TEXT) else 3.0 for item in items])

    found = dict(zip(tested.FEATURES, tested.measure(losses, [TEXT], NEAREST)[0], strict=True))
    assert [found[f"steepness_{r}"] for r in tested.RADII] == [3, 3, 3]
    assert [found[f"volatility_{r}"] for r in tested.RADII] == [0, 0, 0]
    assert (found["slope"], found["lower"], found["curvature"]) == (0, 0, -3)


def test_a_loss_that_grows_with_every_swap() -> None:
    def losses(items):
        return np.array([float((np.asarray(item) != TEXT).sum()) for item in items])

    found = dict(zip(tested.FEATURES, tested.measure(losses, [TEXT], NEAREST)[0], strict=True))
    assert [found[f"steepness_{r}"] for r in tested.RADII] == [1, 2, 4]
    assert found["slope"] == pytest.approx(1)
    assert found["curvature"] == 0


def test_neighbours_differ_in_as_many_places_and_walk_on() -> None:
    rings = tested.neighbours(TEXT, NEAREST, walks=8)
    for radius, ring in zip(tested.RADII, rings, strict=True):
        assert ((ring != TEXT).sum(axis=1) == radius).all()
        assert (ring[:, 0] == TEXT[0]).all()
        for walk in ring:
            assert all(w == t or w in NEAREST[t] for w, t in zip(walk, TEXT, strict=True))
    near, far = rings[0] != TEXT, rings[1] != TEXT
    assert (far | ~near).all()


def test_copies_walk_alike_and_seeds_do_not() -> None:
    one, other = tested.neighbours(TEXT, NEAREST), tested.neighbours(TEXT.tolist(), NEAREST)
    assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert (tested.neighbours(TEXT, NEAREST, seed=1)[0] != one[0]).any()


def test_short_texts_are_swapped_wherever_they_can() -> None:
    rings = tested.neighbours([5, 6], NEAREST, walks=4)
    assert ((rings[-1] != [5, 6]).sum(axis=1) == 1).all()
    with pytest.raises(DataError):
        tested.neighbours([5], NEAREST)
    assert np.isnan(tested.measure(lambda items: np.zeros(len(items)), [[5]], NEAREST)).all()


def test_nearest_are_those_of_the_smallest_angle() -> None:
    table = np.array([[1, 0], [2, 0.1], [0, 1], [0.1, 3], [1, 1]], dtype=float)
    found = tested.nearest_tokens(table, [0, 3], k=2, barred=[4])
    assert found[0][0] == 1
    assert found[3][0] == 2
    assert 4 not in found[0]
    assert len(found[0]) == 2


def test_a_model_is_asked_for_losses_alone(build) -> None:
    model = build()
    table = model.get_input_embeddings().weight.detach().numpy()
    texts = [[5, 6, 7, 8, 9, 10], [40, 41, 42, 43, 44, 45, 46]]
    nearest = tested.nearest_tokens(table, [t for ids in texts for t in ids])
    found = tested.measure(loss_of(model), texts, nearest, walks=4)
    backwards = tested.measure(loss_of(model), texts[::-1], nearest, walks=4)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, backwards[::-1], atol=1e-5)


def test_three_fates_are_told_apart() -> None:
    draw = np.random.default_rng(0)
    labels = ["retained"] * 30 + ["held out"] * 30 + ["unlearned"] * 30
    table = draw.normal(0, 1, (90, 9)) + np.repeat([[0], [4], [8]], 30, axis=0)
    found = tested.aucs(table, labels)
    assert set(found) == set(labels)
    assert found["retained"].low > 0.85
    assert found["unlearned"].low > 0.85


def test_features_of_chance_tell_nothing() -> None:
    draw = np.random.default_rng(1)
    found = tested.aucs(draw.normal(0, 1, (200, 9)), [0, 1] * 100)[1]
    assert found.low < 0.55


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(DataError, match="two classes"):
        tested.classify(np.zeros((8, 9)), [0] * 6 + [1] * 2)
