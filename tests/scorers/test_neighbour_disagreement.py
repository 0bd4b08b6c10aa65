"""Neighbours vote: the paper's two strategies on a line, and a plain count of votes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.scorers.neighbour_disagreement import NeighbourDisagreement
from tests.scorers.fitting import score, unit
from tests.scorers.labelled import LABEL, VECTORS, planted, table

#: the line of the known answer, as angles: cosines fall with the distance on it
LINE = [0.0, 0.1, 0.05, 5.0, 6.0, 7.0]
GIVEN = ["R", "R", "neg", "neg", "neg", "neg"]


def on_line(places: npt.ArrayLike) -> npt.NDArray[np.float32]:
    angles = np.asarray(places) * 0.3
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("re_annotate_at", "proposal"), [(None, "eliminate"), (0.5, "re_annotate")]
)
def test_the_known_answer_intrinsic(
    re_annotate_at: float | None, proposal: str, tmp_path: Path
) -> None:
    part = NeighbourDisagreement(
        label=LABEL, strategy="intrinsic", k=1, negative="neg", predicted="model.said",
        re_annotate_at=re_annotate_at,
    )  # fmt: skip
    said = ["R", "neg", "neg", "neg", "neg", "neg"]
    rows = table(GIVEN, **{VECTORS: on_line(LINE), "model.said": said})
    found, facts = score(part, rows, tmp_path / "a")
    assert found["proposal"].tolist() == ["keep", "keep", proposal, "keep", "keep", "keep"]
    assert found["suggested"].tolist() == [None, None, "R", None, None, None]
    assert found["noise"].tolist() == [0, 0, 0.5, 0, 0, 0]  # found once, and by no negative
    assert (facts["false_negatives"], facts["positives"]) == (1, 2)
    assert found["excess"][2] == 1


def test_the_known_answer_extrinsic(tmp_path: Path) -> None:
    part = NeighbourDisagreement(label=LABEL, k=1, trusted="clean", negative="neg")
    vectors = on_line([*LINE, 0.02, 6.1])
    clean = [False] * 5 + [None, True, True]
    rows = table([*GIVEN, "R", "neg"], **{VECTORS: vectors, "clean": clean})
    found, facts = score(part, rows, tmp_path / "a")
    assert np.flatnonzero(found["proposal"] != "keep").tolist() == [2]
    assert found["suggested"][2] == "R"
    assert found["noise"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert facts["trusted"] == 2


def plain(vectors: np.ndarray, labels: np.ndarray, k: int) -> tuple[list[float], list[set[int]]]:
    """1 - share of the k nearest others with the own label; the most frequent labels of these."""
    cosines = unit(vectors) @ unit(vectors).T
    np.fill_diagonal(cosines, -np.inf)
    noise, likeliest = [], []
    for i, row in enumerate(cosines):
        near = labels[np.argsort(-row, kind="stable")[:k]]
        counts = np.bincount(near)
        noise.append(1 - (near == labels[i]).mean())
        likeliest.append(set(np.flatnonzero(counts == counts.max()).tolist()))
    return noise, likeliest


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**31), st.integers(5, 60), st.integers(1, 7))
def test_votes_are_what_sorting_the_whole_matrix_gives(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors, labels = rng.standard_normal((n, 4)), np.append([0, 1], rng.integers(0, 4, n - 2))
    part = NeighbourDisagreement(label=LABEL, k=min(k, n - 1), flag_at=0.0)
    rows = table(labels, **{VECTORS: vectors})
    found, _ = score(part, rows, tmp_path_factory.mktemp("d") / "a")
    noise, likeliest = plain(vectors.astype(np.float32), labels, min(k, n - 1))
    assert found["noise"] == pytest.approx(noise, abs=1e-6)
    for i in range(n):
        flagged = labels[i] not in likeliest[i]
        assert (found["proposal"][i] != "keep") == flagged
        assert int(found["suggested"][i]) in (likeliest[i] if flagged else {labels[i]})


def test_planted_errors_are_found_by_votes_and_by_a_clean_set(tmp_path: Path) -> None:
    vectors, wrong, true = planted(400, 3, 0.15)
    bad = wrong != true
    found, _ = score(
        NeighbourDisagreement(label=LABEL), table(wrong, **{VECTORS: vectors}), tmp_path / "a"
    )
    told = found["proposal"] != "keep"
    assert (told & bad).sum() >= 0.9 * max(told.sum(), bad.sum())
    clean = np.arange(400) < 60
    mended = np.where(clean, true, wrong)
    part = NeighbourDisagreement(label=LABEL, trusted="clean", k=5)
    rows = table(mended, **{VECTORS: vectors, "clean": clean})
    found, _ = score(part, rows, tmp_path / "b")
    told = found["proposal"] != "keep"
    assert not told[clean].any()
    assert found["noise"][clean].tolist() == [0.0] * 60
    assert (told & bad)[~clean].sum() >= 0.9 * bad[~clean].sum()


def test_noise_hidden_in_none_of_the_above(tmp_path: Path) -> None:
    vectors, _, true = planted(400, 4, 0.0, seed=2)
    names = np.array(["a", "b", "other", "other"])[true]
    hidden = (names != "other") & (np.random.default_rng(0).random(400) < 0.2)
    given_ = np.where(hidden, "other", names)
    part = NeighbourDisagreement(label=LABEL, strategy="intrinsic", negative="other", flag_at=0.0)
    found, facts = score(part, table(given_, **{VECTORS: vectors}), tmp_path / "a")
    told = found["proposal"] != "keep"
    assert facts["false_negatives"] > 0
    assert told.any()
    assert hidden[told].mean() >= 3 * hidden[given_ == "other"].mean()
    assert not told[given_ != "other"].any()
    mended = found["proposal"] == "re_annotate"
    assert (found["suggested"][mended & hidden] == names[mended & hidden]).all()


def test_copies_order_cells_and_labels_of_copies(tmp_path: Path) -> None:
    vectors, wrong, _ = planted(200, 3, 0.2)
    rows = table(wrong, **{VECTORS: vectors})
    once, _ = score(NeighbourDisagreement(label=LABEL), rows, tmp_path / "a")
    order = np.random.default_rng(1).permutation(np.append(np.arange(200), [4, 4, 9]))
    moved = table(wrong[order], order, **{VECTORS: vectors[order]})
    twice, _ = score(NeighbourDisagreement(label=LABEL), moved, tmp_path / "b", 4)
    for name in ("noise", "excess", "proposal", "suggested"):
        assert twice[name].tolist() == once[name][order].tolist()
    celled = NeighbourDisagreement(label=LABEL, exact_up_to=50, probes=10)
    same, _ = score(celled, rows, tmp_path / "c")
    assert same["noise"] == pytest.approx(once["noise"], abs=1e-6)
    two = table(["a", "b", "a", "a"], [0, 0, 1, 2], **{VECTORS: on_line([0, 0, 0.1, 0.2])})
    both, facts = score(NeighbourDisagreement(label=LABEL, k=2), two, tmp_path / "d")
    assert both["noise"].tolist() == [0, 1, 0.25, 0.25]  # the neighbour with two labels: half
    assert facts["several"] == 1


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
def test_a_document_is_trusted_if_any_copy_of_it_is(tmp_path: Path, order: list[int]) -> None:
    label, ids = np.array(["a", "a", "b", "b", "a"]), np.array([0, 0, 1, 1, 2])
    vectors, clean = on_line([0, 0, 5, 5, 4.9]), np.array([True, False, False, True, False])
    rows = table(label[order], ids[order], **{VECTORS: vectors[order], "clean": clean[order]})
    part = NeighbourDisagreement(label=LABEL, trusted="clean", k=1)
    found, facts = score(part, rows, tmp_path / "a")
    assert facts["trusted"] == 2
    assert found["noise"].tolist() == [float(ids[r] == 2) for r in order]


def test_ten_thousand_labels(tmp_path: Path) -> None:
    n = 10_000
    vectors = np.random.default_rng(0).standard_normal((n, 8)).astype(np.float32)
    both = np.concatenate([vectors, vectors * 2 + 1e-3])
    label = np.append(np.arange(n), np.arange(n))
    label[3] = 4
    part = NeighbourDisagreement(label=LABEL, k=1)
    found, facts = score(part, table(label, **{VECTORS: both}), tmp_path / "a")
    assert facts["labels"] == n
    assert found["noise"][3] == 1.0
    assert found["suggested"][3] == "3"
    assert (found["noise"] > 0).mean() < 0.01


def test_bad_input(tmp_path: Path) -> None:
    vectors, wrong, _ = planted(40, 2, 0.0)
    part = NeighbourDisagreement(label=LABEL, k=3)
    broken, names = vectors.copy(), [str(k) for k in wrong]
    broken[5] = np.nan
    found, facts = score(part, table([None, *names[1:]], **{VECTORS: broken}), tmp_path / "a")
    assert np.flatnonzero(np.isnan(found["noise"])).tolist() == [0, 5]
    assert found["proposal"].tolist()[:1] == [None]
    assert found["proposal"][5] == "keep"
    assert (facts["missing"], facts["unlabelled"]) == (1, 1)
    with pytest.raises(DataError, match="have the one label 'x'"):
        score(part, table(["x"] * 40, **{VECTORS: vectors}), tmp_path / "b")
    other = NeighbourDisagreement(label=LABEL, negative="none")
    with pytest.raises(DataError, match="no document has the label 'none'"):
        score(other, table(names, **{VECTORS: vectors}), tmp_path / "c")
    trusting = NeighbourDisagreement(label=LABEL, trusted="clean")
    for clean, message in ((pa.nulls(40), "is trusted"), (names, "true or false, not string")):
        rows = table(names, **{VECTORS: vectors, "clean": clean})
        with pytest.raises(DataError, match=message):
            score(trusting, rows, tmp_path / message)


@pytest.mark.parametrize(
    "fields",
    [
        {"k": 0}, {"probes": 0}, {"exact_up_to": -1}, {"flag_at": 2.0}, {"predicted": "p"},
        {"strategy": "intrinsic"}, {"strategy": "intrinsic", "negative": "n", "trusted": "t"},
    ],
)  # fmt: skip
def test_bad_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|needs|belong"):
        NeighbourDisagreement(label=LABEL, **fields)
