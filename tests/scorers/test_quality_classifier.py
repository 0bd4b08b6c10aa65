"""Labels from references and columns, out of fold, against scikit-learn on plain counts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from sklearn.linear_model import LogisticRegression

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Reference
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import content_ids
from foresift.scorers.quality_classifier import QualityClassifier, int_score
from tests.corpora import make_corpus

GOOD = ["water", "energy", "cell", "force", "history", "because", "explains"]
BAD = ["win", "free", "click", "now", "offer", "cash", "hurry"]
BOTH = ["the", "a", "of", "to", "and", "it", "is"]


def texts(words: list[str], count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words + BOTH, 20)) + f" {seed} {k}" for k in range(count)]


def table(rows: list[str], **columns: Any) -> pa.Table:
    made = pa.table({"text": rows, **columns})
    return made.append_column("id", content_ids(made))


def test_it_learns_from_references_and_scores_the_pool(tmp_path: Path) -> None:
    sides = {"good": texts(GOOD, 60, 1), "bad": texts(BAD, 40, 2)}
    aims = tuple(Reference(n, make_corpus(tmp_path / n, [t])) for n, t in sides.items())
    part = QualityClassifier(kept="good", junk=["bad"], buckets=1 << 12)
    assert part.aims == ["good", "bad"]
    pool = table([*texts(GOOD, 30, 3), *texts(BAD, 30, 4), "", "  "])
    facts = part.fit([pool], aims, tmp_path)
    found = part.score(pool, tmp_path)
    assert facts["documents"] == {"good": 60, "junk": 40}
    assert facts["auroc"] > 0.98
    assert found["utility"][:30].min() > found["utility"][30:60].max()
    assert np.isnan(found["utility"][60:]).all()
    np.testing.assert_allclose(found["probability"], 1 / (1 + np.exp(-found["utility"])))
    assert found["grade"] == [None] * 62
    assert not found["fitted"].any()


def test_labelled_rows_are_scored_out_of_fold(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = texts(BOTH, 300, 5)  # labels that nothing in the text tells
    said = [bool(b) for b in rng.random(300) < 0.5]
    part = QualityClassifier(label="said", buckets=1 << 12, strength=1000.0)
    pool = table(rows, said=said)
    facts = part.fit([pool.slice(0, 100), pool.slice(100)], (), tmp_path)
    found = part.score(pool, tmp_path)
    assert found["fitted"].all()
    assert 0.35 < facts["auroc"] < 0.65
    assert np.mean((found["utility"] > 0) == np.array(said)) == facts["accuracy"] < 0.65
    unknown = part.score(table(texts(GOOD, 3, 9), said=[None] * 3), tmp_path)
    assert not unknown["fitted"].any()


def plain(rows: list[str], said: list[bool], buckets: int, part: QualityClassifier) -> list[float]:
    """Out-of-fold scores from dictionaries of counts."""

    def features(text: str) -> np.ndarray:
        words = [xxhash.xxh3_64_intdigest(w.encode()) for w in text.lower().split()]
        pairs = [
            ((a ^ (a >> 29)) * 0x9E3779B97F4A7C15 + b) % 2**64 for a, b in itertools.pairwise(words)
        ]
        x = np.zeros(buckets)
        for bucket, times in Counter(g % buckets for g in words + pairs).items():
            x[bucket] = math.log(1 + times)
        return x / np.linalg.norm(x)

    matrix, target = np.array([features(t) for t in rows]), np.array(said)
    ids = content_ids(pa.table({"text": rows}))
    fold = (Rng(part.seed).at("folds").uniform(ids) * part.folds).astype(int)
    found = np.zeros(len(rows))
    for k in range(part.folds):
        model = LogisticRegression(C=part.strength, class_weight="balanced", max_iter=1000)
        model.fit(matrix[fold != k], target[fold != k])
        found[fold == k] = model.decision_function(matrix[fold == k])
    return found.tolist()


def test_it_is_logistic_regression_on_plain_counts(tmp_path: Path) -> None:
    rows = texts(GOOD, 40, 1) + texts(BAD, 25, 2)
    said = [True] * 40 + [False] * 25
    part = QualityClassifier(label="said", buckets=211, folds=3)
    pool = table(rows, said=said)
    part.fit([pool], (), tmp_path)
    found = part.score(pool, tmp_path)["utility"]
    np.testing.assert_allclose(found, plain(rows, said, 211, part), atol=5e-3)


def test_neither_order_nor_copies_change_anything(tmp_path: Path) -> None:
    rows = texts(GOOD, 40, 1) + texts(BAD, 40, 2)
    pool = table(rows, said=["ham"] * 40 + ["spam"] * 40)
    part = QualityClassifier(label="said", good="ham", buckets=1 << 10)
    turned = pa.concat_tables([pool.slice(50), pool, pool.slice(0, 50)])
    found = []
    for number, given in enumerate((pool, turned)):
        out = tmp_path / str(number)
        out.mkdir()
        part.fit([given], (), out)
        found.append(part.score(pool, out)["utility"])
    np.testing.assert_array_equal(*found)
    assert found[0][:40].min() > 0 > found[0][40:].max()


def test_grades_are_numbers_and_rounded_half_to_even(tmp_path: Path) -> None:
    assert [int_score(x) for x in (-0.3, 5.7, 2.5, 3.5)] == [0, 5, 2, 4]
    rng = np.random.default_rng(0)
    share = rng.random(200)
    rows = [
        " ".join([*rng.choice(GOOD, int(40 * s) + 1), *rng.choice(BAD, 41 - int(40 * s)), str(k)])
        for k, s in enumerate(share)
    ]
    pool = table(rows, given=[5 * float(s) for s in share])
    part = QualityClassifier(label="given", kind="grade", buckets=1 << 12)
    facts = part.fit([pool], (), tmp_path)
    found = part.score(pool, tmp_path)
    assert facts["correlation"] > 0.95
    assert facts["rmse"] < 0.6
    assert found["grade"] == [int_score(u) for u in found["utility"]]
    assert np.isnan(found["probability"]).all()


def test_too_few_or_wrong_labels_are_refused(tmp_path: Path) -> None:
    part = QualityClassifier(label="said")
    with pytest.raises(DataError, match="said: 3 good documents to learn from; at least 10"):
        part.fit(
            [table(texts(GOOD, 30, 1), said=[True] * 3 + [None] * 7 + [False] * 20)], (), tmp_path
        )
    graded = QualityClassifier(label="said", kind="grade")
    with pytest.raises(DataError, match="grades are numbers"):
        graded.fit([table(["a"], said=["much"])], (), tmp_path)


@pytest.mark.parametrize(
    "fields",
    [{}, {"kept": "a"}, {"junk": "a"}, {"label": "x", "folds": 1}, {"label": "x", "strength": 0.0},
     {"kept": "a", "junk": "b", "kind": "grade"}],
)  # fmt: skip
def test_fields_without_meaning_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"kept|label|folds"):
        QualityClassifier(**fields)
