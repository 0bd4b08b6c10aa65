"""Heuristic rules: the decisions and the speed of the scorer `heuristics` beside datatrove 0.10.

    python benchmarks/heuristics.py --data DIR     real documents of many kinds under DIR
    python benchmarks/heuristics.py                texts of the installed packages
    python benchmarks/heuristics.py --smoke        a small share; datatrove only if it is installed

The same four filters with their defaults (Gopher quality, Gopher repetition, FineWeb, C4) on the
same documents. Time is that of the processor, on one core, texts being in memory; datatrove's
filters share one splitting into words. Goals: the same decision on 99.9 % of the documents by each
filter, 20 times the speed, memory that does not grow with the data. Only ratios within one run mean
anything. datatrove is installed as `minhash.py` does it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from _heuristics_data import documents
from minhash import PEERS, _pinned, available

DECISIONS = ("gopher_quality", "gopher_repetition", "fineweb", "c4")
SAME, FASTER, FLAT = 0.999, 20.0, 1.15
BATCH = 512
LONG = 50 * 10**6


# -- our side, in a process of its own ---------------------------------------------------------


def score(corpus: Path, out: Path, times: int) -> None:
    """Score a corpus some times over; decisions go to `out`, costs are printed."""
    from foresift.scorers.heuristics import Heuristics

    part, seconds, peaks = Heuristics(), [], []
    part.score(pa.table({"text": ["The tables are made by this."]}))
    for turn in range(times):
        spent = 0.0
        with open(corpus, "rb") as lines, open(out, "w", encoding="utf-8") as kept:
            batch: list[str] = []
            for line in lines:
                batch.append(json.loads(line)["text"])
                if len(batch) == BATCH:
                    spent += _score(part, batch, kept if turn == 0 else None)
                    batch = []
            spent += _score(part, batch, kept if turn == 0 else None)
        seconds.append(spent)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        if turn == 0:
            os.replace(out, out.with_suffix(".first"))
    os.replace(out.with_suffix(".first"), out)
    print(json.dumps({"seconds": seconds, "megabytes": peaks}))


def _score(part: Any, batch: list[str], kept: Any) -> float:
    table = pa.table({"text": pa.array(batch, pa.large_string())})
    start = time.process_time()
    found = part.score(table)
    spent = time.process_time() - start
    if kept is not None:
        reasons = [{f["reason"] for f in row} for row in found["findings"].to_pylist()]
        for row, names in enumerate(reasons):
            values = [bool(found[name][row]) for name in DECISIONS]
            kept.write(json.dumps([values, sorted(names)]) + "\n")
    return spent


def long_document(corpus: Path, size: int) -> None:
    """Score one document of `size` bytes."""
    from foresift.scorers.heuristics import Heuristics

    with open(corpus, "rb") as lines:
        text = "\n".join(json.loads(line)["text"] for line in lines)
    text = (text * (size // len(text.encode()) + 1))[:size]
    start = time.process_time()
    Heuristics().score(pa.table({"text": pa.array([text], pa.large_string())}))
    spent = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": spent, "megabytes": peak, "bytes": len(text.encode())}))


# -- both sides --------------------------------------------------------------------------------


def run(command: list[str]) -> dict[str, Any] | None:
    """The last line a command prints, as JSON; one core."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(_pinned(command), env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{command[1]} failed:\n{done.stderr[-3000:]}")
        return None
    found: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    return found


def compared(
    names: list[str], mine: list[Any], theirs: list[list[Any]]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Decision -> share of documents with the same one; and the documents that differ."""
    same: Counter[str] = Counter()
    differ = []
    for row, (name, (values, reasons), others) in enumerate(zip(names, mine, theirs, strict=True)):
        for decision, kept, other in zip(DECISIONS, values, others, strict=True):
            if kept == (other is True) and (kept or other in reasons):
                same[decision] += 1
            else:
                differ.append(
                    {"row": row, "set": name, "decision": decision, "datatrove": other,
                     "kept": kept, "findings": reasons}
                )  # fmt: skip
    return {d: same[d] / max(1, len(names)) for d in DECISIONS}, differ


def goal(name: str, wanted: float, measured: float | None, met: bool | None) -> dict[str, Any]:
    return {"name": name, "goal": wanted, "measured": measured, "met": met}


def goals(report: dict[str, Any], smoke: bool) -> list[dict[str, Any]]:
    """A smoke run is too small to judge speed and memory."""
    same, ratio, growth = report.get("same"), report.get("ratio"), report["growth"]
    least = None if same is None else round(min(same.values()), 5)
    return [
        goal("same decision and reason as datatrove", SAME, least,
             None if least is None else least >= SAME),
        goal("speed per core against datatrove", FASTER, ratio,
             None if ratio is None or smoke else ratio >= FASTER),
        goal("peak memory of three times the data", FLAT, growth,
             None if smoke else growth <= FLAT),
    ]  # fmt: skip


def report_on(corpus: Path, names: list[str], size: int, options: Any) -> dict[str, Any]:
    """Measure everything, print the tables."""
    out, other = corpus.with_name("ours.jsonl"), corpus.with_name("theirs.jsonl")
    me = [sys.executable, str(Path(__file__).resolve())]
    ours = run([*me, "--score", str(corpus), str(out), "3"])
    assert ours is not None, "the scorer failed"
    rate = size / 1e6 / ours["seconds"][0]
    growth = round(ours["megabytes"][-1] / ours["megabytes"][0], 3)
    report: dict[str, Any] = {"documents": len(names), "bytes": size, "ours": ours,
                              "growth": growth}  # fmt: skip
    third, peak = size / 1e6 / ours["seconds"][-1], ours["megabytes"][-1]
    print(f"foresift   {rate:8.2f} MB/s, the third time {third:.2f}; peak {peak:.0f} MB")
    peers = "present" if options.smoke and options.peers == "install" else options.peers
    if available("datatrove", peers):
        script = Path(__file__).parent / "peers" / "datatrove_heuristics.py"
        python = str(PEERS / "datatrove/bin/python")
        theirs = run([python, str(script), str(corpus), str(other)])
        if theirs is not None:
            mine, decided = _lines(out), _lines(other)
            same, differ = compared(names, mine, decided)
            total = sum(theirs.values())
            report |= {"datatrove": theirs, "same": same, "differences": differ,
                       "ratio": round(total / ours["seconds"][0], 2)}  # fmt: skip
            print(f"datatrove  {size / 1e6 / total:8.2f} MB/s; ratio {report['ratio']}")
            _print_decisions(names, decided, report)
    if not options.smoke:
        report["long"] = run([*me, "--long", str(corpus), str(LONG)])
        print(f"one document of 50 MB: {report['long']}")
    return report


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _print_decisions(names: list[str], decided: list[list[Any]], report: dict[str, Any]) -> None:
    print(f"{'':<18}{'kept':>9}{'same':>10}{'seconds of datatrove':>22}")
    for i, decision in enumerate(DECISIONS):
        kept = np.mean([row[i] is True for row in decided])
        seconds = report["datatrove"][decision]
        print(f"{decision:<18}{kept:>9.3f}{report['same'][decision]:>10.5f}{seconds:>22.1f}")
    for name, count in Counter(names).items():
        wrong = sum(d["set"] == name for d in report["differences"])
        print(f"  {name:<22}{count:>7} documents{wrong:>5} differences")
    for different in report["differences"][:20]:
        print(f"  differs: {different}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of texts; default: installed packages")
    parser.add_argument("--peers", choices=["install", "present", "none"], default="install")
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    parser.add_argument("--keep", type=Path, help="keep the corpus and both decisions here")
    parser.add_argument("--score", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--long", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score:
        return score(Path(options.score[0]), Path(options.score[1]), int(options.score[2]))
    if options.long:
        return long_document(Path(options.long[0]), int(options.long[1]))
    with tempfile.TemporaryDirectory() as folder:
        place = options.keep or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        names, size = [], 0
        with open(place / "corpus.jsonl", "w", encoding="utf-8") as out:
            for name, text in documents(options.data, 0.03 if options.smoke else 1.0):
                clean = text.encode(errors="replace").decode()
                out.write(json.dumps({"text": clean}) + "\n")
                names.append(name)
                size += len(clean.encode())
        print(f"{len(names)} documents, {size / 1e6:.1f} MB", flush=True)
        report = report_on(place / "corpus.jsonl", names, size, options)
    report["goals"] = goals(report, options.smoke)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
