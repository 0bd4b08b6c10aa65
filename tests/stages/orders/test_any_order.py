"""What holds for every order: permutations at any size, and the same ids whatever the row order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.nouns import Order, Rng
from foresift.stages.orders.curriculum import Curriculum
from foresift.stages.orders.domains import Domains
from foresift.stages.orders.jit import Jit
from foresift.stages.orders.rehearsal import Rehearsal
from foresift.stages.orders.saw import Saw
from foresift.stages.orders.seg import Seg
from foresift.stages.orders.strata import Strata
from foresift.stages.orders.view_batch import ViewBatch
from foresift.stages.orders.zig import Zig
from tests.stages.selectors.tables import ids

NAN = float("nan")
SCORES = st.one_of(st.none(), st.sampled_from([0.0, -0.0, -1.0, 1.0, 2.5, NAN, float("inf")]))
ONCE: list[Order] = [
    Zig(by="u"),
    Zig(by="u", folds=2),
    Strata(by="u"),
    Strata(by="u", sections=4, radius=0.4, folds=2),
    Saw(by="u"),
    Saw(by="u", sections=50, radius=0.5, folds=5),
    Seg(by="u"),
    Seg(by="u", front=0.5, back=0.5, back_from="low"),
    Jit(by="u", window=1),
    Jit(by="u", window=4, folds=3),
    Curriculum(by="u"),
    Curriculum(by="u", c0=1e-9, p=1, until=0.3),
    Domains(by="u"),
    Domains(by="u", within="u"),
    Domains(by="u", arrange="similar", embedding="v"),
    Domains(by="u", arrange="dissimilar", embedding="v"),
]
AGAIN: list[Order] = [
    Rehearsal(share=0.5),
    Rehearsal(stages="u", share=0.5, cost="rows", schedule="doubling"),
    Rehearsal(by="u", stages=3, share=1.0, exponent=0.0),
    ViewBatch(),
    ViewBatch(views=3, epochs=3, batch=3),
]
UNSEEDED = [*ONCE[:6], Jit(by="u", window=1)]


def table(values: list[float | None]) -> pa.Table:
    n = len(values)
    draw = np.random.default_rng(3)
    vectors = [None if v is None else draw.standard_normal(3).tolist() for v in values]
    return pa.table(
        {
            "id": ids(n),
            "u": pa.array(values, pa.float64(), from_pandas=False),
            "v": pa.array(vectors, pa.list_(pa.float32())),
            "n_tokens": pa.array(np.arange(n) % 4, pa.int64()),
        }
    )


@pytest.mark.parametrize("part", ONCE, ids=repr)
@given(values=st.lists(SCORES, max_size=20))
def test_each_row_has_one_place(part: Order, values: list[float | None]) -> None:
    order = part.order(table(values), Rng(0))
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(values)))


@pytest.mark.parametrize("part", AGAIN, ids=repr)
@given(values=st.lists(SCORES, max_size=20))
def test_schedules_declare_repeats_and_miss_no_row(part: Order, values: list[float | None]) -> None:
    order = part.order(table(values), Rng(0))
    assert part.repeats
    assert order.dtype == np.int64
    assert set(order.tolist()) == set(range(len(values)))


@pytest.mark.parametrize("part", ONCE + AGAIN, ids=repr)
def test_copies_and_ties_come_alike_in_any_row_order(part: Order) -> None:
    rng = np.random.default_rng(0)
    values = [*rng.integers(0, 4, 60).astype(float).tolist(), NAN, None]
    rows = table(values)
    rows = pa.concat_tables([rows, rows.slice(10, 25), rows.slice(20, 5)])
    turned = rows.take(pa.array(rng.permutation(rows.num_rows)))
    one, other = ([t["id"][i].as_py() for i in part.order(t, Rng(5))] for t in (rows, turned))
    assert one == other


@pytest.mark.parametrize("part", [p for p in ONCE + AGAIN if p not in UNSEEDED], ids=repr)
def test_draws_follow_the_seed(part: Order) -> None:
    rows = table(np.random.default_rng(1).integers(0, 4, 200).astype(float).tolist())
    one, other = (part.order(rows, Rng(seed)).tolist() for seed in (0, 1))
    assert one != other
