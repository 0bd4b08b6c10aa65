"""A weighted mean of columns: known answers, invariances, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata  # type: ignore[import-untyped]

from foresift.pipeline.errors import DataError, RecipeError
from foresift.scorers.combined import Combined


def table(**columns: Any) -> pa.Table:
    return pa.table({k: pa.array(v, pa.float64(), from_pandas=False) for k, v in columns.items()})


def combine(part: Combined, rows: pa.Table, out: Path) -> tuple[np.ndarray, dict[str, Any]]:
    facts = part.fit(iter([rows.slice(0, 2), rows.slice(2)]), out)
    return np.asarray(part.score(rows, out)["utility"]), facts


def test_ranks_are_percentiles_with_ties_shared(tmp_path: Path) -> None:
    rows = table(a=[1, 2, 2, 9], b=[4, 3, 2, 1])
    found, _ = combine(Combined(by={"a": 3, "b": -1}), rows, tmp_path)
    a, b = np.array([0.5, 2, 2, 3.5]) / 4, np.array([0.5, 1.5, 2.5, 3.5]) / 4
    np.testing.assert_allclose(found, (3 * a + b) / 4)


def test_standard_is_in_deviations(tmp_path: Path) -> None:
    rows = table(a=[1, 2, 3, 4], b=[0, 0, 0, 8])
    found, _ = combine(Combined(by={"a": 1, "b": -2}, scale="standard"), rows, tmp_path)
    a = np.array([-3, -1, 1, 3]) / np.sqrt(5)
    b = np.array([-1, -1, -1, 3]) / np.sqrt(3)
    np.testing.assert_allclose(found, (a - 2 * b) / 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_ranks_do_not_know_the_unit(tmp_path_factory: Any, values: list[float]) -> None:
    part = Combined(by={"a": 1})
    found, _ = combine(part, table(a=values), tmp_path_factory.mktemp("a"))
    np.testing.assert_allclose(found, (rankdata(values) - 0.5) / len(values))
    other = [np.arctan(v / 1e6) for v in values]
    again, _ = combine(part, table(a=other), tmp_path_factory.mktemp("b"))
    np.testing.assert_allclose(again, (rankdata(other) - 0.5) / len(values))


@pytest.mark.parametrize("scale", ["rank", "standard"])
def test_a_row_without_a_column_has_no_score(scale: Any, tmp_path: Path) -> None:
    rows = table(a=[1, None, 3, float("nan")], b=[5, 5, 5, 5])
    found, facts = combine(Combined(by={"a": 1, "b": 1}, scale=scale), rows, tmp_path)
    np.testing.assert_array_equal(np.isnan(found), [False, True, False, True])
    assert facts["missing"] == {"a": 2, "b": 0}
    assert facts["warnings"] == ["b is the same in every row and says nothing"]
    assert found[2] > found[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [([None, None], "a: has no number"), ([1, float("inf")], "a: holds an infinite number")],
)
def test_columns_without_a_meaning_are_refused(
    values: list[Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        combine(Combined(by={"a": 1}), table(a=values), tmp_path)


@pytest.mark.parametrize("by", [{}, {"a": 0.0}, {"a": float("nan")}])
def test_weights_that_say_nothing_are_refused(by: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="score combined"):
        Combined.parse({"by": by}, "score combined")
