"""Wall time of `foresift run` against a hand-written pyarrow loop that does the same useful work.

    python benchmarks/overhead.py              1 GB of parquet
    python benchmarks/overhead.py --smoke      64 MB, under a minute; no goal is judged
    python benchmarks/overhead.py --mb 4096

The input is parquet with a text column (and one that nobody reads), 128 MB of text a file, written
once into benchmarks/out: real text (the sources of this Python's standard library) cut into
documents and varied by a running number, so that no two are alike.

Both sides get one process and one core (pyarrow with one thread), start Python for themselves, read
the text, hash each document (xxh3-128), score it with the same function (`length`: characters,
bytes, words, lines, estimated tokens) and write ids and five columns, a parquet file for each file:

- loop:     one pass: iter_batches -> ids, scores -> ParquetWriter. No checks, no digest of the
            input, no resume, no holdout, no counts, no plan; nothing is flushed to the disk.
- foresift: `read: parquet` in place, `score: length`: a digest of the input for the fingerprint,
            a pass that checks and hashes, a pass that scores, and a plan with a line a document.

Best of `--repeats`, alternating, page cache warm. Goal: foresift at most 1.3 times the loop.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOAL = 1.3
FILE_MB = 128
LOOP = """
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.tables import content_ids
from foresift.scorers.length import Length

pa.set_cpu_count(1)
source, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir(parents=True)
score = Length()
fields = [("id", pa.binary(16)), *((n, c.dtype) for n, c in score.columns.items())]
for path in sorted(source.glob("*.parquet")):
    with pq.ParquetWriter(out / path.name, pa.schema(fields), compression="zstd") as writer:
        for batch in pq.ParquetFile(path).iter_batches(4096, columns=["text"]):
            table = pa.Table.from_batches([batch])
            found = {name: pa.array(values) for name, values in score.score(table).items()}
            writer.write_table(pa.table({"id": content_ids(table), **found}))
"""
RECIPE = """
name: overhead
data: {{read: parquet, paths: ["{source}"], holdout: 0}}
steps: [{{score: length}}]
report: false
"""


def standard_library() -> list[str]:
    """Pieces of this Python's own modules, about 20 MB of real text."""
    import sysconfig

    texts = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in file.parts:
            text = file.read_text(encoding="utf-8", errors="replace")
            texts += [text[i : i + 2000 + 37 * (i % 91)] for i in range(0, len(text), 4000)]
    return [t for t in texts if t.strip()]


def write_input(folder: Path, megabytes: int) -> None:
    """Parquet files of FILE_MB of text each; a folder that is complete is kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (folder / "done").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    texts, number = standard_library(), 0
    for file in range(-(-megabytes // FILE_MB)):
        size, rows = 0, []
        while size < min(FILE_MB, megabytes) << 20:
            rows.append(f"document {number}\n{texts[number % len(texts)]}")
            size += len(rows[-1])
            number += 1
        table = pa.table({"text": rows, "number": list(range(len(rows)))})
        pq.write_table(table, folder / f"{file:03d}.parquet", row_group_size=8192)
    (folder / "done").touch()


def timed(command: list[str], out: Path) -> float:
    """Seconds that a command takes from its start to its end."""
    shutil.rmtree(out, ignore_errors=True)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{done.stderr}")
    return seconds


def agree(loop: Path, out: Path) -> int:
    """Documents whose ids and scores both sides have written alike; all of them, or an error."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    theirs = pa.concat_tables(pq.read_table(f) for f in sorted(loop.glob("*.parquet")))
    ours = [pq.read_table(f) for f in sorted(out.glob("steps/length-*/part-*.parquet"))]
    assert pa.concat_tables(ours).equals(theirs), "the two sides disagree"
    return int(theirs.num_rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="64 MB, one repeat")
    parser.add_argument("--mb", type=int, default=1024, help="megabytes of text")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    megabytes, repeats = (64, 1) if args.smoke else (args.mb, args.repeats)
    work = ROOT / "benchmarks" / "out" / "overhead"
    source = work / f"input-{megabytes}"
    write_input(source, megabytes)
    recipe = work / "recipe.yaml"
    recipe.write_text(RECIPE.format(source=source))
    module = [sys.executable, "-m", "foresift.pipeline.cli", "run", str(recipe)]
    sides = {
        "loop": [sys.executable, "-c", LOOP, str(source), str(work / "loop")],
        "foresift": [
            *module,
            "--out",
            str(work / "foresift"),
            "--engine",
            "local",
            "--workers",
            "1",
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, command in sides.items():
            seconds[name].append(timed(command, work / name))
    rows = agree(work / "loop", work / "foresift")
    best = {name: min(times) for name, times in seconds.items()}
    ratio = best["foresift"] / best["loop"]
    print(f"{rows:,} documents, {megabytes} MB of text; best of {repeats}")
    for name, value in best.items():
        print(f"{name:10s} {value:7.2f} s  {megabytes / value:7.1f} MB/s")
    print(f"ratio {ratio:.2f} (goal: at most {GOAL})")
    found = {name: [round(t, 3) for t in times] for name, times in seconds.items()}
    met = None if args.smoke else ratio <= GOAL
    goal = {"name": "seconds, foresift over loop", "goal": GOAL, "measured": ratio, "met": met}
    report = {"megabytes": megabytes, "documents": rows, "seconds": found, "goals": [goal]}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
