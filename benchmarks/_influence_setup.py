"""What benchmarks/influence.py measures on: a warmed-up model, candidates of several kinds, an aim.

    model        configs/models/tiny, trained by foresift on random text of the mixed pool
                 (`_mixed_pool.py`); the optimizer's moments lie beside the weights
    candidates   documents of that pool that no training saw: first `candidates` as they come
                 ("mixed"), then more of the kinds gsm8k and domains until each has `inside`
    reference    worked solutions of the test split of gsm8k, which the pool does not hold

Everything is drawn from fixed seeds and kept under `work`, so a second run starts at once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _mixed_pool
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.gradients.adamw import AdamW, Moments, load_moments
from foresift.pipeline.lm.gradients.directional import sample
from foresift.pipeline.lm.gradients.reference import ReferenceSet, reference_set
from foresift.pipeline.lm.model import Loaded, ModelSpec, load

ROOT = Path(__file__).resolve().parents[1]
#: kinds inside which labels are compared as well
INSIDE = ("gsm8k", "domains")
#: documents on which the step is settled, as in `scorers/_influence.py`
SAMPLE = 16
TRAIN = {
    "train": "causal_lm", "length": 256, "batch_tokens": 2048, "learning_rate": 0.002,
    "schedule": "constant", "threads": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """A model at a checkpoint, and what is asked of it."""

    spec: ModelSpec
    """The model, reading as many tokens of a candidate as a label does."""
    loaded: Loaded
    rule: AdamW
    moments: Moments | None
    candidates: Encoded
    kinds: npt.NDArray[Any]
    """[n] of which part of the pool each candidate is."""
    mixed: int
    """So many candidates, from the first, are a random draw of the pool."""
    aim: ReferenceSet
    few: Encoded
    """The sample on which the step is settled: candidates evenly spaced over the draw."""

    def at(self, dtype: str) -> Setup:
        """The same with weights in another precision."""
        spec = replace(self.spec, dtype=dtype)  # type: ignore[arg-type]
        loaded = load(spec)
        return replace(self, spec=spec, loaded=loaded, moments=load_moments(spec, loaded.model))


def prepare(args: argparse.Namespace) -> Setup:
    """Write the pool, warm the model up, encode candidates and reference."""
    args.work.mkdir(parents=True, exist_ok=True)
    warm, held = _pool(args)
    spec = ModelSpec(
        init=str(_checkpoint(warm, args)), max_length=args.tokens, device="cpu", threads=1
    )
    loaded = load(spec)
    rows = _candidates(held, args)
    encoded = encode(_table(r["text"] for r in rows), loaded.tokenizer, spec)
    wide = replace(spec, max_length=256)
    texts = _solutions(args.data)[: args.reference]
    aim = reference_set(encode(_table(texts), loaded.tokenizer, wide), "token_mean", "gsm8k")
    mixed = min(args.candidates, len(rows))
    spaced = np.linspace(0, mixed - 1, min(SAMPLE, mixed)).astype(np.int64)
    return Setup(
        spec, loaded, AdamW(), load_moments(spec, loaded.model), encoded,
        np.array([r["kind"] for r in rows]), mixed, aim, sample(encoded, spaced),
    )  # fmt: skip


def _pool(args: argparse.Namespace) -> tuple[Path, list[dict[str, str]]]:
    """The file to warm up on, and the documents that are held out of it (a quarter of the pool)."""
    folder = args.work / f"pool-{args.characters}"
    if not (folder / "warm.jsonl").exists():
        _mixed_pool.write(args.data, folder, args.characters)
        lines = (folder / "pool.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        cut = 3 * len(lines) // 4
        (folder / "held.jsonl").write_text("\n".join(lines[cut:]), encoding="utf-8")
        (folder / "warm.jsonl").write_text("\n".join(lines[:cut]), encoding="utf-8")
    held = (folder / "held.jsonl").read_text(encoding="utf-8").split("\n")
    return folder / "warm.jsonl", [json.loads(line) for line in held]


def _checkpoint(warm: Path, args: argparse.Namespace) -> Path:
    """The checkpoint of the warm-up, trained by `foresift run` unless it is there."""
    out = args.work / f"warm-{args.characters}-{args.warm_tokens}"
    recipe = {
        "name": "warm", "seed": 0, "report": False,
        "data": {"read": "jsonl", "paths": [str(warm)], "text": "text", "holdout": 0},
        "model": {"init": "configs/models/tiny", "max_length": 256, "seed": 0},
        "steps": [{"select": "random", "budget": "100%"}, {**TRAIN, "tokens": args.warm_tokens}],
    }  # fmt: skip
    path = args.work / "warm.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "foresift.pipeline.cli", "run", str(path), "--out", str(out)]
    told = subprocess.run(
        [*command, "--workers", "1"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if told.returncode:
        raise SystemExit(f"the warm-up failed:\n{told.stdout[-2000:]}{told.stderr[-4000:]}")
    return max(out.glob("steps/causal_lm-*/checkpoint"), key=lambda p: p.stat().st_mtime)


def _candidates(held: list[dict[str, str]], args: argparse.Namespace) -> list[dict[str, str]]:
    """A random draw, then more of each compared kind until it has `inside` documents."""
    rows, rest = held[: args.candidates], held[args.candidates :]
    for kind in INSIDE:
        short = args.inside - sum(r["kind"] == kind for r in rows)
        rows += [r for r in rest if r["kind"] == kind][: max(0, short)]
    return rows


def _solutions(data: Path) -> list[str]:
    with gzip.open(data / "reasoning" / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["answer"] for line in file]


def _table(texts: Any) -> pa.Table:
    return pa.table({"text": list(texts)})
