"""MinHash deduplication from JSON lines to JSON lines: foresift, datatrove 0.10, Data-Juicer 1.6.

    python benchmarks/minhash.py --data DIR     texts under DIR: .parquet, .jsonl(.gz), .txt(.gz)
    python benchmarks/minhash.py                texts of the installed packages
    python benchmarks/minhash.py --smoke        a few megabytes; peers only if they are installed

Everything is timed from the start of a process to its end, on the same files and one core: reading,
signatures, buckets, clusters, filtered output (not compressed). Parameters: 14 bands of 8 minima,
5-grams of words, every candidate pair joined. What differs and stays as each tool has it: how text
is normalised and cut into words. `datatrove_split` is datatrove with its English tokenizer replaced
by `str.split`: no goal, but it shows what the rest costs. Only ratios within one run mean anything.

Peers are installed from the package index into environments of their own (`.venv-peers/<name>`),
by `--peers install` (default) or not (`--peers present`, `--peers none`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers"
FILES = 4
#: peer -> (requirements in installation steps, a module that must import)
PACKAGES = {
    "datatrove": ([["datatrove[io,processing]==0.10.*", "spacy>=3.8"]], "datatrove, spacy"),
    "data-juicer": (
        [["torch==2.13.0"], ["py-data-juicer==1.6.*", "aiohttp"]],
        "data_juicer.ops.deduplicator.document_minhash_deduplicator",
    ),
}
GOALS = {"datatrove": 10.0, "data-juicer": 3.0}


# -- the corpus --------------------------------------------------------------------------------


def texts(data: Path | None) -> Iterator[str]:
    """Documents of real text, in a fixed order."""
    if data is None:
        places = Path(sysconfig.get_paths()["purelib"])
        for path in sorted(places.rglob("*")):
            if path.suffix in (".py", ".md", ".rst", ".txt") and path.is_file():
                yield path.read_text(encoding="utf-8", errors="replace")
        return
    for path in sorted(data.rglob("*")):
        name = path.name.removesuffix(".gz")
        if name.endswith(".parquet"):
            yield from _parquet(path)
        elif name.endswith((".jsonl", ".json", ".txt")):
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            yield from _lines(raw.decode(errors="replace"), name.endswith(".txt"))


def _parquet(path: Path) -> Iterator[str]:
    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    wanted = next((n for n in ("original", "text", "prompt") if n in names), None)
    if wanted:
        for batch in file.iter_batches(1024, columns=[wanted]):
            yield from (text for text in batch[0].to_pylist() if isinstance(text, str))


def _lines(raw: str, plain: bool) -> Iterator[str]:
    """A text as it is; of JSON lines the field `text`; of anything else nothing."""
    if plain:
        yield raw
        return
    for line in raw.split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            yield value["text"]


def write_corpus(data: Path | None, folder: Path, limit: int) -> tuple[int, int]:
    """Write up to `limit` bytes of text as JSON lines; (documents, bytes)."""
    folder.mkdir(parents=True)
    rows = size = 0
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{i:02d}.jsonl", "wb")) for i in range(FILES)]
        for text in texts(data):
            if not text.strip():
                continue
            line = json.dumps({"id": str(rows), "text": text}, ensure_ascii=False)
            files[size * FILES // (limit + 1)].write(line.encode(errors="replace") + b"\n")
            rows, size = rows + 1, size + len(text.encode(errors="replace"))
            if size >= limit:
                break
    return rows, size


# -- the tools ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tool:
    """One way to do it: a command that reads `corpus` and writes into `out`."""

    name: str
    command: list[str]
    kept: str
    """Where the output lies, as a glob under `out`."""


def ours(corpus: Path, out: Path) -> Tool:
    recipe = {
        "name": "minhash",
        "data": {"read": "jsonl", "paths": [f"{corpus}/*.jsonl"], "holdout": 0.0},
        "steps": [{"dedup": "minhash"}, {"export": "jsonl", "compression": "none"}],
        "report": False,
    }
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(recipe))
    run = "from foresift.pipeline.cli import app; app()"
    options = ["run", str(path), "--out", str(out), "--engine", "local", "--workers", "1"]
    return Tool("foresift", [sys.executable, "-c", run, *options], "steps/jsonl-*/part-*.jsonl")


def datatrove(corpus: Path, out: Path, words: str) -> Tool:
    script = Path(__file__).parent / "peers" / "datatrove_minhash.py"
    command = [str(PEERS / "datatrove/bin/python"), str(script), str(corpus), str(out), words]
    return Tool("datatrove" + ("" if words == "default" else f"_{words}"), command, "kept/*.jsonl")


def data_juicer(corpus: Path, out: Path) -> Tool:
    config = {
        "dataset_path": str(corpus),
        "export_path": str(out / "kept.jsonl"),
        "np": 1,
        "text_keys": "text",
        "work_dir": str(out / "work"),
        "process": [
            {
                "document_minhash_deduplicator": {
                    "tokenization": "space",
                    "window_size": 5,
                    "lowercase": True,
                    "num_permutations": 112,
                    "num_bands": 14,
                    "num_rows_per_band": 8,
                }
            }
        ],
    }
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(config))
    command = [str(PEERS / "data-juicer/bin/dj-process"), "--config", str(path)]
    return Tool("data-juicer", command, "kept.jsonl")


def timed(tool: Tool, out: Path) -> dict[str, Any]:
    """Run a tool on one core with caches of its own; seconds and documents kept."""
    home = out.with_name(out.name + "-home")
    for folder in (out, home):
        folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "HOME": str(home), "HF_HOME": str(home / "hf"), "TMPDIR": str(home)}
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    env |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = _pinned(tool.command)
    start = time.perf_counter()
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        print(f"{tool.name} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return {"name": tool.name, "seconds": None, "kept": None}
    kept = 0
    for path in out.glob(tool.kept):
        with open(path, "rb") as handle:
            kept += sum(1 for _ in handle)
    return {"name": tool.name, "seconds": round(seconds, 2), "kept": kept}


def _pinned(command: Sequence[str]) -> list[str]:
    """The command held to one core, where the system can do that."""
    if not hasattr(os, "sched_setaffinity") or not shutil.which("taskset"):
        return list(command)
    return ["taskset", "-c", str(max(os.sched_getaffinity(0))), *command]


# -- peers -------------------------------------------------------------------------------------


def available(name: str, how: str) -> bool:
    """Whether a peer can be run; with `install` it is fetched if it is not there."""
    steps, module = PACKAGES[name]
    python = PEERS / name / "bin" / "python"
    check = [str(python), "-c", f"import {module}"]
    if how == "none":
        return False
    if python.exists() and subprocess.run(check, capture_output=True, check=False).returncode == 0:
        return True
    if how == "present":
        print(f"{name} is not installed in {PEERS / name}: skipped")
        return False
    print(f"installing {name} into {PEERS / name}", flush=True)
    venv.create(PEERS / name, with_pip=True)
    for requirements in steps:
        pip = [str(python), "-m", "pip", "install", "-q", *requirements]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name} cannot be installed: skipped\n{done.stderr[-1500:]}")
            return False
    return subprocess.run(check, capture_output=True, check=False).returncode == 0


# -- the table ---------------------------------------------------------------------------------


def measure(corpus: Path, work: Path, peers: str) -> list[dict[str, Any]]:
    """One row for each tool that is there; ours first."""
    rows = [timed(ours(corpus, work / "foresift"), work / "foresift")]
    if available("datatrove", peers):
        for words in ("default", "split"):
            out = work / f"datatrove-{words}"
            rows.append(timed(datatrove(corpus, out, words), out))
    if available("data-juicer", peers):
        out = work / "data-juicer"
        rows.append(timed(data_juicer(corpus, out), out))
    return rows


def goals(rows: list[dict[str, Any]], smoke: bool) -> list[dict[str, Any]]:
    """How many times faster than each peer; null where one of the two did not run.

    A smoke run is too small to judge: it mostly times how long each tool takes to start.
    """
    seconds = {row["name"]: row["seconds"] for row in rows}
    mine = seconds["foresift"]
    found = []
    for peer, goal in GOALS.items():
        theirs = seconds.get(peer)
        ratio = round(theirs / mine, 2) if theirs and mine else None
        name = f"speed per core against {peer}"
        met = None if ratio is None or smoke else ratio >= goal
        found.append({"name": name, "goal": goal, "measured": ratio, "met": met})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of texts; default: installed packages")
    parser.add_argument("--megabytes", type=int, default=120, help="text at most")
    parser.add_argument("--peers", choices=["install", "present", "none"], default="install")
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    options = parser.parse_args()
    limit = 3 if options.smoke else options.megabytes
    peers = "present" if options.smoke and options.peers == "install" else options.peers
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        documents, size = write_corpus(options.data, corpus, limit * 10**6)
        print(f"{documents} documents, {size / 1e6:.1f} MB", flush=True)
        rows = measure(corpus, Path(folder), peers)
    mine = rows[0]["seconds"]
    print(f"{'tool':<18}{'seconds':>9}{'MB/s':>8}{'ratio':>8}{'kept':>9}{'dropped':>9}")
    for row in rows:
        if row["seconds"] is None:
            print(f"{row['name']:<18}   failed")
            continue
        rate, ratio = size / 1e6 / row["seconds"], row["seconds"] / (mine or row["seconds"])
        print(
            f"{row['name']:<18}{row['seconds']:>9.1f}{rate:>8.2f}{ratio:>8.2f}{row['kept']:>9}"
            f"{documents - row['kept']:>9}"
        )
    report = {
        "documents": documents,
        "bytes": size,
        "tools": rows,
        "goals": goals(rows, options.smoke),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
