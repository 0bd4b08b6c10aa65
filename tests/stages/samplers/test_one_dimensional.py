"""Cuts of a line into groups, against every possible cut and against scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from foresift.stages.samplers import _one_dimensional
from foresift.stages.samplers._one_dimensional import equal_part, grouped, starts

Numbers = st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=11)


def inertia(values: np.ndarray, labels: np.ndarray) -> float:
    """Squared distances to the mean of the own group."""
    parts = [values[labels == group] for group in np.unique(labels)]
    return sum(float(((part - part.mean()) ** 2).sum()) for part in parts)


def least(values: np.ndarray, k: int) -> float:
    """The plain version: of all cuts of the sorted values, the best one's inertia."""
    ranked = np.sort(values)
    costs = []
    for cuts in itertools.combinations(range(1, len(values)), k - 1):
        parts = np.split(ranked, cuts)
        costs.append(sum(float(((part - part.mean()) ** 2).sum()) for part in parts))
    return min(costs)


def test_known_groups() -> None:
    values = np.array([9.0, 1.0, 1.2, 5.0, 0.9, 9.1, 5.2])
    assert grouped(values, 3, "kmeans").tolist() == [2, 0, 0, 1, 0, 2, 1]
    assert grouped(values, 3, "quantile").tolist() == [2, 0, 0, 1, 0, 2, 1]
    assert grouped(np.array([1.0, 1.0, 1.0, 9.0]), 2, "kmeans").tolist() == [0, 0, 0, 1]
    assert grouped(np.array([1.0, 1.0, 1.0, 9.0]), 2, "quantile").tolist() == [0, 0, 1, 1]


@given(Numbers, st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_no_cut_is_better(numbers: list[float], k: int) -> None:
    values = np.array(numbers)
    if k > len(np.unique(values)):
        return
    labels = grouped(values, k, "kmeans")
    best = least(values, k)
    assert inertia(values, labels) == pytest.approx(best, rel=1e-6, abs=1e-9)


@given(
    st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=60),
    st.integers(1, 8),
    st.sampled_from(["kmeans", "quantile"]),
)
@settings(max_examples=150, deadline=None)
def test_groups_ascend_and_none_is_empty(numbers: list[float], k: int, grouping: str) -> None:
    values = np.array(numbers)
    k = min(k, len(values))
    labels = grouped(values, k, grouping)  # type: ignore[arg-type]
    assert set(labels.tolist()) == set(range(k))
    assert (np.diff(labels[np.argsort(values, kind="stable")]) >= 0).all()
    if grouping == "kmeans" and len(np.unique(values)) >= k:
        assert all(len(set(labels[values == v].tolist())) == 1 for v in values)
    else:
        sizes = np.bincount(labels, minlength=k)
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("k", [2, 5, 10])
def test_at_least_as_tight_as_scikit_learn(k: int) -> None:
    values = np.random.default_rng(k).lognormal(0.5, 0.6, 3000)
    theirs = KMeans(k, n_init=10, random_state=0).fit(values[:, None]).inertia_
    labels = grouped(values, k, "kmeans")
    assert inertia(values, labels) <= theirs * (1 + 1e-9)
    shuffled = np.random.default_rng(0).permutation(len(values))
    assert (grouped(values[shuffled], k, "kmeans") == labels[shuffled]).all()


def test_copies_weigh_as_much_as_they_are_many() -> None:
    values = np.array([0.0, 1.2, 2.0, 10.0])
    assert starts(values, np.array([1, 1, 1, 1]), 2).tolist() == [0, 3]
    assert starts(values, np.array([900, 1, 900, 1]), 2).tolist() == [0, 1]


def test_many_values_are_cut_almost_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).lognormal(0.5, 0.6, 20000)
    exact = grouped(values, 8, "kmeans")
    monkeypatch.setattr(_one_dimensional, "EXACT", 5000)
    monkeypatch.setattr(_one_dimensional, "SUMMARY", 1000)
    summed = grouped(values, 8, "kmeans")
    best = inertia(values, exact)
    assert best <= inertia(values, summed) <= best * 1.001
    centres = np.array([values[summed == group].mean() for group in range(8)])
    nearest = np.abs(values[:, None] - centres).argmin(1)
    assert (nearest == summed).all(), "Lloyd's rule would still move something"


@given(st.integers(1, 60), st.integers(1, 9), st.data())
def test_equal_parts_are_counted(n: int, k: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, k - 1))
    parts = data.draw(st.integers(1, k - first))
    labels = grouped(np.arange(n, dtype=np.float64), k, "quantile")
    inside = (labels >= first) & (labels < first + parts)
    assert equal_part(n, k, first, parts) == inside.sum()
