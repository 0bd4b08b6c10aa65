"""What the pages say is so: links resolve, recipes plan, code runs, parts.md is current."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from foresift.pipeline.cli import app
from foresift.pipeline.nouns import FittedModelScorer, ModelScorer, Selector
from foresift.pipeline.parts import Part, only_part
from foresift.pipeline.planner import make_plan
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import Run
from tests.runs import ROOT, go

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(kind: str) -> list[Any]:
    """Every block of a kind, named by its page and its number there."""
    found = []
    for page in PAGES:
        texts = [m[2] for m in BLOCK.finditer(page.read_text(encoding="utf-8")) if m[1] == kind]
        found += [pytest.param(t, id=f"{page.stem}-{n}") for n, t in enumerate(texts)]
    return found


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.fixture
def beside_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the folders that the pages name, where outputs may be written."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_of_parts_is_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGE.read_text(encoding="utf-8") == generate.page(), (
        "a docstring changed: run `python docs/generate.py`"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_resolve(page: Path) -> None:
    links = LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
    for link in links:
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_on_the_map() -> None:
    linked = LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert {p.name for p in PAGES} - {"README.md", "index.md"} <= set(linked)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipes_plan(text: str, beside_examples: Path) -> None:
    plan = make_plan(Recipe.parse(yaml.safe_load(text), "block"), beside_examples / "out")
    assert {"read", "select"} <= {step.verb for step in plan.steps}


def commands() -> Iterator[str]:
    for block in blocks("sh"):
        for line in block.values[0].splitlines():
            if line.startswith("foresift "):
                yield line.partition("#")[0].rstrip()


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_commands_exist(line: str) -> None:
    words, command = line.split(), get_command(app)
    for word in words[1:3]:
        if isinstance(command, TyperGroup):
            command = command.commands[word]
    options = {name for o in command.params for name in (*o.opts, *o.secondary_opts)}
    for word in words:
        assert not word.startswith("--") or word in options, word
        assert not word.startswith("configs/") or (ROOT / word).exists(), word


def snippets(*, modules: bool) -> list[Any]:
    return [b for b in blocks("python") if b.values[0].startswith("# ") == modules]


@pytest.mark.parametrize("text", snippets(modules=False))
def test_python_runs(text: str, beside_examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(text, "block", "exec"), {"__name__": "block"})
    said = capsys.readouterr().out
    done = Run.open(beside_examples / "out")
    assert str(done.plan.relative_to(beside_examples)) in said
    assert str(done.manifest["accounts"]) in said


@pytest.mark.parametrize("text", snippets(modules=True))
def test_parts_work_as_written(
    text: str, beside_examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = text.split()[1].removesuffix(".py")
    (beside_examples / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(beside_examples))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    kind: type[Part] = only_part(importlib.import_module(name))
    word = f"{name}:{kind.__name__}"
    steps: list[dict[str, Any]] = [{"score": word}]
    steps += [{"select": "topk", "by": f"{kind.__name__.lower()}.utility", "budget": "10 rows"}]
    if issubclass(kind, Selector):
        steps = [{"select": word, "budget": "10 rows"}]
    fields: dict[str, Any] = {
        "data": {"read": "jsonl", "paths": ["examples/reference.jsonl"]},
        "steps": steps,
        "report": False,
    }
    if issubclass(kind, FittedModelScorer):
        fields["data"]["paths"] = ["examples/corpus/docs-0.jsonl.gz"]
        fields["datasets"] = {"aim": {"read": "jsonl", "paths": ["examples/reference.jsonl"]}}
        steps[0] |= {"reference": "aim"}
    if issubclass(kind, (ModelScorer, FittedModelScorer)):
        fields["model"] = {"init": "configs/models/tiny", "max_length": 32}
    assert go(fields, beside_examples / "out").manifest["accounts"]["kept"] == 10
