"""Facility location against the plain greedy over a dense matrix, and its guarantees."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.nouns import Rng
from foresift.stages.selectors import facility_location
from foresift.stages.selectors._greedy import Coverage, Similar
from foresift.stages.selectors.facility_location import FacilityLocation
from tests.stages.selectors.vectors import (
    check_promises,
    check_recut,
    in_order,
    pool,
    rows,
    select,
    sorted_by_id,
    unit_rows,
)

RNG_A, RNG_B = Rng(1), Rng(2)
WHOLE = FacilityLocation(embedding="e", cells=1, neighbours=0)


def dense(similarity: Any, count: int, bonus: Any = 0.0) -> list[int]:
    """Every gain at every pick."""
    best, picks = np.zeros(len(similarity), dtype=np.float32), []
    for _ in range(count):
        gain = np.maximum(similarity - best[:, None], 0).sum(axis=0, dtype=np.float64)
        gain = np.round(gain, 5) + bonus
        gain[picks] = -1
        picks.append(int(np.argmax(gain)))
        best = np.maximum(best, similarity[:, picks[-1]])
    return picks


def value(similarity: Any, picks: Any) -> float:
    return float(similarity[:, list(picks)].max(axis=1).sum())


def similar(table: Any) -> Any:
    vectors = unit_rows(table).astype(np.float32)
    return np.maximum(vectors @ vectors.T, 0)


def test_worked_by_hand() -> None:
    # columns of similarities: 0 covers itself and .6 of 1; 1 covers all three of the first group
    table = rows([0.0] * 4, [[1, 0, 0], [0.6, 0.8, 0], [0, 1, 0], [0, 0, 1]])
    choice = select(WHOLE, table, "3 rows")
    assert in_order(choice) == [1, 3, 0]  # gains 2.4; 1 against .4 and .2; .4
    assert choice.facts["mean_similarity"] == pytest.approx((1 + 1 + 0.8 + 1) / 4, abs=1e-6)


def test_lazy_greedy_is_plain_greedy() -> None:
    for seed in range(4):
        table = sorted_by_id(pool(seed=seed))
        assert in_order(select(WHOLE, table, "60 rows")) == dense(similar(table), 60)


def test_neighbours_are_the_plain_greedy_over_what_they_leave() -> None:
    table = sorted_by_id(pool())
    full = similar(table)
    kept = full.copy()
    np.fill_diagonal(kept, 2)
    bar = np.sort(kept, axis=1)[:, -21:-20]
    kept = np.where(kept >= bar, np.minimum(kept, 1), 0)
    part = FacilityLocation(embedding="e", cells=1, neighbours=20)
    picks = in_order(select(part, table, "40 rows"))
    assert picks == dense(kept, 40)
    assert value(full, picks) > 0.97 * value(full, dense(full, 40))
    every = FacilityLocation(embedding="e", cells=1, neighbours=299)
    assert in_order(select(every, table, "40 rows")) == dense(full, 40)


def test_probing_cells_loses_little(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pool()
    full = similar(table)
    best = value(full, in_order(select(WHOLE, table, "40 rows")))
    monkeypatch.setattr(facility_location, "LARGEST_FULL", 10)
    for probes, share in ((3, 0.95), (12, 0.99)):
        part = FacilityLocation(embedding="e", cells=1, neighbours=40, probes=probes)
        picks = in_order(select(part, table, "40 rows"))
        assert value(full, picks) > share * best


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_greedy_reaches_its_guarantee(seed: int, count: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((9, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    matrix = np.maximum(vectors @ vectors.T, 0)
    counter = itertools.count(1)
    picks, gains = Coverage(np.zeros(9)).more(Similar(matrix), lambda _: next(counter) >= count)
    best = max(value(matrix, some) for some in itertools.combinations(range(9), count))
    assert value(matrix, picks) >= (1 - 1 / np.e) * best - 1e-5
    assert (np.diff(gains) <= 0).all()
    assert sum(gains) == pytest.approx(value(matrix, picks), rel=1e-4)


def test_going_on_is_the_same_as_doing_all_at_once() -> None:
    matrix = similar(pool())
    one, many = Coverage(np.zeros(300)), Coverage(np.zeros(300))
    count = itertools.count(1)
    whole, gains = one.more(Similar(matrix), lambda _: next(count) >= 30)
    parts = [many.more(Similar(matrix), lambda _: True) for _ in range(30)]
    assert whole == [picks[0] for picks, _ in parts]
    assert gains == [values[0] for _, values in parts]


def test_a_bonus_prefers_better_documents() -> None:
    table = sorted_by_id(pool())
    u = np.array(table["u"])
    rank = (np.argsort(np.argsort(u)) + 0.5) / 300
    means = []
    for bonus in (0.0, 2.0, 1e6):
        part = FacilityLocation(embedding="e", cells=1, neighbours=0, by="u", bonus=bonus)
        picks = in_order(select(part, table, "50 rows"))
        assert picks == dense(similar(table), 50, bonus * rank)
        means.append(u[picks].mean())
    assert means == sorted(means)
    assert set(picks) == set(np.argsort(-u)[:50].tolist())


def test_stochastic_comes_close_and_depends_on_the_seed() -> None:
    table = pool()
    full = similar(table)
    greedy = value(full, in_order(select(WHOLE, table, "40 rows")))
    part = FacilityLocation(embedding="e", cells=1, neighbours=0, variant="stochastic", epsilon=0.1)
    found = [in_order(select(part, table, "40 rows", rng)) for rng in (RNG_A, RNG_B)]
    assert found[0] != found[1]
    for picks in found:
        assert 0.9 * greedy < value(full, picks) < greedy
    # where the sample is everybody, it is the greedy
    wide = FacilityLocation(
        embedding="e", cells=1, neighbours=0, variant="stochastic", epsilon=1e-30
    )
    assert in_order(select(wide, table, "40 rows")) == in_order(select(WHOLE, table, "40 rows"))


@pytest.mark.parametrize("cells", [0, 1, "c"])
@pytest.mark.parametrize("neighbours", [0, 12])
def test_promises(cells: Any, neighbours: int) -> None:
    part = FacilityLocation(embedding="e", cells=cells, neighbours=neighbours, by="u")
    check_promises(part)
    check_recut(part)


def test_bad_fields_and_too_large_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    for fields in ({"cells": -1}, {"neighbours": -1}, {"bonus": -1.0}, {"epsilon": 0.0}):
        with pytest.raises(RecipeError):
            FacilityLocation.parse({"embedding": "e", **fields}, "select")
    monkeypatch.setattr(facility_location, "LARGEST_FULL", 10)
    with pytest.raises(DataError, match="more cells"):
        select(WHOLE, pool())
