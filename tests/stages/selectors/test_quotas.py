"""Quotas against hand-worked shares, and against plain loops over their definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.labels import LISTED, detail, labels
from foresift.stages.selectors._quotas import (
    assign_quota,
    expert_quota,
    fill,
    temperature_shares,
    unimax,
    whole,
)

INF = float("inf")
SIZES = st.lists(st.integers(0, 40), min_size=0, max_size=8)


# -- assign_quota ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "budget", "weights", "expected"),
    [
        ((50, 30, 20), 10, None, (5, 3, 2)),
        ((1, 1, 1), 2, None, (1, 1, 0)),
        ((6, 3, 1), 5, None, (3, 2, 0)),  # 3, 1.5, 0.5: equal remainders go to the earlier cell
        ((5, 4, 1), 3, None, (2, 1, 0)),  # 1.5, 1.2, 0.3
        ((100, 2, 100), 32, (1, 1, 1), (15, 2, 15)),
        ((100, 2, 3), 40, (1, 1, 1), (35, 2, 3)),
        ((10, 10), 6, (0.5, 0), (6, 0)),
        ((4, 10), 6, (1, 0), (4, 0)),  # what is left never goes to a cell of weight 0
        ((3, 4), 100, None, (3, 4)),
        ((3, 4), 0, None, (0, 0)),
        ((0, 0), 5, None, (0, 0)),
        ((), 5, None, ()),
        ((10**15, 3 * 10**15), 10**15 + 2, None, (250_000_000_000_001, 750_000_000_000_001)),
    ],
)
def test_known_quotas(
    sizes: tuple[int, ...], budget: int, weights: tuple[float, ...] | None, expected: object
) -> None:
    found = assign_quota(sizes, budget, None if weights is None else np.array(weights))
    assert tuple(found.tolist()) == expected


def test_without_refill_the_rest_is_not_spent() -> None:
    assert assign_quota((100, 2, 100), 32, (1, 1, 1), refill=False).tolist() == [11, 2, 10]


def plain(sizes: list[int], budget: int, weights: list[int]) -> list[int]:
    """One cell at a time is found full; then exact fractions, floors and largest remainders."""
    quota, full = [0] * len(sizes), {c for c, w in enumerate(weights) if w == 0 or sizes[c] == 0}
    while len(full) < len(sizes):
        cells = [c for c in range(len(sizes)) if c not in full]
        left = budget - sum(quota)
        total = sum(weights[c] for c in cells)
        share = {c: Fraction(left * weights[c], total) for c in cells}
        over = [c for c in cells if share[c] >= sizes[c]]
        if over:
            for c in over:
                quota[c] = sizes[c]
            full |= set(over)
            continue
        for c in cells:
            quota[c] = math.floor(share[c])
        extra = budget - sum(quota)
        for c in sorted(cells, key=lambda c: (math.floor(share[c]) - share[c], c))[:extra]:
            quota[c] += 1
        break
    return quota


@given(cells=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=8),
       budget=st.integers(0, 200))  # fmt: skip
def test_quotas_agree_with_a_plain_loop(cells: list[tuple[int, int]], budget: int) -> None:
    sizes, weights = [s for s, _ in cells], [w for _, w in cells]
    quota = assign_quota(sizes, budget, np.array(weights, dtype=np.int64))
    assert quota.tolist() == plain(sizes, budget, weights)
    possible = sum(s for s, w in cells if w)
    assert quota.sum() == min(budget, possible)
    assert (quota <= np.array(sizes)).all()


@given(sizes=SIZES, budget=st.integers(0, 100), scale=st.floats(0.001, 1000))
def test_the_unit_of_the_weights_does_not_matter(
    sizes: list[int], budget: int, scale: float
) -> None:
    one = assign_quota(sizes, budget, np.array(sizes, dtype=float))
    other = assign_quota(sizes, budget, scale * np.array(sizes, dtype=float))
    assert (abs(one - other) <= 1).all()
    assert one.sum() == other.sum()


# -- shares ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1, (0.909, 0.091)), (2, (0.760, 0.240)), (INF, (0.5, 0.5))]
)
def test_the_temperature_mixture(temperature: float, expected: tuple[float, float]) -> None:
    assert temperature_shares((100, 10), temperature) == pytest.approx(expected, abs=5e-4)


def test_an_empty_source_has_no_share_at_any_temperature() -> None:
    assert temperature_shares((0, 5, 5), INF).tolist() == [0, 0.5, 0.5]
    assert temperature_shares((10**12, 1), 1e-3).tolist() == [1, 0]
    assert temperature_shares((0, 0), 1).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("sizes", "budget", "epochs", "expected"),
    [
        ((100, 10), 60, 1, (50, 10)),
        ((100, 10), 60, 2, (40, 20)),
        ((100, 10), 60, 4, (30, 30)),
        ((100, 10), 1000, 2, (200, 20)),
        ((5, 50, 20), 60, 1, (5, 35, 20)),
    ],
)
def test_unimax(sizes: tuple[int, ...], budget: float, epochs: float, expected: object) -> None:
    assert tuple(unimax(sizes, budget, epochs).tolist()) == expected


@given(sizes=SIZES, budget=st.integers(0, 300), epochs=st.floats(1, 5))
def test_unimax_is_equal_but_for_the_cap(sizes: list[int], budget: int, epochs: float) -> None:
    drawn = unimax(sizes, budget, epochs)
    cap = epochs * np.array(sizes, dtype=float)
    assert (drawn <= cap + 1e-9).all()
    assert drawn.sum() == pytest.approx(min(budget, cap.sum()))
    free = drawn[drawn < cap - 1e-6]
    if len(free):
        assert free == pytest.approx(np.full(len(free), drawn.max()))


@pytest.mark.parametrize(
    ("active", "experts", "length", "ratio", "expected"),
    [(8, 64, 4096, 2.0, 1024), (2, 8, 4096, 2.0, 2048), (1, 3, 100, 1.0, 33)],
)
def test_the_quota_of_an_expert(
    active: int, experts: int, length: int, ratio: float, expected: int
) -> None:
    assert expert_quota(active, experts, length, ratio) == expected


def test_a_starved_expert_gives_what_it_has() -> None:
    wanted = expert_quota(8, 64, 4096, 2.0)
    sizes = np.array([10, 0, 5000])
    quota = assign_quota(sizes, 3 * wanted, np.ones(3), refill=False)
    assert quota.tolist() == [10, 0, 1024]


def test_whole_amounts_reach_the_limit() -> None:
    assert [whole(x) for x in (0, 7.0, 7.2, -1)] == [0, 7, 8, 0]


# -- fill --------------------------------------------------------------------------------------


def test_the_cells_whose_next_document_fits_best_go_over() -> None:
    costs = np.array([4, 4, 6, 6, 9])
    cell = np.array([0, 0, 1, 1, 2])
    taken, due = fill(np.arange(5), cell, costs, np.array([6, 8, 3]))
    # cell 0 has 4 of 6 (2 / 4 left), cell 1 6 of 8 (2 / 6), cell 2 0 of 3 (3 / 9); 7 are missing
    assert taken.tolist() == [True, True, True, True, False]
    assert due.tolist() == pytest.approx([2 / 6, 1, 3 / 8, 9 / 8, 1.5])


@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=30),
    share=st.floats(0, 1),
)
def test_quotas_are_filled_to_less_than_a_document(
    rows: list[tuple[int, int]], share: float
) -> None:
    rows = sorted(rows, key=lambda r: r[0])
    cell = np.array([c for c, _ in rows], dtype=np.int64)
    costs = np.array([x for _, x in rows], dtype=np.int64)
    sizes = np.bincount(cell, costs, 5).astype(np.int64)
    quota = assign_quota(sizes, int(share * sizes.sum()))
    taken, _ = fill(np.arange(len(rows)), cell, costs, quota)
    longest = max([1, *costs.tolist()])
    spent = np.bincount(cell[taken], costs[taken], 5)
    assert quota.sum() <= spent.sum() < quota.sum() + longest
    assert (abs(spent - quota) < longest).all()
    for c in range(5):  # the first documents of a cell, without a gap
        mine = taken[cell == c]
        assert not (mine[1:] & ~mine[:-1]).any()


# -- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        (pa.array(["b", None, "a", "b"]), ["a", "b"], [1, -1, 0, 1]),
        (pa.array([10, 9, None]), ["9", "10"], [1, 0, -1]),
        (pa.array([2.5, float("nan"), 1.0]), ["1.0", "2.5"], [1, -1, 0]),
        (pa.array([True, None, False]), ["false", "true"], [1, -1, 0]),
        (pa.array(["b", "a", None]).dictionary_encode(), ["a", "b"], [1, 0, -1]),
        (pa.array([None, None]), [], [-1, -1]),
        (pa.array([], pa.string()), [], []),
    ],
)
def test_labels_of_any_type(values: pa.Array, names: list[str], numbers: list[int]) -> None:
    found, code = labels(pa.table({"c": values}), "c")
    assert (found, code.tolist()) == (names, numbers)


@pytest.mark.parametrize(
    ("depth", "names"),
    [(1, ["a", "b"]), (2, ["a/x", "a/y", "b"]), (3, ["a/x#1", "a/y#1", "a/y#2", "b"])],
)
def test_the_head_of_a_key_path(depth: int, names: list[str]) -> None:
    paths = pa.array(["a/y#1", "a/y#2", "a/x#1", "b", None, ""])
    found, code = labels(pa.table({"source": paths}), "source", depth)
    assert found == names
    assert code[4:].tolist() == [-1, -1]
    for path, number in zip(paths.to_pylist()[:4], code[:4], strict=True):
        assert path.startswith(found[number])


def test_labels_that_are_none() -> None:
    with pytest.raises(DataError, match=r"c: labels are numbers or strings, not list"):
        labels(pa.table({"c": [[1], [2]]}), "c")
    with pytest.raises(DataError, match=r"c: depth cuts key paths"):
        labels(pa.table({"c": [1, 2]}), "c", 1)


def test_facts_list_the_largest_cells_only() -> None:
    names = [f"c{i}" for i in range(300)]
    found = detail(names, np.arange(300), {"quota": np.arange(300)})
    assert len(found) == LISTED
    assert found["c299"] == {"quota": 299}
    assert "c0" not in found
