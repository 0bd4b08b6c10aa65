"""RAP's choice from rollouts, against the answers that are known of its release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import DataError, RecipeError
from foresift.scorers.rollout_gain import RolloutGain, choose
from tests.scorers import fitting

ITEMS = [(3, 1), (5, 1), (3, 3), (1, 0)]
PART = RolloutGain(with_context="a", without_context="t")


def table(rows: list[tuple[float | None, float | None]]) -> pa.Table:
    a, t = zip(*rows, strict=True)
    return pa.table({"id": fitting.ids(range(len(rows))), "a": a, "t": t})


def test_four_items_of_which_one_is_chosen(tmp_path: Path) -> None:
    found, facts = fitting.score(PART, table(list(ITEMS)), tmp_path / "out")
    np.testing.assert_allclose(found["similarity"], [1, 0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(found["gain"], [0.4, 0.8, 0, 0.2])
    assert found["essential"].tolist() == found["chosen"].tolist() == [True, False, False, False]
    assert not found["hard"].any()
    assert facts == {"tasks": 4, "essential": 1, "hard": 0, "chosen": 1}


def test_ten_more_hard_items_lower_the_mean_and_are_hard_then(tmp_path: Path) -> None:
    found, facts = fitting.score(PART, table([*ITEMS, *[(1, 0)] * 10]), tmp_path / "out")
    assert found["similarity"][3] == pytest.approx(0.972, abs=5e-4)
    assert found["hard"].tolist() == [False] * 3 + [True] * 11
    assert facts["hard"] == 11
    assert found["chosen"].sum() == 1 + 1  # the essential one, and a tenth of the hard ones


def test_similarity_at_a_mean_of_one_half() -> None:
    counts = np.array(
        [[10, 0], [8, 0], [6, 0], [5, 0], [2, 0], [0, 0], [4, 0], [5, 0]], dtype=float
    )
    assert counts[:, 0].mean() == 5
    similarity, *_ = choose(counts, 10)
    np.testing.assert_allclose(similarity[:5], [0, 0.64, 0.96, 1, 0.64])


def test_a_difference_of_one_of_five_is_never_above_its_share() -> None:
    counts = np.array([[3, 2], [2, 1], [4, 3], [4, 2]], dtype=float)
    _, essential, _ = choose(counts, 5)
    assert essential.tolist() == [False, False, False, True]


def test_tasks_that_are_always_right_and_rows_without_numbers(tmp_path: Path) -> None:
    found, facts = fitting.score(PART, table([(5, 5), (None, 1), (5, None)]), tmp_path / "out")
    np.testing.assert_allclose(found["similarity"], [1, np.nan, np.nan])
    assert not found["chosen"].any()
    assert facts["tasks"] == 1


def test_what_is_no_count_is_told(tmp_path: Path) -> None:
    for number, rows in enumerate(([(6, 0)], [(0.5, 0)], [(0, -1)])):
        with pytest.raises(DataError, match="of 5 rollouts"):
            fitting.score(PART, table(list(rows)), tmp_path / str(number))
    with pytest.raises(RecipeError, match="rollouts is at least 1"):
        RolloutGain.parse({"with_context": "a", "without_context": "t", "rollouts": 0}, "score")


def test_copies_with_other_counts_are_one_task_in_any_order(tmp_path: Path) -> None:
    """The task of a copy is the one with the fewest right rollouts, whichever row is first."""
    some = table([(3, 1), (5, 1), (3, 3), (1, 0)])
    place = some.column_names.index("id")
    ids = some["id"].to_pylist()
    some = some.set_column(place, "id", pa.array([ids[0], ids[0], *ids[2:]], some["id"].type))
    one, facts = fitting.score(PART, some, tmp_path / "one")
    other, again = fitting.score(PART, some.take([1, 0, 3, 2]), tmp_path / "other")
    assert facts == again
    assert facts["tasks"] == 3
    for name in ("essential", "hard", "chosen", "similarity"):
        np.testing.assert_array_equal(one[name], np.asarray(other[name])[[1, 0, 3, 2]])
    assert one["essential"].tolist() == [True, True, False, False]
