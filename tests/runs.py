"""Helpers for tests that run recipes, here or in another process, and compare what they left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from foresift.pipeline.engines.local import LocalEngine
from foresift.pipeline.planner import make_plan
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import Run, run

ROOT = Path(__file__).resolve().parents[1]


def recipe(**fields: Any) -> dict[str, Any]:
    """A small recipe that reads, scores, selects and orders; fields replace its own."""
    base: dict[str, Any] = {
        "name": "test",
        "data": {"read": "tests.parts:Texts"},
        "steps": [
            {"score": "tests.parts:Letters", "as": "letters"},
            {"select": "topk", "by": "letters.count", "budget": "20%"},
            {"order": "shuffle"},
        ],
        "report": False,
    }
    return base | fields


def go(fields: dict[str, Any], out: Path, engine: Any = None) -> Run:
    """Run a recipe in this process."""
    chosen = engine or LocalEngine(1)
    try:
        return run(make_plan(Recipe.parse(fields, "recipe"), out), chosen)
    finally:
        if engine is None:
            chosen.close()


def start(fields: dict[str, Any], out: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start `foresift run` as a user would, in a process of its own; it writes `output.txt`."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    command = [sys.executable, "-m", "foresift.pipeline.cli", "run", str(path), "--out", str(out)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(out / "output.txt", "wb") as output:
        return subprocess.Popen(
            [*command, *options],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def files(out: Path) -> dict[str, bytes]:
    """Every file of every step directory, by its path below `steps/`; temporary ones apart."""
    root = out / "steps"
    found = (p for p in sorted(root.rglob("*")) if p.is_file() and not p.name.endswith(".tmp"))
    return {str(p.relative_to(root)): p.read_bytes() for p in found}


def stages(out: Path) -> set[str]:
    """The step directories that are there."""
    return {p.parent.name for p in (out / "steps").glob("*/stage.json")}
