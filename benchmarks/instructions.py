"""A tenth of an instruction pool: does D3's choice tune as well as all of it?

    python benchmarks/instructions.py              3 seeds: about 20 minutes on two cores
    python benchmarks/instructions.py --noise 0.2    a tenth swapped, a tenth word salad
    python benchmarks/instructions.py --smoke      under a minute; no goal is judged
    python benchmarks/instructions.py --arms random,d3 --seeds 1

The pool is real: T0's prompted tasks (one of 283 templates each, so they resemble one another) and
Alpaca's published selections. A 1M-parameter model is warmed up on plain text; each arm tunes it on
a tenth of the pool's tokens (`--unit`: or pairs, or tokens of responses, each trained on once), all
else equal, `full` on all of them:

    random        uniformly
    d3            weighted coreset: UPD (confident and wrong) x dependability x distance, in cells
    d3_no_teacher the same without dependability
    d3_rounds     d3 in three rounds, scored anew by the model that the last round tuned
    d3_centred    d3 on centred embeddings (`whitened`)
    dependable    weighted coreset of dependability alone x distance, centred
    coverage      facility location: what stands for all others, whatever its score, centred
    dsir          importance resampling to the trusted pairs
    top_upd       largest UPD x dependability, no distance
    top_loss      largest loss (D3's paper: this collapses)
    top_ifd       largest instruction-following difficulty below 1 (Cherry)
    influence     what lowers the loss on trusted pairs most (see influence.py)
    full          everything, once: ten times the tokens

Dependability is a teacher's judgement in the paper. Here the teacher is the warmed-up model tuned
on 1,000 trusted pairs (the pool's mixture of kinds, none of them in it): dependability = the rank
of minus its loss on the response. Reported, mean and 95 % t-interval over seeds: the loss on the
responses of held-out instructions, the two kinds weighing the same.

Goals: the loss of `d3` is below that of `random` (paired difference, interval apart from 0), and
not above that of `full`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _mixed_pool
import _recipes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _selection_report import interval, told

from foresift.pipeline.lm.evaluate import evaluate
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.tables import content_ids

ROOT = Path(__file__).resolve().parents[1]
BASE = {"train": "causal_lm", "length": 256, "batch_tokens": 2048, "threads": 1}
TUNE = {
    "train": "causal_lm", "length": 256, "batch_tokens": 1024, "learning_rate": 0.001,
    "schedule": "cosine", "warmup": 0.1, "threads": 1,
}  # fmt: skip
UPD, VECTOR, TEACHER = "uncertainty.upd", "embedding.vector", "dependability.utility"
CENTRED = "whitened.vector"
KINDS = ("alpaca", "t0")
ALPACA = (*_mixed_pool.ALPACA, "car_selected_1k")
LONGEST = 600


def pairs(data: Path) -> dict[str, list[tuple[str, str]]]:
    """Distinct (prompt, response) of both kinds, at most LONGEST characters, in file order."""
    found: dict[str, dict[tuple[str, str], None]] = {kind: {} for kind in KINDS}
    for name in ALPACA:
        with gzip.open(data / "instruct" / "alpaca" / f"{name}.json.gz", "rt") as file:
            for row in json.load(file):
                prompt = "\n".join(x for x in (row["instruction"], row.get("input")) if x)
                found["alpaca"][prompt, row["output"]] = None
    table = pq.read_table(data / "instruct" / "t0-mix" / "t0_55k.parquet")
    prompts, responses = (table[c].to_pylist() for c in ("prompt", "completion"))
    found["t0"] = dict.fromkeys(zip(prompts, responses, strict=True))
    return {
        kind: [p for p in known if p[1].strip() and len(p[0]) + len(p[1]) <= LONGEST]
        for kind, known in found.items()
    }


def write(
    data: Path, out: Path, sizes: Mapping[str, Mapping[str, int]], noise: float, seed: int = 0
) -> None:
    """pool, trusted and held pairs, none shared; plain text for the warm-up.

    `noise` is the share of the pool's pairs that are spoilt: half of them get the response of
    another pair, half their own with its words shuffled.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows: dict[str, list[dict[str, str]]] = {name: [] for name in sizes}
    for kind, known in pairs(data).items():
        order, start = rng.permutation(len(known)), 0
        for name, counts in sizes.items():
            for i in order[start : start + counts[kind]]:
                rows[name].append({"prompt": known[i][0], "response": known[i][1], "kind": kind})
            start += counts[kind]
    spoil(rows["pool"], noise, rng)
    for name, some in rows.items():
        _mixed_pool.lines(out / f"{name}.jsonl", [some[i] for i in rng.permutation(len(some))])
    _mixed_pool.write(data, out / "text", 3_000_000)


def spoil(rows: list[dict[str, str]], noise: float, rng: np.random.Generator) -> None:
    """Swap or shuffle the responses of some rows, and write down which."""
    for row in rows:
        row["spoilt"] = "no"
    some = rng.permutation(len(rows))[: round(noise * len(rows))]
    swapped, salad = some[: len(some) // 2], some[len(some) // 2 :]
    others = [rows[i]["response"] for i in np.roll(swapped, 1)]
    for i, response in zip(swapped, others, strict=True):
        rows[i] |= {"response": response, "spoilt": "swapped"}
    for i in salad:
        words = rows[i]["response"].split()
        shuffled = " ".join(words[j] for j in rng.permutation(len(words)))
        rows[i] |= {"response": shuffled, "spoilt": "salad"}


def arms(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Arm -> what follows the warm-up."""
    share, unit = 0.1, {"tokens": "", "rows": " rows", "responses": " loss.tokens"}[args.unit]
    tune = {**TUNE, "tokens": args.tokens if args.unit == "tokens" else None}
    score = {"score": ["loss", "uncertainty", "embedding", "ifd"]}
    first = [{"score": ["loss"]}] if args.unit == "responses" else []
    teacher = [
        {**TUNE, "as": "teacher", "from": "latest", "data": "trusted", "tokens": args.teacher,
         "repeat": True},
        {"score": "loss", "as": "teacher_loss", "model": "teacher"},
        {"score": "combined", "as": "dependability", "by": {"teacher_loss.nll": -1.0}},
    ]  # fmt: skip
    budget = {"budget": f"{share:.0%}{unit}"}
    d3 = {"select": "weighted_coreset", "by": [UPD, TEACHER], "embedding": VECTOR, **budget}
    centred = {"score": "whitened", "embedding": VECTOR}
    product = {"score": "combined", "as": "product", "by": {UPD: 1.0, TEACHER: 1.0}}
    third = {**d3, "budget": f"{args.tokens // 3} tokens"}
    return {
        "random": [*first, {"select": "random", **budget}, tune],
        "d3": [*teacher, score, d3, tune],
        "d3_no_teacher": [score, {**d3, "by": [UPD]}, tune],
        "d3_rounds": [
            *teacher,
            *[s for _ in range(3) for s in (score, third, {**tune, "tokens": args.tokens // 3})],
        ],
        "d3_centred": [*teacher, score, centred, {**d3, "embedding": CENTRED}, tune],
        "dependable": [
            *teacher, score, centred, {**d3, "by": [TEACHER], "embedding": CENTRED}, tune,
        ],
        "coverage": [
            score, centred, {"select": "facility_location", "embedding": CENTRED, **budget}, tune,
        ],
        "dsir": [
            *first,
            {"score": "target_similarity", "reference": "trusted"},
            {"select": "gumbel_topk", "by": "target_similarity.utility", "temperature": 1.0,
             **budget},
            tune,
        ],
        "top_upd": [*teacher, score, product, {"select": "topk", "by": "product.utility", **budget},
                    tune],
        "top_loss": [score, {"select": "topk", "by": "loss.nll", **budget}, tune],
        "top_ifd": [score, {"select": "topk", "by": "ifd.utility", **budget}, tune],
        "influence": [
            {"score": ["influence"], "influence": {"reference": "trusted", "probes": 200,
                                                   "reference_documents": 64}},
            {"select": "gumbel_topk", "by": "influence.utility", "standardise": True,
             "temperature": 0.25, **budget},
            tune,
        ],
        "full": [{**tune, "tokens": None}],
    }  # fmt: skip


def recipe(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The recipe of an arm; the rounds of `d3_rounds` consume what they have chosen."""
    pool = args.work / "pool"
    read = {"read": "jsonl", "holdout": 0, "tokenizer": "configs/models/tiny"}
    pair = {**read, "prompt": "prompt", "response": "response"}
    steps = arms(args)[name]
    found = {
        "name": name, "seed": seed, "report": False,
        "data": {**pair, "paths": [str(pool / "pool.jsonl")], "columns": ["kind", "spoilt"]},
        "datasets": {
            "trusted": {**pair, "paths": [str(pool / "trusted.jsonl")]},
            "text": {**read, "paths": [str(pool / "text" / "pool.jsonl")], "text": "text"},
        },
        "model": {"init": "configs/models/tiny", "max_length": 256, "seed": seed},
        "steps": [
            {**BASE, "data": "text", "tokens": args.warmup, "learning_rate": 0.002},
            *steps,
        ],
    }  # fmt: skip
    if name == "d3_rounds":
        teacher, once = steps[:3], steps[3:6]
        found["steps"] = [found["steps"][0], *teacher]
        found["rounds"] = {"count": 3, "steps": once}
    return found


class Held:
    """Held-out pairs of each kind."""

    def __init__(self, path: Path) -> None:
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
        self.tables = {}
        for kind in KINDS:
            some = [r for r in rows if r["kind"] == kind]
            table = pa.table({k: [r[k] for r in some] for k in ("prompt", "response")})
            self.tables[kind] = table.append_column("id", content_ids(table))

    def measure(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        trained = _recipes.step(manifest, "train")
        spec = ModelSpec(init=str(Path(trained["path"]) / "checkpoint"), max_length=256)
        losses = {k: evaluate([t], spec)["token_mean"] for k, t in self.tables.items()}
        return {"loss": float(np.mean(list(losses.values()))), "losses": losses,
                "tokens": trained["facts"]["tokens"], **_chosen(manifest)}  # fmt: skip


def _chosen(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Shares of T0 and of spoilt pairs among the documents that the last `select` kept."""
    if not any(s["verb"] == "select" for s in manifest["steps"]):
        return {}
    table = _recipes.kept(manifest, ["kind", "spoilt"])
    kinds, spoilt = (np.array(table[name].to_pylist()) for name in ("kind", "spoilt"))
    return {
        "t0": float((kinds == "t0").mean()),
        "swapped": float((spoilt == "swapped").mean()),
        "salad": float((spoilt == "salad").mean()),
    }


Found = Mapping[str, Sequence[Mapping[str, Any]]]


def _apart(found: Found, name: str, base: str) -> list[float]:
    return [a["loss"] - b["loss"] for a, b in zip(found[name], found[base], strict=True)]


def table(found: Found) -> str:
    """A Markdown table, best loss first."""
    lines = ["| arm | held-out loss | Alpaca | T0 | minus random | T0 | swapped | salad |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in sorted(found, key=lambda n: float(np.mean([r["loss"] for r in found[n]]))):
        runs = found[name]
        cells = [
            told([r["loss"] for r in runs]), *(told([r["losses"][k] for r in runs]) for k in KINDS),
            told(_apart(found, name, "random")) if "random" in found else "",
            *(_mean(runs, name) for name in ("t0", "swapped", "salad")),
        ]  # fmt: skip
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def _mean(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    return f"{float(np.mean([r[name] for r in runs])):.2f}" if name in runs[0] else ""


def goals(found: Found) -> list[dict[str, Any]]:
    judged = []
    for base, above in (("random", False), ("full", True)):
        if not {"d3", base} <= set(found):
            continue
        mean, half = interval(_apart(found, "d3", base))
        met = mean - (half or 0) <= 0 if above else mean + (half or 0) < 0
        judged.append({
            "name": f"d3's held-out loss {'not above' if above else 'below'} that of {base}",
            "goal": 0, "measured": round(mean, 4), "half_width": half, "met": bool(met),
        })  # fmt: skip
    return judged


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "out" / "instructions")
    parser.add_argument("--arms", default="", help="names with commas; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=400_000, help="tokens of plain text")
    parser.add_argument("--tokens", type=int, default=75_000, help="tokens of tuning but for full")
    parser.add_argument("--teacher", type=int, default=150_000, help="tokens that tune the teacher")
    parser.add_argument("--noise", type=float, default=0.0, help="share of spoilt pairs")
    parser.add_argument(
        "--unit", choices=["tokens", "rows", "responses"], default="tokens",
        help="what a tenth is counted in: all tokens, pairs, or tokens of responses",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="recipes at a time, a core each")
    args = parser.parse_args()
    sizes = {
        "pool": {"alpaca": 5000, "t0": 3500},
        "trusted": {"alpaca": 600, "t0": 400},
        "held": {"alpaca": 500, "t0": 500},
    }
    if args.smoke:
        args.work = Path(tempfile.mkdtemp(prefix="foresift-instructions-"))
        args.seeds, args.tokens, args.warmup, args.teacher, args.jobs = 1, 4_000, 16_000, 4_000, 1
        args.arms = "random,d3"
        sizes = {n: {k: c // 10 for k, c in counts.items()} for n, counts in sizes.items()}
    if not args.data.exists():
        raise SystemExit(f"no data at {args.data}; name its folder with --data")
    if args.noise:
        args.work = args.work.with_name(f"{args.work.name}-{args.noise:g}")
    write(args.data, args.work / "pool", sizes, args.noise)
    names = args.arms.split(",") if args.arms else list(arms(args))
    jobs = [(name, seed) for seed in range(args.seeds) for name in names]

    def run(job: tuple[str, int]) -> dict[str, Any]:
        path = args.work / f"{job[0]}-{args.unit}-{job[1]}.yaml"
        return _recipes.run(recipe(*job, args), path, args.work / "out")

    if args.jobs > 1:  # what arms share is made once, by an arm that needs most of it
        for seed in range(args.seeds):
            run(("d3" if "d3" in names else names[0], seed))
    with ThreadPoolExecutor(args.jobs) as pool:
        manifests = dict(zip(jobs, pool.map(run, jobs), strict=True))
    held = Held(args.work / "pool" / "held.jsonl")
    found = {n: [held.measure(manifests[n, s]) for s in range(args.seeds)] for n in names}
    print(table(found))
    print(json.dumps({
        "benchmark": "instructions", "arms": found, "goals": [] if args.smoke else goals(found),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
