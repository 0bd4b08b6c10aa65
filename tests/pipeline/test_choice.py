"""Budgets and choices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.choice import Budget, Choice, scores
from foresift.pipeline.errors import DataError, RecipeError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20%", Budget(0.2, True)),
        ("0.5 %", Budget(0.005, True)),
        ("100%", Budget(1.0, True)),
        ("30% rows", Budget(0.3, True, "rows")),
        ("1.5B tokens", Budget(1.5e9)),
        ("1b", Budget(1e9)),
        ("10 tokens", Budget(10)),
        ("10tokens", Budget(10)),
        ("1 token", Budget(1)),
        ("10_000 rows", Budget(10_000, False, "rows")),
        ("10,000 rows", Budget(10_000, False, "rows")),
        ("1 row", Budget(1, False, "rows")),
        ("5M n_bytes", Budget(5e6, False, "n_bytes")),
        ("500 kilo.cost", Budget(500, False, "kilo.cost")),
        ("2 T", Budget(2e12)),
        ("1e6", Budget(1e6)),
        (500, Budget(500)),
        (0, Budget(0)),
        (2.5, Budget(2.5)),
        (1e16, Budget(1e16)),
    ],
)
def test_parse(text: Any, expected: Budget) -> None:
    assert Budget.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "%", "rows", "-1", -1, "-5%", "1,5%", "1_0", "1..2", "1.", "5 5", "nan",
     float("nan"), float("inf"), "1e999", "101%", True, None, [1], {}, "ten rows", "20 % % rows"],
)  # fmt: skip
def test_parse_refuses(text: Any) -> None:
    with pytest.raises(RecipeError, match=r"steps\.2: a budget"):
        Budget.parse(text, "steps.2")


@pytest.mark.parametrize("text", ["20% n_tokens", "7% rows", "1234567 n_tokens", "0.1% x.y"])
def test_a_budget_prints_as_it_is_read(text: str) -> None:
    assert str(Budget.parse(text)) == text
    assert Budget.parse(str(Budget.parse(text))) == Budget.parse(text)


def costs(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("budget", "taken"),
    [(0, 0), (1, 1), (5, 1), (6, 2), (8, 2), (9, 3), (15, 3), (16, 3), (10**9, 3)],
)
def test_take_includes_the_row_that_crosses(budget: float, taken: int) -> None:
    order = costs(2, 0, 1)
    assert Budget(budget).take(order, costs(3, 7, 5)).tolist() == [2, 0, 1][:taken]


def test_shares_are_exact() -> None:
    everything = np.arange(100)
    for percent in range(101):
        budget = Budget.parse(f"{percent}% rows")
        assert len(budget.take(everything, np.ones(100, dtype=np.int64))) == percent


@given(
    st.lists(st.integers(0, 50), max_size=30),
    st.integers(0, 300),
    st.randoms(use_true_random=False),
)
def test_the_overshoot_is_smaller_than_the_longest_row(
    values: list[int], amount: int, random: Any
) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    spent = sum(values[i] for i in Budget(amount).take(costs(*order), costs(*values)))
    if amount == 0:
        assert spent == 0
    elif sum(values) >= amount:
        assert amount <= spent < amount + max(values)
    else:
        assert spent == sum(values)


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


def test_costs_are_read_or_refused() -> None:
    assert Budget(1, cost="rows").costs(table(a=[5, 6])).tolist() == [1, 1]
    assert Budget(1).costs(table(n_tokens=[5.0, 6.0])).tolist() == [5, 6]
    assert Budget(1).costs(table(n_tokens=pa.array([], pa.int32()))).dtype == np.int64
    for bad in ([1, None], [1, -1], [0.5, 1.0], [1.0, float("nan")], [[1], [2]]):
        with pytest.raises(DataError, match="n_tokens: a budget"):
            Budget(1).costs(table(n_tokens=bad))


def test_choice_accounts_for_every_row() -> None:
    rows = table(n_tokens=[10, 20, 30, 40])
    choice = Choice.from_order(
        costs(2, 0, 3), rows, Budget(35), unranked_reason="no score"
    )  # fmt: skip
    assert choice.kept.tolist() == [True, False, True, False]
    assert choice.rank.tolist() == [1, -1, 0, 2]
    assert choice.reason.tolist() == ["within budget", "no score", "within budget", "over budget"]
    assert choice.weight.tolist() == [1, 1, 1, 1]
    assert choice.facts == {
        "budget": "35 n_tokens", "limit": 35, "spent": 40, "short": False,
    }  # fmt: skip


def test_a_share_counts_all_rows_but_takes_ranked_ones() -> None:
    rows = table(n_tokens=[10, 10, 10, 10])
    choice = Choice.from_order(costs(1), rows, Budget.parse("50%"))
    assert choice.facts["limit"] == 20
    assert choice.facts["spent"] == 10
    assert choice.facts["short"] is True


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.integers(0, 60), st.integers(0, 60), st.randoms(use_true_random=False),
)  # fmt: skip
def test_a_recut_choice_is_the_choice_at_the_other_budget(
    values: list[int], first: int, second: int, random: Any
) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    order = order[: random.randrange(len(order) + 1)]
    rows = table(n_tokens=values)
    fresh = Choice.from_order(costs(*order), rows, Budget(second))
    again = Choice.from_order(costs(*order), rows, Budget(first)).recut(
        Budget(second), costs(*values)
    )
    assert fresh.kept.tolist() == again.kept.tolist()
    assert fresh.reason.tolist() == again.reason.tolist()
    assert fresh.rank.tolist() == again.rank.tolist()
    assert fresh.facts == again.facts


def test_scores_come_as_floats_with_nan_for_missing() -> None:
    rows = table(i=[1, None], b=[True, None], n=pa.nulls(2), t=["a", "b"])
    np.testing.assert_array_equal(scores(rows, "i"), [1, np.nan])
    np.testing.assert_array_equal(scores(rows, "b"), [1, np.nan])
    np.testing.assert_array_equal(scores(rows, "n"), [np.nan, np.nan])
    assert scores(rows.slice(0, 0), "i").shape == (0,)
    with pytest.raises(DataError, match="t: rows are ranked by numbers, not by string"):
        scores(rows, "t")
