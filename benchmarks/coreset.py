"""Coresets of a million vectors, and facility location against apricot 0.6.1.

    python benchmarks/coreset.py                1,000,000 and 250,000 x 384; 50,000 against peers
    python benchmarks/coreset.py --smoke        10,000 vectors; apricot only if it is installed

1. `weighted_coreset` chooses 10,000 of 1,000,000 vectors inside 512 cells, in a process of its own
   with the vectors in a memory-mapped file; again of a quarter of them. Reported: seconds, and the
   largest memory that is not mapped from the file (RssAnon).
2. The same rule over 50,000 vectors at once against the plain loop that compares every vector with
   every pick: seconds, and the largest w_i d_i that is left.
3. Facility location over 50,000 vectors at once against apricot. Its whole matrix would take 20 GB
   there, so it gets a sparse one of as many neighbours as ours, found as its option `n_neighbors`
   finds them (exact search; ours looks into 8 cells for each). Both results are judged by the mean
   of max(0, cos) to the nearest pick, all pairs counted. On 16,000 vectors apricot has the whole
   matrix and its picks are the exact greedy ones.

Vectors: directions drawn around centres of different frequency. Only ratios within one run mean
anything; set OMP_NUM_THREADS=1 where other work runs beside it. apricot is installed into
`.venv-peers/apricot` (`--peers install`, default; `present`, `none`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.stages.selectors._greedy import distances
from foresift.stages.selectors.facility_location import FacilityLocation
from foresift.stages.selectors.weighted_coreset import WeightedCoreset

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / ".venv-peers" / "apricot"
#: an old package: the last libraries that it runs with
REQUIREMENTS = [
    ["numpy<2", "scipy<1.12", "numba<0.60", "scikit-learn<1.4", "tqdm", "setuptools", "wheel"],
    ["--no-build-isolation", "--no-deps", "apricot-select==0.6.1"],
]
WIDTH = 384
CENTRES = 500
SHARD = 50_000
Matrix = npt.NDArray[np.float32]


# -- data --------------------------------------------------------------------------------------


def made(number: int, n: int) -> pa.RecordBatch:
    """Shard `number` of the synthetic vectors: ids, costs, two scores, unit vectors."""
    shared = np.random.default_rng(0)
    centres = shared.standard_normal((CENTRES, WIDTH), dtype=np.float32)
    frequency = shared.dirichlet(np.ones(CENTRES))
    rng = np.random.default_rng([1, number])
    vectors = centres[rng.choice(CENTRES, n, p=frequency)]
    vectors += rng.standard_normal((n, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return pa.record_batch(
        {
            "id": pa.Array.from_buffers(pa.binary(16), n, [None, pa.py_buffer(rng.bytes(16 * n))]),
            "n_tokens": rng.integers(50, 2000, n),
            "u": rng.random(n),
            "v": rng.random(n),
            "e": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH),
        }
    )


def write(path: Path, rows: int) -> None:
    """The table as one file, made shard by shard."""
    with pa.OSFile(str(path), "wb") as sink:
        writer = None
        for number, start in enumerate(range(0, rows, SHARD)):
            batch = made(number, min(SHARD, rows - start))
            writer = writer or pa.ipc.new_file(sink, batch.schema)
            writer.write_batch(batch)
        assert writer is not None
        writer.close()


def read(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def unit_rows(table: pa.Table) -> Matrix:
    flat = table["e"].combine_chunks().values.to_numpy()
    found: Matrix = flat.reshape(-1, WIDTH)
    return found


# -- a million: time and memory ----------------------------------------------------------------


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


class Peak(threading.Thread):
    """Watches the largest value of `anonymous`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.largest = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.01):
            self.largest = max(self.largest, anonymous())


def alone(path: Path, count: int, cells: int) -> dict[str, Any]:
    """Select in this process and say what it took."""
    table = read(path)
    watch = Peak()
    base = anonymous()
    watch.start()
    part = WeightedCoreset(by=["u", "v"], embedding="e", cells=cells)
    seconds, choice = timed(part, table, count)
    watch.over.set()
    return {
        "rows": table.num_rows,
        "kept": int(choice.kept.sum()),
        "seconds": round(seconds, 1),
        "megabytes": round(watch.largest / 1e6),
        "megabytes_before": round(base / 1e6),
    }


def in_a_process(path: Path, count: int, cells: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--alone", str(path), str(count), str(cells)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def timed(part: Selector, table: pa.Table, count: int) -> tuple[float, Choice]:
    start = time.perf_counter()
    choice = part.select(table, Budget.parse(f"{count} rows"), Rng(0))
    return time.perf_counter() - start, choice


# -- against the plain loop --------------------------------------------------------------------


def plain_loop(weight: npt.NDArray[np.float64], vectors: Matrix, count: int) -> list[int]:
    """Weighted k-centre: one matrix-vector product over all vectors for each pick."""
    picks = [int(np.argmax(weight))]
    near = np.full(len(vectors), np.inf, dtype=np.float32)
    while len(picks) < count:
        np.minimum(near, distances(vectors, vectors[picks[-1:]], "cosine")[:, 0], out=near)
        value = weight * near
        value[picks] = -1
        picks.append(int(np.argmax(value)))
    return picks


def against_the_loop(table: pa.Table, count: int) -> list[dict[str, Any]]:
    vectors = unit_rows(table)
    rank = [(np.argsort(np.argsort(table[c].to_numpy())) + 0.5) / len(vectors) for c in "uv"]
    weight = rank[0] * rank[1]

    def left(picks: Any) -> float:
        blocks = (vectors[i : i + 4096] @ vectors[picks].T for i in range(0, len(vectors), 4096))
        near = 1 - np.concatenate([block.max(axis=1) for block in blocks])
        return float((weight * near).max())

    start = time.perf_counter()
    picks = plain_loop(weight, vectors, count)
    rows = [{"tool": "plain loop", "seconds": time.perf_counter() - start, "left": left(picks)}]
    for name, cells in (("whole pool", 1), ("cells", 0)):
        part = WeightedCoreset(by=["u", "v"], embedding="e", cells=cells)
        seconds, choice = timed(part, table, count)
        found = np.flatnonzero(choice.kept)
        same = len(set(found.tolist()) & set(picks)) / count
        rows.append({"tool": name, "seconds": seconds, "left": left(found), "same": same})
    return rows


# -- facility location against apricot ---------------------------------------------------------


def coverage(vectors: Matrix, picks: Any) -> float:
    """Mean of max(0, cos) to the nearest pick."""
    total = 0.0
    for start in range(0, len(vectors), 4096):
        best = (vectors[start : start + 4096] @ vectors[picks].T).max(axis=1)
        total += float(np.maximum(best, 0).sum(dtype=np.float64))
    return total / len(vectors)


def facility(
    table: pa.Table, count: int, neighbours: int, dense: bool, peer: bool
) -> list[dict[str, Any]]:
    """Ours over the whole pool and in cells, apricot, and a random choice."""
    vectors = unit_rows(table)
    rows = []
    for name, cells in (("whole pool", 1), ("cells", 0)):
        part = FacilityLocation(embedding="e", cells=cells, neighbours=neighbours)
        seconds, choice = timed(part, table, count)
        rows.append(_row(name, seconds, coverage(vectors, np.flatnonzero(choice.kept))))
    drawn = np.random.default_rng(0).choice(len(vectors), count, replace=False)
    rows.append(_row("random", None, coverage(vectors, drawn)))
    if peer:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vectors.npy"
            np.save(path, vectors)
            script = ROOT / "benchmarks" / "peers" / "apricot_facility.py"
            given = [str(path), str(count), "0" if dense else str(neighbours)]
            done = subprocess.run(
                [str(PEER / "bin/python"), str(script), *given],
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            print(f"apricot failed:\n{done.stderr[-2000:]}")
        else:
            said = json.loads(done.stdout.splitlines()[-1])
            rows.append(_row("apricot", said["seconds"], coverage(vectors, said["picks"])))
    return rows


def _row(tool: str, seconds: float | None, value: float) -> dict[str, Any]:
    return {"tool": tool, "seconds": seconds, "coverage": value}


def available(how: str) -> bool:
    """Whether apricot can be run; with `install` it is fetched if it is not there."""
    python = PEER / "bin" / "python"
    check = [str(python), "-c", "import apricot"]
    if how == "none":
        return False
    if python.exists() and subprocess.run(check, capture_output=True, check=False).returncode == 0:
        return True
    if how == "present":
        print("apricot is not installed: skipped")
        return False
    venv.create(PEER, with_pip=True)
    for requirements in REQUIREMENTS:
        pip = [str(python), "-m", "pip", "install", "-q", *requirements]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"apricot cannot be installed: skipped\n{done.stderr[-1500:]}")
            return False
    return subprocess.run(check, capture_output=True, check=False).returncode == 0


# -- the tables --------------------------------------------------------------------------------


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(title)
    for row in rows:
        cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("   " + "   ".join(cells), flush=True)


def ratio(rows: list[dict[str, Any]], key: str, top: str, bottom: str) -> float | None:
    """The value of one tool over that of another."""
    found = {row["tool"]: row[key] for row in rows}
    if top not in found or bottom not in found:
        return None
    return round(found[top] / found[bottom], 4)


def goal(name: str, wanted: float, measured: float | None, smoke: bool, least: bool = True) -> Any:
    met = None
    if measured is not None and not smoke:
        met = measured >= wanted if least else measured <= wanted
    return {"name": name, "goal": wanted, "measured": measured, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peers", choices=["install", "present", "none"], default="install")
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        path, count, cells = options.alone
        print(json.dumps(alone(Path(path), int(count), int(cells))))
        return
    smoke = options.smoke
    peer = available("present" if smoke and options.peers == "install" else options.peers)
    rows, count, cells = (10_000, 200, 32) if smoke else (1_000_000, 10_000, 512)
    small, exact = (4_000, 2_000) if smoke else (50_000, 16_000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.arrow"
        large = []
        for n in (rows // 4, rows):
            write(path, n)
            large.append(in_a_process(path, count * n // rows, cells))
        show(f"weighted coreset in {cells} cells", large)
        table = read(path).slice(0, small).combine_chunks()
    loop = against_the_loop(table, small // 50)
    show(f"weighted k-centre, {small} vectors, {small // 50} picks", loop)
    sparse = facility(table, small // 50, 256, False, peer)
    show(f"facility location, {small} vectors, {small // 50} picks, 256 neighbours", sparse)
    whole = facility(table.slice(0, exact), exact // 50, 256, True, peer)
    show(f"facility location, {exact} vectors, {exact // 50} picks, apricot exact", whole)
    memory = round(large[1]["megabytes"] / large[0]["megabytes"], 3)
    speed, near = "seconds", "coverage"
    goals = [
        goal("minutes for 10,000 of 1,000,000", 10, large[1]["seconds"] / 60, smoke, False),
        goal("memory of 1,000,000 over 250,000", 1.5, memory, smoke, False),
        goal("k-centre, left over plain", 1.0, ratio(loop, "left", "whole pool", "plain loop"),
             smoke, False),
        goal("k-centre, speed over plain loop", 2, ratio(loop, speed, "plain loop", "whole pool"),
             smoke),
        goal("facility location, speed over apricot", 5,
             ratio(sparse, speed, "apricot", "whole pool"), smoke),
        goal("facility location, coverage over apricot", 0.99,
             ratio(sparse, near, "whole pool", "apricot"), smoke),
        goal("facility location, coverage over exact apricot", 0.99,
             ratio(whole, near, "whole pool", "apricot"), smoke),
    ]  # fmt: skip
    report = {"large": large, "loop": loop, "facility": sparse, "exact": whole, "goals": goals}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
