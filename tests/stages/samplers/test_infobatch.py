"""InfoBatch: which documents are thinned, what they weigh, that the sum stays unbiased."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError, RecipeError
from foresift.stages.samplers.infobatch import InfoBatch
from foresift.stages.samplers.seta import SeTa
from tests.stages.samplers.plans import play, told


def second(losses: list[float], seed: int, **fields: float) -> tuple[np.ndarray, np.ndarray]:
    """The epoch after these losses were told."""
    epochs = InfoBatch(**fields).open(len(losses), 10, seed)
    rows, weights = epochs.epoch(0)
    assert sorted(rows.tolist()) == list(range(len(losses)))
    assert (weights == 1).all()
    epochs.update(np.arange(len(losses)), np.array(losses))
    return epochs.epoch(1)


def test_the_known_answer() -> None:
    sums = []
    for seed in range(40):
        rows, weights = second([1.0, 2.0, 3.0, 6.0], seed)
        low = [r for r in rows.tolist() if r < 2]
        assert sorted(rows.tolist()) == [low[0], 2, 3], "3 is not below the mean, 3"
        assert dict(zip(rows.tolist(), weights.tolist(), strict=True)) == {low[0]: 2, 2: 1, 3: 1}
        sums.append(float((weights * np.array([1.0, 2.0, 3.0, 6.0])[rows]).sum()))
    assert set(sums) == {11.0, 13.0}, "half of the time either, 12 on average"


@given(
    st.lists(st.floats(0, 20), min_size=1, max_size=30),
    st.floats(0, 0.95),
    st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_against_the_plain_version(losses: list[float], prune: float, seed: int) -> None:
    rows, weights = second(losses, seed, prune=prune)
    values = np.array(losses)
    low = {i for i, loss in enumerate(losses) if loss < min(values.mean(), max(losses))}
    visited = rows.tolist()
    assert len(set(visited)) == len(visited)
    assert set(range(len(losses))) - low <= set(visited)
    exact = (1 - prune) * len(low)
    assert np.floor(exact - 1e-9) <= len(low & set(visited)) <= np.ceil(exact + 1e-9)
    expected = [1 / (1 - prune) if row in low else 1.0 for row in visited]
    assert weights == pytest.approx(np.array(expected, dtype=np.float32))
    assert weights.dtype == np.float32


@pytest.mark.parametrize("prune", [0.3, 0.5, 0.8])
def test_the_weighted_sum_is_unbiased(prune: float) -> None:
    losses = [0.5, 1.0, 1.5, 2.5, 4.0, 8.0, 9.0]
    sums = []
    for seed in range(4000):
        rows, weights = second(losses, seed, prune=prune)
        sums.append(float((weights * np.array(losses)[rows]).sum()))
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - sum(losses)) < 4 * error


@pytest.mark.parametrize("loss", [0.1, 3.0, 1 / 3])
@pytest.mark.parametrize("n", [3, 7, 10, 1001])
def test_equal_losses_are_not_below_their_mean(loss: float, n: int) -> None:
    rows, weights = second([loss] * n, 0)
    assert sorted(rows.tolist()) == list(range(n))
    assert (weights == 1).all()


def test_the_last_epochs_visit_everything() -> None:
    sizes = [len(rows) for rows, _ in play(InfoBatch().open(101, 16, 0), range(16))]
    assert sizes[0] == sizes[14] == sizes[15] == 101
    assert all(size < 101 for size in sizes[1:14])
    assert InfoBatch().open(100, 16, 0).forecast() == [100.0] + [75.0] * 13 + [100.0] * 2


def test_no_pruning_is_plain_training() -> None:
    for rows, weights in play(InfoBatch(prune=0.0).open(30, 6, 2), range(6)):
        assert sorted(rows) == list(range(30))
        assert weights == [1.0] * 30


@given(st.integers(0, 8), st.integers(0, 40), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_a_run_goes_on_where_it_was_interrupted(stop: int, cut: int, seed: int) -> None:
    plan = InfoBatch()
    whole = play(plan.open(40, 9, seed), range(9))
    first = plan.open(40, 9, seed)
    play(first, range(stop))
    rows, _ = first.epoch(stop)
    first.update(rows[:cut], told(rows[:cut], stop))
    again = plan.open(40, 9, seed)
    again.load_state_dict(first.state_dict())
    assert play(again, range(stop, 9)) == whole[stop:]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prune": 1.0}, "prune must be below 1"),
        ({"prune": float("nan")}, "prune must be a number from 0 to 1"),
        ({"anneal": 1.1}, "anneal must be a number from 0 to 1"),
        ({"initial": float("nan")}, "initial must be a finite number"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        InfoBatch.parse(fields, "sample infobatch")


def test_another_parts_state_is_refused() -> None:
    state = SeTa(groups=2).open(9, 4, 0).state_dict()
    with pytest.raises(DataError, match="another plan's: plan"):
        InfoBatch().open(9, 4, 0).load_state_dict(state)
