"""Density is the mean distance to the nearest others, exact or within cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.vectors import Documents
from foresift.scorers.density import Density, exact
from tests.scorers.fitting import NAME, groups, score, unit, vectors


def plain(rows: npt.ArrayLike, k: int) -> npt.NDArray[np.float64]:
    """[n, k] cosines of the k nearest others, nearest first: the whole matrix, sorted."""
    cosines = unit(np.asarray(rows, dtype=np.float32)) @ unit(np.asarray(rows, np.float32)).T
    np.fill_diagonal(cosines, -np.inf)
    return -np.sort(-cosines, axis=1)[:, :k]


def test_known_distances(tmp_path: Path) -> None:
    angles = np.radians([0, 60, 90, 180])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found, facts = score(Density(neighbours=2), vectors(rows), tmp_path / "a")
    far = 1 - np.cos(np.radians(30))
    expected = [(0.5 + 1) / 2, (far + 0.5) / 2, (far + 1) / 2, (1 + 1.5) / 2]
    assert found["distance"] == pytest.approx(expected, abs=1e-6)
    assert found["kth"] == pytest.approx([1, 0.5, 1, 1.5], abs=1e-6)
    assert found["utility"].tolist() == found["distance"].tolist()
    assert facts["exact"] is True
    assert facts["median"] == pytest.approx(np.median(expected), abs=1e-6)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**31), st.integers(2, 60), st.integers(1, 5))
def test_it_is_what_sorting_the_whole_matrix_gives(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, width: int
) -> None:
    rows = np.random.default_rng(seed).standard_normal((n, width))
    k = 1 + seed % (n - 1)
    found, _ = score(Density(neighbours=k), vectors(rows), tmp_path_factory.mktemp("d") / "a")
    cosines = plain(rows, k)
    assert found["distance"] == pytest.approx(1 - cosines.mean(axis=1), abs=2e-6)
    assert found["kth"] == pytest.approx(1 - cosines[:, -1], abs=2e-6)


def test_all_cells_probed_is_exact_and_fewer_are_measured(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((400, 24))
    table = vectors(rows)
    whole, _ = score(Density(neighbours=5), table, tmp_path / "a")
    part = Density(neighbours=5, exact_up_to=100, clusters=12, probes=12)
    same, facts = score(part, table, tmp_path / "b")
    assert same["distance"] == pytest.approx(whole["distance"], abs=1e-6)
    assert (facts["recall"], facts["cells"], facts["warnings"]) == (1.0, 12, [])
    part = Density(neighbours=5, exact_up_to=100, clusters=12, probes=2)
    less, facts = score(part, table, tmp_path / "c")
    assert (less["distance"] >= whole["distance"] - 1e-6).all()
    assert 0.2 < facts["recall"] < 0.95
    assert [said for said in facts["warnings"] if "raise `probes`" in said]


def test_documents_in_small_cells_are_searched_exactly(tmp_path: Path) -> None:
    rows, _ = groups(8, 6, width=32)
    table = vectors(rows)
    part = Density(neighbours=9, exact_up_to=0, clusters=8, probes=1)
    found, facts = score(part, table, tmp_path / "a")
    assert facts["short"] > 0
    assert found["kth"] == pytest.approx(1 - plain(rows, 9)[:, -1], abs=1e-6)


def test_near_duplicates_are_dense_and_exact_copies_are_not_neighbours(tmp_path: Path) -> None:
    rows, _ = groups(20, 1, width=32)
    near = np.concatenate([rows, rows[:3] * 2])
    part = Density(neighbours=1)
    found, _ = score(part, vectors(near), tmp_path / "a")
    assert np.flatnonzero(found["distance"] < 1e-6).tolist() == [0, 1, 2, 20, 21, 22]
    copies = np.append(np.arange(20), [0, 1, 2])
    once, _ = score(part, vectors(rows), tmp_path / "b")
    twice, facts = score(part, vectors(rows[copies], copies), tmp_path / "c", pieces=3)
    assert twice["utility"].tolist() == once["utility"][copies].tolist()
    assert facts["documents"] == 20


def test_exact_leaves_a_document_out_of_its_own_neighbours() -> None:
    rows = np.random.default_rng(4).standard_normal((50, 6))
    documents = Documents.of(vectors(rows), NAME)
    some = np.array([3, 17, 49])
    assert exact(documents, some, 4) == pytest.approx(plain(rows, 4)[some], abs=1e-6)
    assert exact(documents, some[:0], 4).shape == (0, 4)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="10 documents have a vector, so none has 10 others"):
        score(Density(), vectors(np.eye(10)), tmp_path / "a")
    rows = np.eye(12)
    rows[3] = np.nan
    found, facts = score(Density(neighbours=3), vectors(rows), tmp_path / "b")
    assert np.flatnonzero(np.isnan(found["utility"])).tolist() == [3]
    assert facts["missing"] == 1
    for fields in ({"neighbours": 0}, {"probes": 0}, {"clusters": -1}, {"exact_up_to": -1}):
        with pytest.raises(ValueError, match="must"):
            Density(**fields)
