"""Size of a ledger, and the time in which it says where a document was trained on.

    python benchmarks/ledger.py              10 million exposures, about five minutes
    python benchmarks/ledger.py --smoke      100,000, seconds; no goal is judged

Two trainings are made up: one in which each exposure is of another document (nothing to gain by
compression), and one in which every document comes ten times, each time around in another order.
Ids are random bits, as hashes are; 100 shards at random, 20 exposures a step, tokens lognormal
(median 400, at most 4096). Each lies first as the log of a training that goes on (a file for every
65,536 exposures), then sealed (`ledger.parquet`).

The exposures of one document and of a thousand documents are asked for in fresh processes, page
cache warm: `start` is Python and imports, `find` the rest, `whole` the process from outside, `cpu`
what it took of the processors; the fastest of `--repeats`. What is found is compared with what was
made.
Goals: at most 200 MB (10^6 bytes) for 10 million exposures, and under a second, start included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline.ledger import BUFFER, SCHEMA, Log
from foresift.pipeline.store import ShardWriter

ROOT = Path(__file__).resolve().parents[1]
STEP, SHARDS = 20, 100
GOAL_MB, GOAL_S = 200.0, 1.0
ASK = """
import time
began = time.perf_counter()
import json, sys
from pathlib import Path
import pyarrow as pa
from foresift.pipeline.ledger import Ledger
raw = Path(sys.argv[2]).read_bytes()
ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(raw) // 16, [None, pa.py_buffer(raw)])
ready = time.perf_counter()
found = Ledger.open(Path(sys.argv[1])).find(ids)
done = time.perf_counter()
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
peak = int(status["VmHWM"].split()[0]) / 1000
print(json.dumps({"find": done - ready, "cpu": time.process_time(), "peak_mb": peak,
                  "rows": found.num_rows, "steps": sum(found["step"].to_pylist())}))
"""


def exposures(count: int, documents: int, rng: np.random.Generator) -> tuple[bytes, pa.Table]:
    """(ids of the documents, exposures in the order of their steps)."""
    ids = np.frombuffer(rng.bytes(16 * documents), dtype="V16")
    shards = rng.integers(0, SHARDS, documents).astype(np.int32)
    tokens = np.clip(rng.lognormal(6.0, 1.0, documents), 1, 4096).astype(np.int32)
    turns = [rng.permutation(documents) for _ in range(count // documents)]
    which = np.concatenate(turns)
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), count, [None, pa.py_buffer(ids[which].tobytes())]
    )
    steps = (np.arange(count) // STEP + 1).astype(np.int32)
    rest = [np.ones(count, np.int32), shards[which], steps, tokens[which]]
    return ids.tobytes(), pa.table([column, *map(pa.array, rest)], schema=SCHEMA)


def write_log(folder: Path, table: pa.Table) -> None:
    """The files that a training writes as it goes on."""
    for number, start in enumerate(range(0, table.num_rows, BUFFER)):
        with ShardWriter(folder / f"000-{number:05d}.parquet", SCHEMA, plain=["id"]) as writer:
            writer.facts.update({"attempt": 0, "after": 0})
            writer.write(table.slice(start, BUFFER))


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else list(path.iterdir())
    return sum(f.stat().st_size for f in files) / 1e6


def ask(ledger: Path, ids: Path, repeats: int) -> dict[str, float]:
    """The fastest of some fresh processes."""
    rows: list[dict[str, float]] = []
    for _ in range(repeats):
        began = time.perf_counter()
        command = [sys.executable, "-c", ASK, str(ledger), str(ids)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        whole = time.perf_counter() - began
        told = json.loads(done.stdout)
        rows.append({**told, "whole": whole, "start": whole - told["find"]})
    return min(rows, key=lambda row: row["whole"])


def measure(name: str, count: int, documents: int, work: Path, repeats: int) -> dict[str, Any]:
    """One training: sizes, and the questions."""
    rng = np.random.default_rng(0)
    ids, table = exposures(count, documents, rng)
    chosen = {1: [documents // 2], 1000: rng.choice(documents, 1000, replace=False).tolist()}
    log, sealed = work / name / "log", work / name / "ledger.parquet"
    write_log(log, table)
    found: dict[str, Any] = {"exposures": count, "documents": documents, "log_mb": megabytes(log)}
    asked = []
    for lying, path in (("log", log), ("sealed", sealed)):
        if lying == "sealed":
            began = time.perf_counter()
            Log(log, after=count // STEP).seal(sealed)
            found |= {"seal_seconds": time.perf_counter() - began, "sealed_mb": megabytes(sealed)}
        for many, places in chosen.items():
            file = work / name / "ids"
            file.write_bytes(b"".join(ids[16 * p : 16 * p + 16] for p in places))
            told = ask(path, file, repeats)
            wanted = pa.array([ids[16 * p : 16 * p + 16] for p in places], pa.binary(16))
            true = pa.compute.is_in(table["id"], wanted)
            steps = pa.compute.sum(table["step"].filter(true)).as_py()
            assert (told["rows"], told["steps"]) == (pa.compute.sum(true).as_py(), steps), "wrong"
            asked.append({"as": lying, "ids": many, **told})
    return found | {"asked": asked}


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: {found['exposures']:,} exposures of {found['documents']:,} documents")
    print(f"  log {found['log_mb']:.1f} MB, sealed {found['sealed_mb']:.1f} MB"
          f" in {found['seal_seconds']:.1f} s")  # fmt: skip
    print("  as        ids   rows found   start s   find s   whole s   cpu s   peak MB")
    for row in found["asked"]:
        print(f"  {row['as']:<8}{row['ids']:>5}{row['rows']:>13,.0f}{row['start']:>10.2f}"
              f"{row['find']:>9.2f}{row['whole']:>10.2f}{row['cpu']:>8.2f}"
              f"{row['peak_mb']:>10.0f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="100,000 exposures, one repeat")
    parser.add_argument("--exposures", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    count, repeats = (100_000, 1) if args.smoke else (args.exposures, args.repeats)
    work = ROOT / "benchmarks" / "out" / "ledger"
    shutil.rmtree(work, ignore_errors=True)
    cases = {"all different": count, "ten times around": count // 10}
    found = {n: measure(n, count, documents, work, repeats) for n, documents in cases.items()}
    for name, told in found.items():
        show(name, told)
    size = max(told["sealed_mb"] for told in found.values())
    seconds = {
        many: max(r["whole"] for t in found.values() for r in t["asked"] if r["ids"] == many)
        for many in (1, 1000)
    }
    judged = {
        f"megabytes of {count:,} exposures, sealed": (GOAL_MB, size),
        "seconds to find 1 document, start included": (GOAL_S, seconds[1]),
        "seconds to find 1,000 documents, start included": (GOAL_S, seconds[1000]),
    }
    goals = [
        {"name": name, "goal": f"under {goal:g}", "measured": round(value, 3),
         "met": None if args.smoke else value < goal}
        for name, (goal, value) in judged.items()
    ]  # fmt: skip
    shutil.rmtree(work)
    print(json.dumps({"benchmark": "ledger", "smoke": args.smoke, "found": found, "goals": goals}))


if __name__ == "__main__":
    main()
