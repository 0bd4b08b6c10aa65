"""The weighted coreset against hand-worked picks and a plain loop over all distances."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError, RecipeError
from foresift.stages.selectors import _greedy
from foresift.stages.selectors._greedy import KCentre, distances
from foresift.stages.selectors.weighted_coreset import WeightedCoreset
from tests.stages.selectors.vectors import (
    RNG,
    check_promises,
    check_recut,
    in_order,
    pool,
    rows,
    select,
    sorted_by_id,
    unit_rows,
)

WHOLE = WeightedCoreset(by=["u"], embedding="e", cells=1)
LINE = WeightedCoreset(by=["u"], embedding="e", cells=1, distance="euclidean", scale="raw")


def dense(weight: Any, points: Any, kind: Any, count: int) -> list[int]:
    """The rule as it is defined; rows stand by weight."""
    far = distances(points, points, kind)
    picks = [0]
    while len(picks) < count:
        value = weight * far[:, picks].min(axis=1)
        value[picks] = -1
        picks.append(int(np.argmax(value)))
    return picks


def lazily(weight: Any, points: Any, kind: Any, chunks: list[int]) -> list[int]:
    state = KCentre(weight, kind)
    found: list[int] = []
    for chunk in chunks:
        counter = itertools.count(1)
        picks, values = state.more(points, lambda _, c=counter, k=chunk: next(c) >= k)
        assert len(picks) == len(values) == chunk
        found += picks
    return found


def test_weights_multiply_the_distance() -> None:
    # from 0: 1 x 1 against 0.05 x 10; then 0.05 x 9
    table = rows([1.0, 1.0, 0.05], [[1.0], [2.0], [11.0]])
    assert in_order(select(LINE, table, "2 rows")) == [0, 1]
    assert in_order(select(LINE, table, "3 rows")) == [0, 1, 2]
    heavier = rows([1.0, 1.0, 0.2], [[1.0], [2.0], [11.0]])
    assert in_order(select(LINE, heavier, "2 rows")) == [0, 2]


def test_ranks_keep_one_factor_from_dominating() -> None:
    part = WeightedCoreset(by=["u", "v"], embedding="e", cells=1)
    raw = WeightedCoreset(by=["u", "v"], embedding="e", cells=1, scale="raw")
    table = rows([1.0, 2.0, 3.0], np.eye(3).tolist(), v=pa.array([5e6, 4e6, 1.0]))
    assert in_order(select(part, table, "1 rows")) == [1]  # ranks 1x5, 3x3, 5x1 sixths
    assert in_order(select(raw, table, "1 rows")) == [1]
    table = rows([1.0, 2.0, 3.0], np.eye(3).tolist(), v=pa.array([5e9, 4.0, 1.0]))
    assert in_order(select(part, table, "1 rows")) == [1]
    assert in_order(select(raw, table, "1 rows")) == [0]


@pytest.mark.parametrize("kind", ["cosine", "euclidean"])
@pytest.mark.parametrize("front", [3, 40, 2048])
@pytest.mark.parametrize("chunks", [[60], [1, 9, 1, 49]])
def test_lazy_picks_are_those_of_the_plain_loop(
    kind: Any, front: int, chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_greedy, "FRONT", front)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        points = rng.standard_normal((200, 5)).astype(np.float32)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        for weight in (np.sort(rng.random(200))[::-1], np.ones(200)):
            assert lazily(weight, points, kind, chunks) == dense(weight, points, kind, 60)


@pytest.mark.parametrize("front", [2, 5, 100])
def test_equal_values_go_to_the_larger_weight_then_the_smaller_id(
    front: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_greedy, "FRONT", front)
    vectors = np.tile(np.random.default_rng(0).standard_normal(7), (6, 1)).tolist()
    order = in_order(select(WHOLE, rows([1, 3, 2, 3, 0, 2], vectors), "6 rows"))
    assert order == [1, 3, 2, 5, 0, 4]
    assert in_order(select(WHOLE, rows([1.0] * 9, np.eye(9).tolist()), "9 rows")) == [*range(9)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_equal_weights_are_within_twice_the_best_radius(seed: int, count: int) -> None:
    points = np.random.default_rng(seed).integers(0, 20, (9, 2)).astype(np.float32)
    far = distances(points, points, "euclidean")
    picks = lazily(np.ones(9), points, "euclidean", [count])
    subsets = itertools.combinations(range(9), count)
    best = min(far[:, list(some)].min(axis=1).max() for some in subsets)
    assert far[:, picks].min(axis=1).max() <= 2 * best + 1e-4


def test_the_whole_selector_is_the_plain_loop_over_ranks() -> None:
    table = sorted_by_id(pool())
    u = np.array(table["u"])
    weight = (np.argsort(np.argsort(u)) + 0.5) / len(u)
    order = np.argsort(-weight)
    points = unit_rows(table).astype(np.float32)
    picks = order[dense(weight[order], points[order], "cosine", 80)]
    assert in_order(select(WHOLE, table, "80 rows")) == picks.tolist()
    # within the cells of a column, each is the plain loop of its own
    part = WeightedCoreset(by=["u"], embedding="e", cells="c")
    ranked = in_order(select(part, table, "50%"))
    labels = np.array(table["c"].to_pylist())
    for name in np.unique(labels):
        mine = order[labels[order] == name]
        got = [i for i in ranked if labels[i] == name]
        plain = mine[dense(weight[mine], points[mine], "cosine", len(got))]
        assert got == plain.tolist()


def test_cells_share_the_budget_by_cost() -> None:
    table = pool(400)
    cost, label = np.asarray(table["n_tokens"]), np.array(table["c"].to_pylist())
    part = WeightedCoreset(by=["u"], embedding="e", cells="c")
    for budget in ("5%", "30%", "80%"):
        kept = select(part, table, budget).kept
        spread = cost.max() / 2
        for name in np.unique(label):
            share = cost[label == name].sum() / cost.sum()
            off = cost[kept & (label == name)].sum() - share * cost[kept].sum()
            assert abs(off) <= spread + share * len(np.unique(label)) * spread


def test_the_pool_is_the_best_share_by_weight() -> None:
    table = pool()
    part = WeightedCoreset(by=["u"], embedding="e", cells=1, pool=0.2)
    choice = select(part, table, "1B")
    best = set(np.argsort(-np.array(table["u"]))[:60].tolist())
    assert set(in_order(choice)) == best
    assert choice.facts["pool"] == 60
    assert choice.facts["short"]
    assert set(choice.reason) == {"within budget", "outside the pool"}
    assert set(select(part, table, "2%").reason) == {
        "within budget",
        "outside the pool",
        "not reached",
    }


@pytest.mark.parametrize("cells", [0, 1, 4, "c"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_promises(cells: Any, distance: Any) -> None:
    check_promises(WeightedCoreset(by=["u", "v"], embedding="e", cells=cells, distance=distance))
    check_recut(WeightedCoreset(by=["u", "v"], embedding="e", cells=cells, distance=distance))


def test_rows_that_cannot_be_chosen_say_why() -> None:
    nan = float("nan")
    e = [[1, 0], [1, 0], [1, 0], None, [nan, 0], [0, 0], [0, 1], [1, 1]]
    u = [1.0, None, nan, 1.0, 1.0, 1.0, 1.0, 1.0]
    labels = pa.array(["a"] * 6 + [None, "b"])
    part = WeightedCoreset(by=["u"], embedding="e", cells="c")
    choice = select(part, rows(u, e, c=labels), "1B")
    lost = ["no score"] * 2 + ["no embedding"] * 3 + ["no cluster"]
    assert choice.reason.tolist() == ["within budget", *lost, "within budget"]
    assert choice.facts["unranked"] == 6


def test_bad_fields_and_bad_columns() -> None:
    for fields in ({"by": []}, {"cells": -1}, {"pool": 0.0}, {"pool": 1.5}, {"distance": "l1"}):
        with pytest.raises(RecipeError):
            WeightedCoreset.parse({"by": ["u"], "embedding": "e", **fields}, "select")
    with pytest.raises(RecipeError, match="needs a budget"):
        WHOLE.select(pool(), None, RNG)
    raw = WeightedCoreset(by=["u"], embedding="e", scale="raw")
    with pytest.raises(DataError, match="scale: rank"):
        select(raw, pool())
    with pytest.raises(DataError, match="clusters"):
        select(
            WeightedCoreset(by=["u"], embedding="e", cells=9),
            rows([1.0] * 3, np.eye(3)[:3].tolist()),
        )
