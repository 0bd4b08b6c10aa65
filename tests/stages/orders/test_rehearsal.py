"""Rehearsal: the power law, the doubling ages, and exact amounts after every stage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Rng
from foresift.stages.orders._parts import equal_parts
from foresift.stages.orders.rehearsal import (
    Rehearsal,
    power_law,
    sampled,
    turns,
)
from tests.stages.selectors.tables import corpus, ids


def stages(order: list[int]) -> list[tuple[list[int], list[int]]]:
    """(new rows, repeats after them), stage by stage: a new row after a repeat begins the next."""
    seen: set[int] = set()
    found: list[tuple[list[int], list[int]]] = [([], [])]
    for row in order:
        if row not in seen and found[-1][1]:
            found.append(([], []))
        found[-1][row in seen].append(row)
        seen.add(row)
    return found


def test_the_power_law() -> None:
    np.testing.assert_allclose(power_law([1, 2, 4], 1.0), [4 / 7, 2 / 7, 1 / 7])
    np.testing.assert_allclose(power_law([1, 4], 0.5), [2 / 3, 1 / 3])
    np.testing.assert_allclose(power_law([1, 9, 3], 0.0), [1 / 3] * 3)


def test_draws_follow_the_power_law() -> None:
    draw = sampled(1.0, Rng(0))([0, 2, 3], 4)  # of ages 4, 2 and 1
    drawn = [draw() for _ in range(7000)]
    shares = [drawn.count(stage) / 7000 for stage in (3, 2, 0)]
    np.testing.assert_allclose(shares, [4 / 7, 2 / 7, 1 / 7], atol=0.03)


def test_doubling_ages_by_turns() -> None:
    assert [turns(list(range(9)), 9)() for _ in range(2)] == [8, 8]
    draw = turns(list(range(9)), 9)
    assert [draw() for _ in range(6)] == [8, 7, 5, 1, 8, 7]
    assert turns([6], 9)() == -1


def test_doubling_by_hand() -> None:
    """Eight rows a stage, by score; after each two are rehearsed, of ages 1, 2 and 4 by turns."""
    table = pa.table({"id": ids(40), "u": np.arange(40.0)})
    part = Rehearsal(by="u", stages=5, share=0.25, schedule="doubling", cost="rows")
    found = stages(part.order(table, Rng(0)).tolist())
    new = [rows for rows, _ in found]
    # nothing is rehearsed after the first stage, so that it runs into the second
    assert new == [list(range(16)), *(list(range(k, k + 8)) for k in (16, 24, 32))]
    of_stage = [[row // 8 for row in again] for _, again in found]
    assert of_stage == [[0, 0], [1, 0], [2, 1], [3, 2]]
    assert np.bincount(part.order(table, Rng(0))).sum() == 40 + 8


@given(
    n=st.integers(0, 80),
    count=st.integers(1, 9),
    share=st.floats(0.01, 0.5),
    schedule=st.sampled_from(["sampled", "doubling"]),
    seed=st.integers(0, 9),
)
def test_the_share_of_rows_is_exact(
    n: int, count: int, share: float, schedule: str, seed: int
) -> None:
    fields = {"stages": count, "share": share, "schedule": schedule, "cost": "rows"}
    order = Rehearsal.parse(fields, "x").order(corpus(n), Rng(seed)).tolist()
    sizes = [k for k in np.bincount(equal_parts(np.ones(n, dtype=int), count)) if k]
    later = sum(sizes[1:])
    assert len(order) - n == math.ceil(round(share * later, 6))
    firsts = list(dict.fromkeys(order))
    assert sorted(firsts) == list(range(n))


def test_tokens_cost_less_than_one_row_too_much() -> None:
    table = corpus(4000)
    tokens = np.asarray(table["n_tokens"])
    order = Rehearsal(stages=8).order(table, Rng(0))
    found = stages(order.tolist())
    assert len(found) == 7
    due = spent = 0.0
    for k, (new, again) in enumerate(found):
        fresh = tokens[new].sum()
        due += 0.03 * (fresh / 2 if k == 0 else fresh)  # the first stage calls for nothing
        spent += tokens[again].sum()
        assert abs(spent - due) < 1.1 * tokens.max()
    assert spent / tokens.sum() == pytest.approx(0.03 * 7 / 8, rel=0.1)


def test_recent_stages_come_more_often() -> None:
    table = pa.table({"id": ids(4000), "u": np.arange(4000.0)})
    part = Rehearsal(by="u", stages=4, share=1.0, exponent=2.0, cost="rows")
    again = np.array(stages(part.order(table, Rng(1)).tolist())[-1][1]) // 1000
    ages = np.bincount(3 - again, minlength=4)[1:]
    assert ages[0] > ages[1] > ages[2] > 0


def test_no_row_twice_before_its_whole_stage() -> None:
    labels = [0] * 3 + [1] * 30 + [2] * 30 + [3] * 30
    table = pa.table({"id": ids(93), "d": labels})
    part = Rehearsal(stages="d", share=0.2, cost="rows", exponent=0.0)
    order = part.order(table, Rng(0)).tolist()
    again = [row for _, rows in stages(order) for row in rows]
    small = [row for row in again if row < 3]
    assert len(small) > 3
    for start in range(0, len(small) - 2, 3):
        assert set(small[start : start + 3]) == {0, 1, 2}


def test_a_rehearsal_is_smaller_where_there_is_too_little() -> None:
    table = pa.table({"id": ids(102), "d": ["a"] * 2 + ["b"] * 80 + [None] * 20})
    part = Rehearsal(stages="d", share=0.5, cost="rows")
    found = stages(part.order(table, Rng(0)).tolist())
    # half of 80 rows are due after b, but only two came before; nothing is made up for later
    assert [len(again) for _, again in found] == [2, 10]
    assert set(found[0][1]) == {0, 1}
    assert set(found[1][0]) == set(range(82, 102))


def test_documents_without_tokens_end() -> None:
    table = pa.table({"id": ids(8), "n_tokens": [0, 0, 0, 0, 9, 9, 9, 9], "u": np.arange(8.0)})
    order = Rehearsal(by="u", stages=2, share=0.5).order(table, Rng(0))
    assert sorted(set(order.tolist())) == list(range(8))
    empty = pa.table({"id": ids(4), "n_tokens": [0] * 4})
    assert len(Rehearsal(stages=2, share=1.0).order(empty, Rng(0))) == 4


def test_equal_parts_by_hand() -> None:
    assert equal_parts(np.ones(7, dtype=int), 3).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert equal_parts(np.array([9, 1, 1, 1]), 2).tolist() == [0, 1, 1, 1]
    assert equal_parts(np.zeros(4, dtype=int), 2).tolist() == [0, 0, 1, 1]
    assert equal_parts(np.ones(2, dtype=int), 5).tolist() == [1, 3]


def test_one_stage_is_the_base_order() -> None:
    table = corpus(50)
    scores = np.asarray(table["s.u"])
    order = Rehearsal(stages=1, by="s.u").order(table, Rng(0))
    np.testing.assert_array_equal(order, np.argsort(scores))


def test_needs() -> None:
    assert Rehearsal().needs == ("n_tokens",)
    assert Rehearsal(stages="d", by="u", cost="rows").needs == ("d", "u")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": 0}, "stages"),
        ({"share": 0}, "share"),
        ({"share": 1.1}, "share"),
        ({"exponent": -1}, "exponent"),
        ({"exponent": float("nan")}, "exponent"),
        ({"schedule": "fixed"}, "schedule"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rehearsal.parse(fields, "x")


def test_costs_must_be_there() -> None:
    table = pa.table({"id": ids(2), "n_tokens": pa.array([1, None], pa.int64())})
    with pytest.raises(DataError, match="n_tokens"):
        Rehearsal().order(table, Rng(0))
