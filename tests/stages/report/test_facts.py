"""`report.json`: what it says of a small run, its schema, and what never gets into it.

python -m tests.stages.report.test_facts    write golden.json anew, after a look at what changed
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from markupsafe import Markup

from foresift.pipeline.run import Run
from foresift.stages.report import facts, page
from foresift.stages.report.contents import Contents
from foresift.stages.report.facts import plain
from tests.runs import ROOT, go
from tests.stages.report.conftest import LETTERS, recipe, write_lines

GOLDEN = Path(__file__).with_name("golden.json")
SCHEMA = ROOT / "stages" / "report" / "schema.json"
WORDS = {"score": "tests.stages.report.detectors:Words", "as": "words"}
RATED = {"score": "tests.stages.report.detectors:Rated", "as": "rated"}
TOP = {"select": "topk", "by": "letters.count", "budget": "50% rows"}
#: differs from run to run, or with versions of other packages
CHANGES = {"directory", "fingerprint", "seconds", "versions", "recipe", "documents", "cost"}


def small(out: Path) -> Run:
    """Twelve documents, one bad row, two copies, findings, noise, and words in two languages."""
    rows: list[Any] = [
        {
            "text": f"a{n} w{' w' * n}{' bad' * (n % 3 == 0)}{' und' * (n % 4 == 0)}",
            "at": f"s{n % 2}/{n}",
        }
        for n in range(11)
    ]
    rows += [rows[3], {"text": ""}, {"text": "worse, write to bob@example.org w", "at": "s2/x"}]
    data = write_lines(out / "data.jsonl", rows)
    steps = [{"dedup": "exact"}, LETTERS, WORDS, RATED, TOP, {"order": "shuffle"}]
    fields = recipe(data, steps, source="at", holdout=0)
    return go(fields | {"name": "small"}, out / "out")


def told(run: Run, other: Run | None = None) -> Any:
    """What lies beside the page."""
    return json.loads(page.write(run, other).with_name("report.json").read_text(encoding="utf-8"))


def lasting(value: Any) -> Any:
    """The same without what changes from run to run; figures to six digits."""
    if isinstance(value, dict):
        return {
            k: "…" if k in CHANGES and not isinstance(v, int) else lasting(v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [lasting(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def validate() -> Any:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).validate


def test_what_is_told_of_a_small_run(run: Run) -> None:
    assert lasting(told(run)) == json.loads(GOLDEN.read_text(encoding="utf-8")), (
        "if this is meant, run `python -m tests.stages.report.test_facts` and look at the change"
    )


def test_it_is_the_same_each_time(run: Run, tmp_path: Path) -> None:
    assert told(run) == told(run)
    assert lasting(told(small(tmp_path))) == lasting(told(run))


def test_the_schema_fits_runs_of_every_kind(
    run: Run, nasty: Run, tmp_path: Path, validate: Any
) -> None:
    validate(told(run))
    validate(told(nasty, run))
    for name, rows, steps in (
        ("one", ["only one"], []),
        ("none", ["x", "y"], [LETTERS, {"select": "where", "keep": "letters.count > 9"}]),
    ):
        data = write_lines(tmp_path / f"{name}.jsonl", [{"text": t} for t in rows])
        validate(told(go(recipe(data, steps, holdout=0), tmp_path / name)))


def test_the_schema_fits_rounds_and_evidence(tmp_path: Path, validate: Any) -> None:
    rows = [{"text": f"document {n} " + "w " * (n % 20)} for n in range(100)]
    fields = recipe(write_lines(tmp_path / "d.jsonl", rows), [])
    fields["rounds"] = {"count": 2, "steps": [LETTERS, {**TOP, "budget": "20% rows"}]}
    made = go(fields, tmp_path / "out")
    manifest = json.loads((made.path / "manifest.json").read_text())
    for arm, loss in (("selected", 3.2), ("random", 3.5)):
        found = {"line": arm, "repeat": 0, "round": 1, "token_mean": loss, "token_mean_se": None}
        found |= {"documents": 12, "tokens": 99, "trained_tokens": 1000}
        manifest["evaluations"].append(found)
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    shown = told(made)
    validate(shown)
    assert len(shown["rounds"]["rounds"]) == 2
    assert shown["evidence"]["differences"][0]["mean"] == pytest.approx(0.3)


def test_a_schema_that_forgot_something_would_be_noticed(run: Run, validate: Any) -> None:
    shown = told(run)
    for broken in (
        shown | {"more": 1},
        {k: v for k, v in shown.items() if k != "noise"},
        shown | {"overview": shown["overview"] | {"documents": "many"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validate(broken)


def test_schema_and_page_of_fields_are_current() -> None:
    spec = importlib.util.spec_from_file_location(
        "generate_report", ROOT / "docs" / "generate_report.py"
    )
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, text in generate.written().items():
        assert path.read_text(encoding="utf-8") == text, "run `python docs/generate_report.py`"
    schema = generate.schema()
    for name, about in schema["$defs"].items():
        silent = [k for k, v in about["properties"].items() if not v["description"]]
        assert not silent, f"{name}: say under the field what it is"


def test_no_path_and_no_personal_data_gets_in(nasty: Run) -> None:
    shown = told(nasty)
    del shown["recipe"]
    text = json.dumps(shown, ensure_ascii=False)
    assert str(nasty.path.parents[1]) not in text
    for secret in ("bob@example", "carol@example", "555-2671", "10.20.30.40", "4111111111111111"):
        assert secret not in text
    assert len(text) < 2_000_000


def test_a_run_that_was_moved_tells_the_same(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path.parents[1], tmp_path / "moved")
    moved = Run(tmp_path / "moved" / "runs" / run.path.name)
    assert told(moved) == told(run)


@dataclasses.dataclass(frozen=True)
class Thing:
    """Something to tell."""

    size: float
    chart: Markup
    inner: Any = dataclasses.field(metadata={"plain": False})
    pair: tuple[int, str] = (1, "b")

    @property
    def double(self) -> float:
        return 2 * self.size

    @property
    def drawn(self) -> Markup:
        raise AssertionError("charts are not told")

    @property
    def last(self) -> list[int]:
        raise AssertionError("what the fields hold is not told again")


def test_plain_values() -> None:
    thing = Thing(float("nan"), Markup("<svg/>"), object())
    assert plain([thing]) == [{"size": None, "pair": [1, "b"], "double": None}]
    found = plain({1: np.float32(0.5), "a": np.array([1, 2]), "b": np.bool_(True), "c": np.inf})
    assert found == {"1": 0.5, "a": [1, 2], "b": True, "c": None}
    assert plain(np.array([[1.5, np.nan]])) == [[1.5, None]]
    for strange in (object(), Markup("<b>"), b"x", {1, 2}):
        with pytest.raises(TypeError, match="JSON"):
            plain(strange)


def test_every_section_of_the_page_is_told(run: Run) -> None:
    contents = Contents.open(run.path)
    shown = page.sections(contents)
    assert set(facts.facts(contents, shown)) == {*shown, "schema", "run"} - facts._PAGE
    names = set(re.findall(r"parts\.(\w+)\(", (SCHEMA.parent / "page.html").read_text()))
    assert names <= {*shown, "style", "links"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        fresh = lasting(told(small(Path(folder))))
    GOLDEN.write_text(json.dumps(fresh, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.exit(0)
