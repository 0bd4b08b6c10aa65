"""Risk late by hand: intervals, their shuffle, quarantine, epochs, and what a replay costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Rng
from foresift.pipeline.replay_cost import expected_steps, hit_probability
from foresift.stages.orders.risk_late import RiskLate
from tests.stages.selectors.tables import ids

NAN = float("nan")


def table(risk: list[float | None], decision: list[str | None] | None = None) -> pa.Table:
    n = len(risk)
    return pa.table(
        {
            "id": ids(n),
            "forget_risk.risk": pa.array(risk, pa.float64(), from_pandas=False),
            "forget_risk.decision": pa.array(decision or ["keep"] * n, pa.string()),
            "n_tokens": pa.array([10] * n, pa.int64()),
        }
    )


def test_intervals_ascend_and_are_shuffled_inside() -> None:
    risk = np.random.default_rng(0).permutation(100) / 100
    rows = RiskLate(intervals=4).order(table(risk.tolist()), Rng(0))
    pieces = np.split(risk[rows], 4)
    assert [sorted(p) for p in pieces] == [sorted(risk)[k : k + 25] for k in (0, 25, 50, 75)]
    assert any((np.diff(p) < 0).any() for p in pieces)
    other = RiskLate(intervals=4).order(table(risk.tolist()), Rng(1))
    assert rows.tolist() != other.tolist()
    assert [sorted(p) for p in np.split(risk[other], 4)] == [sorted(p) for p in pieces]


def test_one_interval_is_a_shuffle_and_as_many_as_rows_is_a_sort() -> None:
    risk: list[float | None] = np.random.default_rng(1).permutation(30).astype(float).tolist()
    sort = RiskLate(intervals=30).order(table(risk), Rng(0))
    assert [risk[i] for i in sort] == sorted(risk)  # type: ignore[type-var]
    shuffle = RiskLate(intervals=1).order(table(risk), Rng(0))
    assert shuffle.tolist() == RiskLate(intervals=1).order(table([0.0] * 30), Rng(0)).tolist()


def test_quarantined_rows_come_last_and_once_whatever_the_epochs() -> None:
    risk: list[float | None] = [0.9, 0.1, 0.5, None, 0.3, 0.2]
    decision: list[str | None] = ["quarantine", "keep", "redact", "keep", "quarantine", None]
    part = RiskLate(intervals=2, epochs=6)
    rows = part.order(table(risk, decision), Rng(0)).tolist()
    assert rows[-2:] == [4, 0]
    passes = [rows[k : k + 4] for k in range(0, 24, 4)]
    for each in passes:
        assert sorted(each[:2]) == [1, 5]
        assert sorted(each[2:]) == [2, 3]
    assert len({tuple(p) for p in passes}) > 1
    nobody = RiskLate(intervals=2, decision="")
    assert nobody.needs == ("forget_risk.risk", "n_tokens")
    assert sorted(nobody.order(table(risk, decision), Rng(0))[3:].tolist()) == [0, 2, 3]


def test_intervals_are_of_equal_cost() -> None:
    rows = table([0.0, 1.0, 2.0, 3.0])
    rows = rows.set_column(3, "n_tokens", pa.array([30, 10, 10, 10]))
    found = {RiskLate(intervals=2).order(rows, Rng(seed))[0] for seed in range(20)}
    assert found == {0}
    by_rows = {RiskLate(intervals=2, cost="rows").order(rows, Rng(s))[0] for s in range(20)}
    assert by_rows == {0, 1}


@given(
    risk=st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, NAN])), max_size=20),
    epochs=st.integers(1, 3),
    intervals=st.integers(1, 5),
    data=st.data(),
)
def test_each_row_as_often_as_it_should(
    risk: list[float | None], epochs: int, intervals: int, data: Any
) -> None:
    names = st.sampled_from(["keep", "quarantine", None])
    decision = data.draw(st.lists(names, min_size=len(risk), max_size=len(risk)))
    part = RiskLate(epochs=epochs, intervals=intervals)
    rows = part.order(table(risk, decision), Rng(0))
    times = np.bincount(rows, minlength=len(risk)).tolist()
    assert times == [1 if d == "quarantine" else epochs for d in decision]


def test_copies_and_ties_come_alike_in_any_row_order() -> None:
    rng = np.random.default_rng(0)
    risk: list[float | None] = rng.integers(0, 4, 50).astype(float).tolist()
    rows = table([*risk, NAN, None], rng.choice(["keep", "quarantine"], 52).tolist())
    rows = pa.concat_tables([rows, rows.slice(10, 20)])
    turned = rows.take(pa.array(rng.permutation(rows.num_rows)))
    one, other = (
        [t["id"][i].as_py() for i in RiskLate(epochs=2).order(t, Rng(5))] for t in (rows, turned)
    )
    assert one == other


def test_what_a_replay_costs_in_the_first_and_in_the_last_interval() -> None:
    risk: list[float | None] = [0.0] * 99 + [1.0]
    steps = [100] * 10

    def cost(rows: list[int]) -> float:
        hit = [
            hit_probability([risk[i] or 0.0 for i in rows[k : k + 10]]) for k in range(0, 100, 10)
        ]
        return expected_steps(steps, hit)

    late = RiskLate(intervals=10).order(table(risk), Rng(0)).tolist()
    assert cost(late) == pytest.approx(100)
    assert cost(late[::-1]) == pytest.approx(1000)


def test_late_is_never_dearer_than_a_shuffle() -> None:
    rng = np.random.default_rng(2)
    risk = (rng.random(200) ** 6).tolist()
    cost = []
    for part in (RiskLate(intervals=10), RiskLate(intervals=1)):
        rows = part.order(table(risk), Rng(0)).tolist()
        hit = [hit_probability(risk[i] for i in rows[k : k + 20]) for k in range(0, 200, 20)]
        cost.append(expected_steps([100] * 10, hit))
    assert cost[0] < cost[1]


def test_bad_fields_and_columns() -> None:
    for fields in ({"intervals": 0}, {"epochs": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            RiskLate(**fields)
    with pytest.raises(DataError, match="numbers"):
        RiskLate(risk="forget_risk.decision").order(table([0.1]), Rng(0))
