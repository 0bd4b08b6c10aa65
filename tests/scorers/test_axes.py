"""Axes: known answers, signs that do not move, projections of rows alone, overlaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.scorers._axes import Axes, Floats, normal_scores, overlap

FOUR = np.array([[1.0, 2, 0], [2, 4, 0], [3, 6, 0], [4, 8, 1]])
ABC = ("a", "b", "c")


def correlated(n: int = 500, width: int = 4, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, width)) @ rng.standard_normal((width, width)) + 3.0


def names(width: int) -> tuple[str, ...]:
    return tuple(f"c{i}" for i in range(width))


def plain(values: Floats, count: int) -> Floats:
    """Scores of the axes by a singular value decomposition of the standardised rows."""
    z = (values - values.mean(0)) / values.std(0)
    q = np.linalg.svd(z, full_matrices=False)[2][:count].T
    return z @ (q * np.where(q.sum(0) >= 0, 1.0, -1.0))


def test_known_answers_of_four_rows() -> None:
    axes = Axes.fit(FOUR, ABC, 2)
    np.testing.assert_allclose(axes.explained, [0.901386, 0.098614, 0], atol=1e-6)
    np.testing.assert_allclose(axes.loadings[:, 0], [0.594817, 0.594817, 0.540728], atol=1e-6)
    assert axes.sums[0] == pytest.approx(1.730361, abs=2e-6)
    y = axes.project(FOUR)
    np.testing.assert_allclose(y.T @ y / 4, np.diag(axes.variance[:2]), atol=1e-12)
    with pytest.raises(DataError, match="vary in 2 directions"):
        Axes.fit(FOUR, ABC, 3)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_singular_value_decomposition(seed: int) -> None:
    values = correlated(seed=seed)
    axes = Axes.fit(values, names(4), 4, quality=())
    signed = ~axes.unsigned
    np.testing.assert_allclose(axes.project(values)[:, signed], plain(values, 4)[:, signed],
                               atol=1e-9)  # fmt: skip
    assert signed.sum() >= 2


@pytest.mark.parametrize("scale", ["standard", "rank_gauss"])
def test_signs_do_not_depend_on_the_order_of_rows(scale: str) -> None:
    values = correlated()
    order = np.random.default_rng(1).permutation(len(values))
    once, again = (Axes.fit(v, names(4), 3, scale=scale) for v in (values, values[order]))  # type: ignore[arg-type]
    np.testing.assert_allclose(again.project(values), once.project(values), atol=1e-9)


@pytest.mark.parametrize("column", range(4))
def test_a_negated_column_turns_what_the_rule_says_and_nothing_else(column: int) -> None:
    values = correlated(seed=2)
    turned = values * np.where(np.arange(4) == column, -1.0, 1.0)
    before, after = Axes.fit(values, names(4), 4), Axes.fit(turned, names(4), 4)
    y, z = before.project(values), after.project(turned)
    np.testing.assert_allclose(np.abs(z), np.abs(y), atol=1e-9)
    expected = before.loadings * np.where(np.arange(4) == column, -1.0, 1.0)[:, None]
    for k in range(4):
        total = expected[:, k].sum()
        if abs(total) < 0.1:
            total = expected[np.argmax(np.abs(expected[:, k])), k]
        np.testing.assert_allclose(z[:, k], y[:, k] * np.sign(total), atol=1e-9)


def test_all_columns_negated_or_said_to_be_lower_are_the_same() -> None:
    values = correlated(seed=3)
    plain_, low = Axes.fit(values, names(4), 3), Axes.fit(-values, names(4), 3, lower=names(4))
    np.testing.assert_allclose(low.project(-values), plain_.project(values), atol=1e-12)
    # without `lower`, every top becomes a bottom: correlations, and so loadings, are unchanged
    np.testing.assert_allclose(
        Axes.fit(-values, names(4), 3).project(-values), -plain_.project(values), atol=1e-9
    )


def test_quality_columns_turn_axes_and_say_which_are_unsigned() -> None:
    rng = np.random.default_rng(4)
    a = rng.standard_normal(4000)
    values = np.stack(
        [a, 0.5 * a + rng.standard_normal(4000)], axis=1
    )  # loadings (1, +-1) / sqrt 2
    both = Axes.fit(values, ("a", "b"), 2)
    assert both.unsigned.tolist() == [False, True]
    assert both.loadings[0, 1] > 0, "equal loadings: the first is made positive"
    for name, place in (("a", 0), ("b", 1)):
        axes = Axes.fit(values, ("a", "b"), 2, quality=(name,))
        assert not axes.unsigned.any()
        assert (axes.loadings[place] > 0).all()
    strict = Axes.fit(values, ("a", "b"), 2, quality=("a",), below=0.9)
    assert strict.unsigned.all(), "1 / sqrt 2 is within 0.9 of 0"


def test_what_cannot_make_axes_is_refused() -> None:
    with pytest.raises(DataError, match="b: the same score, 7, in all 4 documents"):
        Axes.fit(np.where([False, True, False], 7.0, FOUR), ABC, 1)
    with pytest.raises(DataError, match="2 documents with all of the scores"):
        Axes.fit(FOUR[:2], ABC, 2)
    with pytest.raises(DataError, match=r"c: a score of 1e\+300 is too large"):
        Axes.fit(FOUR * [1, 1, 1e300], ABC, 1)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from(["standard", "rank_gauss"]))
def test_rows_are_projected_alone_and_scores_are_uncorrelated(
    seed: int, count: int, scale: str
) -> None:
    values = correlated(60, 4, seed)
    axes = Axes.fit(values, names(4), count, scale=scale)  # type: ignore[arg-type]
    whole = axes.project(values)
    pieces = [axes.project(values[i : i + 7]) for i in range(0, 60, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_allclose(whole.T @ whole / 60, np.diag(axes.variance[:count]), atol=1e-8)
    values[3, 0] = np.nan
    assert np.isnan(axes.project(values)).all(axis=1).tolist() == [i == 3 for i in range(60)]


def test_increasing_transforms_change_nothing_after_ranks() -> None:
    values = correlated(300)
    a, b, c, d = values.T
    bent = np.stack([a, np.exp(b), c**3, -np.exp(-d)], axis=1)
    fits = [Axes.fit(v, names(4), 3, scale="rank_gauss") for v in (values, bent)]
    np.testing.assert_allclose(fits[1].project(bent), fits[0].project(values), atol=1e-9)
    assert not np.allclose(*(Axes.fit(v, names(4), 3).project(v) for v in (values, bent)))


def test_normal_scores_of_ties_and_new_values() -> None:
    found = normal_scores(np.array([5.0, 1, 5, 9]))
    np.testing.assert_allclose(found, [0, -1.150349, 0, 1.150349], atol=1e-6)
    ramp, odd = np.linspace(0, 1, 5001), np.arange(5001) % 2
    values = np.stack([ramp, 2 * ramp + odd], axis=1)
    axes = Axes.fit(values, ("a", "b"), 2, scale="rank_gauss")
    assert max(k.shape[1] for k in axes.knots) == 1025
    far = axes.project(np.array([[1e9, 1e9], [1.0, 3.0]]))
    np.testing.assert_allclose(far[0], far[1], atol=1e-9, err_msg="beyond the sample it stays")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    values = correlated()
    axes = Axes.fit(values, names(4), 3, lower=("c1",), scale="rank_gauss")
    axes.save(tmp_path)
    again = Axes.load(tmp_path)
    np.testing.assert_array_equal(again.project(values), axes.project(values))
    assert again.facts() == axes.facts()


def test_overlap_of_independent_scores_is_the_share() -> None:
    values = np.random.default_rng(0).standard_normal((100_000, 2))
    assert overlap(values, 0.05)[0] == pytest.approx(0.05, abs=0.01)
    assert overlap(values, 0.25)[0] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("rho", "expected"), [(0.3, 0.144), (0.5, 0.249), (0.9, 0.639)])
def test_overlap_of_correlated_scores(rho: float, expected: float) -> None:
    a, b = np.random.default_rng(1).standard_normal((2, 400_000))
    values = np.stack([a, rho * a + np.sqrt(1 - rho**2) * b], axis=1)
    assert overlap(values, 0.05)[0] == pytest.approx(expected, abs=0.01)


def test_overlap_by_hand() -> None:
    values = np.array([[4.0, 1, 4], [3, 2, 3], [2, 3, 1], [1, 4, 2]])
    assert overlap(values, 0.5).tolist() == [0.0, 1.0, 0.0]  # pairs 12, 13, 23
    assert overlap(values, 0.75).tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert overlap(values[:, :1], 0.5).shape == (0,)
