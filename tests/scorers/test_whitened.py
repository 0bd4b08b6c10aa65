"""Centred and whitened vectors: moments, invariances, the plain computation, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.tables import ID
from foresift.scorers.whitened import Whitened

RNG = np.random.default_rng(0)
CONE = 5 * np.eye(6)[0] + RNG.standard_normal((300, 6)) * [1, 3, 1, 0.5, 0.2, 0.1]


def table(vectors: Any, order: Any = None) -> pa.Table:
    """The vectors in an order of rows; ids belong to the vectors."""
    order = range(len(vectors)) if order is None else order
    ids = pa.array([int(i).to_bytes(16, "big") for i in order], ID)
    body = [None if vectors[i] is None else list(map(float, vectors[i])) for i in order]
    return pa.table({"id": ids, "v": pa.array(body, pa.list_(pa.float32()))})


def whiten(rows: pa.Table, out: Path, **fields: Any) -> tuple[np.ndarray, dict[str, Any]]:
    part = Whitened(embedding="v", **fields)
    out.mkdir(exist_ok=True)
    facts = part.fit(iter([rows.slice(0, 7), rows.slice(7)]), out)
    return np.array(part.score(rows, out)["vector"].to_pylist()), facts


def at_unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_centring_takes_the_cone_away(tmp_path: Path) -> None:
    found, facts = whiten(table(CONE), tmp_path)
    v = at_unit(CONE)
    np.testing.assert_allclose(found, at_unit(v - v.mean(0)), atol=1e-6)
    assert facts["cone"] == pytest.approx(np.linalg.norm(v.mean(0)), abs=1e-6)
    before, after = v @ v.T, found @ found.T
    assert before.mean() > 0.4
    assert abs(after.mean()) < 0.02


def test_whitening_gives_every_axis_the_same_variance(tmp_path: Path) -> None:
    found, facts = whiten(table(CONE), tmp_path, dimensions=3, whiten=True)
    v = at_unit(CONE)
    values, basis = np.linalg.eigh(np.cov(v.T, ddof=0))
    plain = (v - v.mean(0)) @ basis[:, ::-1][:, :3]
    np.testing.assert_allclose((plain / np.sqrt(values[::-1][:3])).var(0), 1)
    turned = at_unit(plain / np.sqrt(values[::-1][:3] + 1e-6 * values[-1]))
    np.testing.assert_allclose(np.abs(found), np.abs(turned), atol=1e-5)
    assert facts["explained"] == pytest.approx(values[::-1] / values.sum(), abs=1e-5)
    kept, _ = whiten(table(CONE), tmp_path / "kept", dimensions=3)
    np.testing.assert_allclose(np.abs(kept), np.abs(at_unit(plain)), atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"dimensions": 4}, {"dimensions": 4, "whiten": True}])
def test_neither_row_order_nor_copies_nor_length_matter(fields: Any, tmp_path: Path) -> None:
    found, _ = whiten(table(CONE), tmp_path / "a", **fields)
    order = RNG.permutation(300)
    again, _ = whiten(table(7 * CONE, order), tmp_path / "b", **fields)
    np.testing.assert_allclose(again, found[order], atol=1e-6)
    twice, _ = whiten(table(CONE, [*range(300), *range(50)]), tmp_path / "c", **fields)
    np.testing.assert_allclose(twice[:300], found, atol=1e-6)


def test_rows_without_a_direction_have_none(tmp_path: Path) -> None:
    vectors: list[Any] = [*CONE[:20]]
    vectors[3], vectors[4] = None, np.zeros(6)
    part = Whitened(embedding="v")
    facts = part.fit([table(vectors)], tmp_path)
    found = part.score(table(vectors), tmp_path)["vector"]
    assert [i for i, v in enumerate(found.to_pylist()) if v is None] == [3, 4]
    assert (facts["documents"], facts["missing"], facts["zero"]) == (18, 1, 1)


@pytest.mark.parametrize(
    ("vectors", "fields", "message"),
    [
        (np.ones((9, 3)), {}, "all documents have the same direction"),
        (np.zeros((9, 3)), {}, "no document has a direction"),
        (np.eye(3), {"dimensions": 3}, "3 axes of vectors that vary in 2 directions"),
    ],
)
def test_vectors_that_say_nothing_are_refused(
    vectors: Any, fields: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"v: {message}"):
        whiten(table(vectors), tmp_path, **fields)


@pytest.mark.parametrize("fields", [{"dimensions": -1}, {"whiten": True}])
def test_fields_that_make_no_sense_are_refused(fields: Any) -> None:
    with pytest.raises(RecipeError, match="score whitened"):
        Whitened.parse(fields, "score whitened")
