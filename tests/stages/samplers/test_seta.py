"""SeTa: windows, groups, annealing, what is remembered; against a plain version."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.online import Epochs
from foresift.pipeline.rng import Rng
from foresift.stages.samplers.dynamic_random import DynamicRandom
from foresift.stages.samplers.seta import SeTa
from tests.stages.samplers.plans import play, told


def groups_visited(epochs: Epochs, n: int, k: int, number: int) -> list[int]:
    """Which of k equal ranges of loss the epoch visits, where document i has loss i."""
    rows, _ = epochs.epoch(number)
    epochs.update(np.arange(n), np.arange(n, dtype=np.float64))
    return sorted(set((rows * k // n).tolist()))


@pytest.mark.parametrize(
    ("k", "alpha", "rounding", "width", "starts"),
    [
        (5, 0.9, "round", 4, [1, 0, 1, 0, 1, 0, 1, 0]),
        (5, 0.9, "ceil", 5, [0, 0, 0, 0, 0, 0, 0, 0]),
        (5, 0.6, "round", 3, [1, 2, 0, 1, 2, 0, 1, 2]),
        (5, 0.6, "ceil", 3, [1, 2, 0, 1, 2, 0, 1, 2]),
        (10, 0.5, "round", 5, [1, 2, 3, 4, 5, 0, 1, 2]),
        (10, 0.5, "ceil", 5, [1, 2, 3, 4, 5, 0, 1, 2]),
        (10, 0.25, "round", 2, [1, 2, 3, 4, 5, 6, 7, 8]),
        (10, 0.25, "ceil", 3, [1, 2, 3, 4, 5, 6, 7, 0]),
    ],
)
def test_the_window_slides(k: int, alpha: float, rounding: str, width: int, starts: list) -> None:
    for grouping in ("kmeans", "quantile"):
        fields = {"window_rounding": rounding, "grouping": grouping}
        plan = SeTa(groups=k, window=alpha, anneal=1.0, **fields)
        epochs = plan.open(10 * k, 20, 0)
        assert groups_visited(epochs, 10 * k, k, 0) == list(range(k))
        for q, start in enumerate(starts, 1):
            found = groups_visited(epochs, 10 * k, k, q)
            assert found == list(range(start, start + width)), (grouping, q)


def test_a_product_that_binary_makes_too_large_is_not_rounded_up() -> None:
    assert 0.07 * 100 > 7
    assert SeTa(groups=100, window=0.07, window_rounding="ceil").width == 7


def test_the_window_is_given_up_for_the_last_epochs() -> None:
    epochs = SeTa(groups=4, window=0.5, grouping="quantile").open(40, 200, 0)
    sizes = [len(rows) for rows, _ in play(epochs, range(200))]
    assert sizes == [40] + [20] * 174 + [40] * 25
    assert sizes == epochs.forecast()


def test_three_epochs_slide_once() -> None:
    sizes = [len(rows) for rows, _ in play(SeTa(grouping="quantile").open(40, 3, 0), range(3))]
    assert sizes == [40, 20, 40]


@given(st.integers(7, 80), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_equal_losses_fall_into_equal_groups_at_random(n: int, k: int, seed: int) -> None:
    epochs = SeTa(groups=k, window=1 / k, anneal=1.0, prune=0.1).open(n, k + 1, seed)
    size = int(0.9 * n + 1e-9)
    sizes = [len(epochs.epoch(number)[0]) for number in range(k + 1)]
    assert sizes[0] == sum(sizes[1:]) == size
    assert max(sizes[1:]) - min(sizes[1:]) <= 1


def test_equal_losses_are_drawn_from_the_whole_subset() -> None:
    epochs = SeTa(groups=5, window=0.2, anneal=1.0).open(50, 60, 3)
    met = set()
    for number in range(40):
        rows = epochs.epoch(number)[0].tolist()
        met |= set(rows) if number else set()
    assert met == set(range(50))


def test_losses_of_what_was_not_visited_stay() -> None:
    epochs = SeTa(prune=0.4, groups=3, window=0.4).open(30, 8, 1)
    before = np.full(30, 3.0)
    for number in range(6):
        rows, _ = epochs.epoch(number)
        assert (epochs.state_dict()["losses"] == before).all()
        epochs.update(rows, told(rows, 99))
        epochs.update(rows, told(rows, number))
        before = before.copy()
        before[rows] = told(rows, number)
    epochs.epoch(6)
    assert (epochs.state_dict()["losses"] == before).all()


def test_a_loss_that_is_not_finite_is_passed_over() -> None:
    epochs = SeTa(groups=2).open(4, 3, 0)
    epochs.epoch(0)
    epochs.update(np.array([0, 1, 1, 2]), np.array([np.nan, 5.0, np.inf, 1.0]))
    epochs.epoch(1)
    assert epochs.state_dict()["losses"].tolist() == [3.0, 5.0, 1.0, 3.0]


@given(st.integers(2, 60), st.integers(0, 2**32), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_one_group_and_no_pruning_is_plain_training(n: int, seed: int, number: int) -> None:
    visits = play(SeTa(groups=1, window=1.0).open(n, 10, seed), range(number + 1))
    assert all(sorted(rows) == list(range(n)) for rows, _ in visits)
    assert n < 12 or visits[0][0] != visits[1][0]


def test_one_group_is_dynamic_random() -> None:
    seta = play(SeTa(prune=0.3, groups=1, window=1.0).open(50, 9, 5), range(9))
    assert seta == play(DynamicRandom(prune=0.3).open(50, 9, 5), range(9))


@given(
    n=st.integers(12, 90),
    seed=st.integers(0, 1000),
    prune=st.sampled_from([0.0, 0.1, 0.35]),
    k=st.integers(1, 6),
    alpha=st.floats(0.5, 1.0),
    grouping=st.sampled_from(["kmeans", "quantile"]),
    ties=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_epochs_are_subsets_in_which_each_loss_counts_once(
    n: int, seed: int, prune: float, k: int, alpha: float, grouping: str, ties: bool
) -> None:
    plan = SeTa(prune=prune, groups=k, window=max(alpha, 0.51), grouping=grouping)
    epochs = plan.open(n, 7, seed)
    size = int((1 - prune) * n + 1e-9)
    for number in range(7):
        rows, weights = epochs.epoch(number)
        assert rows.dtype == np.int64
        assert weights.dtype == np.float32
        assert len(set(rows.tolist())) == len(rows) == len(weights) <= size
        assert (weights == 1).all()
        assert ((rows >= 0) & (rows < n)).all()
        if grouping == "quantile":
            assert len(rows) == epochs.forecast()[number]
        epochs.update(rows, np.round(told(rows, number)) if ties else told(rows, number))


def test_against_the_plain_version() -> None:
    """The released code's steps with scikit-learn's k-means, on losses with three clear heaps."""
    n, k, seed = 60, 3, 4
    heaps = np.random.default_rng(0).normal(np.repeat([1.0, 4.0, 9.0], 20), 0.1)
    losses = np.random.default_rng(1).permutation(heaps)
    plan = SeTa(prune=0.2, groups=k, window=0.34, anneal=0.75)
    epochs = plan.open(n, 8, seed)
    for number in range(8):
        rows, _ = epochs.epoch(number)
        epochs.update(np.arange(n), losses)
        subset = Rng(seed).at("epoch", number).generator().permutation(n)[:48]
        expected = subset
        if 0 < number < 6:
            fitted = KMeans(k, n_init=5, random_state=0).fit(losses[subset][:, None])
            ranked = np.argsort(fitted.cluster_centers_[:, 0])
            start = number % (k - 1 + 1)
            expected = subset[fitted.labels_ == ranked[start]]
        assert rows.tolist() == expected.tolist(), number


@given(st.integers(0, 8), st.integers(0, 60), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_a_run_goes_on_where_it_was_interrupted(stop: int, cut: int, seed: int) -> None:
    plan = SeTa(prune=0.2, groups=4)
    whole = play(plan.open(60, 9, seed), range(9))
    first = plan.open(60, 9, seed)
    assert play(first, range(stop)) == whole[:stop]
    rows, _ = first.epoch(stop)
    first.update(rows[:cut], told(rows[:cut], stop))
    state = first.state_dict()
    first.update(rows, np.full(len(rows), 77.0))
    second = plan.open(60, 9, seed)
    second.load_state_dict(state)
    assert play(second, range(stop, 9)) == whole[stop:]


def test_seeds_differ_and_numpy_numbers_are_numbers() -> None:
    plan = SeTa(groups=2)
    assert play(plan.open(40, 3, 1), range(3)) != play(plan.open(40, 3, 2), range(3))
    same = plan.open(40, 3, np.int64(1))  # type: ignore[arg-type]
    assert play(plan.open(40, 3, 1), range(3)) == play(same, range(3))


def test_the_forecast_with_kmeans_is_the_share_of_groups() -> None:
    epochs = SeTa(groups=10, window=0.5, prune=0.1).open(1000, 8, 0)
    assert epochs.forecast() == [900.0] + [450.0] * 6 + [900.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prune": 0.95}, "prune must be a number from 0 to 0.9"),
        ({"prune": -0.1}, "prune must"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"groups": 5, "window": 0.1}, "0.1 of 5 groups is none"),
        ({"window": 0.0, "window_rounding": "ceil"}, "0 of 10 groups is none"),
        ({"window": 1.5}, "window must be a number from 0 to 1"),
        ({"anneal": float("nan")}, "anneal must"),
        ({"initial": float("inf")}, "initial must be a finite number"),
        ({"grouping": "deciles"}, "grouping"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SeTa.parse(fields, "sample seta")


def test_too_many_groups_or_nothing_to_plan() -> None:
    with pytest.raises(DataError, match="groups: 10 groups of 10 documents"):
        SeTa().open(10, 3, 0)
    with pytest.raises(DataError, match=r"10 groups of 9 documents \(18 less 0\.5"):
        SeTa(prune=0.5).open(18, 3, 0)
    with pytest.raises(DataError, match="epochs: 0 epochs"):
        SeTa().open(100, 0, 0)
    with pytest.raises(DataError, match="n: 0 documents"):
        SeTa().open(0, 1, 0)
    assert SeTa().open(11, 3, 0).forecast()[0] == 11


def test_bad_updates_and_epochs() -> None:
    epochs = SeTa(groups=2).open(9, 4, 0)
    with pytest.raises(DataError, match=r"positions: positions 3 \.\. 9 of 9"):
        epochs.update(np.array([3, 9]), np.ones(2))
    with pytest.raises(DataError, match="positions -1"):
        epochs.update(np.array([-1]), np.ones(1))
    with pytest.raises(DataError, match="losses"):
        epochs.update(np.array([1, 2]), np.ones(3))
    with pytest.raises(DataError, match="epoch 1 was asked for where epoch 0 comes next"):
        epochs.epoch(1)
    epochs.epoch(0)
    epochs.epoch(1)
    with pytest.raises(DataError, match="epoch 0 was asked for where epoch 2 comes next"):
        epochs.epoch(0)
    with pytest.raises(DataError, match="epoch 4 of 4"):
        epochs.epoch(4)


def test_another_plans_state_is_refused() -> None:
    state = SeTa(groups=2).open(9, 4, 0).state_dict()
    for plan, n, count, seed, name in [
        (SeTa(groups=3), 9, 4, 0, "plan"),
        (SeTa(groups=2), 8, 4, 0, "n is 9, not 8"),
        (SeTa(groups=2), 9, 5, 0, "epochs is 4, not 5"),
        (SeTa(groups=2), 9, 4, 1, "seed is 0, not 1"),
    ]:
        with pytest.raises(DataError, match=f"another plan's: {name}"):
            plan.open(n, count, seed).load_state_dict(state)
    again = SeTa(groups=2).open(9, 4, 0)
    with pytest.raises(DataError, match="has no latest"):
        again.load_state_dict({k: v for k, v in state.items() if k != "latest"})
    with pytest.raises(DataError, match="losses"):
        again.load_state_dict({**state, "losses": np.ones(3)})
    assert again.state_dict()["epoch"] == -1
