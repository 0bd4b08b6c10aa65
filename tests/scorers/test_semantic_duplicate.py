"""SemDeDup: the chain as released and greedy, blocks against single rows, cells against all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.scorers import _pairs
from foresift.scorers.semantic_duplicate import SemanticDuplicate
from tests.scorers.fitting import groups, score, unit, vectors

CHAIN = np.radians([0, 10, 20, 90])
ROWS = np.stack([np.cos(CHAIN), np.sin(CHAIN)], axis=1).astype(np.float32)


def plain(rows: npt.NDArray[Any], eps: float | None = None) -> npt.NDArray[np.float64]:
    """M of each row, one by one; with eps only kept rows are compared with."""
    wide, found, kept = rows.astype(np.float64), np.zeros(len(rows)), []
    for j in range(len(rows)):
        earlier = range(j) if eps is None else kept
        found[j] = max([0.0, *(float(wide[i] @ wide[j]) for i in earlier)])
        if eps is None or found[j] <= 1 - eps:
            kept.append(j)
    return found


def test_the_chain_of_the_paper() -> None:
    released = _pairs.before(ROWS)
    assert released == pytest.approx([0, 0.984808, 0.984808, 0.342020], abs=1e-6)
    assert _pairs.duplicate(released, 0.02).tolist() == [False, True, True, False]
    greedy = _pairs.kept(ROWS, 0.02)
    assert greedy == pytest.approx([0, 0.984808, 0.939693, 0.342020], abs=1e-6)
    assert _pairs.duplicate(greedy, 0.02).tolist() == [False, True, False, False]


def test_the_threshold_is_strict_and_nan_is_no_duplicate() -> None:
    near = np.array([0.5, np.nextafter(0.5, 1), 1.0, np.nan])
    assert _pairs.duplicate(near, 0.5).tolist() == [False, True, True, False]
    assert not _pairs.duplicate(near, 0.0).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 4), st.integers(1, 9))
def test_blocks_give_what_one_row_after_another_gives(
    seed: int, n: int, width: int, block: int
) -> None:
    rows = unit(np.random.default_rng(seed).standard_normal((n, width))).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pairs, "BLOCK", block)
        assert _pairs.before(rows) == pytest.approx(plain(rows), abs=1e-6)
        # between two cosines, so that rounding decides nothing
        cosines = np.unique(np.round(rows.astype(np.float64) @ rows.T.astype(np.float64), 5))
        middles = (cosines[1:] + cosines[:-1]) / 2
        apart = np.diff(cosines) > 1e-4
        for threshold in middles[apart & (middles > 0)][:3]:
            eps = 1 - float(threshold)
            assert _pairs.kept(rows, eps) == pytest.approx(plain(rows, eps), abs=1e-6)
        labels = np.random.default_rng(seed).integers(0, 3, (n, 2))
        full, near = _pairs.within(rows, labels)
    assert full == pytest.approx(plain(rows), abs=1e-6)
    for j in range(n):
        shared = [i for i in range(j) if (labels[i] == labels[j]).any()]
        best = max([0.0, *(float(rows[i] @ rows[j]) for i in shared)])
        assert near[j] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(("keep", "turn"), [("hard", 1), ("easy", -1)])
def test_in_one_cell_it_is_the_whole_matrix_in_the_order_of_the_centroid(
    keep: Any, turn: int, tmp_path: Path
) -> None:
    rows, _ = groups(6, 20, spread=0.3)
    part = SemanticDuplicate(clusters=1, keep=keep, eps=0.1)
    found, facts = score(part, vectors(rows), tmp_path / "a")
    centroid = unit(unit(rows).sum(axis=0, keepdims=True))[0]
    order = np.argsort(turn * (unit(rows) @ centroid))
    assert found["similarity"][order] == pytest.approx(plain(unit(rows)[order]), abs=1e-5)
    assert found["utility"].tolist() == (-found["similarity"]).tolist()
    assert found["duplicate"].tolist() == (found["similarity"].astype(float) > 0.9).tolist()
    assert facts["recall"] == 1.0
    assert facts["duplicates"] == found["duplicate"].sum() > 0
    assert facts["share_at"]["0.1"] == facts["share"] == facts["duplicates"] / 120
    assert list(facts["share_at"].values()) == sorted(facts["share_at"].values())


@pytest.mark.parametrize("rule", ["released", "greedy"])
@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
def test_of_each_tight_group_one_stays(keep: Any, rule: Any, tmp_path: Path) -> None:
    rows, group = groups(12, 9, spread=0.01)
    part = SemanticDuplicate(clusters=4, keep=keep, rule=rule, seed=2)
    found, facts = score(part, vectors(rows), tmp_path / "a")
    assert sorted(group[~found["duplicate"].astype(bool)].tolist()) == list(range(12))
    assert facts["recall"] == 1.0
    assert ("share_at" in facts) == (rule == "released")


def test_random_keeps_others_with_another_seed(tmp_path: Path) -> None:
    rows, _ = groups(12, 9, spread=0.01)
    kept = []
    for seed in (0, 1):
        part = SemanticDuplicate(clusters=1, keep="random", seed=seed)
        found, _ = score(part, vectors(rows), tmp_path / str(seed))
        kept.append(np.flatnonzero(found["similarity"] < 0.9).tolist())
    assert kept[0] != kept[1]


def test_copies_row_order_and_batches_change_nothing(tmp_path: Path) -> None:
    rows, _ = groups(9, 12, spread=0.2)
    part = SemanticDuplicate(eps=0.1, restarts=2)
    once, facts = score(part, vectors(rows), tmp_path / "a")
    order = np.random.default_rng(0).permutation(np.append(np.arange(108), [7] * 30))
    twice, said = score(part, vectors(rows[order], order), tmp_path / "b", pieces=5)
    assert twice["similarity"].tolist() == once["similarity"][order].tolist()
    assert said == facts
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["by_id"]


def test_restarts_find_more_and_recall_is_the_share_of_what_one_cell_finds(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((400, 3))
    found = {}
    for restarts in (1, 3):
        part = SemanticDuplicate(clusters=80, restarts=restarts, eps=0.01, checked=400)
        found[restarts] = score(part, vectors(rows), tmp_path / str(restarts))
    (one, few), (three, more) = found[1], found[3]
    assert few["recall"] < 0.95 < more["recall"]
    assert any("ask for fewer `clusters` or more `restarts`" in said for said in few["warnings"])
    assert more["warnings"] == []
    assert (three["similarity"] >= one["similarity"]).all()
    # all documents were checked: both say how many duplicates there are without cells
    whole = few["duplicates"] / few["recall"]
    assert whole == pytest.approx(more["duplicates"] / more["recall"])


@pytest.mark.parametrize("seed", range(4))
def test_no_pair_loses_both_sides_when_partitions_disagree(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((200, 32))
    rows = np.concatenate([first, first + 0.1 * rng.standard_normal((200, 32))])
    part = SemanticDuplicate(clusters=80, restarts=4, eps=0.05, seed=seed)
    gone = score(part, vectors(rows), tmp_path / "a")[0]["duplicate"].astype(bool)
    assert gone.sum() > 190
    assert not (gone[:200] & gone[200:]).any()


def test_a_large_cell_is_clustered_again_and_not_cut(tmp_path: Path) -> None:
    rows, group = groups(10, 30, spread=0.02)
    crowd = rows + 4 * np.ones(16, dtype=np.float32)
    part = SemanticDuplicate(clusters=2, largest_cell=60, eps=0.005)
    found, facts = score(part, vectors(crowd), tmp_path / "a")
    assert facts["largest_cell"] <= 60
    assert facts["cells"] > 4
    assert facts["recall"] > 0.99
    kept = group[~found["duplicate"].astype(bool)]
    assert set(kept.tolist()) == set(range(10))
    assert len(kept) < 15


def test_equal_vectors_are_one_cell_whatever_its_size(tmp_path: Path) -> None:
    part = SemanticDuplicate(clusters=3, largest_cell=10)
    found, facts = score(part, vectors(np.ones((50, 4))), tmp_path / "a")
    assert found["similarity"].tolist() == pytest.approx([0.0] + [1.0] * 49)
    assert facts["largest_cell"] == 50
    assert any("could not be clustered further" in said for said in facts["warnings"])


def test_bad_input(tmp_path: Path) -> None:
    rows, _ = groups(3, 10)
    rows[4] = np.nan
    found, facts = score(SemanticDuplicate(checked=0), vectors(rows), tmp_path / "a")
    assert np.flatnonzero(np.isnan(found["utility"])).tolist() == [4]
    assert "recall" not in facts
    scored = SemanticDuplicate(checked=0).score(vectors(rows), tmp_path / "a")
    assert scored["duplicate"].to_pylist()[4] is None
    lonely, facts = score(SemanticDuplicate(), vectors(np.eye(6)), tmp_path / "b")
    assert facts["recall"] is None
    assert lonely["similarity"].tolist() == [0] * 6
    with pytest.raises(DataError, match="cannot make 50 clusters"):
        score(SemanticDuplicate(clusters=50), vectors(rows), tmp_path / "c")
    for fields, message in (
        ({"eps": 1.5}, "eps"), ({"eps": -0.1}, "eps"), ({"restarts": 0}, "restarts"),
        ({"largest_cell": 1}, "largest_cell"), ({"clusters": -1}, "clusters"),
        ({"restarts": 2, "rule": "greedy"}, "fewer clusters"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            SemanticDuplicate(**fields)
