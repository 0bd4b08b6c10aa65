"""Middo's masks: known cuts, known cosines, planted defects, and nothing from missing numbers."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline import cells
from foresift.pipeline.errors import DataError
from foresift.pipeline.tables import content_ids
from foresift.scorers import middo
from foresift.scorers.middo import Middo, cut
from tests.scorers.planted import planted


def table(**columns: Any) -> pa.Table:
    rows = len(next(iter(columns.values())))
    texts = pa.table({"text": [f"row {i}" for i in range(rows)]})
    return pa.table({"id": content_ids(texts), **columns})


def fitted(part: Middo, rows: pa.Table, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(facts, scores)"""
    out.mkdir()
    facts = part.fit([rows.slice(0, 3), rows.slice(3)], out)
    return facts, dict(part.score(rows, out))


def test_cuts_of_the_paper() -> None:
    losses = np.array([1.0] * 8 + [2.0, 5.0])
    assert cut(losses, 1, 0) == pytest.approx({"mean": 1.5, "std": 1.204159, "cut": 2.704159})
    assert cut(losses, 1, 1) == pytest.approx({"mean": 1.5, "std": 1.269296, "cut": 2.769296})
    ratings = np.array([8.0] * 7 + [7.0, 5.0, 2.0])
    assert cut(ratings, -1, 1) == pytest.approx({"mean": 7, "std": 2, "cut": 5})


def test_a_rating_on_the_cut_is_not_low(tmp_path: Path) -> None:
    rows = table(**{"s.q": [8.0] * 7 + [7.0, 5.0, 2.0]})
    released = fitted(Middo(quality="s.q", std="released"), rows, tmp_path / "a")[1]
    assert released["low"].tolist() == [False] * 9 + [True]
    ours = fitted(Middo(quality="s.q"), rows, tmp_path / "b")  # std 1.897: the cut is 5.103
    assert ours[1]["low"].tolist() == [False] * 8 + [True] * 2
    assert ours[0]["flagged"] == {"low": 2, "both": 0, "any": 2}


def test_released_takes_the_sample_deviation_for_ratings_alone(tmp_path: Path) -> None:
    values = [1.0] * 8 + [2.0, 5.0]
    part = Middo(before="s.b", after="s.b", quality="s.b", std="released")
    facts = fitted(part, table(**{"s.b": values}), tmp_path / "a")[0]
    assert facts["cuts"]["before"]["std"] == pytest.approx(1.204159)
    assert facts["cuts"]["quality"]["std"] == pytest.approx(1.269296)


def test_m_is_honoured(tmp_path: Path) -> None:
    rows = table(**{"s.b": [1.0] * 8 + [2.0, 5.0]})
    for m, count in ((0.1, 2), (1.0, 1), (3.0, 0)):
        part = Middo(before="s.b", after="s.b", m_hard=m)
        assert fitted(part, rows, tmp_path / str(m))[0]["flagged"]["hard"] == count


def test_both_losses_must_say_so(tmp_path: Path) -> None:
    before = [1.0] * 8 + [1.0, 9.0]
    after = [1.0] * 8 + [9.0, 1.0]
    part = Middo(before="s.b", after="s.a")
    assert not fitted(part, table(**{"s.b": before, "s.a": after}), tmp_path / "a")[1]["hard"].any()


def test_cosines_to_the_two_nearest_leave_out_the_row_and_not_what_equals_it(
    tmp_path: Path,
) -> None:
    rows = table(**{"s.v": pa.array([[1.0, 0], [1, 0], [0, 1], [1, 1]], pa.list_(pa.float32()))})
    facts, found = fitted(Middo(embedding="s.v"), rows, tmp_path / "a")
    expected = [0.853553, 0.853553, 0.353553, 0.707107]
    np.testing.assert_allclose(found["density_cosine"], expected, atol=1e-6)
    assert found["sparse"].tolist() == [False, False, True, False]
    names = [i.hex() for i in rows["id"].to_pylist()]
    assert found["neighbours"][2][0] == names[3]
    assert found["neighbours"][2][1] in names[:2]
    assert found["neighbours"][0] == []
    assert found["action"] == ["keep", "keep", "keep+add", "keep"]
    assert facts["density"] == {"documents": 4, "search": "exact", "no_vector": 0}


def test_density_is_that_of_all_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((60, 5)).astype(np.float32)
    rows = table(**{"s.v": pa.array(vectors.tolist(), pa.list_(pa.float32()))})
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit.astype(np.float64) @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    for k in (1, 2, 7):
        expected = np.sort(cosines, axis=1)[:, -k:].mean(axis=1)
        found = fitted(Middo(embedding="s.v", neighbours=k), rows, tmp_path / str(k))[1]
        np.testing.assert_allclose(found["density_cosine"], expected, atol=1e-6)
        few = expected < expected.mean() - expected.std()
        assert found["sparse"].tolist() == few.tolist()
        assert [len(x) for x in found["neighbours"]] == [k if s else 0 for s in few]


def test_above_the_limit_cells_are_searched_and_the_facts_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = planted()
    rows = pa.table({"id": content_ids(data.table), "m.vector": data.table["m.vector"]})
    part = Middo(embedding="m.vector")
    exact = fitted(part, rows, tmp_path / "exact")[1]
    monkeypatch.setattr(middo, "EXACT", 100)
    facts, probed = fitted(part, rows, tmp_path / "probed")
    assert facts["density"]["search"] == f"8 nearest of {cells.cell_count(400)} cells"
    assert (probed["density_cosine"] <= exact["density_cosine"] + 1e-6).all()
    assert (probed["sparse"] == exact["sparse"]).mean() > 0.98


def test_planted_defects_are_found(tmp_path: Path) -> None:
    data = planted()
    rows = data.table.append_column("id", content_ids(data.table))
    part = Middo(before="m.before", after="m.after", embedding="m.vector", quality="m.rating")
    facts, found = fitted(part, rows.select(["id", *part.needs]), tmp_path / "a")
    # one deviation of ratings flags many that are fine; the two losses together do not
    least = {"hard": ("garbled", 0.9), "low": ("garbled", 0.4), "sparse": ("alone", 0.9)}
    for mask, (kind, precision) in least.items():
        true = data.kinds == kind
        hits = (found[mask] & true).sum()
        assert hits / true.sum() >= 0.95, f"recall of {mask}"
        assert hits / found[mask].sum() >= precision, f"precision of {mask}"
    assert not found["sparse"][data.kinds == "copy"].any()
    hard, low, sparse = (found[name] for name in ("hard", "low", "sparse"))
    assert facts["size"] == {
        "now": 400,
        "ours": 400 + sparse.sum(),
        "released": 400 - (hard | low).sum() + hard.sum() + low.sum() + sparse.sum(),
    }
    assert facts["size"]["released"] - facts["size"]["ours"] == facts["flagged"]["both"] > 0
    assert (found["utility"] == -(hard.astype(int) + low + sparse)).all()
    assert set(found["action"]) >= {"keep", "keep+add", "simplify", "improve"}
    assert facts["warnings"] == []


def test_missing_numbers_are_counted_and_poison_nothing(tmp_path: Path) -> None:
    values = [1.0] * 8 + [2.0, 5.0]
    gaps = [None, float("nan"), float("inf")]
    part = Middo(before="s.b", after="s.b", quality="s.q")
    rows = table(**{"s.b": values + gaps, "s.q": gaps + [0.0 - v for v in values]})
    facts, found = fitted(part, rows, tmp_path / "a")
    assert facts["cuts"]["before"]["cut"] == pytest.approx(2.704159)
    assert facts["missing"] == {"before": 3, "after": 3, "quality": 3}
    assert found["hard"].tolist() == [v == 5 for v in values] + [False] * 3
    assert found["low"].tolist() == [False] * 3 + [v == 5 for v in values]
    assert any("3 of 13 rows" in w for w in facts["warnings"])


@pytest.mark.parametrize("values", [[0.1] * 10, [0.7] * 3, [None] * 4, [], [2.0]])
def test_what_says_nothing_flags_nothing(values: list[Any], tmp_path: Path) -> None:
    columns = {
        "s.b": pa.array(values, pa.float64()),
        "s.v": pa.array([None if v is None else [v, v] for v in values], pa.list_(pa.float32())),
    }
    part = Middo(before="s.b", after="s.b", quality="s.b", embedding="s.v", std="released")
    facts, found = fitted(part, table(**columns), tmp_path / "a")
    for mask in ("hard", "low", "sparse"):
        assert not np.any(found[mask])
    assert len(facts["warnings"]) == (4 if len(values) > 1 else len(facts["warnings"]))


def test_too_many_flags_are_warned_of(tmp_path: Path) -> None:
    rows = table(**{"s.q": [float(i) for i in range(10)]})
    facts = fitted(Middo(quality="s.q", m_low=-1.0), rows, tmp_path / "a")[0]
    assert facts["warnings"] == ["8 of 10 rows are flagged, more than half; raise m"]


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(
        st.tuples(*[st.one_of(st.none(), st.floats(-1e6, 1e6))] * 3), min_size=1, max_size=20
    ),
    m=st.floats(-2, 2),
)
def test_masks_are_those_of_the_plain_formula(
    values: list[tuple[Any, ...]], m: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = ("s.b", "s.a", "s.q")
    columns = {n: pa.array(v, pa.float64()) for n, v in zip(names, zip(*values, strict=True),
                                                            strict=True)}  # fmt: skip
    part = Middo(before="s.b", after="s.a", quality="s.q", m_hard=m, m_low=m)
    facts, found = fitted(part, table(**columns), tmp_path_factory.mktemp("m") / "a")
    cuts = {axis: c["cut"] for axis, c in facts["cuts"].items()}
    for row, (before, after, rating) in enumerate(values):
        losses = ((before, cuts["before"]), (after, cuts["after"]))
        hard = all(v is not None and v > c for v, c in losses)
        assert found["hard"][row] == hard
        assert found["low"][row] == (rating is not None and rating < cuts["quality"])
    for axis, name in (("before", "s.b"), ("quality", "s.q")):
        there = [v for v in columns[name].to_pylist() if v is not None]
        if len(set(there)) > 1:
            sign = -1 if axis == "quality" else 1
            mean, std = np.mean(there), np.std(there)
            assert cuts[axis] == pytest.approx(mean + sign * m * std, rel=1e-9, abs=1e-6)


def test_row_order_and_copies_change_nothing(tmp_path: Path) -> None:
    data = planted(120)
    rows = data.table.append_column("id", content_ids(data.table))
    part = Middo(before="m.before", after="m.after", embedding="m.vector")
    rows = rows.select(["id", *part.needs])
    rows = pa.concat_tables([rows, rows.slice(0, 5)])
    order = np.random.default_rng(1).permutation(rows.num_rows)
    facts, found = fitted(part, rows, tmp_path / "a")
    other_facts, other = fitted(part, rows.take(pa.array(order)), tmp_path / "b")
    assert facts == other_facts
    for name in ("density_cosine", "hard", "sparse"):
        assert (other[name] == found[name][order]).all()
        assert (found[name][-5:] == found[name][:5]).all()
    assert other["neighbours"] == [found["neighbours"][i] for i in order]
    assert facts["density"]["documents"] == 120


def test_nothing_is_left_of_the_columns(tmp_path: Path) -> None:
    fitted(Middo(quality="s.q"), table(**{"s.q": [1.0, 2.0]}), tmp_path / "a")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["cuts.json"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give at least one of"),
        ({"before": "a.b"}, "come together"),
        ({"after": "a.b", "quality": "a.c"}, "come together"),
        ({"quality": "a.b", "m_low": float("nan")}, "m_low must be a number"),
        ({"embedding": "a.b", "neighbours": 0}, "at least 1"),
        ({"quality": "a.b", "std": "sample"}, "std"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Middo.parse(fields, "score middo")


def test_axes_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    for number, part in enumerate((Middo(quality="s.x"), Middo(embedding="s.x"))):
        with pytest.raises(DataError, match=r"s\.x"):
            fitted(part, table(**{"s.x": ["a", "b"]}), tmp_path / str(number))


def test_every_combination_of_axes(tmp_path: Path) -> None:
    data = planted(60)
    rows = data.table.append_column("id", content_ids(data.table))
    axes = ({"before": "m.before", "after": "m.after"}, {"embedding": "m.vector"},
            {"quality": "m.rating"})  # fmt: skip
    for number, some in enumerate(
        itertools.chain.from_iterable(itertools.combinations(axes, k) for k in (1, 2, 3))
    ):
        part = Middo(**{k: v for axis in some for k, v in axis.items()})
        facts, found = fitted(part, rows.select(["id", *part.needs]), tmp_path / str(number))
        assert set(found) == set(part.columns)
        assert ("sparse" in facts["flagged"]) == bool(part.embedding)
        assert ("low" in facts["flagged"]) == bool(part.quality)
