"""Orders: known answers, and each is a permutation."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Order, Rng
from foresift.stages.orders.folding import Folding
from foresift.stages.orders.shuffle import Shuffle
from foresift.stages.orders.sorted import Sorted
from tests.stages.selectors.tables import corpus, ids

SCORES = st.one_of(st.none(), st.sampled_from([0.0, -1.0, 1.0, float("nan"), float("inf")]))


def scored(values: list[float | None]) -> pa.Table:
    column = pa.array(values, pa.float64(), from_pandas=False)
    return pa.table({"id": ids(len(values)), "u": column})


def arranged(part: Order, values: list[float | None]) -> list[int]:
    return part.order(scored(values), Rng(0)).tolist()


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("code", [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]),
        ("paper", [2, 5, 8, 0, 3, 6, 9, 1, 4, 7]),
    ],
)
def test_folding_ten_rows_in_three(variant: str, expected: list[int]) -> None:
    part = Folding.parse({"by": "u", "folds": 3, "variant": variant}, "x")
    assert arranged(part, [float(x) for x in range(10)]) == expected
    scattered = np.random.default_rng(0).permutation(10)
    rank_of = np.array(arranged(part, scattered.astype(float).tolist()))
    assert scattered[rank_of].tolist() == expected


def test_folding_edges() -> None:
    values: list[float | None] = [3.0, 1.0, 2.0, 1.0]
    assert arranged(Folding(by="u", folds=1), values) == [1, 3, 2, 0]
    assert arranged(Folding(by="u", folds=9), values) == [1, 3, 2, 0]
    assert arranged(Folding(by="u", folds=9, variant="paper"), values) == [1, 3, 2, 0]
    assert arranged(Folding(by="u", folds=2), values) == [1, 2, 3, 0]
    with pytest.raises(ValueError, match="folds"):
        Folding(by="u", folds=0)


def test_sorted_is_stable_and_puts_missing_scores_last() -> None:
    values: list[float | None] = [2.0, None, 1.0, float("nan"), 2.0, float("-inf"), 1.0]
    assert arranged(Sorted(by="u"), values) == [5, 2, 6, 0, 4, 1, 3]
    assert arranged(Sorted(by="u", descending=True), values) == [0, 4, 2, 6, 5, 1, 3]


def test_sorted_refuses_text() -> None:
    with pytest.raises(DataError, match="u: rows are ranked by numbers"):
        Sorted(by="u").order(pa.table({"id": ids(1), "u": ["a"]}), Rng(0))


def test_shuffle_is_keyed_by_id_and_seed() -> None:
    table = corpus(1000)
    keys = np.array(table["id"].to_pylist())
    order = Shuffle().order(table, Rng(0))
    again = table.take(pa.array(np.random.default_rng(1).permutation(1000)))
    same = np.array(again["id"].to_pylist())[Shuffle().order(again, Rng(0))]
    np.testing.assert_array_equal(keys[order], same)
    assert (Shuffle().order(table, Rng(1)) != order).mean() > 0.9
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


def test_shuffle_keeps_copies_in_row_order() -> None:
    table = pa.concat_tables([corpus(50), corpus(50)])
    order = Shuffle().order(table, Rng(0))
    np.testing.assert_array_equal(order[1::2], order[::2] + 50)


@pytest.mark.parametrize(
    "part",
    [
        Shuffle(),
        Sorted(by="u"),
        Sorted(by="u", descending=True),
        Folding(by="u", folds=2),
        Folding(by="u", variant="paper"),
    ],
    ids=repr,
)
@given(values=st.lists(SCORES, max_size=20))
def test_every_order_is_a_permutation(part: Order, values: list[float | None]) -> None:
    order = part.order(scored(values), Rng(0))
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(values)))
