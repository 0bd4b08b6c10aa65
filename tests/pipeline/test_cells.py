"""Cells, nearest centroids and neighbours against the plain N x N computation."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.cells import (
    SAMPLE,
    Cells,
    cell_count,
    nearest,
    neighbours,
    spherical_kmeans,
)
from foresift.pipeline.errors import DataError
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import ID
from foresift.pipeline.vectors import Documents, unit


def documents(n: int, width: int = 6, seed: int = 0, centres: int = 5) -> Documents:
    """n documents around a few centres, in shuffled rows."""
    rng = np.random.default_rng(seed)
    means = 3 * rng.standard_normal((centres, width))
    vectors = means[rng.integers(0, centres, n)] + rng.standard_normal((n, width))
    ids = pa.array([int(i).to_bytes(16, "big") for i in rng.permutation(n)], ID)
    table = pa.table({"id": ids, "v": pa.array(vectors.tolist(), pa.list_(pa.float32()))})
    return Documents.of(table, "v")


def test_kmeans_has_come_to_rest_at_unit_centroids() -> None:
    rng = np.random.default_rng(0)
    near, far = np.eye(4)[0] + 0.05 * rng.standard_normal((250, 4)), rng.standard_normal((250, 4))
    vectors = unit(np.concatenate([near, far])).astype(np.float32)
    found = spherical_kmeans(vectors, 6, Rng(1))
    centroids = unit(np.stack([vectors[found == k].sum(axis=0) for k in range(6)]))
    np.testing.assert_array_equal((vectors @ centroids.T).argmax(axis=1), found)
    np.testing.assert_array_equal(found, spherical_kmeans(vectors, 6, Rng(1)))
    assert (found != spherical_kmeans(vectors, 6, Rng(2))).any()


def test_the_default_number_of_clusters() -> None:
    assert [cell_count(n) for n in (0, 1, 2, 8, 20_000)] == [1, 1, 1, 2, 100]
    assert cell_count(10**12) == 10_000


def test_every_document_lies_in_its_nearest_cell() -> None:
    found = documents(400)
    cells = Cells.fit(found, 7, Rng(0))
    cosines = found.unit(np.arange(400)).astype(np.float64) @ cells.centroids.T.astype(np.float64)
    np.testing.assert_array_equal(cells.cell, cosines.argmax(axis=1))
    np.testing.assert_allclose(cells.similarity, cosines.max(axis=1), atol=1e-6)
    assert cells.sizes.sum() == 400
    for cell in range(7):
        np.testing.assert_array_equal(cells.members(cell), np.flatnonzero(cells.cell == cell))


def test_centroids_of_a_sample_serve_all() -> None:
    found = documents(SAMPLE * 2 + 40, width=3, centres=2)
    cells = Cells.fit(found, 2, Rng(3))
    assert (cells.sizes > 0).all()
    np.testing.assert_array_equal(cells.cell, Cells.fit(found, 2, Rng(3)).cell)


def test_nearest_gives_a_row_the_same_answer_in_any_batch() -> None:
    rng = np.random.default_rng(1)
    centroids = unit(rng.standard_normal((33, 17))).astype(np.float32)
    vectors = unit(rng.standard_normal((200, 17))).astype(np.float32)
    vectors[5] = np.nan
    cell, cosine = nearest(centroids, vectors)
    assert cell[5] == -1
    assert np.isnan(cosine[5])
    for row in range(200):
        one, value = nearest(centroids, vectors[row : row + 1])
        assert one[0] == cell[row]
        np.testing.assert_array_equal(value[0], cosine[row])
    assert nearest(centroids[:1], vectors)[0].max() == 0
    assert nearest(centroids, vectors[:0])[0].shape == (0,)


def test_neighbours_are_those_of_the_whole_matrix() -> None:
    found = documents(300)
    whole = found.unit(np.arange(300)) @ found.unit(np.arange(300)).T
    np.fill_diagonal(whole, -np.inf)
    numbers, cosines = neighbours(found, 4)
    np.testing.assert_allclose(cosines, -np.sort(-whole, axis=1)[:, :4], atol=1e-5)
    taken = np.take_along_axis(whole, numbers, axis=1)
    np.testing.assert_allclose(taken, cosines, atol=1e-5)


def test_neighbours_in_all_cells_are_exact_and_in_one_cell_are_of_it() -> None:
    found = documents(300)
    cells = Cells.fit(found, 6, Rng(0))
    np.testing.assert_allclose(
        neighbours(found, 3, cells, probes=6)[1], neighbours(found, 3)[1], atol=1e-5
    )
    numbers, _ = neighbours(found, 3, cells, probes=1)
    rows, places = np.nonzero(numbers >= 0)
    np.testing.assert_array_equal(cells.cell[rows], cells.cell[numbers[rows, places]])


def test_a_document_is_never_its_own_neighbour_among_equal_ones() -> None:
    ids = pa.array([bytes([i]) * 16 for i in range(5)], ID)
    table = pa.table({"id": ids, "v": pa.array([[1.0, 0.0]] * 5, pa.list_(pa.float32()))})
    found = Documents.of(table, "v")
    numbers, cosines = neighbours(found, 6)
    assert (numbers[:, :4] != np.arange(5)[:, None]).all()
    assert (numbers[:, 4:] == -1).all()
    np.testing.assert_array_equal(cosines[:, :4], 1)
    assert np.isnan(cosines[:, 4:]).all()


def test_fewer_documents_than_cells_are_refused() -> None:
    with pytest.raises(DataError, match="3 documents with a vector cannot make 4 clusters"):
        Cells.fit(documents(3), 4, Rng(0))
