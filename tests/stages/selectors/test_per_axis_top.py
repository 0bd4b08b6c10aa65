"""The union of top sets: the same set as bisection, and overlaps of known size."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.nouns import Budget, Choice, Rng
from foresift.stages.selectors.per_axis_top import PerAxisTop, percentile_ranks
from foresift.stages.selectors.topk import TopK
from tests.stages.selectors.tables import corpus, kept_ids

RNG = Rng(0).at("select")
NAN = float("nan")
TAILS = ("high", "low", "both")


def select(part: PerAxisTop, table: pa.Table, budget: str = "20%") -> Choice:
    return part.select(table, Budget.parse(budget), RNG)


def kept(part: PerAxisTop, table: pa.Table, budget: str) -> list[int]:
    return np.flatnonzero(select(part, table, budget).kept).tolist()


def pool(n: int = 500, axes: int = 4) -> pa.Table:
    values = np.random.default_rng(7).standard_normal((n, axes))
    return corpus(n, **{f"a{k}": values[:, k] for k in range(axes)})


FOUR = PerAxisTop(axes=["a0", "a1", "a2", "a3"])


def test_ranks_are_shared_by_equal_values() -> None:
    ranks = percentile_ranks(np.array([3.0, 1.0, NAN, 3.0, np.inf]))
    assert ranks[[0, 1, 3, 4]].tolist() == [0.5, 0.125, 0.5, 0.875]
    assert np.isnan(ranks[2])
    assert percentile_ranks(np.full(4, 7.0)).tolist() == [0.5] * 4
    assert percentile_ranks(np.empty(0)).tolist() == []


def test_the_best_of_each_axis_come_first() -> None:
    table = corpus(6, a=[6, 5, 4, 3, 2, 1], b=[0, 0.1, 0.2, 0.3, 0.4, 900])
    part = PerAxisTop(axes=["a", "b"])
    choice = select(part, table, "2 rows")
    assert np.flatnonzero(choice.kept).tolist() == [0, 5]
    assert choice.reason[[0, 5]].tolist() == ["best axis a", "best axis b"]
    assert set(choice.reason[1:5]) == {"over budget"}
    assert kept(part, table, "4 rows") == [0, 1, 4, 5]


def bisected(ranks: np.ndarray, costs: np.ndarray, limit: float) -> np.ndarray:
    """The union at the largest threshold at which it costs as much as the budget."""

    def union(t: float) -> np.ndarray:
        found = np.zeros(len(costs), dtype=bool)
        for axis in ranks.T:
            found |= axis >= t
        return found

    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if costs[union(middle)].sum() >= limit:
            low = middle
        else:
            high = middle
    return union(low)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.7, 1.0])
def test_the_cut_is_the_threshold_that_bisection_finds(share: float) -> None:
    table = pool()
    ranks = np.stack([percentile_ranks(np.asarray(table[a])) for a in FOUR.axes], axis=1)
    top = ranks.max(axis=1)
    costs = np.asarray(table["n_tokens"])
    choice = FOUR.select(table, Budget(share, True), RNG)
    expected = bisected(ranks, costs, share * costs.sum())
    threshold = choice.facts["threshold"]
    assert (choice.kept <= expected).all()
    assert (top[expected & ~choice.kept] == threshold).all()  # only ties at t are left out
    np.testing.assert_array_equal(expected, top >= threshold)


@given(data=st.data(), n=st.integers(1, 12), axes=st.integers(1, 3))
def test_a_budget_that_ends_with_a_level_gives_exactly_the_bisected_set(
    data: st.DataObject, n: int, axes: int
) -> None:
    number = st.one_of(st.just(NAN), st.integers(0, 6).map(float))
    columns = [data.draw(st.lists(number, min_size=n, max_size=n)) for _ in range(axes)]
    costs = np.array(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)))
    values = {f"a{k}": np.array(c) for k, c in enumerate(columns)}
    varying = [v for v in values.values() if len(set(v[~np.isnan(v)])) > 1]
    ranks = np.stack([percentile_ranks(v) for v in varying or values.values()], axis=1)
    top = np.nan_to_num(ranks, nan=-1).max(axis=1)
    level = data.draw(st.sampled_from(sorted(set(top))))
    limit = int(costs[(top >= level) & (top >= 0)].sum())
    table = corpus(n, n_tokens=costs, **values)
    choice = PerAxisTop(axes=list(values)).select(table, Budget(limit), RNG)
    expected = bisected(ranks, costs, limit) if limit else np.zeros(n, dtype=bool)
    np.testing.assert_array_equal(choice.kept, expected)
    assert choice.facts["spent"] == limit


@given(data=st.data(), n=st.integers(1, 12), amount=st.integers(1, 60), tail=st.sampled_from(TAILS))
def test_never_a_document_too_much(data: st.DataObject, n: int, amount: int, tail: str) -> None:
    costs = np.array(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)))
    table = corpus(n, n_tokens=costs, a=np.arange(n))
    part = PerAxisTop.parse({"axes": ["a", "s.u"], "tails": {"a": tail}}, "steps[0]")
    spent = costs[part.select(table, Budget(amount), RNG).kept].sum()
    assert min(amount, costs.sum()) <= spent < amount + costs.max()


def test_one_axis_is_topk() -> None:
    table = corpus(300)
    one = select(PerAxisTop(axes=["s.u"]), table)
    other = TopK(by="s.u").select(table, Budget.parse("20%"), RNG)
    np.testing.assert_array_equal(one.rank, other.rank)
    np.testing.assert_array_equal(one.kept, other.kept)


def test_independent_axes_overlap_as_much_as_they_select() -> None:
    n, p = 100_000, 0.05
    values = np.random.default_rng(0).standard_normal((n, 2))
    table = corpus(n, a=values[:, 0], b=values[:, 1])
    union = round(n * (2 * p - p * p))
    facts = select(PerAxisTop(axes=["a", "b"]), table, f"{union} rows").facts
    assert facts["p"] == pytest.approx(p, abs=0.001)
    assert facts["mean_overlap"] == pytest.approx(p, abs=0.01)
    assert facts["mean_over_p"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("rho", "overlap"), [(0.5, 0.249), (0.9, 0.639)])
def test_correlated_axes_overlap_more(rho: float, overlap: float) -> None:
    n = 100_000
    x, y = np.random.default_rng(1).standard_normal((2, n))
    table = corpus(n, a=x, b=rho * x + np.sqrt(1 - rho**2) * y)
    union = round(n * 0.05 * (2 - overlap))
    (pair,) = select(PerAxisTop(axes=["a", "b"]), table, f"{union} rows").facts["pairs"]
    assert pair["axes"] == ["a", "b"]
    assert pair["overlap"] == pytest.approx(overlap, abs=0.015)
    assert pair["over_p"] == pytest.approx(overlap / 0.05, rel=0.07)


def test_each_axis_is_counted() -> None:
    table = pool()
    choice = select(FOUR, table)
    facts = choice.facts
    best = {name: told["best"] for name, told in facts["axes"].items()}
    assert sum(best.values()) == choice.kept.sum()
    for name, told in facts["axes"].items():
        assert told["ranked"] == 500
        assert (choice.reason == f"best axis {name}").sum() == told["best"] <= told["selected"]
    assert len(facts["pairs"]) == 6


def test_tails() -> None:
    table = corpus(9, a=np.arange(9), b=np.zeros(9))
    for tail, expected in (("high", [7, 8]), ("low", [0, 1]), ("both", [0, 8])):
        part = PerAxisTop.parse({"axes": ["a"], "tails": {"a": tail}}, "steps[0]")
        assert kept(part, table, "2 rows") == expected


def test_a_column_of_lists_holds_axes() -> None:
    table = pool(200, 3)
    packed = np.stack([np.asarray(table[f"a{k}"]) for k in range(3)], axis=1).astype(np.float32)
    rows: list[Any] = packed.tolist()
    rows[5] = None
    table = table.append_column("o.axes", pa.array(rows, pa.list_(pa.float32())))
    scalars = table
    for k in range(3):
        column = pa.array([None if r is None else r[k] for r in rows], pa.float32())
        scalars = scalars.set_column(scalars.column_names.index(f"a{k}"), f"a{k}", column)
    one = select(PerAxisTop(axes=["o.axes"], tails={"o.axes[2]": "both"}), table)
    other = select(PerAxisTop(axes=["a0", "a1", "a2"], tails={"a1": "both"}), scalars)
    np.testing.assert_array_equal(one.kept, other.kept)
    np.testing.assert_array_equal(one.rank, other.rank)
    assert one.reason[5] == "no score"
    assert {r for r in one.reason if r.startswith("best")} <= {
        f"best axis o.axes[{k}]" for k in (1, 2, 3)
    }


def test_missing_values_on_some_axes_or_all() -> None:
    table = corpus(4, a=[NAN, 1.0, 2.0, None], b=[9.0, None, 1.0, NAN])
    choice = select(PerAxisTop(axes=["a", "b"]), table, "1B")
    assert choice.kept.tolist() == [True, True, True, False]
    assert choice.reason.tolist() == ["best axis b", "best axis a", "best axis a", "no score"]
    assert choice.facts["unranked"] == 1


def test_a_constant_axis_says_nothing() -> None:
    table = corpus(100, flat=np.full(100, 3.0), gap=np.full(100, NAN))
    alone = select(PerAxisTop(axes=["s.u"]), table, "60 rows")
    for other in ("flat", "gap"):
        choice = select(PerAxisTop(axes=[other, "s.u"]), table, "60 rows")
        np.testing.assert_array_equal(choice.kept, alone.kept)
        assert choice.facts["constant"] == [other]
        told = f"all values of {other} are equal: it says nothing"
        assert choice.facts["warnings"] == [told]
    flat = select(PerAxisTop(axes=["flat"]), table, "10 rows")
    assert flat.kept.sum() == 10
    assert select(PerAxisTop(axes=["gap"]), table, "10 rows").kept.sum() == 0


def test_any_growing_function_of_an_axis_gives_the_same() -> None:
    table = pool()
    bent = table.set_column(3, "a0", pa.array(np.exp(3 * np.asarray(table["a0"]))))
    assert table.column_names[3] == "a0"
    np.testing.assert_array_equal(select(FOUR, table).kept, select(FOUR, bent).kept)


@pytest.mark.parametrize("levels", [0, 3])
def test_row_order_does_not_matter(levels: int) -> None:
    table = pool()
    if levels:
        for k in range(4):
            column = pa.array(np.round(np.asarray(table[f"a{k}"])))
            table = table.set_column(3 + k, f"a{k}", column)
    shuffled = table.take(pa.array(np.random.default_rng(3).permutation(500)))
    one, other = select(FOUR, table), select(FOUR, shuffled)
    assert kept_ids(table, one) == kept_ids(shuffled, other)
    assert one.facts == other.facts


def test_recutting_keeps_the_rows_of_selecting_anew() -> None:
    table = pool()
    for budget in ("0", "3%", "40%", "100%"):
        other = Budget.parse(budget)
        fresh = select(FOUR, table, budget)
        again = select(FOUR, table).recut(other, other.costs(table))
        np.testing.assert_array_equal(fresh.kept, again.kept)
        np.testing.assert_array_equal(fresh.rank, again.rank)


def test_empty_tables() -> None:
    lists = corpus(3, v=pa.nulls(3, pa.list_(pa.float32())))
    for part, table in (
        (FOUR, pool().slice(0, 0)),
        (PerAxisTop(axes=["v"]), lists),
        (PerAxisTop(axes=["v"]), lists.slice(0, 0)),
    ):
        for budget in ("0", "20%", "1B"):
            choice = select(part, table, budget)
            assert choice.kept.sum() == 0
            assert choice.facts["threshold"] is None
            json.dumps(choice.facts, allow_nan=False)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"axes": []}, "at least one"),
        ({"axes": ["a", "a"]}, "different"),
        ({"axes": ["a"], "tails": {"b": "low"}}, "'b'"),
        ({"axes": ["a"], "tails": {"a": "up"}}, "tails"),
    ],
)
def test_bad_fields(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        PerAxisTop.parse(fields, "steps[0]")


def test_bad_columns_and_no_budget() -> None:
    with pytest.raises(DataError, match="a: rows are ranked by numbers"):
        select(PerAxisTop(axes=["a"]), corpus(2, a=["x", "y"]))
    with pytest.raises(RecipeError, match="needs a budget"):
        FOUR.select(pool(), None, RNG)
    assert FOUR.needs == ("a0", "a1", "a2", "a3")
