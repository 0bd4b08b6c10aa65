"""Orthogonal: axes of scores that rows have, axes told by the text, what is refused and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.tables import content_ids
from foresift.scorers._axes import Axes
from foresift.scorers.orthogonal import Orthogonal, _features

TOPICS = ["star planet orbit moon", "flour butter oven bread", "court judge law appeal"]


def corpus(n: int = 300, seed: int = 0) -> pa.Table:
    """Documents whose share of a topic's words decides their scores, but for `j.noise`."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([0.6, 0.6, 0.6], n)
    words = [t.split() for t in TOPICS]
    texts = []
    for i, share in enumerate(shares):
        topics = rng.choice(3, rng.integers(30, 60), p=share)
        texts.append(f"doc{i} " + " ".join(str(rng.choice(words[t])) for t in topics))
    table = pa.table({"text": texts})
    stars, bread = shares[:, 0], shares[:, 1]
    return table.append_column("id", content_ids(table)).append_column(
        "j.stars", pa.array(stars)
    ).append_column("j.sky", pa.array(stars + 0.1 * rng.standard_normal(n))).append_column(
        "j.bread", pa.array(bread)
    ).append_column("j.noise", pa.array(rng.standard_normal(n)))  # fmt: skip


def part(**fields: Any) -> Orthogonal:
    given = {"by": ["j.stars", "j.sky", "j.bread"], "axes": 2, **fields}
    return Orthogonal.parse(given, "test")


def fitted(scorer: Orthogonal, table: pa.Table, out: Path, batch: int = 10_000) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return scorer.fit((table.slice(k, batch) for k in range(0, len(table), batch)), out)


def matrix(table: pa.Table, names: tuple[str, ...]) -> np.ndarray:
    return np.stack([np.asarray(table[n]) for n in names], axis=1)


def test_projects_the_scores_of_a_row_in_units_of_each_axis(tmp_path: Path) -> None:
    table, scorer = corpus(), part(regressor="none", quality=["j.stars"])
    facts = fitted(scorer, table, tmp_path)
    found = scorer.score(table, tmp_path)
    values = np.stack([found["axis_1"], found["axis_2"]], axis=1)
    by_id = table.take(pa.array(np.argsort([i.as_py() for i in table["id"]])))
    axes = Axes.fit(
        matrix(by_id, scorer.by), scorer.by, 2, quality=("j.stars",), scale="rank_gauss"
    )
    expected = axes.project(matrix(table, scorer.by)) / np.sqrt(axes.variance[:2])
    np.testing.assert_allclose(values, expected, atol=2e-5)
    np.testing.assert_allclose(np.cov(values.T, ddof=0), np.eye(2), atol=1e-5)
    assert found["best"].tolist() == (np.argmax(values, axis=1) + 1).tolist()
    assert facts["sample"] == facts["rows"] == 300
    assert facts["left_out"] == 0
    assert (np.array(facts["loadings"])[:, 0] > 0).all()
    assert sum(facts["explained"]) == pytest.approx(1)
    assert not (tmp_path / "ridge.safetensors").exists()


def test_a_row_without_a_score_has_none(tmp_path: Path) -> None:
    table = corpus(60)
    holes = [None if i == 4 else float("nan") if i == 5 else v.as_py()
             for i, v in enumerate(table["j.sky"])]  # fmt: skip
    table = table.set_column(3, "j.sky", pa.array(holes, pa.float64(), from_pandas=False))
    scorer = part(regressor="none", quality=["j.stars"])
    facts = fitted(scorer, table, tmp_path)
    found = scorer.score(table, tmp_path)
    assert facts["left_out"] == 2
    assert np.flatnonzero(np.isnan(found["axis_1"])).tolist() == [4, 5]
    assert np.flatnonzero(found["best"] == 0).tolist() == [4, 5]


def test_text_tells_axes_of_documents_that_no_judge_has_seen(tmp_path: Path) -> None:
    table = corpus(600)
    judged = np.arange(600) < 400
    holes = [pa.array(np.where(judged, np.asarray(table[n]), np.nan)) for n in part().by]
    seen = table
    for name, column in zip(part().by, holes, strict=True):
        seen = seen.set_column(seen.column_names.index(name), name, column)
    scorer = part(quality=["j.stars"])
    facts = fitted(scorer, seen, tmp_path, batch=97)
    assert (facts["sample"], facts["left_out"], facts["warnings"]) == (400, 200, [])
    assert min(facts["r2"]) > 0.7
    assert {"axes", "predicted"} == set(facts["overlap"])
    assert set(facts["overlap"]["predicted"]) == {"0.05", "0.1"}
    found = scorer.score(seen, tmp_path)
    axes = Axes.load(tmp_path)
    truth = axes.project(matrix(table, scorer.by))[400:]
    for k in range(2):
        told = found[f"axis_{k + 1}"][400:]
        assert np.corrcoef(told, truth[:, k])[0, 1] > 0.85
    again = scorer.score(seen.slice(450, 3), tmp_path)
    assert again["axis_2"].tolist() == found["axis_2"][450:453].tolist()


def test_an_axis_that_the_text_does_not_tell_is_said(tmp_path: Path) -> None:
    table = corpus(200)
    scorer = part(by=["j.stars", "j.sky", "j.noise"], axes=2, quality=["j.stars", "j.noise"])
    facts = fitted(scorer, table, tmp_path)
    assert facts["r2"][0] > 0.5 > 0.1 > facts["r2"][1]
    assert len(facts["warnings"]) == 1
    assert facts["warnings"][0].startswith("axis_2 is hardly told by the text")


def test_nothing_depends_on_rows_batches_or_copies(tmp_path: Path) -> None:
    table, scorer = corpus(120), part(quality=["j.stars"], sample=80, seed=3)
    facts = fitted(scorer, table, tmp_path / "a")
    order = np.random.default_rng(5).permutation(120)
    copies = pa.concat_tables([table.take(pa.array(order)), table.slice(0, 40)])
    other = fitted(scorer, copies, tmp_path / "b", batch=33)
    assert facts["sample"] == 80
    assert {n: v for n, v in other.items() if n != "rows"} == {
        n: v for n, v in facts.items() if n != "rows"
    }
    found = scorer.score(table, tmp_path / "a")
    for name, values in scorer.score(table, tmp_path / "b").items():
        assert values.tolist() == found[name].tolist()
    assert (
        part(sample=80, seed=4, quality=["j.stars"]).fit([table], tmp_path)["mean"]
        != (facts["mean"])
    ), "another seed draws another sample"


def test_copies_of_one_document_with_other_scores_do_not_depend_on_their_order(
    tmp_path: Path,
) -> None:
    table, scorer = corpus(50), part(regressor="none", quality=["j.stars"])
    other = table.slice(0, 9).set_column(2, "j.stars", pa.array(np.linspace(5, 6, 9)))
    first = fitted(scorer, pa.concat_tables([table, other]), tmp_path)
    last = fitted(scorer, pa.concat_tables([other, table]), tmp_path)
    assert first == last


def test_an_axis_without_a_good_end_is_refused_or_has_two(tmp_path: Path) -> None:
    table = corpus(400, seed=8)
    fields = {"by": ["j.stars", "j.sky"], "regressor": "none"}  # axis 2: (1, -1) / sqrt 2
    with pytest.raises(DataError, match=r"end of axis_2 is good: .*\+0.71 j.stars, -0.71 j.sky"):
        fitted(part(**fields), table, tmp_path)
    kept = part(**fields, unsigned="keep")
    facts = fitted(kept, table, tmp_path)
    assert facts["unsigned"] == [2]
    values = kept.score(table, tmp_path)
    both = part(**fields, unsigned="both")
    fitted(both, table, tmp_path / "both")
    ends = both.score(table, tmp_path / "both")
    np.testing.assert_array_equal(ends["axis_1"], values["axis_1"])
    np.testing.assert_array_equal(ends["axis_2"], np.abs(values["axis_2"]))
    height = [(v - v.mean()) / v.std() for v in (ends["axis_1"], ends["axis_2"])]
    np.testing.assert_array_equal(ends["best"], np.argmax(height, axis=0) + 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"by": ["a", "a"]}, "at least two columns"),
        ({"by": ["a", "b"], "axes": 3}, "number of scores, 2"),
        ({"by": ["a", "b"], "axes": 0}, "from 1"),
        ({"by": ["a", "b"], "axes": 2, "lower": ["c"]}, "lower: 'c' is not among"),
        ({"by": ["a", "b"], "axes": 2, "quality": ["c"]}, "quality: 'c' is not among"),
        ({"by": ["a", "b"], "axes": 2, "sample": 3}, "at least 20"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Orthogonal.parse(fields, "here")


def test_bad_data(tmp_path: Path) -> None:
    table = corpus(40)
    nothing = table.set_column(2, "j.stars", pa.nulls(40, pa.float64()))
    with pytest.raises(DataError, match=r"no document of 40 has all of j\.stars, j\.sky"):
        fitted(part(), nothing, tmp_path)
    flat = table.set_column(2, "j.stars", pa.array([7] * 40))
    with pytest.raises(DataError, match=r"j\.stars: the same score, 7, in all 40"):
        fitted(part(), flat, tmp_path)
    with pytest.raises(DataError, match="only 15 distinct documents"):
        fitted(part(unsigned="keep"), table.slice(0, 15), tmp_path)


def test_columns_follow_the_number_of_axes() -> None:
    assert list(Orthogonal.columns) == ["axis_1", "axis_2", "axis_3", "axis_4", "best"]
    assert list(part(axes=3).columns) == ["axis_1", "axis_2", "axis_3", "best"]


def test_documents_without_words_have_no_score(tmp_path: Path) -> None:
    table, scorer = corpus(60), part(quality=["j.stars"])
    fitted(scorer, table, tmp_path)
    odd = pa.table({"text": ["", None, " \n", "star"], "id": table["id"].slice(0, 4)})
    for name in scorer.by:
        odd = odd.append_column(name, pa.nulls(4, pa.float64()))
    found = scorer.score(odd, tmp_path)
    assert np.isnan(found["axis_1"]).tolist() == [True, True, True, False]
    assert found["best"][:3].tolist() == [0, 0, 0]
    assert found["best"][3] > 0


def test_features_count_words_and_pairs_inside_documents() -> None:
    table = pa.table({"text": ["a b", "B", None, "a"]})
    features, length = _features(table)
    np.testing.assert_allclose(length[:, 0], np.log([3, 2, 1, 2]))
    assert np.diff(features.indptr).tolist() == [3, 1, 0, 1]  # a, b and "a b"; case does not count
    product = (features @ features.T).toarray()
    np.testing.assert_allclose(product[0], [1, 1 / np.sqrt(3), 0, 1 / np.sqrt(3)])
