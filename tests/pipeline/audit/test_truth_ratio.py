"""Truth ratio, forget quality, utility, PrivLeak, F.D.: the known answers."""

from __future__ import annotations

import numpy as np
import pytest

from foresift.pipeline.audit import truth_ratio as tested
from foresift.pipeline.audit.token_stats import TokenStats
from foresift.pipeline.errors import DataError


def test_the_two_means() -> None:
    assert tested.truth_ratio(0.5, [0.1, 0.4]) == pytest.approx(0.5)
    assert tested.truth_ratio(0.5, [0.1, 0.4], "geometric") == pytest.approx(0.4)


def test_length_normalised_probability() -> None:
    logp = np.log([0.1, 0.4])
    stats = TokenStats(logp, logp, logp, logp > 0)
    assert tested.probability(stats) == pytest.approx(0.2)


def test_scores_of_ratios() -> None:
    assert tested.forget_score([0.5, 2.0, 1.0]) == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert tested.knowledge_score([0.25, 3.0]) == pytest.approx(0.375)
    assert tested.forget_score([0.0]) == 0


def test_forget_quality() -> None:
    x = np.arange(20.0)
    assert tested.forget_quality(x, x) == (1.0, 0.0)
    found = tested.forget_quality(x, x + 100)
    assert found.p == pytest.approx(1.45e-11, rel=1e-2)
    assert found.statistic == 1


def test_model_utility() -> None:
    assert tested.model_utility([0.5, 1]) == pytest.approx(0.667, abs=1e-3)
    assert tested.model_utility([0.9, 0.0]) == 0


@pytest.mark.parametrize(("auc", "percent"), [(0.9, -80), (0.2, 60), (0.5, 0)])
def test_privleak(auc: float, percent: float) -> None:
    assert tested.privleak(auc) == pytest.approx(percent)


def test_privleak_against_a_retrained_model_that_is_not_at_chance() -> None:
    assert tested.privleak(0.477, 0.477) == 0
    assert tested.privleak(0.6, 0.477) < 0


@pytest.mark.parametrize(
    ("p", "retrained", "wanted"),
    [(0.3, 0.2, 0.5), (0.2, 0.2, 1), (0.4, 0.2, 0), (0.9, 0.2, 0), (0, 0, 1), (1e-5, 0, 0.99)],
)
def test_likeness(p: float, retrained: float, wanted: float) -> None:
    assert tested.likeness(p, retrained) == pytest.approx(wanted)


def test_overall() -> None:
    assert tested.overall(0.1, 0.1, 0.1) == pytest.approx(0.1)
    assert tested.overall(0.5, 0.0, 1.0) == 0


def test_what_has_no_answer_is_refused() -> None:
    with pytest.raises(DataError):
        tested.truth_ratio(0.0, [0.1])
    with pytest.raises(DataError):
        tested.truth_ratio(0.5, [])
    with pytest.raises(DataError):
        tested.forget_quality([], [1.0])
    with pytest.raises(DataError):
        tested.privleak(0.5, 1.0)
    with pytest.raises(DataError):
        tested.model_utility([-0.1])
