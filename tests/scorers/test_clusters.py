"""Clusters are groups, distances are cosines, and neither copies nor row order have a say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.cells import Cells
from foresift.pipeline.errors import DataError
from foresift.pipeline.vectors import Documents
from foresift.scorers.clusters import Clusters, doubts
from tests.scorers.fitting import NAME, groups, score, unit, vectors


def test_groups_are_found_and_distances_are_those_to_the_mean_direction(tmp_path: Path) -> None:
    rows, group = groups(5, 40)
    found, facts = score(Clusters(clusters=5, seed=2), vectors(rows), tmp_path / "a")
    pairs = set(zip(group.tolist(), found["cluster"].tolist(), strict=True))
    assert len(pairs) == 5
    for cluster in range(5):
        mine = unit(rows[found["cluster"] == cluster])
        cosines = mine @ unit(mine.sum(axis=0, keepdims=True))[0]
        assert found["similarity"][found["cluster"] == cluster] == pytest.approx(cosines, abs=1e-5)
    assert found["distance"] == pytest.approx(1 - found["similarity"], abs=1e-7)
    assert facts["sizes"] == {"min": 40, "median": 40.0, "max": 40}
    assert facts["entropy"] == pytest.approx(math.log(5))
    assert facts["inertia"] == pytest.approx(found["distance"].mean(), abs=1e-6)
    assert (facts["clusters"], facts["empty"], facts["warnings"]) == (5, 0, [])
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["centroids.npy"]


def test_every_document_is_in_the_cluster_of_its_nearest_centroid(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 8))
    found, facts = score(Clusters(), vectors(rows), tmp_path / "a")
    assert facts["clusters"] == round(math.sqrt(150))
    cosines = unit(rows.astype(np.float32)) @ np.load(tmp_path / "a" / "centroids.npy").T
    assert found["cluster"].tolist() == cosines.argmax(axis=1).tolist()
    assert found["similarity"] == pytest.approx(cosines.max(axis=1), abs=1e-6)


def test_copies_row_order_batches_and_lengths_change_nothing(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).standard_normal((120, 8)).astype(np.float32)
    part = Clusters(clusters=7)
    plain, facts = score(part, vectors(rows), tmp_path / "a")
    order = np.random.default_rng(2).permutation(np.append(np.arange(120), [5] * 50))
    scale = 2.0 ** (order % 5)[:, None]
    other, said = score(part, vectors(rows[order] * scale, order), tmp_path / "b", pieces=4)
    for name, values in plain.items():
        assert values[order].tolist() == other[name].tolist()
    assert said["documents"] == facts["documents"] == 120
    assert said["sizes"] == facts["sizes"]


def test_rows_without_a_direction_have_no_cluster_and_are_counted(tmp_path: Path) -> None:
    rows, _ = groups(3, 10, width=4)
    rows[4], rows[7], rows[9, 2] = np.nan, 0, np.inf
    out = tmp_path / "a"
    found, facts = score(Clusters(clusters=3), vectors(rows), out)
    assert np.flatnonzero(np.isnan(found["similarity"])).tolist() == [4, 7, 9]
    assert (facts["missing"], facts["zero"], facts["documents"]) == (2, 1, 27)
    assert facts["warnings"] == ["3 of 30 rows have no vector with a direction and get no score"]
    scored = Clusters(clusters=3).score(vectors(rows), out)["cluster"]
    assert [i for i, c in enumerate(scored.to_pylist()) if c is None] == [4, 7, 9]
    nothing = Clusters(clusters=3).score(vectors(rows).slice(4, 1), out)
    assert nothing["cluster"].to_pylist() == [None]


def test_doubtful_clusters_are_said(tmp_path: Path) -> None:
    rows = np.repeat(np.eye(4), [60, 2, 1, 1], axis=0)
    cells = Cells.around(Documents.of(vectors(rows), NAME), np.eye(4, dtype=np.float32))
    assert doubts(cells) == ["one cluster of 4 holds 60 of 64 documents"]
    same = np.ones((30, 4))
    _, facts = score(Clusters(clusters=3), vectors(same), tmp_path / "a")
    assert facts["empty"] == 2
    assert any("2 of 3 clusters are empty" in said for said in facts["warnings"])


def test_what_cannot_be_clustered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="4 documents with a vector cannot make 5 clusters"):
        score(Clusters(clusters=5), vectors(np.eye(4)), tmp_path / "a")
    with pytest.raises(DataError, match="no document has a direction: of 3 rows, 0 have no finite"):
        score(Clusters(), vectors(np.zeros((3, 4))), tmp_path / "b")
    words = vectors(np.eye(4)).set_column(1, NAME, pa.array(["a"] * 4))
    with pytest.raises(DataError, match="vectors are lists of floats"):
        score(Clusters(), words, tmp_path / "c")
    out = tmp_path / "d"
    score(Clusters(clusters=2), vectors(np.eye(4)), out)
    with pytest.raises(DataError, match="vectors of width 5, clusters of width 4"):
        Clusters(clusters=2).score(vectors(np.eye(5)), out)
    with pytest.raises(ValueError, match="number of clusters"):
        Clusters(clusters=-1)
