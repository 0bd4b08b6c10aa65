"""Recipes of benchmarks: run one as a user would, and look at what its steps left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parents[1]


def run(recipe: Mapping[str, Any], path: Path, out: Path) -> dict[str, Any]:
    """Write a recipe to `path`, run it with one worker and one thread; its manifest."""
    path.write_text(yaml.safe_dump(dict(recipe)))
    command = [sys.executable, "-m", "foresift.pipeline.cli", "run", str(path), "--out", str(out)]
    python = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    told = subprocess.run(
        [*command, "--workers", "1"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": python},
    )  # fmt: skip
    if told.returncode:
        raise SystemExit(f"{path.stem}:\n{told.stdout[-2000:]}{told.stderr[-4000:]}")
    lines = [line for line in told.stdout.splitlines() if line.startswith("plan ")]
    folder = Path(lines[-1].removeprefix("plan").strip()).parent
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    print(f"{path.stem}: done", file=sys.stderr, flush=True)
    return manifest


def step(manifest: Mapping[str, Any], verb: str, which: int = -1) -> dict[str, Any]:
    """One of the steps with this verb, the last by default."""
    found: dict[str, Any] = [s for s in manifest["steps"] if s["verb"] == verb][which]
    return found


def column(told: Mapping[str, Any], names: Sequence[str]) -> pa.Table:
    """Columns of everything a step wrote, in order."""
    files = sorted(Path(told["path"]).glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(f, columns=list(names)) for f in files])


def kept(manifest: Mapping[str, Any], names: Sequence[str]) -> pa.Table:
    """Columns of the rows of the (first) data set that the last `select` kept."""
    rows = np.flatnonzero(np.asarray(column(step(manifest, "select"), ["kept"])["kept"]))
    return column(step(manifest, "read", 0), names).take(pa.array(rows))
