"""Dynamic random pruning: size, freshness, uniformity, state."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError, RecipeError
from foresift.stages.samplers.dynamic_random import DynamicRandom
from tests.stages.samplers.plans import play


@given(st.integers(2, 80), st.floats(0, 0.5), st.integers(0, 2**40))
def test_each_epoch_is_a_subset_of_the_size_asked_for(n: int, prune: float, seed: int) -> None:
    epochs = DynamicRandom(prune=prune).open(n, 4, seed)
    for size, (rows, weights) in zip(epochs.forecast(), play(epochs, range(4)), strict=True):
        assert len(set(rows)) == len(rows) == size == int((1 - prune) * n + 1e-9)
        assert set(rows) <= set(range(n))
        assert weights == [1.0] * len(rows)


@pytest.mark.parametrize(
    ("n", "prune", "size"), [(10, 0.3, 7), (10, 0.8, 2), (10, 0.25, 7), (7, 0.0, 7), (3, 0.5, 1)]
)
def test_sizes_are_those_of_the_decimal_numbers(n: int, prune: float, size: int) -> None:
    assert len(DynamicRandom(prune=prune).open(n, 1, 0).epoch(0)[0]) == size


def test_every_document_is_drawn_as_often_as_every_other() -> None:
    epochs = DynamicRandom(prune=0.75).open(40, 4000, 1)
    met = np.zeros(40)
    first = np.zeros(40)
    for number in range(4000):
        rows = epochs.epoch(number)[0]
        met[rows] += 1
        first[rows[0]] += 1
    assert np.abs(met - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)
    assert np.abs(first - 100).max() < 5 * np.sqrt(100)


def test_losses_are_not_looked_at_and_epochs_stand_alone() -> None:
    plan = DynamicRandom()
    whole = play(plan.open(30, 6, 3), range(6))
    untold = plan.open(30, 6, 3)
    assert untold.epoch(4)[0].tolist() == whole[4][0]
    assert untold.epoch(2)[0].tolist() == whole[2][0]
    assert whole[0][0] != whole[1][0]


def test_state() -> None:
    epochs = DynamicRandom().open(30, 6, 3)
    DynamicRandom().open(30, 6, 3).load_state_dict(epochs.state_dict())
    with pytest.raises(DataError, match="another plan's: seed is 3, not 4"):
        DynamicRandom().open(30, 6, 4).load_state_dict(epochs.state_dict())
    with pytest.raises(DataError, match="another plan's: plan"):
        DynamicRandom(prune=0.1).open(30, 6, 3).load_state_dict(epochs.state_dict())
    with pytest.raises(DataError, match="the state has no plan, n, epochs, seed"):
        epochs.load_state_dict({})


def test_bad_input() -> None:
    with pytest.raises(RecipeError, match="prune must be a number from 0 to 1"):
        DynamicRandom.parse({"prune": 1.2}, "sample dynamic_random")
    with pytest.raises(DataError, match=r"prune: 3 documents less 0\.9 of them is none"):
        DynamicRandom(prune=0.9).open(3, 1, 0)
    with pytest.raises(DataError, match="epoch 1 of 1"):
        DynamicRandom().open(3, 1, 0).epoch(1)
