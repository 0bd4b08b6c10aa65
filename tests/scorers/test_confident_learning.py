"""Confident learning flags what a plain reading of its definition flags, and copies alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.engines.local import LocalEngine
from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import rows_by_reason
from foresift.pipeline.planner import make_plan
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.rng import Rng
from foresift.pipeline.run import run
from foresift.pipeline.tables import content_ids
from foresift.scorers import _label_confident as confident
from foresift.scorers._label_confident import Probabilities
from foresift.scorers._label_folds import WordFeatures, folds_of, out_of_fold
from foresift.scorers._label_samples import Samples
from foresift.scorers.confident_learning import MOST, ConfidentLearning
from tests.runs import ROOT
from tests.scorers.fitting import score
from tests.scorers.labelled import LABEL, planted, sentences, table

P8 = np.array(
    [(0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.2, 0.8),
     (0.1, 0.9), (0.3, 0.7), (0.6, 0.4), (0.05, 0.95)]
)  # fmt: skip
Y8 = np.array([0, 0, 0, 0, 1, 1, 1, 1])


def held(p: npt.ArrayLike, y: npt.ArrayLike) -> Probabilities:
    label = np.asarray(y, dtype=np.int64)
    return Probabilities(np.asarray(p, dtype=np.float64), np.arange(len(label)), label)


def flags(p: Probabilities, rule: Any) -> list[int]:
    found = confident.flagged(p, confident.joint(p), rule, confident.qualities(p))
    return np.flatnonzero(found).tolist()


def dense(found: confident.Joint, width: int, calibrated: bool) -> list[list[int]]:
    whole = np.zeros((width, width), dtype=int)
    whole[found.given, found.true] = found.calibrated if calibrated else found.counts
    return whole.tolist()


def test_the_known_answer() -> None:
    p = held(P8, Y8)
    joint = confident.joint(p)
    assert joint.thresholds == pytest.approx([0.65, 0.7375])
    assert dense(joint, 2, False) == [[3, 1], [0, 2]]
    assert dense(joint, 2, True) == [[3, 1], [0, 4]]
    assert flags(p, "prune_by_noise_rate") == [3]
    assert flags(p, "predicted_neq_given") == [3, 6]
    for rule in ("prune_by_class", "both", "confident_learning", "low_self_confidence"):
        assert flags(p, rule) == [3]
    found = confident.qualities(p)
    expected = [0.9, 0.8, 0.7, 0.2, 0.9, 0.7, 0.4, 0.95]
    assert found["normalised_margin"] == pytest.approx(expected)
    rate, low, high = confident.noise_rate(joint, Y8, 2, Rng(0))
    assert rate == pytest.approx(1 / 8)
    assert 0 <= low < rate < high


def test_known_weighted_entropies() -> None:
    found = confident.qualities(held([(0.9, 0.1), (0.5, 0.5), (0.1, 0.9), (1, 0)], [0, 0, 0, 0]))
    expected = [0.8049, 0.5493, 0.3707, 1.0]
    assert found["confidence_weighted_entropy"] == pytest.approx(expected, abs=5e-5)


def plain(p: np.ndarray, y: np.ndarray, rule: str) -> tuple[list[list[float]], list[int]]:
    """The scaled joint, not rounded, and the flags, written as the definition reads."""
    n, width = p.shape
    t = [max(np.mean(p[y == k, k]), 2e-6) if (y == k).any() else 2.0 for k in range(width)]
    joint, guess = np.zeros((width, width)), []
    for i in range(n):
        sure = [k for k in range(width) if p[i, k] >= t[k] - 1e-6]
        guess.append(None if not sure else sure[0] if len(sure) == 1 else int(p[i].argmax()))
        if sure:
            joint[y[i], guess[i]] += 1
    for k in range(width):
        joint[k, k] = max(joint[k, k], 1)
    for k in range(width):
        joint[k] *= (y == k).sum() / joint[k].sum()
    joint *= n / joint.sum()
    marked = set()
    for i in range(n):
        if rule == "confident_learning" and guess[i] not in (None, y[i]):
            marked.add(i)
        if rule == "predicted_neq_given" and p[i].argmax() != y[i]:
            marked.add(i)
    bumped = p.copy()
    bumped[np.arange(n), y] += 1e-6
    return joint.tolist(), [i for i in sorted(marked) if bumped[i].argmax() != y[i]]


def random_set(seed: int, n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.dirichlet(np.ones(width), n)
    return values, rng.integers(0, width, n)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 80), st.integers(2, 6))
def test_joint_and_flags_are_those_of_the_definition(seed: int, n: int, width: int) -> None:
    values, y = random_set(seed, n, width)
    p = held(values, y)
    found = confident.joint(p)
    for rule in ("confident_learning", "predicted_neq_given"):
        joint, marked = plain(values, y, rule)
        assert flags(p, rule) == marked
    calibrated = np.array(dense(found, width, True))
    assert np.abs(calibrated - joint).max() <= 1
    assert calibrated.sum(axis=1).tolist() == np.bincount(y, minlength=width).tolist()
    by_rate, by_class = (set(flags(p, f"prune_by_{x}")) for x in ("noise_rate", "class"))
    assert set(flags(p, "both")) == by_rate & by_class
    for k in range(width):
        mine = [i for i in by_rate if y[i] == k]
        assert len(mine) <= calibrated[k].sum() - calibrated[k, k] or len(mine) == 0
    rate = confident.noise_rate(found, y, width, Rng(1))[0]
    assert rate == pytest.approx(1 - np.trace(np.array(joint)) / n, abs=1e-9)


def test_prune_takes_the_largest_margins_and_blocks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, y = random_set(3, 300, 4)
    p = held(values, y)
    found, whole = confident.joint(p), flags(p, "prune_by_noise_rate")
    counts, expected = np.array(dense(found, 4, True)), set()
    for a in range(4):
        mine = np.flatnonzero(y == a)
        for b in set(range(4)) - {a}:
            margin = values[mine, b] - values[mine, a]
            expected |= set(mine[np.argsort(-margin, kind="stable")[: counts[a, b]]].tolist())
    assert whole == sorted(i for i in expected if not found.holds[i])
    scores = confident.qualities(p)
    monkeypatch.setattr(confident, "BLOCK_BYTES", 8 * 4 * 7)
    assert flags(p, "prune_by_noise_rate") == whole
    for name, values_ in confident.qualities(p).items():
        assert values_ == pytest.approx(scores[name], abs=1e-12)


def test_folds_never_see_their_own_label(tmp_path: Path) -> None:
    vectors, given_, _ = planted(300, 3, 0.2)
    rows = table(given_, v=vectors)
    samples = Samples.of(rows, LABEL)
    rng = Rng(0)
    found = out_of_fold(vectors[samples.rows], samples, 4, 1.0, rng)
    fold = folds_of(samples.ids, 4, rng)
    mine = fold == 2
    other = given_.copy()
    other[np.asarray(samples.rows)[mine]] = 0  # other labels in the fold change nothing there
    again = out_of_fold(vectors, Samples.of(table(other, v=vectors), LABEL), 4, 1.0, rng)
    assert again.values[mine].tolist() == found.values[mine].tolist()
    assert (again.values[~mine] != found.values[~mine]).any()


@pytest.mark.parametrize("features", ["words", "v"])
def test_planted_errors_are_found_and_mended(features: str, tmp_path: Path) -> None:
    vectors, wrong, true = planted(400, 3, 0.15)
    rows = table(wrong, v=vectors)
    if features == "words":
        rows = rows.append_column("text", pa.array(sentences(true)))
    found, facts = score(ConfidentLearning(label=LABEL, features=features), rows, tmp_path / "a")
    bad = wrong != true
    assert found["noise"][bad].mean() > 0.7
    assert found["noise"][~bad].mean() < 0.3
    told = found["proposal"] != "keep"
    assert (told & bad).sum() / told.sum() > 0.8
    assert (told & bad).sum() / bad.sum() > 0.8
    mended = found["proposal"] == "re_annotate"
    assert (found["suggested"][mended] == true[mended].astype(str)).mean() > 0.9
    assert facts["noise_rate_low"] < bad.mean() < facts["noise_rate_high"] + 0.05
    assert facts["proposals"]["keep"] == (~told).sum()
    assert found["utility"] == pytest.approx(1 - found["noise"])
    reasons = [[f["reason"] for f in row] for row in found["findings"]]
    assert reasons == [["label_noise"] if t else [] for t in told]


def test_copies_and_order_of_rows_change_nothing(tmp_path: Path) -> None:
    vectors, wrong, _ = planted(120, 3, 0.2)
    part = ConfidentLearning(label=LABEL, features="v")
    once, _ = score(part, table(wrong, v=vectors), tmp_path / "a")
    order = np.random.default_rng(1).permutation(np.append(np.arange(120), [4, 4, 9]))
    twice, facts = score(part, table(wrong[order], order, v=vectors[order]), tmp_path / "b", 4)
    for name in ("noise", "quality", "proposal", "suggested"):
        assert twice[name].tolist() == once[name][order].tolist()
    assert facts["documents"] == 120


def test_a_document_with_two_labels_is_two_samples(tmp_path: Path) -> None:
    vectors, wrong, true = planted(90, 3, 0.0)
    numbers, rows = np.append(np.arange(90), 5), np.append(np.arange(90), 5)
    other = np.append(wrong, (true[5] + 1) % 3)
    part = ConfidentLearning(label=LABEL, features="v")
    found, facts = score(part, table(other, numbers, v=vectors[rows]), tmp_path / "a")
    assert found["noise"][90] > 0.9 > 0.3 > found["noise"][5]
    assert facts["several"] == 1
    assert any("more than one label" in said for said in facts["warnings"])


def test_given_probabilities_in_an_order_of_their_own(tmp_path: Path) -> None:
    names = np.array(["no", "yes"])[Y8]
    part = ConfidentLearning(label=LABEL, probabilities="p", quality="normalised_margin")
    found, facts = score(part, table(names, p=P8), tmp_path / "a")
    assert found["noise"] == pytest.approx([0.1, 0.2, 0.3, 0.8, 0.1, 0.3, 0.6, 0.05])
    assert found["proposal"].tolist() == ["keep"] * 3 + ["re_annotate"] + ["keep"] * 4
    assert found["suggested"][3] == "yes"
    assert facts["transition"] == {"no": {"no": 1.0}, "yes": {"no": 0.2, "yes": 0.8}}
    turned = ConfidentLearning(label=LABEL, probabilities="p", classes=("yes", "no", "maybe"))
    wide = np.concatenate([P8[:, ::-1], np.zeros((8, 1))], axis=1)
    again, _ = score(turned, table(names, p=wide), tmp_path / "b")
    assert again["proposal"].tolist() == found["proposal"].tolist()
    never = ConfidentLearning(label=LABEL, probabilities="p", re_annotate_at=None)
    assert score(never, table(names, p=P8), tmp_path / "c")[0]["proposal"][3] == "eliminate"


def test_bad_probabilities(tmp_path: Path) -> None:
    part = ConfidentLearning(label=LABEL, probabilities="p")
    bad = P8.copy()
    bad[2] = np.nan
    found, facts = score(part, table(Y8, p=bad), tmp_path / "a")
    assert np.flatnonzero(np.isnan(found["noise"])).tolist() == [2]
    assert found["proposal"][2] == "keep"
    assert any("1 rows have nothing to judge them by in p" in w for w in facts["warnings"])
    with pytest.raises(DataError, match="p: 1 of 8 rows are no probabilities"):
        score(
            part, table(Y8, p=np.where(np.arange(16).reshape(8, 2) == 2, 0.5, P8)), tmp_path / "b"
        )
    with pytest.raises(DataError, match="2 probabilities a row for 8 labels; name"):
        score(part, table(np.arange(8), p=P8), tmp_path / "c")
    narrow = ConfidentLearning(label=LABEL, probabilities="p", classes=(0, 2))
    with pytest.raises(DataError, match="labels that `classes` does not name: '1'"):
        score(narrow, table(Y8, p=P8), tmp_path / "d")


def test_labels_that_cannot_be_judged(tmp_path: Path) -> None:
    vectors, wrong, _ = planted(60, 2, 0.0)
    names: list[str | None] = [f"class {k}" for k in wrong]
    names[0], names[1], vectors[2] = None, "alone", np.nan
    part = ConfidentLearning(label=LABEL, features="v")
    found, facts = score(part, table(names, v=vectors), tmp_path / "a")
    assert np.flatnonzero(np.isnan(found["noise"])).tolist() == [0, 1, 2]
    assert found["proposal"].tolist()[:4] == [None, "keep", "keep", "keep"]
    said = " ".join(facts["warnings"])
    assert "1 rows have no label" in said
    assert "labels of one document, which nothing supports: 'alone'" in said
    assert "1 of 58 labels are not judged" in said
    with pytest.raises(DataError, match="have the one label 'x'"):
        score(part, table(["x"] * 60, v=vectors), tmp_path / "b")
    with pytest.raises(DataError, match="have no label"):
        score(part, table(pa.nulls(60, pa.string()), v=vectors), tmp_path / "c")
    with pytest.raises(DataError, match="no label has documents in two folds"):
        score(part, table(np.arange(60), v=vectors), tmp_path / "d")


def test_more_folds_than_documents_and_very_many_labels(tmp_path: Path) -> None:
    vectors, wrong, _ = planted(12, 2, 0.0)
    part = ConfidentLearning(label=LABEL, features="v", folds=50)
    _, facts = score(part, table(wrong, v=vectors), tmp_path / "a")
    assert facts["folds"] == 12
    assert "12 documents make 12 folds at most, not 50" in facts["warnings"][0]
    many = np.arange(2 * (MOST + 1)) % (MOST + 1)
    wide = np.random.default_rng(0).standard_normal((len(many), 2))
    with pytest.raises(DataError, match="1001 labels are too many for a logistic regression"):
        score(part, table(many, v=wide), tmp_path / "b")
    sharp = np.eye(MOST + 1, dtype=np.float32)[many]
    sharp[0] = np.roll(sharp[0], 1)
    given_ = ConfidentLearning(label=LABEL, probabilities="p", filter="confident_learning")
    found, facts = score(given_, table(many, p=sharp), tmp_path / "c")
    assert np.flatnonzero(found["proposal"] != "keep").tolist() == [0]
    assert facts["labels"] == MOST + 1


def test_words_of_a_text_are_counted_once_and_empty_texts_are_kept(tmp_path: Path) -> None:
    texts = [*sentences([0, 1] * 20), "", " \n "]
    rows = pa.table({"text": texts, LABEL: [0, 1] * 21})
    rows = rows.append_column("id", content_ids(rows))
    found, facts = score(ConfidentLearning(label=LABEL), rows, tmp_path / "a", 3)
    assert np.flatnonzero(np.isnan(found["noise"])).tolist() == [40, 41]
    assert any("2 rows have nothing to judge them by in the text" in w for w in facts["warnings"])
    words = WordFeatures()
    list(words.reading([rows.slice(0, 7), rows.slice(7)]))
    features = words.of(np.arange(42)).toarray()
    assert np.linalg.norm(features[:40], axis=1) == pytest.approx(1, abs=1e-6)
    assert not features[40:].any()


def test_the_recipe_keeps_the_rows_whose_proposal_is_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recipe = Recipe.read(ROOT / "configs" / "labels.yaml", ["report=false"])
    done = run(make_plan(recipe, tmp_path), LocalEngine(1), lambda *_: None)
    steps = {s["name"]: s for s in done.manifest["steps"]}
    told = steps["confident_learning"]["facts"]["proposals"]
    assert told["re_annotate"] + told["eliminate"] > 0
    assert done.manifest["accounts"]["kept"] == told["keep"] > 1000
    columns = pq.read_table(Path(steps["confident_learning"]["path"]) / "part-00000.parquet")
    assert rows_by_reason(columns["findings"]) == {
        "label_noise": told["re_annotate"] + told["eliminate"]
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"folds": 1}, "folds"), ({"c": 0.0}, "c must"), ({"classes": (1, 2)}, "classes name"),
        ({"classes": (1, "1"), "probabilities": "p"}, "distinct"),
        ({"re_annotate_at": 1.5}, "between 0 and 1"),
    ],
)  # fmt: skip
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfidentLearning(label=LABEL, **fields)
