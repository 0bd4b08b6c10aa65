"""The house: folders mapped and linked, one part a file, light imports, small files."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import foresift
from foresift.pipeline.parts import VERBS, Part, names, only_part

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = ("pipeline", "scorers", "stages", "configs")


def tracked(pattern: str) -> list[Path]:
    """Files under version control; of an unpacked archive, all that are not hidden or built."""
    listed = subprocess.run(
        ["git", "ls-files", pattern], cwd=ROOT, text=True, capture_output=True, check=False
    )
    if listed.returncode == 0:
        return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    found = ROOT.rglob(Path(pattern).name)
    skipped = (".", "build", "out")
    return [f for f in found if not any(p.startswith(skipped) for p in f.relative_to(ROOT).parts)]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("foresift", *(p for p in parts if p != "__init__")))


def modules(*folders: str) -> list[str]:
    """The importable names of all modules below some root folders."""
    return sorted(
        module_name(f)
        for folder in folders
        for f in (ROOT / folder).rglob("*.py")
        if (f.parent / "__init__.py").exists()
    )


def test_every_package_is_listed() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    found = {
        module_name(f)
        for folder in FOLDERS
        for f in tracked("*__init__.py")
        if f.relative_to(ROOT).parts[0] == folder
    }
    assert set(setuptools["packages"]) == found | {"foresift"}
    mapped = {f"foresift.{folder}": folder for folder in FOLDERS} | {"foresift": "foresift"}
    assert setuptools["package-dir"] == mapped


def test_every_folder_with_python_is_a_package() -> None:
    for folder in FOLDERS:
        for file in tracked("*.py"):
            if file.relative_to(ROOT).parts[0] == folder:
                assert (file.parent / "__init__.py").exists(), file


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_link_resolves(folder: str) -> None:
    link = ROOT / "foresift" / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../{folder}"
    assert link.resolve() == ROOT / folder


def test_data_files_are_packaged() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    for package, folder in (("foresift.configs", "configs"), ("foresift.stages.report", "")):
        base = ROOT / (folder or "stages/report")
        packed = {f for pattern in patterns[package] for f in base.glob(pattern)}
        kinds = {".yaml", ".json", ".html"}
        there = {f for f in tracked(f"{base.relative_to(ROOT)}/*") if f.suffix in kinds}
        assert there <= packed, sorted(map(str, there - packed))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_not_imported_under_its_bare_name(folder: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {folder}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], text=True, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert f"ImportError: import it as foresift.{folder}" in done.stderr


def test_the_public_names() -> None:
    assert foresift.__version__ == PROJECT["project"]["version"]
    for name in foresift.__all__:
        assert hasattr(foresift, name)
    assert list(foresift.__all__) == sorted(foresift.__all__)


def test_the_changelog_names_the_version_or_what_is_unreleased() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"[{foresift.__version__}]" in text or "[Unreleased]" in text


@pytest.mark.parametrize(
    ("folders", "absent"),
    [
        (
            ("scorers", "pipeline", "stages/selectors", "stages/orders"),
            ("ray", "faiss", "datasets"),
        ),
        (("stages",), ("ray", "faiss")),
    ],
    ids=["scorers and the core", "stages"],
)
def test_importing_pulls_in_nothing_heavy(folders: tuple[str, ...], absent: Sequence[str]) -> None:
    light = [m for m in modules(*folders) if not m.endswith("engines.ray")]
    code = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [h for h in {absent!r} if h in sys.modules]\n"
        "    assert not loaded, f'{name} imports {loaded}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import sys, foresift.pipeline.cli, foresift.pipeline.planner, foresift.pipeline.run\n"
        "assert not {'torch', 'transformers', 'ray'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_public_module_of_a_verb_defines_one_part(verb: str) -> None:
    assert names(verb), f"no part for {verb}"
    for name in names(verb):
        part = only_part(importlib.import_module(f"{VERBS[verb]}.{name}"))
        assert part.__name__.lower() == name.replace("_", ""), f"{part.__name__} in {name}.py"


@pytest.mark.parametrize("verb", VERBS)
def test_helpers_define_no_concrete_part(verb: str) -> None:
    folder = ROOT / VERBS[verb].removeprefix("foresift.").replace(".", "/")
    for file in sorted(folder.glob("_[!_]*.py")):
        module = importlib.import_module(module_name(file))
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Part):
                own = kind.__module__ == module.__name__
                assert not own or inspect.isabstract(kind), f"{kind.__name__} in {file.name}"


def test_files_stay_small() -> None:
    sizes = {f.relative_to(ROOT): len(f.read_bytes().splitlines()) for f in tracked("*.py")}
    assert len(sizes) > 100
    caps = {"scorers": 300}
    over = {str(f): n for f, n in sizes.items() if n > caps.get(f.parts[0], 400)}
    assert not over


def test_functions_stay_small() -> None:
    over = {}
    for file in tracked("*.py"):
        if file.relative_to(ROOT).parts[0] in FOLDERS:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and node.end_lineno:
                    lines = node.end_lineno - node.lineno + 1
                    if lines > 60:
                        over[f"{file.name}:{node.name}"] = lines
    assert not over


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda f: f.stem)
def test_every_benchmark_has_a_smoke_run(file: Path) -> None:
    if file.stem.startswith("_"):
        pytest.skip("a helper of the benchmarks, not one of them")
    text = file.read_text(encoding="utf-8")
    assert '"--smoke"' in text
    assert ast.get_docstring(ast.parse(text)), f"{file.name} does not say what it measures"


def test_nothing_is_left_undone() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError")
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in tracked("*.py")
        if file.relative_to(ROOT).parts[0] in FOLDERS
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line)
    ]
    assert not found
