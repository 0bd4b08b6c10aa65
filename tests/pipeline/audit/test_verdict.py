"""Verdicts: alike passes, unlike fails, the rest is open, and no reference never passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.audit import verdict as tested
from foresift.pipeline.audit.verdict import FAIL, OPEN, PASS, UNPROVED, Interval
from foresift.pipeline.errors import DataError

DRAW = np.random.default_rng(0)
BASE = DRAW.normal(3, 0.5, 200)


@pytest.mark.parametrize(
    ("low", "high", "n", "outcome"),
    [
        (-0.05, 0.08, 50, PASS),
        (-0.05, 0.12, 50, OPEN),
        (0.01, 0.12, 50, FAIL),  # it differs, and perhaps by more than the margin
        (-0.12, -0.01, 50, FAIL),
        (0.0, 0.12, 50, OPEN),
        (0.02, 0.05, 50, PASS),  # a difference, but too small to matter
        (0.2, 0.3, 50, FAIL),
        (-0.3, -0.2, 50, FAIL),  # forgot more than a model that never knew
        (-0.2, 0.2, 50, OPEN),
        (0.5, 1.5, 50, FAIL),  # wide, but wholly outside
        (-0.01, 0.01, 19, OPEN),
        (0.5, 1.5, 19, OPEN),
    ],
)
def test_outcomes(low: float, high: float, n: int, outcome: str) -> None:
    assert tested.judge(Interval((low + high) / 2, low, high), 0.1, n) == outcome


def test_alike_passes_and_different_fails() -> None:
    alike = tested.compare(BASE + DRAW.normal(0, 0.1, 200), BASE, measure="loss")
    assert alike.outcome == PASS
    assert alike.difference.low < 0 < alike.difference.high
    assert tested.compare(BASE - 0.3, BASE, measure="loss").outcome == FAIL
    assert tested.compare(BASE - 0.3, BASE, measure="loss", scale=4.0).outcome == PASS


def test_no_difference_found_is_not_no_difference() -> None:
    """Thirty noisy items: no significant difference, and still no pass."""
    found = tested.compare(BASE[:30] + DRAW.normal(0, 3, 30), BASE[:30], measure="loss")
    assert found.difference.low < 0 < found.difference.high
    assert found.outcome == OPEN


def test_without_a_reference_nothing_passes() -> None:
    found = tested.compare(BASE, None, measure="loss")
    assert found.outcome == UNPROVED
    assert (found.retrained, found.difference) == (None, None)
    assert tested.compare_auc((BASE, BASE), None, measure="loss").outcome == UNPROVED
    assert tested.overall([found]) == UNPROVED
    assert tested.overall([]) == UNPROVED


def test_nothing_in_few_items_proves_nothing() -> None:
    few, many = np.zeros(30), np.zeros(60)
    assert tested.compare(few, few, measure="extractable").outcome == OPEN
    assert tested.compare(many, many, measure="extractable").outcome == PASS
    assert tested.mean(np.zeros(30)).high == pytest.approx(0.1135, abs=1e-3)


def test_few_counts_that_differ_are_no_closer_than_none() -> None:
    """Resampling 1 of 30 gives [0, 0.1], narrower than what 0 of 30 can say."""
    for n, rare in ((30, 1), (40, 1), (60, 2)):
        ours = np.r_[np.ones(rare), np.zeros(n - rare)]
        found = tested.compare(ours, np.zeros(n), measure="extractable")
        assert found.outcome != PASS
        assert (
            found.difference.high
            > tested.compare(np.zeros(n), np.zeros(n), measure="extractable").difference.high
        )
    # where nothing goes the other way, Tango's upper end is Wilson's
    ours = np.r_[1.0, np.zeros(29)]
    told = tested.compare(ours, np.zeros(30), measure="extractable")
    assert told.difference.high == pytest.approx(told.audited.high, abs=1e-6)
    assert told.audited.high == pytest.approx(0.1667, abs=1e-4)
    turned = tested.compare(np.zeros(30), ours, measure="extractable").difference
    assert (turned.low, turned.high) == pytest.approx((-told.difference.high, -told.difference.low))


def test_counts_do_not_pass_where_the_difference_is_as_large_as_the_margin() -> None:
    draw = np.random.default_rng(5)
    for n in (30, 60, 150):
        passed = [
            tested.compare(draw.random(n) < 0.1, np.zeros(n), measure="extractable").outcome == PASS
            for _ in range(300)
        ]
        assert np.mean(passed) < 0.05


def test_a_few_remembered_texts_fail_though_the_mean_passes() -> None:
    clean = np.tile(BASE, 2)[:256]
    ours = clean + np.random.default_rng(1).normal(0, 0.1, 256)
    ours[:6] = clean[:6] - 1.5
    assert tested.compare(ours, clean, measure="loss").outcome == PASS
    found = tested.known_better(ours, clean)
    assert (found.outcome, found.measure, found.n) == (FAIL, "known_better", 256)
    assert (found.audited.value, found.retrained.value) == (6 / 256, 0)
    turned = tested.known_better(clean, ours)  # forgot what a clean model would know
    assert turned.outcome == FAIL
    assert turned.difference.value == -6 / 256


def test_nobody_knows_more_passes_where_there_are_items() -> None:
    for n, outcome in ((189, PASS), (188, OPEN)):
        assert tested.known_better(np.zeros(n), np.ones(n)).outcome == outcome  # a gap of just 1
    few = np.r_[np.full(20, 1.0), np.nan]
    assert tested.known_better(few, np.r_[np.zeros(20), 9.0]).n == 20


def test_items_that_one_model_cannot_give_are_left_out() -> None:
    ours, theirs = BASE[:40].copy(), BASE[:40].copy()
    ours[0] = theirs[1] = np.nan
    assert tested.compare(ours, theirs, measure="loss").n == 38
    with pytest.raises(DataError, match="no item"):
        tested.compare([np.nan], None, measure="loss")
    with pytest.raises(DataError, match="pair"):
        tested.compare([1.0], [1.0, 2.0], measure="loss")


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(25)))
def test_the_order_of_items_does_not_matter(order: list[int]) -> None:
    ours, theirs = BASE[:25], BASE[25:50]
    one = tested.compare(ours, theirs, measure="loss")
    assert tested.compare(ours[order], theirs[order], measure="loss") == one


def test_the_interval_is_that_of_the_mean() -> None:
    found = tested.mean(BASE)
    se = BASE.std() / np.sqrt(len(BASE))
    assert found.high - found.low == pytest.approx(2 * 1.96 * se, rel=0.1)


def test_aucs_are_compared_on_the_same_items() -> None:
    forget, holdout = DRAW.normal(1.5, 1, 150), DRAW.normal(0, 1, 150)
    known = tested.compare_auc((forget, holdout), (forget - 1.5, holdout), measure="loss")
    assert known.outcome == FAIL
    assert known.difference.low > 0.1
    alike = tested.compare_auc((forget, holdout), (forget + 0.01, holdout), measure="loss")
    assert alike.outcome == PASS
    assert alike.measure == "auc_loss"


def test_one_failure_fails_the_whole() -> None:
    good = tested.compare(BASE, BASE, measure="loss")
    bad = tested.compare(BASE + 1, BASE, measure="loss")
    few = tested.compare(BASE[:5], BASE[:5], measure="loss")
    assert tested.overall([good, good]) == PASS
    assert tested.overall([good, few]) == OPEN
    assert tested.overall([few, bad, good]) == FAIL
