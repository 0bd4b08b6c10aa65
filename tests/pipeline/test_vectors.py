"""Columns of vectors: gathered rows against the plain matrix, in every shape a column can have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.tables import ID
from foresift.pipeline.vectors import Documents, Vectors, spooled, unit, unit_vectors

LIST, LARGE = pa.list_(pa.float32()), pa.large_list(pa.float64())
FIXED = pa.list_(pa.float32(), 2)
VALUES = [[3.0, 4.0], None, [0.0, 0.0], [float("nan"), 1.0], [0.0, -2.0], [1e-30, 0.0]]
UNIT = [[0.6, 0.8], None, None, None, [0.0, -1.0], [1.0, 0.0]]


def expected() -> np.ndarray:
    return np.array([[np.nan, np.nan] if v is None else v for v in UNIT], dtype=np.float32)


@pytest.mark.parametrize("dtype", [LIST, LARGE, FIXED])
def test_rows_are_gathered_from_any_list(dtype: pa.DataType) -> None:
    column = pa.chunked_array([pa.array([[9.0, 9.0], *VALUES], dtype)[1:4], VALUES[3:]], dtype)
    vectors = Vectors.of(pa.table({"v": column}), "v")
    assert (vectors.width, vectors.rows, vectors.missing, vectors.zero) == (2, 6, 2, 1)
    np.testing.assert_array_equal(vectors.valid, [v is not None for v in UNIT])
    np.testing.assert_allclose(vectors.unit(np.arange(6)), expected(), rtol=1e-6)
    np.testing.assert_allclose(vectors.unit([4, 0, 4]), expected()[[4, 0, 4]], rtol=1e-6)
    assert vectors.unit([]).shape == (0, 2)
    place = np.array([5, 4, 3, 2, 1, 0])
    whole = unit_vectors(pa.table({"v": column}), "v", place)
    np.testing.assert_allclose(whole, expected()[::-1], rtol=1e-6)


def test_nulls_with_values_behind_them_are_skipped() -> None:
    """Arrow allows a null that covers values: rows then do not lie at multiples of the width."""
    values = pa.array(np.arange(5, dtype=np.float32))
    column = pa.ListArray.from_arrays(
        pa.array([0, 2, 3, 5], pa.int32()), values, mask=pa.array([False, True, False])
    )
    vectors = Vectors.of(pa.table({"v": column}), "v")
    np.testing.assert_array_equal(vectors.raw([0, 2]), [[0, 1], [3, 4]])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.0, 2.0]), "vectors are lists of floats"),
        (pa.array([["a"]]), "vectors are lists of floats"),
        (pa.array([[1.0], [1.0, 2.0]], LIST), "2 different widths, such as 1 and 2"),
    ],
)
def test_other_columns_are_refused(column: pa.Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vectors.of(pa.table({"v": column}), "v")


def test_a_column_without_vectors_has_no_direction() -> None:
    for column in (pa.nulls(3), pa.array([None] * 3, LIST), pa.array([], LIST)):
        vectors = Vectors.of(pa.table({"v": column}), "v")
        assert not vectors.valid.any()
        assert vectors.width == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=30), st.randoms())
def test_documents_do_not_depend_on_row_order_or_copies(keys: list[int], random: object) -> None:
    def table(order: list[int]) -> pa.Table:
        ids = pa.array([bytes([k]) * 16 for k in order], ID)
        body = [None if k % 4 == 3 else [float(k), 1.0] for k in order]
        return pa.table({"id": ids, "v": pa.array(body, LIST)})

    shuffled = [*keys, *keys]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    once, again = (Documents.of(table(k), "v") for k in (sorted(set(keys)), shuffled))
    np.testing.assert_array_equal(once.words, again.words)
    assert len(once) == len({k for k in keys if k % 4 != 3})
    np.testing.assert_array_equal(
        once.unit(np.arange(len(once))), again.unit(np.arange(len(again)))
    )


def test_spooled_tables_are_read_back_from_their_file(tmp_path: Path) -> None:
    parts = [
        pa.table({"id": pa.array([bytes([i]) * 16], ID), "x": ["gone"],
                  "v": pa.array([[float(i), 1.0]], LIST)})
        for i in range(3)
    ]  # fmt: skip
    file = tmp_path / "vectors.arrow"
    table = spooled(iter(parts), ["id", "v"], file)
    file.unlink()
    assert table.equals(pa.concat_tables(parts).select(["id", "v"]))
    np.testing.assert_allclose(
        Vectors.of(table, "v").unit([2]), unit(np.array([[2.0, 1.0]])), rtol=1e-6
    )
    empty = spooled(iter([]), ["id", "v"], file)
    assert len(Documents.of(empty, "v")) == 0
    assert not file.exists()
