"""tau by the known answers and by simulation, and counterfactual memorisation by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline import long_tail
from foresift.pipeline.long_tail import counterfactual_memorisation, tau, zipf


@given(size=st.integers(2, 500), n=st.integers(5, 10_000), seen=st.integers(0, 5))
def test_equal_frequencies_are_what_is_expected(size: int, n: int, seen: int) -> None:
    assert tau(seen, n, np.full(size, 1 / size))[0] == pytest.approx(1 / size)


def test_known_answers_of_zipf() -> None:
    values, times = zipf(10_000)
    assert values @ times == pytest.approx(1)
    found = 10_000 * tau([1, 2, 5], 10_000, values, times)
    np.testing.assert_allclose(found, [0.50, 1.10, 4.00], atol=0.005)


def test_against_a_simulation() -> None:
    rng = np.random.default_rng(0)
    values, _ = zipf(50)
    seen = rng.multinomial(60, values, size=20_000)
    for times in (0, 1, 3):
        where = seen == times
        mean = (where * values).sum() / where.sum()
        # multinomial draws of one sample against the binomial of one subpopulation
        assert tau(times, 60, values)[0] == pytest.approx(mean, rel=0.03)


def test_what_is_seen_more_often_is_expected_more_often() -> None:
    found = tau(np.arange(60), 5_000, *zipf(3_000))
    assert (np.diff(found) > 0).all()


def test_grouped_ranks_are_those_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tau([1, 2, 40], 5_000, *zipf(5_000))
    monkeypatch.setattr(long_tail, "RANKS", 64)
    values, times = zipf(5_000)
    assert len(values) < 700
    assert times.sum() == 5_000
    np.testing.assert_allclose(tau([1, 2, 40], 5_000, values, times), whole, rtol=1e-3)


def test_ends_of_the_range() -> None:
    assert tau(7, 7, [1.0])[0] == pytest.approx(1)
    assert tau(3, 7, [1.0])[0] == pytest.approx(3 / 7)  # the prior says that cannot be: its share
    for bad in ([0.0], [1.5], []):
        with pytest.raises(ValueError, match="frequencies"):
            tau(1, 5, bad)
    with pytest.raises(ValueError, match="0 to 5 times"):
        tau(6, 5, [0.5])
    with pytest.raises(ValueError, match="at least one"):
        zipf(0)


def test_counterfactual_memorisation_by_hand() -> None:
    scores = [[1.0, 0.2, 0.5], [0.8, 0.4, 0.5], [0.1, 0.6, 0.5], [0.3, 0.8, 0.5]]
    members = [[True, True, True], [True, False, True], [False, True, True], [False, False, True]]
    found = counterfactual_memorisation(scores, members)
    np.testing.assert_allclose(found, [0.7, -0.2, np.nan])
    with pytest.raises(ValueError, match="both"):
        counterfactual_memorisation(scores, members[:2])
