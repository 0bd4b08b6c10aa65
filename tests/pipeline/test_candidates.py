"""The order of candidates is a permutation in each epoch, the same every time, and well mixed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.candidates import CandidateOrder, Permutation
from foresift.pipeline.errors import DataError
from foresift.pipeline.rng import Rng


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_every_row_comes_once(n: int, seed: int) -> None:
    found = Permutation(n, Rng(seed))(np.arange(n))
    assert np.array_equal(np.sort(found), np.arange(n))


@given(n=st.integers(1, 10**12), seed=st.integers(0, 2**20), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_position_has_one_row_whatever_is_asked_with_it(
    n: int, seed: int, data: st.DataObject
) -> None:
    some = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True))
    whole = Permutation(n, Rng(seed))(some)
    assert len(set(whole.tolist())) == len(some)
    assert whole.min() >= 0
    assert whole.max() < n
    alone = [int(Permutation(n, Rng(seed))([p])[0]) for p in some]
    assert whole.tolist() == alone


def test_positions_are_mixed_as_by_chance() -> None:
    n = 1000
    found = np.stack([Permutation(n, Rng(s))(np.arange(n)) for s in range(400)])
    # where position 0 goes, over seeds: uniform; neighbours: no correlation
    assert abs(found[:, 0].mean() / n - 0.5) < 4 * np.sqrt(1 / 12 / 400)
    near = np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1]
    assert abs(near) < 4 / np.sqrt(found.size)
    fixed = (found == np.arange(n)).sum(1)
    assert abs(fixed.mean() - 1) < 4 / np.sqrt(400)


def test_small_permutations_are_all_reached() -> None:
    found = {tuple(Permutation(3, Rng(s))(np.arange(3)).tolist()) for s in range(200)}
    assert len(found) == 6


@given(n=st.integers(1, 400), data=st.data())
@settings(max_examples=50, deadline=None)
def test_steps_of_an_epoch_hold_distinct_rows(n: int, data: st.DataObject) -> None:
    of = data.draw(st.integers(1, n))
    order = CandidateOrder(n, of, seed=3)
    assert order.steps_per_epoch == n // of
    seen = np.concatenate([order.rows(step) for step in range(order.steps_per_epoch)])
    assert len(np.unique(seen)) == len(seen) == n // of * of


def test_epochs_drop_other_rows_and_steps_can_be_asked_in_any_order() -> None:
    order = CandidateOrder(10, 4, seed=0)
    forward = [order.rows(s).tolist() for s in range(40)]
    backward = [order.rows(s).tolist() for s in reversed(range(40))]
    assert forward == backward[::-1]
    assert {row for step in forward for row in step} == set(range(10))
    assert forward[0] != forward[2]
    assert forward != [CandidateOrder(10, 4, seed=1).rows(s).tolist() for s in range(40)]


@pytest.mark.parametrize(
    ("n", "of", "message"),
    [(0, 1, "no rows"), (4, 0, "at least 1 candidate"), (4, 5, "more than the 4 rows")],
)
def test_sizes_that_cannot_be(n: int, of: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CandidateOrder(n, of, 0)


def test_a_position_outside_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 \.\. 4"):
        Permutation(5, Rng(0))([5])
    with pytest.raises(ValueError, match="at least 1"):
        Permutation(0, Rng(0))
