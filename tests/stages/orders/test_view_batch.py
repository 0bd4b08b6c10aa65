"""View batches: the known answer, exact repeats, and an exact rest for any size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.nouns import Rng
from foresift.stages.orders.view_batch import ViewBatch
from tests.stages.selectors.tables import corpus


def test_eight_rows_in_two_views() -> None:
    part = ViewBatch(views=2, epochs=6, batch=4)
    order = part.order(corpus(8), Rng(0))
    assert len(order) == 48
    epochs = order.reshape(6, 2, 4)  # epoch, batch, position
    for batch in epochs.reshape(-1, 4):
        assert batch[0] == batch[1] != batch[2] == batch[3]
    seen = [set(epoch.ravel().tolist()) for epoch in epochs]
    for now, then in itertools.pairwise(seen):
        assert not now & then
    assert seen[0] == seen[2] == seen[4]
    assert seen[1] == seen[3] == seen[5]
    assert seen[0] | seen[1] == set(range(8))
    assert epochs[0].tolist() != epochs[2].tolist()


@given(
    n=st.integers(0, 30),
    views=st.integers(1, 4),
    rounds=st.integers(1, 3),
    runs=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_repeats_and_rests_are_exact(n: int, views: int, rounds: int, runs: int, seed: int) -> None:
    part = ViewBatch(views=views, epochs=views * rounds, batch=views * runs)
    order = part.order(corpus(n), Rng(seed))
    assert np.bincount(order, minlength=n).tolist() == [views * rounds] * n
    # every run lies in one batch
    batch = np.arange(len(order)) // part.batch
    runs_of = order.reshape(-1, views)
    assert (runs_of == runs_of[:, :1]).all()
    assert (batch.reshape(-1, views) == batch[::views, None]).all()
    # the slices of a permutation are epochs: a row is in the same one of each permutation
    distinct = runs_of[:, 0].reshape(rounds, n)
    starts = [-(-n * k // views) for k in range(views + 1)]
    for k in range(views):
        parts = {frozenset(p[starts[k] : starts[k + 1]].tolist()) for p in distinct}
        assert len(parts) == 1
        assert abs(len(next(iter(parts))) - n / views) < 1


def test_seeds_give_other_slices() -> None:
    part = ViewBatch(views=2, epochs=2, batch=4)
    slices = [frozenset(part.order(corpus(40), Rng(s))[:40].tolist()) for s in (0, 1)]
    assert slices[0] != slices[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": 0}, "views"),
        ({"views": 2, "epochs": 3}, "epochs must be a multiple"),
        ({"views": 3, "epochs": 3, "batch": 32}, "batch must be a multiple"),
        ({"epochs": 0}, "epochs"),
        ({"batch": 0}, "batch"),
    ],
)
def test_bad_fields(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewBatch.parse(fields, "x")
