"""Quality, then diversity: known answers, and a plain loop over the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import DataError, RecipeError
from foresift.stages.selectors import quality_then_diversity
from foresift.stages.selectors.quality_then_diversity import QualityThenDiversity
from foresift.stages.selectors.topk import TopK
from tests.stages.selectors.vectors import (
    check_promises,
    check_recut,
    in_order,
    pool,
    rows,
    select,
    unit_rows,
)

ONE = QualityThenDiversity(by=["u"], embedding="e")
RANK = QualityThenDiversity(by=["u"], embedding="e", scale="rank", threshold=0.8)


def at(cosine: float) -> list[float]:
    return [cosine, float(np.sqrt(1 - cosine**2))]


def plain(u: Any, vectors: Any, threshold: float, count: int) -> list[int]:
    """One document at a time against those kept."""
    kept: list[int] = []
    for i in np.argsort(-u, kind="stable"):
        if len(kept) < count and all(vectors[i] @ vectors[j] <= threshold for j in kept):
            kept.append(int(i))
    return kept


@pytest.mark.parametrize("block", [1, 2, 256])
def test_a_dropped_row_drops_nobody(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_then_diversity, "BLOCK", block)
    angle = np.arccos(0.95)
    vectors = [[np.cos(k * angle), np.sin(k * angle)] for k in range(3)]
    choice = select(ONE, rows([3.0, 2.0, 1.0], vectors), "1B")  # cosines .95, .95 and .805
    assert in_order(choice) == [0, 2]
    assert choice.reason.tolist() == ["within budget", "close to a better row", "within budget"]
    assert choice.facts["close"] == 1


@pytest.mark.parametrize("block", [1, 256])
def test_at_the_threshold_is_kept_and_above_is_dropped(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_then_diversity, "BLOCK", block)
    for cosine, kept in ((0.9, [0, 1]), (0.9000001, [0]), (0.8999999, [0, 1]), (0.91, [0])):
        table = rows([2.0, 1.0], [[1.0, 0.0], [0.0, 0.0]]).drop_columns(["e"])
        exact = pa.array([[1.0, 0.0], at(cosine)], pa.list_(pa.float64()))
        assert in_order(select(ONE, table.append_column("e", exact), "1B")) == kept


@pytest.mark.parametrize("block", [1, 7, 64, 256])
@pytest.mark.parametrize("part_rows", [5, 1 << 14])
def test_blocks_give_the_picks_of_the_plain_loop(
    block: int, part_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_then_diversity, "BLOCK", block)
    monkeypatch.setattr(quality_then_diversity, "PART", part_rows)
    for seed in range(3):
        table = pool(seed=seed)
        u, vectors = np.array(table["u"]), unit_rows(table)
        for count in (10, 40, 300):
            assert in_order(select(RANK, table, f"{count} rows")) == plain(u, vectors, 0.8, count)


def test_scores_multiply() -> None:
    part = QualityThenDiversity(by=["u", "v"], embedding="e")
    table = rows([2.0, 3.0, 5.0], np.eye(3).tolist(), v=pa.array([4.0, 3.0, 1.0]))
    assert in_order(select(part, table, "2 rows")) == [1, 0]
    # by ranks all but the first two are equal: 1 x 5, 3 x 3, 5 x 1 sixths
    ranks = QualityThenDiversity(by=["u", "v"], embedding="e", scale="rank")
    assert in_order(select(ranks, table, "3 rows")) == [1, 0, 2]


def test_no_filter_is_topk() -> None:
    part = QualityThenDiversity(by=["u"], embedding="e", threshold=1, scale="rank")
    top = select(TopK(by="u"), pool())
    np.testing.assert_array_equal(select(part, pool()).kept, top.kept)


def test_a_full_budget_ends_the_search() -> None:
    choice = select(RANK, pool(), "5 rows")
    assert choice.kept.sum() == 5
    assert set(choice.reason) == {"within budget", "close to a better row", "not reached"}
    assert choice.facts["visited"] == 5 + choice.facts["close"]
    assert not choice.facts["short"]
    narrow = QualityThenDiversity(by=["u"], embedding="e", scale="rank", threshold=-0.9)
    assert select(narrow, pool(), "50%").facts["short"]


def test_promises() -> None:
    check_promises(RANK)
    check_recut(RANK)


def test_bad_fields_and_bad_columns() -> None:
    for fields in ({"by": []}, {"threshold": 1.1}, {"threshold": -1.0}, {"scale": "log"}):
        with pytest.raises(RecipeError):
            QualityThenDiversity.parse({"by": ["u"], "embedding": "e", **fields}, "select")
    with pytest.raises(DataError, match="at least 0"):
        select(ONE, pool())
