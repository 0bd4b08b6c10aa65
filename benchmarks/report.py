"""`foresift report` without a model: seconds to its page, and memory as the data grows.

    python benchmarks/report.py            10, 10,000 and 100,000 documents; memory of a million
    python benchmarks/report.py --smoke    10 and 300 documents; no goal is judged

Documents are pieces of 100 to 1,000 characters of the Pile's test domains (../shared/data), or of
random words where these are not there; for memory they are 100 characters, for what must not grow
is what is held of each. Each run starts from nothing, in two worker processes, for memory in one.
Seconds are from the command's start to its end, all four files written; the page alone is what the
command took beyond the run's steps. Seconds of processor time stand beside them, for a machine with
other work. Memory is the largest sum of resident memory over all processes, sampled every 50 ms.

Goals: the page of 100,000 documents within 60 seconds; a million documents in at most 1.5 times the
memory of 100,000.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
PILE = ROOT.parent / "shared" / "data" / "pretrain" / "pile-domains"
WORK = ROOT / "benchmarks" / "out" / "report"
SECONDS, RATIO = 60.0, 1.5
MANY, MORE = 100_000, 1_000_000


def texts() -> list[str]:
    """What documents are cut from."""
    found = [
        text
        for path in sorted(PILE.glob("*.parquet"))
        for text in pq.read_table(path, columns=["original"])["original"].to_pylist()
        if text and len(text) > 200
    ]
    if found:
        return found
    draw = random.Random(0)
    words = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "rs", "lk")]
    return [" ".join(draw.choices(words, k=600)) + "." for _ in range(2000)]


def write_input(path: Path, documents: int, least: int, most: int) -> None:
    """JSON lines of random pieces; a file that is there is kept."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draw, pool = random.Random(documents), texts()
    with open(path.with_suffix(".tmp"), "w", encoding="utf-8") as handle:
        for number in range(documents):
            text, size = draw.choice(pool), draw.randint(least, most)
            start = draw.randrange(max(1, len(text) - size))
            piece = text[start : start + size].strip() or f"number {number}"
            handle.write(json.dumps({"text": piece}) + "\n")
    path.with_suffix(".tmp").rename(path)


def measure(source: Path, workers: int) -> dict[str, Any]:
    """One report from nothing."""
    out = WORK / "run"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "foresift.pipeline.cli", "report", str(source)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    began, spent, highest = time.perf_counter(), _cpu(), 0
    with open(WORK / "output.txt", "w+b") as told:
        process = subprocess.Popen(
            [*command, "--out", str(out), "--engine", "local", "--workers", str(workers), "--json"],
            env=env, stdout=told, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        said = b""
        while process.poll() is None:
            highest = max(highest, resident(process.pid))
            said += process.stderr.read() or b""
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit((said + (process.stderr.read() or b"")).decode() or "failed")
        told.seek(0)
        summary = json.loads(told.read().splitlines()[-1])
    steps = summary["steps"]
    found = {
        "documents": summary["rows"],
        "seconds": round(seconds, 1),
        "read_and_score": round(sum(s for n, s in steps.items() if not n.startswith("dedup")), 1),
        "dedup": round(sum(s for n, s in steps.items() if n.startswith("dedup")), 1),
        "page": round(summary["seconds"] - sum(steps.values()), 1),
        "page_kb": Path(summary["report"]).stat().st_size >> 10,
        "cpu_seconds": round(_cpu() - spent, 1),
        "megabytes": round(highest / 1e6, 1),
    }
    shutil.rmtree(out)
    return found


def _cpu() -> float:
    """Processor seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident(pid: int) -> int:
    """Bytes of a process and its children."""
    total = 0
    try:
        tree = psutil.Process(pid)
        for process in (tree, *tree.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.Error:
        pass
    return total


def row(name: str, documents: int, least: int, most: int, workers: int) -> dict[str, Any]:
    source = WORK / f"{name}-{documents}.jsonl"
    write_input(source, documents, least, most)
    found = measure(source, workers)
    print(
        f"{name:8s} {documents:9,d} documents: {found['seconds']:7.1f} s (reading and scores "
        f"{found['read_and_score']:.1f}, copies {found['dedup']:.1f}, page {found['page']:.1f}), "
        f"{found['cpu_seconds']:.1f} s of CPU, "
        f"{found['megabytes']:,.0f} MB, page {found['page_kb']:,} kB",
        flush=True,
    )
    return {"name": name, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-million", action="store_true", help="leave memory's million out")
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    sizes = (10, 300) if args.smoke else (10, 10_000, MANY)
    rows = [row("ordinary", n, 100, 1000, args.workers) for n in sizes]
    goals = []
    if not args.smoke:
        goals.append(_goal("report, 100,000 documents", SECONDS, rows[-1]["seconds"]))
        if not args.no_million:
            short = [row("short", n, 100, 100, 1) for n in (MANY, MORE)]
            rows += short
            ratio = short[1]["megabytes"] / short[0]["megabytes"]
            goals.append(_goal("report, memory of ten times the documents", RATIO, ratio))
    for goal in goals:
        print(f"{goal['name']}: {goal['measured']:.2f} (goal: at most {goal['goal']})")
    print(json.dumps({"workers": args.workers, "runs": rows, "goals": goals}))


def _goal(name: str, goal: float, measured: float) -> dict[str, Any]:
    return {"name": name, "goal": goal, "measured": measured, "met": measured <= goal}


if __name__ == "__main__":
    main()
