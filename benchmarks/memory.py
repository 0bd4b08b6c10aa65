"""Peak memory of `foresift run` as a corpus grows eightfold: it must not grow with it.

    python benchmarks/memory.py                8 and 64 shards of 32 MB, in one process
    python benchmarks/memory.py --smoke        2 and 8 shards of 4 MB; no goal is judged
    python benchmarks/memory.py --workers 2    worker processes counted too

The recipe reads JSON lines, removes exact copies, scores length, keeps 20 % of the tokens by length
and exports parquet in a shuffled order. The input is written once into benchmarks/out: random
words, 2.5 kB a document, every twentieth a copy of an earlier one. What is measured is the largest
sum of resident memory over the process and its children, sampled every 20 ms: Python and all.

What may grow is what a global decision holds: some hundred bytes a document, never its text. Goal:
eight times the shards take at most 1.1 times the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
GOAL, TIMES = 1.1, 8
RECIPE = """
name: memory
data: {{read: jsonl, paths: ["{source}"], shard_mb: {shard}}}
steps:
  - dedup: exact
  - score: length
  - {{select: topk, by: length.chars, budget: 20%}}
  - order: shuffle
  - export: parquet
report: false
"""


def write_input(folder: Path, shards: int, megabytes: int) -> None:
    """One file a shard; files that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "rs", "lk")]
    for number in range(shards):
        path = folder / f"{number:03d}.jsonl"
        if path.exists():
            continue
        draw, size, lines = random.Random(number), 0, []
        while size < (megabytes << 20) - 4000:
            copy = lines and len(lines) % 20 == 0
            text = " ".join(draw.choices(words, k=draw.randint(200, 1100)))
            lines.append(draw.choice(lines) if copy else json.dumps({"text": text}) + "\n")
            size += len(lines[-1])
        path.with_suffix(".tmp").write_text("".join(lines))
        path.with_suffix(".tmp").rename(path)


def peak(source: Path, out: Path, shard: int, workers: int) -> tuple[float, float]:
    """(MB at the highest, seconds) of one run from nothing."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    recipe = out / "recipe.yaml"
    recipe.write_text(RECIPE.format(source=source, shard=shard))
    command = [sys.executable, "-m", "foresift.pipeline.cli", "run", str(recipe)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    began, highest = time.perf_counter(), 0
    process = subprocess.Popen(
        [*command, "--out", str(out), "--engine", "local", "--workers", str(workers)],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        highest = max(highest, _resident(tree))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.stderr.read().decode() if process.stderr else "failed")
    return highest / 1e6, time.perf_counter() - began


def _resident(tree: psutil.Process) -> int:
    try:
        return sum(_bytes(p) for p in (tree, *tree.children(recursive=True)))
    except psutil.Error:
        return 0


def _bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    parser.add_argument("--shards", type=int, default=8, help="shards of the smaller corpus")
    parser.add_argument("--shard-mb", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    few, shard = (2, 4) if args.smoke else (args.shards, args.shard_mb)
    work = ROOT / "benchmarks" / "out" / "memory"
    rows = []
    for shards in (few, few * TIMES):
        source = work / f"input-{shards}x{shard}"
        write_input(source, shards, shard)
        megabytes, seconds = peak(source, work / "run", shard, args.workers)
        shutil.rmtree(work / "run")
        rows.append({"shards": shards, "megabytes": round(megabytes, 1), "seconds": seconds})
        print(
            f"{shards:4d} shards of {shard} MB: {megabytes:7.1f} MB, {seconds:6.1f} s", flush=True
        )
    ratio = rows[1]["megabytes"] / rows[0]["megabytes"]
    print(f"ratio {ratio:.3f} (goal: at most {GOAL})")
    met = None if args.smoke else ratio <= GOAL
    goal = {
        "name": f"memory, {TIMES} times the shards",
        "goal": GOAL,
        "measured": ratio,
        "met": met,
    }
    print(json.dumps({"workers": args.workers, "runs": rows, "goals": [goal]}))


if __name__ == "__main__":
    main()
