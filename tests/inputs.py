"""Small jsonl inputs, recipes over them, and `foresift run` as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from typer.testing import CliRunner

from foresift.pipeline.cli import app
from foresift.pipeline.run import Run
from tests.runs import ROOT

LENGTH = {"score": "length"}
TOPK = {"select": "topk", "by": "length.chars", "budget": "50% rows"}
WORDS = [a + b + "word" for a in "bcdfghkl" for b in ("a", "e", "i", "o", "u", "ai", "ou")]


def texts(rows: int = 30, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(5, 40))) for _ in range(rows)]


def write(path: Path, rows: list[Any]) -> Path:
    """A jsonl file; a row that is bytes already is written as it is."""
    lines = [r if isinstance(r, bytes) else json.dumps({"text": r}).encode() for r in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def recipe(*paths: Path | str, steps: Any = (LENGTH, TOPK), **fields: Any) -> dict[str, Any]:
    """A recipe over jsonl files; `data` adds to the reader's fields, the rest to the recipe's."""
    data = {"read": "jsonl", "paths": [str(p) for p in paths], "holdout": 0.0}
    data |= fields.pop("data", {})
    return {"name": "bad", "data": data, "steps": list(steps), "report": False} | fields


def refused(tmp_path: Path, fields: dict[str, Any], *options: str) -> str:
    """What `foresift run` says, having refused the recipe with exit code 2 and one line."""
    code, said = run(tmp_path, fields, *options)
    assert code == 2, said
    last = said.strip().splitlines()[-1]
    assert last.split(" ", 1)[0] in {"RecipeError", "DataError", "ModelError", "StoreError"}
    assert "Traceback" not in said
    return said.strip()


def run(tmp_path: Path, fields: dict[str, Any], *options: str) -> tuple[int, str]:
    """Exit code and stderr of `foresift run`, in this process."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    command = ["run", str(path), "--out", str(tmp_path / "out"), "--engine", "local", *options]
    result = CliRunner().invoke(app, [*command, "--workers", "1"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def nothing_done(tmp_path: Path) -> bool:
    return not (tmp_path / "out").exists()


def command(tmp_path: Path, fields: dict[str, Any], *options: str) -> list[str]:
    """The command line that runs a recipe in a process of its own."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    module = [sys.executable, "-m", "foresift.pipeline.cli", "run"]
    return [*module, str(path), "--out", str(tmp_path / "out"), *options]


def process(
    tmp_path: Path, fields: dict[str, Any], before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """`foresift run` in a process of its own."""
    return subprocess.run(
        command(tmp_path, fields, "--workers", "1"), cwd=ROOT, text=True, capture_output=True,
        timeout=120, preexec_fn=before,
    )  # fmt: skip


def rejects(done: Run) -> list[dict[str, Any]]:
    """The rejects of a run's read step."""
    path = Path(done.manifest["steps"][0]["path"]) / "rejects.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
