"""`foresift report`: a page about any data, by an ordinary run that is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from foresift.pipeline import reporting
from foresift.pipeline.any_data import Found, Wish
from foresift.pipeline.cli import app
from foresift.pipeline.parts import names
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import Run
from tests.runs import ROOT

runner = CliRunner()
BESIDE = {"index.html", "report.json", "README.md", "croissant.json"}


def call(*arguments: str, code: int = 0) -> str:
    result = runner.invoke(app, ["report", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def told(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def write(path: Path, *texts: str, **more: str) -> str:
    path.write_text("".join(json.dumps({"body": t, **more}) + "\n" for t in texts))
    return str(path)


TEXTS = [f"This is the document number {n}, and it says nothing else. Thank you." for n in range(9)]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """A report on nine documents, one of them twice, with personal data in one."""
    out = tmp_path_factory.mktemp("reported")
    mine = [
        *TEXTS,
        TEXTS[0],
        "Write to bob.miller@company.org about the <script>1</script> matter.",
    ]
    data = write(out / "mine.jsonl", *mine)
    return data, out / "out", told(call(data, "--out", str(out / "out"), "--json"))


def test_a_page_and_what_lies_beside_it(reported: tuple[str, Path, dict[str, Any]]) -> None:
    data, _, found = reported
    page = Path(found["report"])
    assert {p.name for p in page.parent.iterdir()} == BESIDE
    assert {Path(p).name for p in found["beside"]} == BESIDE - {"index.html"}
    assert (found["rows"], found["rejected"]) == (11, 0)
    assert found["said"] == [f"{data}: 1 file of jsonl; text is 'body'"]
    for path in page.parent.iterdir():
        assert "bob.miller" not in path.read_text(encoding="utf-8"), path


def test_the_run_is_an_ordinary_one(reported: tuple[str, Path, dict[str, Any]]) -> None:
    _, _, found = reported
    manifest = Run.open(found["run"]).manifest
    steps = [s["name"] for s in manifest["steps"]]
    assert steps[0] == "jsonl"
    assert steps[-1] == "minhash"
    assert {"length", "surface", "pii", "secrets", "junk"} <= set(steps)
    assert not {"temporal_leak", "loss"} & set(steps)
    assert manifest["accounts"]["dropped_by_reason"]["exact copy"] == 1
    resolved = Recipe.read(Path(found["run"]) / "recipe.yaml")
    assert [s.path.name for s in resolved.plan(found["run"]).steps] == [
        Path(s["path"]).name for s in manifest["steps"]
    ]


def test_a_second_call_computes_nothing(reported: tuple[str, Path, dict[str, Any]]) -> None:
    data, out, found = reported
    again = told(call(data, "--out", str(out), "--json"))
    assert again["run"] != found["run"]
    assert all(s["cached"] for s in Run.open(again["run"]).manifest["steps"])


def test_the_page_of_a_run_is_written_again(reported: tuple[str, Path, dict[str, Any]]) -> None:
    _, out, found = reported
    page = Path(found["report"])
    before = page.read_text(encoding="utf-8")
    for path in page.parent.iterdir():
        path.unlink()
    again = told(call(found["run"], "--license", "CC0-1.0", "--json"))
    assert again["run"] == found["run"]
    assert page.read_text(encoding="utf-8") == before
    assert "license: cc0-1.0" in (page.parent / "README.md").read_text()
    latest = told(call(str(out), "--json"))
    assert Path(latest["run"]) == max((out / "runs").iterdir())


def test_another_set_goes_through_the_same_steps(
    reported: tuple[str, Path, dict[str, Any]], tmp_path: Path
) -> None:
    data, out, _ = reported
    other = write(tmp_path / "other.jsonl", *TEXTS[:3], "and a new one, which is short")
    found = told(call(data, "--compare", other, "--out", str(out), "--json"))
    compared = json.loads((Path(found["report"]).parent / "report.json").read_text())["compare"]
    assert (compared["ours"]["documents"], compared["theirs"]["documents"]) == (11, 4)
    assert compared["overlaps"][0]["both"] == 3
    assert not compared["only_ours"]
    assert not compared["only_theirs"]
    run = found["run"]
    against = told(call(run, "--compare", run, "--json"))
    assert against["run"] == run


def test_a_set_without_the_declared_licences_takes_its_own_steps(tmp_path: Path) -> None:
    mine = write(tmp_path / "a.jsonl", *TEXTS, license="MIT")
    other = write(tmp_path / "b.jsonl", *TEXTS)
    found = told(call(mine, "--compare", other, "--out", str(tmp_path / "out"), "--json"))
    assert any("no column 'license'" in said for said in found["said"])
    recipe = yaml.safe_load((Path(found["run"]) / "recipe.yaml").read_text())
    assert recipe["data"]["columns"] == ["license"]
    assert recipe["steps"][0]["licence"] == {"declared": "license"}


def test_a_model_adds_its_scores(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", *TEXTS)
    out = str(tmp_path / "out")
    found = told(call(data, "--model", "configs/models/tiny", "--out", out, "--json"))
    steps = [s["name"] for s in Run.open(found["run"]).manifest["steps"]]
    assert steps[-4:] == ["loss", "uncertainty", "embedding", "minhash"]


def test_a_sample_is_drawn_by_id_and_said(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", *(f"the document {n} of many" for n in range(60)))
    found = told(call(data, "--sample", "20", "--out", str(tmp_path / "out"), "--json"))
    run = Run.open(found["run"])
    assert run.manifest["accounts"]["rows"] == 60
    scored = next(s for s in run.manifest["steps"] if s["name"] == "length")
    assert scored["facts"]["alive"] == 20
    card = (Path(found["report"]).parent / "README.md").read_text()
    assert "Detectors looked at 20 documents" in card


def test_bad_rows_are_told_and_not_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a good one"}\nbroken\n{"text": null}\n[1]\n')
    found = told(call(str(path), "--out", str(tmp_path / "out"), "--json"))
    assert (found["rows"], found["rejected"]) == (1, 3)
    card = (Path(found["report"]).parent / "README.md").read_text()
    assert "3 rows could not be read" in card
    said = call(str(path), "--out", str(tmp_path / "out"))
    assert re.search(r"1 document, about \d tokens, 3 bad rows", said)
    assert said.count(" bad: ") == 3
    assert "1 bad: text is null, not a string" in said


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.png", b"\x89PNG\0", "binary"),
        ("a.txt", b"\n \n", "no document"),
        ("a.jsonl", b'{"text": null, "body": "b"}\n{"text": ""}\n', None),
    ],
)
def test_nothing_to_report_on_is_an_error(
    name: str, raw: bytes, said: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(raw)
    options = ["--text", "text"] if said is None else []
    result = runner.invoke(
        app, ["report", str(tmp_path / name), *options, "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 2
    assert (said or "were rejected") in result.stderr.replace("\n", " ")


def test_scores_are_those_that_exist_and_fit() -> None:
    plain = Found({"read": "jsonl", "paths": ["a"], "text": "text"})
    pairs = Found({"read": "jsonl", "paths": ["a"], "prompt": "p", "response": "r"})
    assert set(reporting.scores_of(plain)) <= set(names("score"))
    assert "arithmetic" not in reporting.scores_of(plain)
    differ = set(reporting.scores_of(pairs)) ^ set(reporting.scores_of(plain))
    assert differ == {"arithmetic", "heuristics"}


def test_the_recipe_that_ships_is_the_one_that_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = reporting.look(["examples/corpus"], Wish())
    built = Recipe.parse(reporting.recipe(found, reporting.Asked(["examples/corpus"])), "built")
    shipped = Recipe.read("configs/report.yaml").raw()
    assert {**built.raw(), "name": "report"} == shipped
