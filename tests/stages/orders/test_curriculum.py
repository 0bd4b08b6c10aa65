"""Competence-paced curriculum: the pace by hand, and draws that are even among unlocked rows."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.nouns import Rng
from foresift.stages.orders.curriculum import Curriculum, competence, paced, unlocked
from tests.stages.selectors.tables import ids


def test_competence_by_hand() -> None:
    t = np.array([0.0, 0.5, 1.0, 3.0])
    np.testing.assert_allclose(competence(t, 0.1, 2), [0.1, math.sqrt(0.505), 1, 1])
    np.testing.assert_allclose(competence(t, 0.1, 1), [0.1, 0.55, 1, 1])


def test_unlocked_by_hand() -> None:
    # c(i / 8) = sqrt(i / 8 x 15/16 + 1/16), times 8: 2, 3.39, 4.36, 5.15, 5.83, 6.44, 7, 7.52
    assert unlocked(8, 0.25, 2, 1.0).tolist() == [2, 4, 5, 6, 6, 7, 7, 8]
    assert unlocked(8, 0.25, 1, 0.5).tolist() == [2, 4, 5, 7, 8, 8, 8, 8]
    assert unlocked(30, 0.1, 1, 1.0)[0] == 3
    assert unlocked(0, 0.1, 1, 1.0).tolist() == []


@given(
    n=st.integers(0, 80),
    c0=st.floats(1e-12, 1),
    p=st.floats(1, 50),
    until=st.floats(1e-3, 1),
    seed=st.integers(0, 99),
)
def test_only_unlocked_rows_come(n: int, c0: float, p: float, until: float, seed: int) -> None:
    count = unlocked(n, c0, p, until)
    assert (np.diff(count) >= 0).all()
    assert (count <= n).all()
    order = paced(count, np.random.default_rng(seed))
    assert (order < count).all()
    assert sorted(order.tolist()) == list(range(n))


def test_draws_are_even_among_unlocked_rows() -> None:
    """Two rows at first, then three: the new row is drawn as often as the old one."""
    count = np.array([2, 3, 3])
    rng = np.random.default_rng(0)
    drawn = [tuple(paced(count, rng).tolist()) for _ in range(4000)]
    seen = {order: drawn.count(order) / 4000 for order in set(drawn)}
    assert set(seen) == {(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0)}
    assert max(abs(share - 0.25) for share in seen.values()) < 0.04


def test_pace_one_row_at_a_time_is_sorted_and_full_competence_is_a_shuffle() -> None:
    values = np.random.default_rng(0).permutation(200).astype(float)
    table = pa.table({"id": ids(200), "u": values})
    slow = Curriculum(by="u", c0=1 / 200, p=1).order(table, Rng(0))
    np.testing.assert_array_equal(values[slow], np.arange(200))
    free = Curriculum(by="u", c0=1).order(table, Rng(0))
    assert abs(np.corrcoef(values[free], np.arange(200))[0, 1]) < 0.25


def test_unscored_rows_are_unlocked_last() -> None:
    table = pa.table({"id": ids(6), "u": [None, 3.0, 1.0, float("nan"), 2.0, 0.0]})
    order = Curriculum(by="u", c0=0.01, p=1).order(table, Rng(0)).tolist()
    assert order[:4] == [5, 2, 4, 1]
    assert set(order[4:]) == {0, 3}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"c0": 0}, "c0"),
        ({"c0": 1.5}, "c0"),
        ({"p": 0.5}, "p must be at least 1"),
        ({"p": float("inf")}, "p must be"),
        ({"until": 0}, "until"),
    ],
)
def test_bad_fields(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum.parse({"by": "u", **fields}, "x")
