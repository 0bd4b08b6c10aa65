"""AUC and its interval: by counting pairs, by simulation, at the ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.audit.auc import auc, rank_auc, untrained_band
from foresift.pipeline.errors import DataError

SCORES = st.lists(st.integers(-4, 4), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES)
def test_it_counts_pairs(ours: list[int], theirs: list[int]) -> None:
    pairs = [(a > b) + (a == b) / 2 for a in ours for b in theirs]
    found = auc(ours, theirs)
    assert found.value == pytest.approx(np.mean(pairs))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert rank_auc(theirs, ours) == pytest.approx(1 - found.value)


def test_delong_by_hand() -> None:
    """Members 1, 3, 5 against 2, 4: V10 = (0, 1/2, 1), V01 = (2/3, 1/3)."""
    found = auc([1, 3, 5], [2, 4])
    se = np.sqrt(0.25 / 3 + (1 / 18) / 2)
    half = 1.959964 * se / 0.25
    assert found.value == 0.5
    assert found.high == pytest.approx(1 / (1 + np.exp(-half)), rel=1e-5)
    assert found.low == pytest.approx(1 - found.high)


def test_separation_of_few_is_not_certain() -> None:
    found = auc([2, 3, 4, 5], [0, 1])
    assert found.value == 1 == found.high
    assert found.low == pytest.approx(2 / (2 + 1.959964**2))
    assert auc([0, 1], [2, 3, 4, 5]).high == pytest.approx(1 - found.low)


def test_equal_scores_tell_nothing_rather_than_chance_for_certain() -> None:
    found = auc([0.0] * 30, [0.0] * 30)
    assert (found.value, found.low, found.high) == (0.5, *untrained_band(30, 30))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    truth = 0.7602  # P(N(1, 1) > N(0, 1))
    held = 0
    for _ in range(400):
        found = auc(draw.normal(1, 1, 40), draw.normal(0, 1, 50))
        held += found.low <= truth <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_the_band_of_what_knows_nothing() -> None:
    low, high = untrained_band(100, 100)
    assert high - 0.5 == pytest.approx(1.96 * np.sqrt(201 / 120_000), rel=1e-3)
    assert low == pytest.approx(1 - high)
    draw = np.random.default_rng(1)
    inside = [low <= rank_auc(*draw.random((2, 100))) <= high for _ in range(600)]
    assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")]])
def test_what_has_no_rank_is_refused(bad: list[float]) -> None:
    with pytest.raises(DataError):
        auc([1.0, 2.0], bad)
