"""Mixtures: shares of sources, what small sources cannot give, and repetitions as weights."""

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
from foresift.stages.selectors.mixture import Mixture
from tests.stages.selectors.tables import corpus, kept_ids

RNG = Rng(0).at("select")
INF = float("inf")


def pool(**counts: int) -> pa.Table:
    """Rows of ten tokens with a label `c`, a key path `source` and a score."""
    label = [name for name, n in counts.items() for _ in range(n)]
    n = len(label)
    paths = [f"{name}/file{i % 3}#{i}" for i, name in enumerate(label)]
    return corpus(n, c=label, source=paths, n_tokens=np.full(n, 10))


def select(part: Mixture, table: pa.Table, budget: str = "30%") -> Choice:
    return part.select(table, Budget.parse(budget), RNG)


def tokens(table: pa.Table, choice: Choice) -> dict[str, int]:
    label, cost = np.asarray(table["c"]), np.asarray(table["n_tokens"])
    kept = choice.kept
    return {str(c): int(cost[kept & (label == c)].sum()) for c in np.unique(label)}


def test_given_shares() -> None:
    table = pool(a=100, b=100)
    for shares in ({"a": 0.7, "b": 0.3}, {"b": 3, "a": 7}):
        choice = select(Mixture(by="c", shares=shares), table, "1000 tokens")
        assert tokens(table, choice) == {"a": 700, "b": 300}
    assert choice.facts["sources"]["a"] == {
        "share": 0.7, "available": 1000, "quota": 700, "taken": 700, "weight": 1.0,
    }  # fmt: skip
    assert choice.facts["unfilled"] == []


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, (909, 91)), (2.0, (760, 240)), (INF, (500, 500))]
)
def test_the_temperature_mixture(temperature: float, expected: tuple[int, int]) -> None:
    table = pool(a=10_000, b=1000)
    part = Mixture(by="c", shares="temperature", temperature=temperature)
    choice = select(part, table, "1000 rows")
    assert [int(x) // 10 for x in tokens(table, choice).values()] == list(expected)


def test_unimax_of_one_epoch() -> None:
    table = pool(a=100, b=10)
    choice = select(Mixture(by="c", shares="unimax"), table, "600 tokens")
    assert tokens(table, choice) == {"a": 500, "b": 100}
    assert (choice.weight == 1).all()
    assert choice.facts["short"] is False


def test_unimax_of_several_epochs_weighs_what_is_read_again() -> None:
    table = pool(a=100, b=10)
    choice = select(Mixture(by="c", shares="unimax", epochs=2), table, "600 tokens")
    assert tokens(table, choice) == {"a": 400, "b": 100}
    label = np.asarray(table["c"])
    assert set(choice.weight[label == "b"]) == {2}
    assert set(choice.weight[label == "a"]) == {1}
    assert (choice.facts["spent"], choice.facts["drawn"]) == (500, 600)
    assert choice.facts["short"] is False
    assert "read more than once: 'b'; " in choice.facts["warnings"][0]
    whole = select(Mixture(by="c", shares="unimax", epochs=2), table, "1B tokens")
    assert set(whole.weight) == {2}
    assert (whole.facts["drawn"], whole.facts["short"]) == (2200, True)


def test_shares_of_a_column() -> None:
    table = pool(a=100, b=100)
    share = pa.array([0.6 if c == "a" else 0.2 for c in table["c"].to_pylist()], pa.float32())
    table = table.append_column("bandit.share", share)
    part = Mixture(by="c", shares="column", column="bandit.share")
    assert part.needs == ("c", "bandit.share")
    assert tokens(table, select(part, table, "800 tokens")) == {"a": 600, "b": 200}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([0.5, 0.6, 0.1, 0.1], "several different shares for 'a'"),
        ([0.5, 0.5, None, float("nan")], "no share for 'b'"),
        ([0.5, 0.5, -0.1, -0.1], "below 0 or infinite for 'b'"),
        ([0.5, 0.5, INF, INF], "below 0 or infinite for 'b'"),
        ([0.0, 0.0, 0.0, 0.0], "all shares are 0"),
    ],
)
def test_a_column_that_is_no_share(values: list[Any], problem: str) -> None:
    table = pool(a=2, b=2).append_column("s", pa.array(values, pa.float64(), from_pandas=False))
    with pytest.raises(DataError, match=f"s: .*{problem}"):
        select(Mixture(by="c", shares="column", column="s"), table)


def test_a_source_smaller_than_its_share() -> None:
    table = pool(a=100, b=5, c=100)
    shares = {"a": 1.0, "b": 1.0, "c": 2.0}
    choice = select(Mixture(by="c", shares=shares), table, "400 tokens")
    assert tokens(table, choice) == {"a": 120, "b": 50, "c": 230}  # 116.7 and 233.3 before rows
    assert choice.facts["unfilled"] == ["b"]
    told = "sources smaller than their share: 'b'; the rest went to the others"
    assert choice.facts["warnings"] == [told]
    short = select(Mixture(by="c", shares=shares, refill=False), table, "400 tokens")
    assert tokens(table, short) == {"a": 100, "b": 50, "c": 200}
    assert short.facts["short"] is True
    none = select(Mixture(by="c", shares={"a": 0, "b": 1, "c": 0}), table, "400 tokens")
    assert tokens(table, none) == {"a": 0, "b": 50, "c": 0}
    assert none.facts["short"] is True


def test_sources_by_the_head_of_their_path() -> None:
    table = pool(a=60, b=60)
    choice = select(Mixture(by="source", depth=1, shares={"a": 3, "b": 1}), table, "400 tokens")
    assert tokens(table, choice) == {"a": 300, "b": 100}
    deeper = select(Mixture(by="source", depth=2, shares="temperature"), table, "400 tokens")
    assert sorted(deeper.facts["sources"]) == [f"{x}/file{i}" for x in "ab" for i in range(3)]


def test_the_best_of_each_source() -> None:
    table = pool(a=50, b=50)
    part = Mixture(by="c", shares={"a": 1, "b": 1}, utility="s.u")
    choice = select(part, table, "200 tokens")
    score, label = np.asarray(table["s.u"]), np.asarray(table["c"])
    for name in "ab":
        mine = label == name
        assert score[mine & choice.kept].min() > score[mine & ~choice.kept].max()


def test_row_order_does_not_matter() -> None:
    table = corpus(400, c=np.where(np.arange(400) % 5 == 0, "x", "y"))
    shuffled = table.take(pa.array(np.random.default_rng(3).permutation(400)))
    for fields in ({"shares": {"x": 1.0, "y": 1.0}}, {"shares": "unimax", "epochs": 3.0}):
        part = Mixture.parse({"by": "c", **fields}, "steps[0]")
        one, other = select(part, table, "60%"), select(part, shuffled, "60%")
        assert kept_ids(table, one) == kept_ids(shuffled, other)
        assert one.facts == other.facts


def test_labels_that_do_not_fit_are_listed() -> None:
    table = pool(a=5, b=5)
    told = r"c: .*'b' without a share and 'news' without a row \(labels there are: 'a', 'b'\)"
    with pytest.raises(DataError, match=told):
        select(Mixture(by="c", shares={"a": 1, "news": 1}), table)
    gone = {"a": 1, "b": 1, "news": 1}
    with pytest.raises(DataError, match="'news' without a row"):
        select(Mixture(by="c", shares=gone), table)
    skipped = select(Mixture(by="c", shares=gone, absent="skip"), table, "60 tokens")
    assert tokens(table, skipped) == {"a": 30, "b": 30}
    with pytest.raises(DataError, match="'b' without a share"):
        select(Mixture(by="c", shares={"a": 1}, absent="skip"), table)


def test_what_cannot_be_taken_says_why() -> None:
    table = corpus(
        6, c=["a", "a", None, "b", "b", None], u=[1.0, None, 1.0, float("nan"), 2.0, None]
    )
    part = Mixture(by="c", shares={"a": 1, "b": 1}, utility="u")
    choice = select(part, table, "1B tokens")
    assert choice.reason.tolist() == [
        "within quota", "no score", "no source", "no score", "within quota", "no source",
    ]  # fmt: skip
    assert choice.facts["unranked"] == 4
    assert choice.facts["short"] is True


@pytest.mark.parametrize(
    "fields",
    [
        {"shares": {"a": 1.0}},
        {"shares": "temperature", "temperature": INF},
        {"shares": "unimax", "epochs": 4.0},
        {"shares": "column", "column": "s.u"},
    ],
)
def test_empty_tables(fields: dict[str, Any]) -> None:
    part = Mixture.parse({"by": "c", **fields}, "steps[0]")
    for table in (pool(a=3).slice(0, 0), corpus(4, c=pa.nulls(4))):
        for budget in ("0", "30%", "1B"):
            choice = select(part, table, budget)
            assert choice.kept.sum() == 0
            json.dumps(choice.facts, allow_nan=False)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"shares": {}}, "one above 0"),
        ({"shares": {"a": -1.0, "b": 2.0}}, "at least 0"),
        ({"shares": {"a": float("nan")}}, "shares must be numbers"),
        ({"shares": "column"}, "go together"),
        ({"shares": "unimax", "column": "x"}, "go together"),
        ({"shares": "temperature", "temperature": 0.0}, "temperature must be above 0"),
        ({"shares": "temperature", "temperature": float("nan")}, "temperature must be above 0"),
        ({"shares": "unimax", "epochs": 0.5}, "epochs must be"),
        ({"shares": "unimax", "depth": -1}, "depth must be"),
        ({"shares": "unimax", "by": "source"}, "every row has a `source` of its own"),
        ({"shares": "best"}, "shares"),
    ],
)
def test_bad_fields(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=f"steps\\[0\\].*{problem}"):
        Mixture.parse({"by": "c", **fields}, "steps[0]")


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=20),
    amount=st.integers(0, 150),
    epochs=st.integers(1, 3),
)
def test_never_a_document_too_much(rows: list[tuple[int, int]], amount: int, epochs: int) -> None:
    costs = np.array([t for _, t in rows])
    label = np.array([c for c, _ in rows])
    table = corpus(len(rows), c=label, n_tokens=costs)
    part = Mixture(by="c", shares="unimax", epochs=epochs)
    choice = part.select(table, Budget(amount), RNG)
    drawn = (costs * choice.weight)[choice.kept].sum()
    assert min(amount, epochs * costs.sum()) - 1e-3 <= drawn < amount + costs.max() + 1e-3
    assert choice.weight.max() <= epochs
    for c in set(label[choice.weight > 1]):  # only what is read whole is read again
        assert choice.kept[label == c].all()
