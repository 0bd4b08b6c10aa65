"""Quotas by cluster: exact numbers, known picks, and a plain loop over the definition."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.nouns import Budget, Choice, Rng
from foresift.stages.selectors.cluster_quota import ClusterQuota
from foresift.stages.selectors.topk import TopK
from tests.stages.selectors.tables import corpus, kept_ids

Quota = Literal["proportional", "equal", "sqrt", "modular"]
KINDS: tuple[Quota, ...] = ("proportional", "equal", "sqrt", "modular")
EVERY = pytest.mark.parametrize("quota", KINDS)
RNG = Rng(0).at("select")


def pool(n: int = 600, clusters: int = 8, **columns: Any) -> pa.Table:
    rng = np.random.default_rng(5)
    label = np.floor(clusters * rng.random(n) ** 2).astype(int)
    return corpus(n, **{"c": label, **columns})


def select(part: ClusterQuota, table: pa.Table, budget: str = "30%", rng: Rng = RNG) -> Choice:
    return part.select(table, Budget.parse(budget), rng)


def count(table: pa.Table, choice: Choice, name: str = "c") -> dict[Any, int]:
    kept = table.filter(pa.array(choice.kept))[name].to_pylist()
    return {label: kept.count(label) for label in sorted(set(kept))}


def test_a_quarter_of_a_thousand_rows_is_250() -> None:
    rng = np.random.default_rng(0)
    table = corpus(1000, c=rng.integers(0, 37, 1000))
    choice = select(ClusterQuota(clusters="c", by="s.u"), table, "25% rows")
    assert choice.kept.sum() == 250
    sizes = np.bincount(np.asarray(table["c"]))
    kept = np.bincount(np.asarray(table["c"])[choice.kept], minlength=37)
    assert (abs(kept - sizes / 4) < 1).all()


def test_prototype_pruning_keeps_the_farthest_of_each_cluster() -> None:
    table = corpus(6, c=[0, 0, 0, 1, 1, 1], distance=[0.1, 0.2, 0.3, 0.6, 0.5, 0.4])
    share = 0.25 / 0.75
    assert share == pytest.approx(0.3333, abs=1e-4)
    part = ClusterQuota(clusters="c", by="distance")
    choice = part.select(table, Budget(share, True, "rows"), RNG)
    assert np.flatnonzero(choice.kept).tolist() == [2, 3]
    nearest = ClusterQuota(clusters="c", by="distance", lowest=True)
    assert np.flatnonzero(select(nearest, table, "2 rows").kept).tolist() == [0, 5]


@pytest.mark.parametrize(
    ("quota", "budget", "expected"),
    [
        ("proportional", "10 rows", {"a": 8, "b": 2}),
        ("equal", "10 rows", {"a": 5, "b": 5}),
        ("equal", "60 rows", {"a": 40, "b": 20}),
        ("sqrt", "9 rows", {"a": 6, "b": 3}),
        ("modular", "9 rows", {"a": 5, "b": 4}),
        ("modular", "60 rows", {"a": 40, "b": 20}),
    ],
)
def test_known_quotas(quota: Quota, budget: str, expected: dict[str, int]) -> None:
    table = corpus(100, c=["a"] * 80 + ["b"] * 20)
    choice = select(ClusterQuota(clusters="c", quota=quota), table, budget)
    assert count(table, choice) == expected
    assert {k: v["taken"] for k, v in choice.facts["quotas"].items()} == expected


def test_a_cluster_that_cannot_give_its_part() -> None:
    table = corpus(100, c=["a"] * 90 + ["b"] * 10)
    for refill, kept in ((True, {"a": 50, "b": 10}), (False, {"a": 30, "b": 10})):
        part = ClusterQuota(clusters="c", quota="equal", refill=refill)
        choice = select(part, table, "60 rows")
        assert count(table, choice) == kept
        assert choice.facts["unfilled"] == {"clusters": 1, "missing": 20, "first": ["b"]}
        assert choice.facts["short"] is not refill
    assert choice.facts["warnings"] == [
        "1 clusters are smaller than their quota ('b'): 20 rows are not spent (`refill: false`)"
    ]


def test_modular_turns_stand_in_the_ranks() -> None:
    table = corpus(6, c=["a", "a", "a", "b", "b", "c"], u=[1.0, 3.0, 2.0, 5.0, 6.0, 0.0])
    choice = select(ClusterQuota(clusters="c", quota="modular", by="u"), table, "6 rows")
    assert np.argsort(choice.rank).tolist() == [1, 4, 5, 2, 3, 0]


@EVERY
def test_the_budget_in_tokens_is_overshot_by_less_than_a_document(quota: Quota) -> None:
    table = pool()
    tokens = np.asarray(table["n_tokens"])
    for amount in (1, 100, 5000, 30_000):
        choice = select(ClusterQuota(clusters="c", quota=quota), table, f"{amount} tokens")
        spent = tokens[choice.kept].sum()
        assert amount <= spent < amount + tokens.max()
        assert choice.facts["spent"] == spent
        assert choice.facts["short"] is False


@EVERY
def test_every_cluster_gets_its_quota_to_less_than_a_document(quota: Quota) -> None:
    table = pool()
    longest = max(table["n_tokens"].to_pylist())
    choice = select(ClusterQuota(clusters="c", quota=quota, by="s.u"), table)
    for told in choice.facts["quotas"].values():
        assert abs(told["taken"] - told["quota"]) < longest
        assert told["taken"] <= told["available"]


@EVERY
@pytest.mark.parametrize("by", ["", "s.u", "half"])
def test_row_order_does_not_matter(quota: Quota, by: str) -> None:
    table = pool(half=np.arange(600) % 2)
    part = ClusterQuota(clusters="c", quota=quota, by=by)
    shuffled = table.take(pa.array(np.random.default_rng(3).permutation(600)))
    one, other = select(part, table), select(part, shuffled)
    assert kept_ids(table, one) == kept_ids(shuffled, other)
    assert one.facts == other.facts
    assert table.take(pa.array(np.argsort(one.rank)))["id"].equals(
        shuffled.take(pa.array(np.argsort(other.rank)))["id"]
    )


@EVERY
def test_copies_are_chosen_alike_in_any_order(quota: Quota) -> None:
    table = pool(60)
    doubled = pa.concat_tables([table, table])
    mixed = doubled.take(pa.array(np.random.default_rng(0).permutation(120)))
    part = ClusterQuota(clusters="c", quota=quota)
    assert kept_ids(doubled, select(part, doubled)) == kept_ids(mixed, select(part, mixed))


@EVERY
def test_random_draws_depend_on_the_seed(quota: Quota) -> None:
    part, table = ClusterQuota(clusters="c", quota=quota), pool()
    one = kept_ids(table, select(part, table))
    assert one == kept_ids(table, select(part, table))
    assert one != kept_ids(table, select(part, table, rng=Rng(1)))


def test_one_cluster_ranked_is_topk() -> None:
    table = pool(200, clusters=1)
    one = select(ClusterQuota(clusters="c", by="s.u"), table)
    other = TopK(by="s.u").select(table, Budget.parse("30%"), RNG)
    np.testing.assert_array_equal(one.kept, other.kept)
    np.testing.assert_array_equal(one.rank, other.rank)


@EVERY
def test_what_cannot_be_taken_says_why(quota: Quota) -> None:
    label = pa.array([None if i % 5 == 0 else i % 3 for i in range(100)])
    score = [float("nan") if i % 7 == 0 else 1.0 for i in range(100)]
    table = corpus(100, c=label, u=score)
    choice = select(ClusterQuota(clusters="c", by="u", quota=quota), table, "1B tokens")
    expected = [
        "no cluster" if i % 5 == 0 else "no score" if i % 7 == 0 else None for i in range(100)
    ]
    for reason, want, kept in zip(choice.reason, expected, choice.kept, strict=True):
        assert kept == (want is None)
        assert want is None or reason == want
    assert choice.facts["short"] is True
    assert choice.facts["unranked"] == (~choice.kept).sum()
    assert set(choice.rank[~choice.kept]) == {-1}


@EVERY
def test_empty_things(quota: Quota) -> None:
    part = ClusterQuota(clusters="c", quota=quota)
    for table in (pool().slice(0, 0), pool(c=pa.nulls(600))):
        for budget in ("0", "20%", "1B"):
            choice = select(part, table, budget)
            assert choice.kept.sum() == 0
            json.dumps(choice.facts, allow_nan=False)
    assert select(part, pool(), "0").kept.sum() == 0


@EVERY
def test_documents_without_tokens(quota: Quota) -> None:
    tokens = np.where(np.arange(600) % 3 == 0, 0, 10)
    part, table = ClusterQuota(clusters="c", quota=quota), pool(n_tokens=tokens)
    assert select(part, table, "1B").kept.all()
    assert select(part, table, "0").kept.sum() == 0
    assert tokens[select(part, table, "1000").kept].sum() == 1000
    choice = select(part, pool(n_tokens=np.zeros(600, dtype=np.int64)), "20%")
    assert choice.kept.sum() == 0
    json.dumps(choice.facts, allow_nan=False)


def test_thousands_of_clusters_keep_facts_short() -> None:
    table = corpus(5000, c=np.arange(5000) // 2)
    choice = select(ClusterQuota(clusters="c", quota="equal"), table, "50% rows")
    assert choice.kept.sum() == 2500
    assert choice.facts["quota"] == {"smallest": 1, "median": 1, "largest": 1}
    assert len(json.dumps(choice.facts)) < 10_000


def test_bad_fields_and_columns() -> None:
    with pytest.raises(ValueError, match="lowest needs a column"):
        ClusterQuota(clusters="c", lowest=True)
    with pytest.raises(ValueError, match="refill must be true"):
        ClusterQuota(clusters="c", quota="modular", refill=False)
    with pytest.raises(RecipeError, match="quota: Input should be 'proportional'"):
        ClusterQuota.parse({"clusters": "c", "quota": "half"}, "steps[0]")
    with pytest.raises(RecipeError, match="needs a budget"):
        ClusterQuota(clusters="c").select(pool(), None, RNG)
    with pytest.raises(DataError, match="c: labels are numbers"):
        select(ClusterQuota(clusters="c"), corpus(2, c=[[1], [2]]))
    with pytest.raises(DataError, match="u: rows are ranked by numbers"):
        select(ClusterQuota(clusters="c", by="u"), pool(u=["x"] * 600))
    assert ClusterQuota(clusters="c", by="u").needs == ("c", "u")
    assert ClusterQuota(clusters="c").needs == ("c",)


def plain(rows: list[tuple[int, int]], amount: int) -> set[int]:
    """Modular: documents of each cell one after the other, in turns, until the budget is full."""
    queues = {c: [i for i, (cell, _) in enumerate(rows) if cell == c] for c in range(4)}
    kept: set[int] = set()
    spent = 0
    while any(queues.values()):
        for c in range(4):
            if queues[c]:
                if spent >= amount:
                    return kept
                row = queues[c].pop(0)
                kept.add(row)
                spent += rows[row][1]
    return kept


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=15),
    amount=st.integers(0, 60),
)
def test_turns_agree_with_a_plain_loop(rows: list[tuple[int, int]], amount: int) -> None:
    table = corpus(
        len(rows),
        c=[c for c, _ in rows],
        n_tokens=[t for _, t in rows],
        u=-np.arange(len(rows)).astype(float),
    )
    part = ClusterQuota(clusters="c", quota="modular", by="u")
    choice = part.select(table, Budget(amount), RNG)
    assert set(np.flatnonzero(choice.kept)) == plain(rows, amount)


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=20),
    amount=st.integers(0, 120),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 3),
)
def test_nothing_twice_and_never_a_document_too_much(
    rows: list[tuple[int, int]], amount: int, kind: Quota, seed: int
) -> None:
    costs = np.array([t for _, t in rows])
    table = corpus(len(rows), c=[c for c, _ in rows], n_tokens=costs)
    part = ClusterQuota(clusters="c", quota=kind)
    choice = part.select(table, Budget(amount), Rng(seed))
    spent = costs[choice.kept].sum()
    assert min(amount, costs.sum()) <= spent < amount + costs.max()
    assert sorted(choice.rank[choice.kept]) == list(range(choice.kept.sum()))
