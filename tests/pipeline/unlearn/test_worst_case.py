"""The projection's known answer, and its conditions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.unlearn.worst_case import project


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
