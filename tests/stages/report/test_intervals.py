"""Intervals: known answers, coverage, and that neither order nor copies matter."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from foresift.pipeline.tables import ID
from foresift.stages.report import intervals
from foresift.stages.report.intervals import (
    Interval,
    correlation,
    difference,
    mean,
    resampled,
    share,
)


def ids(n: int, seed: int = 0) -> pa.Array:
    raw = np.random.default_rng(seed).bytes(16 * n)
    return pa.array([raw[16 * i : 16 * i + 16] for i in range(n)], ID)


@given(st.integers(1, 10**7), st.floats(0, 1))
def test_shares_are_those_of_scipy(n: int, p: float) -> None:
    count = round(n * p)
    found = share(count, n)
    test = stats.binomtest(count, n).proportion_ci(0.95, "wilson")
    assert found is not None
    assert found.value == count / n
    assert (found.low, found.high) == pytest.approx((test.low, test.high), abs=1e-9)


def test_a_share_of_nothing_is_none() -> None:
    assert share(0, 0) is None


def test_a_difference_known_from_newcombes_paper() -> None:
    ours, theirs = share(48, 80), share(56, 70)
    assert ours is not None
    assert theirs is not None
    found = difference(ours, theirs)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    back = difference(theirs, ours)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_correlations_have_intervals_inside_of_one() -> None:
    found = correlation(0.5, 100)
    half = 1.96 * np.sqrt(1.125 / 97)
    assert found.low == pytest.approx(np.tanh(np.arctanh(0.5) - half), abs=1e-4)
    assert found.high == pytest.approx(np.tanh(np.arctanh(0.5) + half), abs=1e-4)
    assert correlation(1.0, 50) == Interval(1.0)
    assert correlation(0.9, 3) == Interval(0.9)


def test_a_bootstrap_is_that_of_the_standard_error() -> None:
    rng = np.random.default_rng(1)
    values = rng.exponential(2.0, 4000)
    found = mean(values, resampled(ids(4000), [values])[:, 0])
    assert found is not None
    half = 1.96 * values.std() / np.sqrt(4000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.25 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.25 * half)


def test_order_does_not_matter_and_copies_widen() -> None:
    values = np.random.default_rng(2).normal(size=300)
    names = ids(300)
    order = np.random.default_rng(3).permutation(300)
    once = resampled(names, [values])
    assert resampled(names.take(pa.array(order)), [values[order]]) == pytest.approx(once)
    twice = resampled(pa.concat_arrays([names, names]), [np.tile(values, 2)])
    assert twice == pytest.approx(once)


def test_missing_values_are_left_out() -> None:
    values = np.array([1.0, np.nan, 3.0])
    found = resampled(ids(3), [values, np.full(3, np.nan)])
    assert np.isnan(found[:, 1]).all()
    assert mean(np.full(3, np.nan), found[:, 1]) is None
    known = found[:, 0][~np.isnan(found[:, 0])]
    assert ((known >= 1) & (known <= 3)).all()
    assert mean(np.array([7.0]), np.full(intervals.RESAMPLES, 7.0)) == Interval(7.0)
    assert intervals.quantiles(np.array([np.nan]), (0.5,)) == [None]
