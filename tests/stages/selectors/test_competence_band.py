"""Bands of pass rates: known answers of RIF, and the chance to drop what is only hard."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Choice, Rng
from foresift.stages.selectors.competence_band import CompetenceBand
from tests.stages.selectors.tables import ids

NUMBERS = pa.float64()
LISTS = pa.list_(NUMBERS)
ROWS = [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


def lists(rewards: list[Any], dtype: pa.DataType = LISTS) -> pa.Table:
    column = pa.array(rewards, dtype, from_pandas=False)
    return pa.table({"id": ids(len(rewards)), "r": column})


def rates(values: list[Any], dtype: pa.DataType = NUMBERS) -> pa.Table:
    column = pa.array(values, dtype, from_pandas=False)
    return pa.table({"id": ids(len(values)), "r": column})


def select(part: CompetenceBand, table: pa.Table) -> Choice:
    return part.select(table, None, Rng(0))


def kept(part: CompetenceBand, table: pa.Table) -> list[int]:
    return np.flatnonzero(select(part, table).kept).tolist()


def test_rif_keeps_what_was_solved_once() -> None:
    choice = select(CompetenceBand(rewards="r"), lists(ROWS))
    assert np.flatnonzero(choice.kept).tolist() == [1, 2]
    assert choice.reason.tolist() == ["never solved", "in the band", "in the band"]
    rif = CompetenceBand(pass_rate="r", rollouts=4)
    assert kept(rif, rates([0.0, 0.25, 1.0])) == [1, 2]


def test_the_band_keeps_the_middle() -> None:
    choice = select(CompetenceBand(rewards="r", low=0.25, high=0.75), lists(ROWS))
    assert choice.kept.tolist() == [False, True, False]
    assert choice.reason.tolist() == ["never solved", "in the band", "always solved"]
    other = select(
        CompetenceBand(pass_rate="r", low=0.25, high=0.75), rates([0.2, 0.25, 0.75, 0.8])
    )
    assert other.reason.tolist() == [
        "below the band", "in the band", "in the band", "above the band",
    ]  # fmt: skip


def test_what_is_always_solved_is_kept_by_default_and_can_be_dropped() -> None:
    assert kept(CompetenceBand(pass_rate="r"), rates([1.0])) == [0]
    choice = select(CompetenceBand(pass_rate="r", high=0.99), rates([1.0, 0.9]))
    assert choice.reason.tolist() == ["always solved", "in the band"]


def test_theta_says_what_counts_as_solved() -> None:
    table = lists([[0.2, 0.4], [0.6, 0.0], [1.0, 1.0]])
    assert kept(CompetenceBand(rewards="r"), table) == [2]
    assert kept(CompetenceBand(rewards="r", theta=0.5), table) == [1, 2]


@pytest.mark.parametrize("rollouts", [3, 7, 8, 10, 30])
def test_one_success_is_enough_in_any_precision(rollouts: int) -> None:
    part = CompetenceBand(pass_rate="r", rollouts=rollouts)
    for dtype in (pa.float32(), pa.float64()):
        assert kept(part, rates([0.0, 1 / rollouts], dtype)) == [1]


def test_the_chance_to_drop_what_is_only_hard() -> None:
    told = select(CompetenceBand(pass_rate="r"), rates([0.5, 0.0])).facts["false_drop"]
    assert told == {"0.1": pytest.approx(0.430, abs=5e-4), "0.3": pytest.approx(0.058, abs=5e-4)}
    band = CompetenceBand(pass_rate="r", low=0.25)  # fewer than 2 of 8
    expected = 0.9**8 + 8 * 0.1 * 0.9**7
    assert band.false_drop(0.1, 8) == pytest.approx(expected)
    assert CompetenceBand(pass_rate="r", low=0.0).false_drop(0.1, 8) == 0
    mixed = lists([[1.0], [1.0, 0.0], None])
    facts = select(CompetenceBand(rewards="r"), mixed).facts
    assert facts["false_drop"]["0.1"] == pytest.approx((0.9 + 0.81) / 2)
    assert facts["rollouts"] == 3
    assert facts["with_rollouts"] == 2


@pytest.mark.parametrize("dtype", [pa.float32(), pa.int64(), pa.bool_()])
@pytest.mark.parametrize("large", [False, True])
def test_lists_of_any_number(dtype: pa.DataType, large: bool) -> None:
    kind = pa.large_list(dtype) if large else pa.list_(dtype)
    rows = [[bool(x) for x in row] if dtype == pa.bool_() else row for row in ROWS]
    assert kept(CompetenceBand(rewards="r"), lists(rows, kind)) == [1, 2]
    fixed = lists([*rows, None, rows[1]], pa.list_(dtype, 4))
    assert kept(CompetenceBand(rewards="r"), fixed) == [1, 2, 4]
    assert kept(CompetenceBand(rewards="r"), fixed.slice(2)) == [0, 2]


def test_without_rollouts_nothing_is_kept() -> None:
    nan = float("nan")
    choice = select(CompetenceBand(rewards="r"), lists([None, [], [nan, None], [nan, 1.0]]))
    assert choice.reason.tolist() == [*["no rollouts"] * 3, "in the band"]
    choice = select(CompetenceBand(pass_rate="r"), rates([None, nan, 0.5]))
    assert choice.reason.tolist() == ["no rollouts", "no rollouts", "in the band"]


@pytest.mark.parametrize("table", [rates([]), rates([], pa.null()), rates([None, None], pa.null())])
def test_empty_columns(table: pa.Table) -> None:
    for part in (CompetenceBand(pass_rate="r"), CompetenceBand(rewards="r")):
        if not (part.rewards and pa.types.is_floating(table["r"].type)):
            choice = select(part, table)
            assert choice.kept.sum() == 0
            assert choice.facts["false_drop"] == {"0.1": None, "0.3": None}
            json.dumps(choice.facts, allow_nan=False)


@pytest.mark.parametrize("value", [-0.1, 1.1, 50.0])
def test_a_pass_rate_is_a_fraction(value: float) -> None:
    with pytest.raises(
        DataError, match=f"r: a pass rate lies between 0 and 1; 1 rows .* {value:g}"
    ):
        select(CompetenceBand(pass_rate="r"), rates([0.5, value]))


def test_columns_of_another_kind() -> None:
    with pytest.raises(DataError, match="r: rewards are lists of numbers, not double"):
        select(CompetenceBand(rewards="r"), rates([0.5]))
    with pytest.raises(DataError, match="r: rows are ranked by numbers"):
        select(CompetenceBand(rewards="r"), lists([["a"]], pa.list_(pa.string())))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "either pass_rate or rewards"),
        ({"pass_rate": "a", "rewards": "b"}, "either pass_rate or rewards"),
        ({"pass_rate": "a", "rollouts": 0}, "rollouts"),
        ({"pass_rate": "a", "low": 0.8, "high": 0.5}, "above high"),
        ({"rewards": "a", "theta": float("nan")}, "finite"),
    ],
)
def test_bad_fields(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        CompetenceBand(**fields)


def test_needs_and_budget() -> None:
    assert CompetenceBand(pass_rate="a").needs == ("a",)
    assert CompetenceBand(rewards="b").needs == ("b",)
    assert CompetenceBand.budgeted is False


@given(
    rows=st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=0, max_size=6), min_size=1, max_size=8
    ),
    low=st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5])),
    high=st.sampled_from([0.5, 0.75, 1.0]),
)
def test_the_definition_row_by_row(rows: list[list[float]], low: float | None, high: float) -> None:
    choice = select(CompetenceBand(rewards="r", low=low, high=high), lists(rows))
    for row, is_kept in zip(rows, choice.kept, strict=True):
        mean = sum(row) / len(row) if row else -1
        enough = bool(row) and (max(row) >= 1 if low is None else mean >= low)
        assert is_kept == (enough and mean <= high)
