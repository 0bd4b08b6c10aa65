"""The projection's known answer, its conditions, and one round on a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.unlearn.documents import documents
from foresift.pipeline.unlearn.worst_case import one_round, project


def test_the_known_answer() -> None:
    weights, mu = project((0.9, 0.6, 0.1), 1.0)
    assert mu == pytest.approx(0.25)
    assert weights == pytest.approx([0.65, 0.35, 0.0])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.floats(0, 1))
def test_a_projection_lies_in_the_set_and_nearest(values: list[float], share: float) -> None:
    total = share * len(values)
    weights, mu = project(values, total)
    assert weights.sum() == pytest.approx(total, abs=1e-9)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert weights == pytest.approx(np.clip(np.asarray(values) - mu, 0, 1))
    even = np.full(len(values), share)
    assert np.sum((weights - values) ** 2) <= np.sum((even - values) ** 2) + 1e-9


def test_a_total_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="cannot sum"):
        project((0.1, 0.2), 3.0)


def test_a_round_raises_what_stays_known(memorised: Any) -> None:
    rows = memorised.forget[:6]
    stranger = [1] * 15 + [2]
    order = documents([*rows, stranger])[1].tolist()
    found = one_round(
        memorised.trained, documents([*rows, stranger])[0], total=3.0, steps=4, seed=1
    )
    place = order.index(6)
    assert found.losses.argmax() == place  # never learned, so easiest to "forget"
    assert found.hardest()[-1] == place
    assert found.weights.sum() == pytest.approx(3.0)
    assert found.hardest()[0] == found.losses.argmin()


def test_what_weighs_nothing_is_trained_on_and_what_weighs_one_is_not(memorised: Any) -> None:
    rows, _ = documents([[1] * 15 + [2], [3] * 15 + [4]])
    one, other = (
        one_round(memorised.trained, rows, 1.0, weights=w, steps=4).losses
        for w in ((1.0, 0.0), (0.0, 1.0))
    )
    assert other[0] < one[0]
    assert one[1] < other[1]


def test_groups_move_together_and_rows_in_any_order(memorised: Any) -> None:
    rows = memorised.forget[:4]
    forward, order = documents(rows)
    groups = np.array([0, 0, 1, 1])[order]
    one = one_round(memorised.trained, forward, total=1.0, groups=groups.tolist(), steps=2)
    assert one.weights.shape == (2,)
    backward, back = documents(rows[::-1])
    other = one_round(
        memorised.trained, backward, 1.0, groups=np.array([1, 1, 0, 0])[back].tolist(), steps=2
    )
    assert other.losses == pytest.approx(one.losses)
    assert other.weights == pytest.approx(one.weights)


def test_nothing_to_choose_from(memorised: Any) -> None:
    with pytest.raises(DataError, match="no documents"):
        one_round(memorised.trained, documents([])[0], 0.0)
