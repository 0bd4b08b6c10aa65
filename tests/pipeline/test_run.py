"""A rerun does nothing; a change recomputes what depends on it; every row is accounted for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.diff import compare
from foresift.pipeline.errors import DataError, StoreError
from foresift.pipeline.nouns import Column
from foresift.pipeline.planner import make_plan
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import Run
from foresift.pipeline.store import StepDir
from tests import parts
from tests.runs import files, go, recipe, stages

STEPS: list[dict[str, Any]] = [
    {"score": "tests.parts:Letters", "as": "letters"},
    {"score": "tests.parts:Centred", "as": "centred"},
    {"select": "where", "keep": "letters.count > 3"},
    {"select": "topk", "by": "centred.chars", "budget": "20%"},
    {"order": "shuffle"},
]


def changed(tmp_path: Path, **fields: Any) -> set[str]:
    """The parts of the directories that a second run with other fields adds."""
    go(recipe(steps=STEPS), tmp_path)
    before = stages(tmp_path)
    go(recipe(**{"steps": STEPS} | fields), tmp_path)
    return {name.rpartition("-")[0] for name in stages(tmp_path) - before}


def edit(position: int, **fields: Any) -> list[dict[str, Any]]:
    return [s | fields if i == position else s for i, s in enumerate(STEPS)]


def test_a_rerun_does_nothing(tmp_path: Path) -> None:
    first = go(recipe(steps=STEPS), tmp_path)
    before = files(tmp_path)
    second = go(recipe(steps=STEPS), tmp_path)
    assert files(tmp_path) == before
    assert not any(s["cached"] for s in first.manifest["steps"])
    assert all(s["cached"] for s in second.manifest["steps"])
    assert second.path != first.path


def test_two_runs_elsewhere_write_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        go(recipe(steps=STEPS), tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize(
    ("fields", "recomputed"),
    [
        ({"steps": edit(0, letter="1")}, {"parts", "where", "topk", "shuffle"}),
        ({"steps": edit(0, seconds=0.001)}, set()),  # tuning changes no numbers
        ({"steps": edit(2, keep="letters.count > 4")}, {"where", "topk", "shuffle"}),
        ({"steps": edit(3, budget="30%")}, {"topk", "shuffle"}),
        ({"seed": 1}, {"where", "topk", "shuffle"}),
        ({"name": "other"}, set()),
        (
            {"data": {"read": "tests.parts:Texts", "rows": 41}},
            {"parts", "where", "topk", "shuffle"},
        ),
    ],
)
def test_a_change_recomputes_what_depends_on_it(
    tmp_path: Path, fields: dict[str, Any], recomputed: set[str]
) -> None:
    assert changed(tmp_path, **fields) == recomputed


def test_a_raised_version_recomputes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(recipe(steps=STEPS), tmp_path)
    before = stages(tmp_path)
    monkeypatch.setattr(parts.Centred, "version", 2)
    go(recipe(steps=STEPS), tmp_path)
    assert {n.rpartition("-")[0] for n in stages(tmp_path) - before} == {"parts", "topk", "shuffle"}


def test_a_deleted_directory_is_redone(tmp_path: Path) -> None:
    done = go(recipe(steps=STEPS), tmp_path)
    before = files(tmp_path)
    step = Path(done.manifest["steps"][2]["path"])
    shutil.rmtree(step)
    again = go(recipe(steps=STEPS), tmp_path)
    assert files(tmp_path) == before
    assert [s["cached"] for s in again.manifest["steps"]].count(False) == 1


def test_every_row_is_in_the_plan_with_a_reason(tmp_path: Path) -> None:
    done = go(recipe(steps=STEPS), tmp_path)
    table = pq.read_table(done.plan).to_pandas()
    accounts = done.manifest["accounts"]
    assert len(table) == accounts["rows"] == 160
    assert accounts["rows_in"] == accounts["kept"] + accounts["dropped"] + accounts["rejected"]
    assert sum(accounts["dropped_by_reason"].values()) == accounts["dropped"]
    assert table["reason"].notna().all()
    reasons = set(table["reason"])
    assert {"holdout", "within budget", "over budget", "not (letters.count > 3)"} <= reasons
    kept = table[table["kept"]]
    assert sorted(kept["position"]) == list(range(len(kept)))
    assert (kept["reason"] == "within budget").all()
    assert set(kept["id"].map(bytes.hex)).isdisjoint(
        table[table["reason"] == "holdout"]["id"].map(bytes.hex)
    )


def test_the_budget_is_kept_to_within_one_document(tmp_path: Path) -> None:
    facts = go(recipe(steps=STEPS), tmp_path).manifest["steps"][4]["facts"]
    assert facts["limit"] <= facts["kept_tokens"] < facts["limit"] + 100


def test_a_budget_larger_than_what_is_left_takes_all_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = go(recipe(steps=edit(3, budget="1B tokens")), tmp_path)
    facts = done.manifest["steps"][4]["facts"]
    assert facts["short"] is True
    assert facts["kept"] == facts["rows"]
    assert "cannot be filled" in caplog.text
    assert "cannot be filled" in (done.path / "log.txt").read_text()


def test_nan_scores_are_counted_and_never_selected(tmp_path: Path) -> None:
    steps = [
        {"score": "tests.parts:Wrong", "as": "wrong"},
        {"select": "topk", "by": "wrong.some", "budget": "100%"},
    ]
    done = go(recipe(steps=steps), tmp_path)
    facts = done.manifest["steps"][1]["facts"]
    assert facts["nan"]["nan"] == facts["alive"]
    assert 0 < facts["nan"]["some"] < facts["alive"]
    assert facts["nan"]["same"] == 0
    corpus = make_plan(Recipe.parse(recipe(steps=steps), "r"), tmp_path).lines[0].views["data"]
    scores = np.asarray(corpus.table(["wrong.some"])[0]["wrong.some"])
    assert len(scores)
    assert not np.isnan(scores).any()


def test_all_identical_scores(tmp_path: Path) -> None:
    steps = [
        {"score": "tests.parts:Wrong", "as": "wrong"},
        {"select": "topk", "by": "wrong.same", "budget": "10 rows"},
    ]
    done = go(recipe(steps=steps), tmp_path)
    assert done.manifest["accounts"]["kept"] == 10


def test_scores_share_a_pass_only_within_their_step(tmp_path: Path) -> None:
    fields = recipe(
        data={"read": "tests.parts:Texts", "shards": 2, "rows": 4, "pretend_bytes": 1},
        model={"init": "configs/models/tiny", "max_length": 16},
        steps=[
            {"score": ["loss", "uncertainty"]},
            {"score": "excess_loss", "against": "loss.nll"},  # the same rows, the same model
        ],
    )
    done = go(fields, tmp_path)
    cached = {s["name"]: s["cached"] for s in done.manifest["steps"]}
    assert not any(cached.values())
    view = make_plan(Recipe.parse(fields, "r"), tmp_path).lines[0].views["data"]
    found = np.asarray(view.table(["excess_loss.utility"])[0]["excess_loss.utility"])
    assert len(found)
    assert np.allclose(found, 0, atol=1e-6)  # a loss less itself


def test_rounds_consume_their_pool(tmp_path: Path) -> None:
    fields = recipe(
        steps=STEPS[:1],
        rounds={
            "count": 3,
            "steps": [
                {"select": "random", "budget": "20 rows"},
                {"order": "sorted", "by": "letters.count"},
            ],
        },
    )
    done = go(fields, tmp_path)
    table = pq.read_table(done.plan).to_pandas()
    assert done.manifest["accounts"]["kept_by_round"] == {"1": 20, "2": 20, "3": 20}
    for _, chosen in table[table["kept"]].groupby("round"):
        assert sorted(chosen["position"]) == list(range(20))
    fields["rounds"]["consume"] = False
    again = go(fields, tmp_path)
    assert again.manifest["accounts"]["kept"] < 60  # the same draws may come back


def test_scores_of_rows_that_are_not_alive_are_null(tmp_path: Path) -> None:
    steps = [STEPS[0], STEPS[2], STEPS[1]]
    done = go(recipe(steps=steps), tmp_path)
    where, centred = (Path(s["path"]) for s in done.manifest["steps"][2:4])
    for shard in StepDir(where).shards():
        kept = pq.read_table(shard)["kept"].to_pylist()
        scored = pq.read_table(centred / shard.name)["chars"].to_pylist()
        assert [s is not None for s in scored] == kept


def test_a_sidecar_of_other_rows_is_refused(tmp_path: Path) -> None:
    done = go(recipe(steps=STEPS[:1]), tmp_path)
    base, letters = (Path(s["path"]) for s in done.manifest["steps"])
    (letters / "part-00000.parquet").write_bytes((letters / "part-00001.parquet").read_bytes())
    with pytest.raises(StoreError, match="are not those of"):
        go(recipe(steps=[*STEPS[:1], STEPS[2]]), tmp_path)
    assert base.exists()


def test_the_run_directory_is_runnable(tmp_path: Path) -> None:
    done = go(recipe(steps=STEPS), tmp_path)
    plan = make_plan(Recipe.read(done.path / "recipe.yaml"), tmp_path)
    assert all(s.done for s in plan.steps)
    assert Run.open(tmp_path).path == done.path
    with pytest.raises(DataError, match="no finished run"):
        Run.open(tmp_path / "steps")


def test_diff_names_what_entered_left_and_moved(tmp_path: Path) -> None:
    before = go(recipe(steps=STEPS), tmp_path)
    after = go(recipe(steps=edit(3, budget="30%")), tmp_path)
    found = compare(before.plan, after.plan)
    kept = before.manifest["accounts"]["kept"]
    assert found.counts() == {
        "entered": after.manifest["accounts"]["kept"] - kept,
        "left": 0,
        "moved": 0,
        "same": kept,
    }
    assert set(found.entered["reason_before"]) == {"over budget"}
    back = compare(after.plan, before.plan)
    assert len(back.left) == len(found.entered)
    turned = go(recipe(steps=[*STEPS[:4], {"order": "sorted", "by": "centred.chars"}]), tmp_path)
    assert compare(before.plan, turned.plan).counts()["moved"] > 0


def test_the_manifest_is_written_last(tmp_path: Path) -> None:
    done = go(recipe(), tmp_path)
    manifest = json.loads((done.path / "manifest.json").read_text())
    assert manifest["versions"]["foresift"]
    assert {"recipe.yaml", "plan.parquet", "log.txt", "manifest.json"} == {
        p.name for p in done.path.iterdir()
    }


class Liar(parts.Letters):
    """Declares a column that it does not give."""

    columns: ClassVar[dict[str, Column]] = {
        **parts.Letters.columns,
        "more": parts.Letters.columns["count"],
    }


def test_a_part_that_does_not_keep_its_word_is_our_defect(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="declares"):
        go(recipe(steps=[{"score": "tests.pipeline.test_run:Liar"}]), tmp_path)
