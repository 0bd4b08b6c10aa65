"""The command line as a user meets it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from foresift.pipeline.cli import app
from foresift.pipeline.parts import VERBS, find, names
from foresift.pipeline.run import Run
from tests.runs import recipe

runner = CliRunner()


def call(*arguments: str, code: int = 0) -> str:
    result = runner.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def written(tmp_path: Path) -> tuple[str, str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe()))
    return str(path), str(tmp_path / "out")


def test_run_ends_with_one_json_object(written: tuple[str, str]) -> None:
    path, out = written
    last = call("run", path, "--out", out, "--json").strip().splitlines()[-1]
    told = json.loads(last)
    assert told["kept"] > 0
    assert told["rows"] == 160
    assert Run.open(told["run"]).manifest["accounts"]["kept"] == told["kept"]


def test_plan_tells_what_is_cached_and_what_it_costs(written: tuple[str, str]) -> None:
    path, out = written
    assert "4 to do, 0 cached" in call("plan", path, "--out", out)
    call("run", path, "--out", out)
    assert "0 to do, 4 cached" in call("plan", path, "--out", out)
    again = call("plan", path, "steps.1.budget=40%", "--out", out)
    assert "2 to do, 2 cached" in again
    assert "columns" in again


def test_a_model_pass_is_estimated_from_parameters_and_tokens(tmp_path: Path) -> None:
    from foresift.pipeline.estimate import costs, count_parameters
    from foresift.pipeline.lm.model import ModelSpec
    from foresift.pipeline.recipe import Recipe

    text = tmp_path / "a.jsonl"
    text.write_text(json.dumps({"text": "x" * 3986}) + "\n")  # 4,000 bytes with its braces
    fields = {
        "data": {"read": "jsonl", "paths": [str(text)]},
        "model": {"init": "configs/models/tiny"},
        "steps": [{"score": "loss"}, {"train": "causal_lm", "tokens": "10k"}],
    }
    plan = Recipe.parse(fields, "r").plan(tmp_path / "out")
    told = {step.verb: costs(plan)[step.path] for step in plan.steps}
    parameters = count_parameters(ModelSpec(init="configs/models/tiny"))
    assert parameters == 1_066_112
    assert str(told["read"]) == "4 kB"
    assert str(told["score"]) == f"{2 * parameters * 1000 / 1e9:.3g} GFLOP"
    assert str(told["train"]) == f"{6 * parameters * 10_000 / 1e9:.3g} GFLOP"


def test_parts_lists_all_and_explains_one() -> None:
    listed = call("parts")
    for verb in VERBS:
        for name in names(verb):
            assert name in listed
    explained = call("parts", "gumbel_topk")
    for field in dataclasses.fields(find("select", "gumbel_topk")):
        assert field.name in explained
    assert "did you mean 'minhash'" in call("parts", "minhsh", code=2)


def test_show_a_run_and_one_document(written: tuple[str, str]) -> None:
    path, out = written
    call("run", path, "--out", out)
    assert "160 rows in" in call("show", out)
    first = pq.read_table(Run.open(out).plan, columns=["id"])["id"][0].as_py().hex()
    told = call("show", out, "--id", first[:16])
    assert "reason" in told
    assert "1 copies" in told
    assert "no document" in call("show", out, "--id", "zz", code=2)
    assert "no finished run" in call("show", path, code=2)


def test_diff_counts_and_gives_reasons(written: tuple[str, str]) -> None:
    path, out = written
    call("run", path, "--out", out)
    call("run", path, "steps.1.budget=40%", "--out", out)
    runs = sorted(str(p) for p in (Path(out) / "runs").iterdir())
    first, second = sorted(runs, key=lambda p: Run.open(p).manifest["accounts"]["kept"])
    told = " ".join(call("diff", first, second, "--limit", "3").split())
    assert "0 left" in told
    assert "over budget -> within budget" in told


def test_unknown_engine(written: tuple[str, str]) -> None:
    path, out = written
    told = call("run", path, "--out", out, "--engine", "rya", code=2)
    assert "did you mean 'ray'" in told


def test_help_teaches() -> None:
    for command in ("run", "plan", "parts", "show", "diff"):
        assert len(call(command, "--help")) > 300
