"""Propagation over neighbours, by the known answers, a dense oracle, and planted errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from foresift.pipeline.errors import DataError
from foresift.scorers import _label_graph as graphs
from foresift.scorers.label_propagation import LabelPropagation, closeness, softmax
from tests.scorers.fitting import score, unit
from tests.scorers.labelled import LABEL, VECTORS, planted, table


def by_rows(adjacency: np.ndarray) -> Any:
    degree = adjacency.sum(axis=1, keepdims=True)
    return sparse.csr_matrix(adjacency / np.where(degree > 0, degree, 1))


def test_the_known_answer_of_a_star() -> None:
    star = np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0]], dtype=float)
    start = np.array([[1, 0], [0, 1], [1, 0]], dtype=float)
    found = graphs.propagate(by_rows(star), start, 0.6, 1)
    assert found.ravel() == pytest.approx([0.8, 0.2, 0.4, 0.6, 1.0, 0.0])
    by_columns = sparse.csr_matrix(star / star.sum(axis=0))
    wrong = graphs.propagate(by_columns, start, 0.6, 1)[0]
    assert wrong.sum() != pytest.approx(1)


def test_the_known_answer_of_the_coding_rate() -> None:
    z = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=float)
    assert graphs.coding_rate(z, 0.05) == pytest.approx(3.044522, abs=1e-6)
    right, mixed = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert graphs.coding_gain(z, right, 0.05) == pytest.approx(1.187736, abs=1e-6)
    assert graphs.coding_gain(z, mixed, 0.05) == pytest.approx(0, abs=1e-9)
    wide = np.random.default_rng(0).standard_normal((4, 9))
    inner = 0.5 * np.linalg.slogdet(np.eye(9) + 9 / (4 * 0.1) * wide.T @ wide)[1]
    assert graphs.coding_rate(wide, 0.1) == pytest.approx(inner)


def plain(vectors: np.ndarray, start: np.ndarray, part: LabelPropagation) -> np.ndarray:
    """Y by the definition, with the whole matrix of cosines."""
    e = unit(vectors)
    cosine = e @ e.T
    np.fill_diagonal(cosine, -np.inf)
    n, k = len(e), min(part.k, len(e) - 1)
    a = np.zeros((n, n))
    for i in range(n):
        for j in np.argsort(-cosine[i], kind="stable")[:k]:
            a[i, j] = a[j, i] = max(cosine[i, j], 0)
    y = start.copy()
    for _ in range(part.steps):
        passed = y.copy()
        for i in range(n):
            if a[i].sum() > 0:
                passed[i] = (1 - part.alpha) * a[i] @ y / a[i].sum() + part.alpha * y[i]
        y = passed
    return y


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**31), st.integers(5, 40), st.integers(1, 6), st.integers(1, 4))
def test_noise_is_that_of_a_dense_propagation(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, k: int, steps: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 5)).astype(np.float32)
    label = np.append([0, 1], rng.integers(0, 3, n - 2))
    part = LabelPropagation(label=LABEL, k=k, steps=steps, alpha=0.3)
    found, _ = score(part, table(label, **{VECTORS: vectors}), tmp_path_factory.mktemp("d") / "a")
    y = plain(vectors, np.eye(3)[label], part)
    share = y / y.sum(axis=1, keepdims=True)
    own = share[np.arange(n), label]
    judged = ~np.isnan(found["noise"])
    assert found["noise"][judged] == pytest.approx(1 - own[judged], abs=1e-5)
    other = np.where(np.eye(3)[label] > 0, -1, share).max(axis=1)
    assert found["quality"][judged] == pytest.approx((own - other + 1)[judged] / 2, abs=1e-5)
    clear = judged & (np.abs(own - other) > 1e-6)
    flagged = (other > own) & (1 - own >= 0.5)
    assert ((found["proposal"] != "keep")[clear] == flagged[clear]).all()


def test_planted_errors_are_found_and_mended(tmp_path: Path) -> None:
    vectors, wrong, true = planted(400, 4, 0.3)
    bad, rows = wrong != true, table(wrong, **{VECTORS: vectors})
    found, facts = score(LabelPropagation(label=LABEL), rows, tmp_path / "a")
    told = found["proposal"] != "keep"
    assert (told & bad).sum() >= 0.9 * max(told.sum(), bad.sum())
    assert (found["suggested"] == true.astype(str)).mean() > 0.95
    assert facts["coding_gain"]["suggested"] > facts["coding_gain"]["given"]
    prototypes = LabelPropagation(label=LABEL, rounds=3, flag_at=0.0)
    mended, _ = score(prototypes, rows, tmp_path / "b")
    assert (mended["suggested"] == true.astype(str)).mean() > 0.95


def test_unlabelled_documents_pass_labels_on_and_have_none(tmp_path: Path) -> None:
    angles = np.radians([0, 30, 60, 75, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    part = LabelPropagation(label=LABEL, k=2, steps=9)
    rows = table(["a", None, None, "b", "b"], **{VECTORS: vectors})
    found, facts = score(part, rows, tmp_path / "a")
    assert found["noise"][0] > 0  # by way of the two without a label
    assert found["proposal"].tolist()[1:3] == [None, None]
    assert np.isnan(found["noise"][1:3]).all()
    assert facts["unlabelled"] == 2
    assert facts["documents"] == 3


def test_copies_order_blocks_and_cells_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, wrong, _ = planted(150, 5, 0.2)
    part, rows = LabelPropagation(label=LABEL), table(wrong, **{VECTORS: vectors})
    once, _ = score(part, rows, tmp_path / "a")
    order = np.random.default_rng(1).permutation(np.append(np.arange(150), [4, 4, 9]))
    moved = table(wrong[order], order, **{VECTORS: vectors[order]})
    twice, _ = score(part, moved, tmp_path / "b", 4)
    for name in ("noise", "quality", "proposal", "suggested"):
        assert twice[name].tolist() == once[name][order].tolist()
    monkeypatch.setattr(graphs, "COLUMNS", 2)
    blocks, _ = score(part, rows, tmp_path / "c")
    celled, _ = score(LabelPropagation(label=LABEL, exact_up_to=50, probes=9), rows, tmp_path / "d")
    for other in (blocks, celled):
        assert other["noise"] == pytest.approx(once["noise"], abs=1e-5)
        assert other["suggested"].tolist() == once["suggested"].tolist()


def test_prototypes_are_means_of_the_likeliest_labels() -> None:
    e = unit(np.array([[1, 0], [1, 1], [0, 1]]))
    shares = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.1, 0.9, 0]])
    mean = unit((e[:1] + e[1:2]) / 2)
    expected = np.stack([np.abs(e @ mean[0]), np.abs(e @ e[2]), np.zeros(3)], axis=1)
    assert closeness(e, shares) == pytest.approx(expected)
    assert softmax(np.array([[0.0, np.log(3)]])).tolist() == [pytest.approx([0.25, 0.75])]


def test_bad_input(tmp_path: Path) -> None:
    vectors = np.array([[1, 0], [1, 0.1], [-1, 0.2], [np.nan, 0], [0, 0]], dtype=np.float32)
    rows = table(["a", "b", "a", "a", "b"], **{VECTORS: vectors})
    found, facts = score(LabelPropagation(label=LABEL, k=1), rows, tmp_path / "a")
    assert np.flatnonzero(np.isnan(found["noise"])).tolist() == [2, 3, 4]  # 2 has no neighbour
    assert found["proposal"].tolist()[2:] == ["keep"] * 3
    assert any("1 of 3 labels are not judged" in said for said in facts["warnings"])
    with pytest.raises(DataError, match="have the one label 'a'"):
        score(LabelPropagation(label=LABEL), table(["a"] * 5, **{VECTORS: vectors}), tmp_path / "b")
    many = np.arange(2100) % 1050
    wide = np.random.default_rng(0).standard_normal((2100, 4)).astype(np.float32)
    part = LabelPropagation(label=LABEL, rounds=1)
    with pytest.raises(DataError, match="1050 labels are too many for prototypes"):
        score(part, table(many, **{VECTORS: wide}), tmp_path / "c")
    for fields in ({"k": 0}, {"steps": 0}, {"alpha": 2.0}, {"rounds": -1}, {"flag_at": -1.0}):
        with pytest.raises(ValueError, match="must"):
            LabelPropagation(label=LABEL, **fields)
