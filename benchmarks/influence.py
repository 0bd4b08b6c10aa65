"""How much cheaper are linear influence labels than exact ones, and how well do they rank?

    python benchmarks/influence.py              a quarter of an hour on an idle core
    python benchmarks/influence.py --smoke      under a minute; no goal is judged
    python benchmarks/influence.py --big        instead: peak memory of a model of 160M parameters
    python benchmarks/influence.py --peers none without dattri

A 1M-parameter Llama is warmed up by foresift; candidates and reference are real
(`_influence_setup.py`). All contestants read the same candidates, cut to `--tokens`, and the same
1,024 reference documents:

    exact       one AdamW step from the checkpoint's moments, kept in memory; the loss on the whole
                reference; the state put back: `probes.exact`
    linear      `probes.prepare` once, then `probes.linear`; variants: without the clip factor, with
                forward and central differences, with weights in bfloat16, without the moments
    dattri      TracIn with one checkpoint (GradDot): `_influence_peers.py`
    batched     exact, K documents at a time: `_influence_batched.py` (on 64 reference documents)

Times are CPU seconds of one thread, so other work on the machine does not enter; exact and linear
take turns and their medians are compared. Ranks are compared with exact's by Spearman's rank
correlation, on a random draw of the pool and inside two of its kinds, with a 95 % bootstrap
interval. Goals: a linear label is 100 times cheaper; 0.9 on the mixed pool, 0.85 inside a kind.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import _influence_batched as batched
import _influence_peers as peers
import _influence_setup as setups
import numpy as np
import numpy.typing as npt
import torch
from _influence_big import GOAL
from _influence_setup import INSIDE, ROOT, Setup
from _influence_table import Table, rounded

from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.gradients import probes, reference
from foresift.pipeline.lm.gradients.directional import choose_step, sample
from foresift.pipeline.lm.gradients.reference import reference_set
from foresift.pipeline.lm.model import load

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
#: documents of one turn of exact labels
TURN = 6


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    if args.big:
        result = big(args)
    else:
        from transformers.utils import logging as bars

        bars.disable_progress_bar()
        result = measure(setups.prepare(args), args)
    print(json.dumps({
        "benchmark": "influence",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        **result,
    }))  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    parser.add_argument("--big", action="store_true", help="memory of a model of 160M parameters")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "out" / "influence")
    parser.add_argument("--peers", choices=["install", "present", "none"], default="install")
    parser.add_argument("--warm-tokens", type=int, default=300_000)
    parser.add_argument("--characters", type=int, default=9_000_000, help="of the pool")
    parser.add_argument("--reference", type=int, default=1024, help="documents to aim at")
    parser.add_argument("--tokens", type=int, default=128, help="that are read of a candidate")
    parser.add_argument("--candidates", type=int, default=240, help="linear labels, mixed")
    parser.add_argument("--exact", type=int, default=80, help="of those, so many exact labels too")
    parser.add_argument("--inside", type=int, default=32, help="exact labels of each kind at least")
    args = parser.parse_args()
    if args.smoke:
        args.work = Path(tempfile.mkdtemp(prefix="foresift-influence-"))
        args.warm_tokens, args.characters, args.reference = 16_000, 400_000, 32
        args.candidates, args.exact, args.inside = 24, 12, 4
        args.peers = "present" if args.peers == "install" else args.peers
    if not args.data.exists():
        raise SystemExit(f"no data at {args.data}; name its folder with --data")
    return args


def measure(setup: Setup, args: argparse.Namespace) -> dict[str, Any]:
    """Every contestant's labels and CPU seconds, as a table and as goals."""
    rows = judged(setup, args)
    print(
        f"{len(setup.candidates)} candidates, {len(rows)} with exact labels, "
        f"{setup.aim.tokens:,} reference tokens", flush=True,
    )  # fmt: skip
    gradient = spent(lambda: reference.gradient(setup.aim, setup.loaded))[1]
    probe, total = spent(lambda: prepared(setup))
    truth, seconds = race(setup, probe, rows)
    groups = {"mixed": rows < args.exact} | {k: setup.kinds[rows] == k for k in INSIDE}
    table = Table(truth, groups, len(rows))
    table.add("exact", truth, seconds["exact"])
    table.add("linear", linear(setup, probe, rows), seconds["linear"], total)
    variants(setup, probe, total, rows, table)
    if peers.available(args.peers):
        found, cpu = peers.tracin(setup, rows)
        table.add("dattri, all at once", found, cpu / len(rows))
    table.tell()
    extra = rounded({
        "once": {"reference_gradient": gradient, "step_and_norms": max(0.0, total - gradient)},
        "linear_label_over_1000": seconds["linear"] + total / 1000,
        "probe": probe.facts(), "utility_by_kind": by_kind(setup, probe),
        "batched": against_loop(setup, rows, 1 if args.smoke else 3),
    })  # fmt: skip
    for name, value in extra.items():
        print(f"{name:24} {json.dumps(value)}")
    goals = [] if args.smoke else table.goals()
    return {"labels": rounded(table.rows), **extra, "goals": goals}


def judged(setup: Setup, args: argparse.Namespace) -> Rows:
    """The candidates that get exact labels: of the mixed draw, and more inside each kind."""
    chosen = [np.arange(min(args.exact, setup.mixed))]
    chosen += [np.flatnonzero(setup.kinds == kind)[: args.inside] for kind in INSIDE]
    return np.unique(np.concatenate(chosen))


def spent(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and its CPU seconds."""
    start = time.process_time()
    found = run()
    return found, time.process_time() - start


def prepared(setup: Setup) -> probes.Probe:
    aims = [(setup.aim, 1.0)]
    return probes.prepare(aims, setup.loaded, setup.rule, setup.moments, setup.few)[0]


def linear(setup: Setup, probe: probes.Probe, rows: Rows) -> Floats:
    return probes.linear(probe, sample(setup.candidates, rows), setup.loaded)[:, 0]


def race(setup: Setup, probe: probes.Probe, rows: Rows) -> tuple[Floats, dict[str, float]]:
    """Exact labels, and the median seconds of an exact and of a linear label, taken in turns."""
    found: list[Floats] = []
    exact: list[float] = []
    cheap: list[float] = []
    for start in range(0, len(rows), TURN):
        few = sample(setup.candidates, rows[start : start + TURN])
        labels, cpu = spent(lambda few=few: stepped(setup, few))
        found.append(labels)
        exact.append(cpu / (len(labels) + 1))  # a call also takes the loss at theta once
        cheap.append(spent(lambda: linear(setup, probe, rows))[1] / len(rows))
        print(f"{start + len(labels)} of {len(rows)} exact", file=sys.stderr, flush=True)
    medians = {"exact": float(np.median(exact)), "linear": float(np.median(cheap))}
    return np.concatenate(found), medians


def stepped(setup: Setup, few: Encoded) -> Floats:
    """Exact labels."""
    return probes.exact([setup.aim], few, setup.loaded, setup.rule, setup.moments)[:, 0]


def variants(setup: Setup, probe: probes.Probe, total: float, rows: Rows, table: Table) -> None:
    """Rows of the linear labels' variants; `total` is what preparing the probe took."""

    def one(name: str, there: Setup, probe: probes.Probe, once: float = total) -> None:
        found, cpu = spent(lambda: linear(there, probe, rows))
        table.add(name, found, cpu / len(rows), once)

    one("linear, no clip factor", setup, replace(probe, norm=None))
    for central, name in ((False, "forward"), (True, "central")):
        step = choose_step(setup.few, setup.loaded, probe.directions[0], central=central)
        one(f"linear, {name} difference", setup, replace(probe, steps=(step,)))
    half = setup.at("bfloat16")
    for name, there in (("no moments", replace(setup, moments=None)), ("bfloat16", half)):
        other, once = spent(lambda there=there: prepared(there))
        one(f"linear, {name}", there, other, once)


def by_kind(setup: Setup, probe: probes.Probe) -> dict[str, float]:
    """Mean linear utility of each kind of the mixed draw, in its standard deviations."""
    found = linear(setup, probe, np.arange(setup.mixed))
    scores = (found - found.mean()) / found.std()
    kinds = setup.kinds[: setup.mixed]
    return {str(k): float(scores[kinds == k].mean()) for k in np.unique(kinds)}


def against_loop(setup: Setup, rows: Rows, repeats: int) -> dict[str, Any]:
    """Speed of batched exact probes over the loop's, on a small reference; the largest gap."""
    aim = reference_set(sample(setup.aim.encoded, range(min(64, len(setup.aim.encoded)))))
    few = sample(setup.candidates, rows[:8])
    eager = load(replace(setup.spec, attention="eager"))
    assert setup.moments is not None
    runs: dict[str, Callable[[], Floats]] = {
        "loop": lambda: stepped(replace(setup, aim=aim), few),
        "loop, eager": lambda: stepped(replace(setup, aim=aim, loaded=eager), few),
    }
    for size, tokens in ((4, 2048), (8, 2048), (8, 16384)):
        runs[f"{size} at a time, {tokens} tokens"] = lambda size=size, tokens=tokens: (  # type: ignore[misc]
            batched.exact(aim, few, eager, setup.rule, setup.moments, size, tokens)
        )
    best, labels = dict.fromkeys(runs, float("inf")), {}
    for _ in range(repeats):
        for name, run in runs.items():
            labels[name], cpu = spent(run)
            best[name] = min(best[name], cpu)
    gap = max(float(np.abs(v - labels["loop"]).max()) for v in labels.values())
    return {"speed": {n: best["loop"] / b for n, b in best.items()}, "largest_gap": gap}


def big(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a model of 160M parameters, measured in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("_influence_big.py"))]
    command += ["--smoke"] if args.smoke else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    print(told.stdout.rpartition("\n{")[0])
    found = json.loads(told.stdout.rstrip().rpartition("\n")[2])
    peak = max(phase["peak_gb"] for phase in found["phases"])
    goal = {"name": "peak memory of a 160M model, GB", "goal": GOAL, "measured": peak}
    goals = [] if args.smoke else [{**goal, "met": peak <= GOAL}]
    return {**found, "goals": goals}


if __name__ == "__main__":
    main()
