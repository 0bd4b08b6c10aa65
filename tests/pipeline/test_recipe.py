"""Mistakes in a recipe are found before anything runs, and say where and what was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from foresift.pipeline.errors import ForesiftError, ModelError, RecipeError
from foresift.pipeline.planner import make_plan
from foresift.pipeline.recipe import Recipe
from tests.runs import recipe


def planned(tmp_path: Path, **fields: Any) -> Any:
    return make_plan(Recipe.parse(recipe(**fields), "recipe.yaml"), tmp_path / "out")


LETTERS = {"score": "tests.parts:Letters", "as": "letters"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sead": 1}, "recipe.yaml: no field 'sead'; did you mean 'seed'?"),
        ({"name": "a/b"}, "recipe.yaml: .*name becomes a folder"),
        ({"seed": "one"}, "recipe.yaml: seed: .*got 'one'"),
        ({"steps": [{"selekt": "topk"}]}, r"steps\[0\]: .*no verb here; did you mean 'select'?"),
        ({"steps": [{"select": "topk", "order": "shuffle"}]}, r"steps\[0\]: .*2 verbs"),
        (
            {"steps": [{"select": "topq", "budget": "5%"}]},
            r"steps\[0\]: no select part 'topq'; did you mean 'topk'?",
        ),
        (
            {"steps": [LETTERS, {"select": "topk", "bye": "letters.count", "budget": "5%"}]},
            r"steps\[1\] \(select topk\): no field 'bye'; did you mean 'by'?",
        ),
        (
            {"steps": [LETTERS, {"select": "topk", "by": "letters.cuont", "budget": "5%"}]},
            r"steps\[1\] \(select topk\): no earlier step gives the column 'letters.cuont'; "
            r"did you mean 'letters.count'?",
        ),
        (
            {"steps": [LETTERS, {"select": "topk", "by": "letters.count"}]},
            r"steps\[1\] \(select topk\): needs a `budget`",
        ),
        (
            {"steps": [LETTERS, {"select": "topk", "by": "letters.count", "budget": "many"}]},
            r"steps\[1\] \(select topk\).budget: .*got 'many'",
        ),
        (
            {"steps": [LETTERS, {"select": "topk", "by": "letters.count", "budget": "5% n_tokns"}]},
            r"column 'n_tokns'; did you mean 'n_tokens'?",
        ),
        (
            {"steps": [LETTERS, {"select": "topk", "by": "letters.count", "budgett": "5%"}]},
            r"steps\[1\] \(select topk\): no field 'budgett'; did you mean 'budget'?",
        ),
        ({"steps": [{"score": "nowhere.module:Class"}]}, r"steps\[0\]: cannot load 'nowhere.mod"),
        ({"steps": [{"score": "json:JSONDecoder"}]}, r"steps\[0\]: .*is not a foresift Part"),
        ({"steps": [{"score": "loss"}]}, r"steps\[0\]: needs a model"),
        ({"steps": [LETTERS | {"data": "other"}]}, r"steps\[0\]: no data set 'other'"),
        ({"rounds": {"count": 0, "steps": []}}, "rounds: .*count must be at least 1"),
        ({"evidence": {}}, "evidence: evidence needs `rounds`"),
        ({"data": {"read": "jsonl", "paths": []}}, "data"),
        ({"data": {"read": "jsonl", "paths": ["nothing/*.jsonl"]}}, "nothing/"),
        ({"steps": [{"score": ["tests.parts:Letters"], "as": "x"}]}, "`as` names a single part"),
        (
            {"steps": [{"score": ["tests.parts:Letters"], "loss": {}}]},
            "no part 'loss' in this step",
        ),
        ({"steps": [{"select": ["topk"]}]}, "takes one part"),
    ],
)
def test_mistakes_are_located(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ForesiftError, match=message):
        planned(tmp_path, **fields)
    assert not (tmp_path / "out").exists(), "planning must not write"


def test_a_model_that_does_not_load_is_found_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing-model"):
        planned(tmp_path, model={"init": "./missing-model"}, steps=[{"score": "loss"}])


def test_not_yaml_and_not_there(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1,\nb: 2")
    with pytest.raises(RecipeError, match=r"bad\.yaml: is not YAML"):
        Recipe.read(bad)
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.read(tmp_path / "none.yaml")
    bad.write_text("- a list")
    with pytest.raises(RecipeError, match="must be a mapping"):
        Recipe.read(bad)


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe()))
    read = Recipe.read(path, ["seed=7", "steps.1.budget=30%", "model.init=configs/models/tiny"])
    assert read.seed == 7
    assert read.steps[1]["budget"] == "30%"
    assert read.model == {"init": "configs/models/tiny"}
    for wrong in ("seed", "steps.9.budget=1", "steps.x=1", "name.deeper.still=1", "seed=[1"):
        with pytest.raises(RecipeError, match=r"seed|steps|name"):
            Recipe.read(path, [wrong])


def test_planning_is_stable_and_reads_nothing(tmp_path: Path) -> None:
    first, second = planned(tmp_path), planned(tmp_path)
    assert [s.path for s in first.steps] == [s.path for s in second.steps]
    assert first.fingerprint == second.fingerprint
    assert not (tmp_path / "out").exists()
    assert [s.reads for s in first.steps][-2] == ("letters.count", "n_tokens")


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    original = Recipe.parse(recipe(seed=3), "r")
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(original.raw()))
    assert Recipe.read(path) == original
