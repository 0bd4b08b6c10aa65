"""What selections by diversity get to see that they cannot work with: an error that says where, or
a warning that the report shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.nouns import Column, Scorer
from foresift.pipeline.run import Run
from foresift.pipeline.tables import content_texts
from tests.runs import go, recipe

HERE = "tests.test_bad_choices"
ROWS = 60


@dataclass(frozen=True, kw_only=True)
class Odd(Scorer):
    """Columns in which something is wrong."""

    columns: ClassVar = {
        "vector": Column(pa.list_(pa.float32()), "direction"),
        "zeros": Column(pa.list_(pa.float32()), "direction"),
        "good": Column(pa.float64(), "number", "higher"),
        "other": Column(pa.float64(), "number", "higher"),
        "same": Column(pa.float64(), "number", "higher"),
        "gaps": Column(pa.float64(), "number", "higher"),
        "nan": Column(pa.float64(), "number", "higher"),
        "kind": Column(pa.string(), "name"),
    }

    def score(self, batch: pa.Table) -> dict[str, Any]:
        numbers = np.array([int(t.split()[0]) for t in content_texts(batch)], dtype=np.float64)
        angle = numbers * 0.7
        return {
            "vector": np.stack([np.cos(angle), np.sin(angle), numbers / 40], axis=1).tolist(),
            "zeros": [[0.0, 0.0]] * len(numbers),
            "good": np.sin(numbers),
            "other": np.cos(3 * numbers),
            "same": np.ones(len(numbers)),
            "gaps": np.where(numbers % 3 == 0, np.nan, numbers),
            "nan": np.full(len(numbers), np.nan),
            "kind": ["rare" if n < 2 else "common" for n in numbers],
        }


def run(tmp_path: Path, *steps: dict[str, Any], rows: int = ROWS, **fields: Any) -> Run:
    """Read, give the odd columns, and go on with these steps; the report is written."""
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": f"{i} " + "word " * (i % 9 + 1)}) for i in range(rows)]
    (folder / "pool.jsonl").write_text("\n".join(lines))
    data = {"read": "jsonl", "paths": [str(folder / "pool.jsonl")], "holdout": 0}
    odd = {"score": f"{HERE}:Odd", "as": "odd"}
    return go(recipe(data=data, steps=[odd, *steps], report=True, **fields), tmp_path / "out")


def page(done: Run) -> str:
    return (done.path / "report" / "index.html").read_text(encoding="utf-8")


VECTOR, ZEROS = {"embedding": "odd.vector"}, {"embedding": "odd.zeros"}
AXES = {"score": "orthogonal", "regressor": "none", "unsigned": "keep"}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"score": "clusters", **VECTOR, "clusters": 99}, "60 documents .* cannot make 99"),
        ({"score": "clusters", **ZEROS}, "odd.zeros"),
        ({"score": "density", **ZEROS}, "odd.zeros"),
        ({"score": "semantic_duplicate", **ZEROS}, "odd.zeros"),
        ({**AXES, "by": ["odd.good", "odd.same"], "axes": 1}, "odd.same"),
        ({**AXES, "by": ["odd.good", "odd.nan"], "axes": 1}, "odd.nan|document"),
        ({"score": "combined", "by": {"odd.nan": 1.0}}, "odd.nan: has no number"),
        (
            {"select": "weighted_coreset", "by": ["odd.good"], **VECTOR, "cells": 99,
             "budget": "10%"},
            "60 documents .* cannot make 99",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused_with_its_place(
    step: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        run(tmp_path, step)


def test_more_axes_than_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises((DataError, RecipeError), match=r"(?i)axes"):
        run(tmp_path, {**AXES, "by": ["odd.good", "odd.other"], "axes": 3})


def test_fewer_rows_than_axes_are_refused(tmp_path: Path) -> None:
    by = ["odd.good", "odd.other", "odd.gaps"]
    with pytest.raises(DataError, match="2 documents"):
        run(tmp_path, {**AXES, "by": by, "axes": 3}, rows=3)


def test_a_target_of_one_document_is_refused(tmp_path: Path) -> None:
    aim = tmp_path / "aim.jsonl"
    aim.write_text(json.dumps({"text": "one target"}))
    with pytest.raises(DataError, match=r"aim.*1 document"):
        run(tmp_path, {"score": "target_similarity", "reference": str(aim)})


@pytest.mark.parametrize(
    ("steps", "warning"),
    [
        ([{"score": "combined", "by": {"odd.good": 1.0, "odd.same": 1.0}}], "odd.same is the same"),
        (
            [{"select": "mixture", "by": "odd.kind", "shares": {"rare": 0.5, "common": 0.5},
              "budget": "50%"}],
            "rare",
        ),
        (
            [{"select": "cluster_quota", "clusters": "odd.kind", "quota": "equal",
              "budget": "50%"}],
            "rare",
        ),
        (
            [{"select": "per_axis_top", "axes": ["odd.good", "odd.same"], "budget": "20%"}],
            "odd.same",
        ),
    ],
)  # fmt: skip
def test_what_falls_short_is_warned_of_in_log_and_report(
    steps: list[dict[str, Any]], warning: str, tmp_path: Path
) -> None:
    done = run(tmp_path, *steps)
    told = page(done)
    assert 'class="warnings"' in told
    assert warning in told[told.index('class="warnings"') : told.index('id="funnel"')]
    assert warning in (done.path / "log.txt").read_text()


@pytest.mark.parametrize(
    "step",
    [
        {"select": "per_axis_top", "axes": ["odd.gaps", "odd.nan"]},
        {"select": "softmax_sample", "by": "odd.gaps"},
        {"select": "cluster_quota", "clusters": "odd.kind", "by": "odd.gaps"},
        {"select": "weighted_coreset", "by": ["odd.gaps"], **VECTOR},
        {"select": "quality_then_diversity", "by": ["odd.gaps"], **VECTOR, "threshold": 0.999},
        {"select": "mixture", "by": "odd.kind", "shares": "temperature", "utility": "odd.gaps"},
    ],
    ids=lambda step: str(step["select"]),
)
def test_rows_without_a_score_are_counted_and_never_kept(
    step: dict[str, Any], tmp_path: Path
) -> None:
    done = run(tmp_path, {**step, "budget": "90% rows"})
    facts = next(s["facts"] for s in done.manifest["steps"] if s["verb"] == "select")
    missing = len([i for i in range(ROWS) if i % 3 == 0])
    assert facts["reasons"]["no score"] == missing
    assert 0 < facts["kept"] <= ROWS - missing
