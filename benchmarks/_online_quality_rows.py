"""Part a of benchmarks/online_quality.py: which rows of a step's candidates are trained on.

A fifth of the pool's rows are exact copies of others (each of `--copied` rows stands there once
more, or several times). A step takes 8 of 32 candidates; candidates pass over the pool once at
least, and until as many tokens were trained on as random takes in two passes. `full` trains on
every row of one pass, 8 a step.

    loss         held-out response loss at equal tokens trained on (forward and backward)
    to full's    CPU seconds until the loss that `full` ends with, of the seconds that `full` took
    repeats      rows chosen in the first pass whose content was chosen before in it, of all chosen

A choice that looks at each row alone takes both copies or none, so that its repeats come near the
20 % of the pool; random takes both of few. `uds_norm` is UDS without its memory, `uds_distance`
the memory alone, `uds_nearest` measures the distance to the nearest remembered row instead of the
mean one, and `uds_by_length` divides norm and distance by the row's length, which the norm grows
with.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _online_quality_setup import Row, Setup, Tuner, collate, row_losses
from _selection_report import interval, needed, told
from transformers import AutoModelForCausalLM

from foresift.pipeline.stream import Stream
from foresift.stages.samplers.gradient_norm import GradientNorm
from foresift.stages.samplers.max_loss import MaxLoss
from foresift.stages.samplers.random import Random
from foresift.stages.samplers.rho_loss import RhoLoss
from foresift.stages.samplers.uds import UDS
from foresift.stages.samplers.uncertainty import Uncertainty

KEEP, OF = 8, 32
POINTS = 4
COPIES = 0.2
Found = Mapping[str, Sequence[Mapping[str, Any]]]


def copied(pool: list[Row], copies: int, seed: int) -> list[Row]:
    """The pool with a fifth of its rows replaced by so many copies of each of some others."""
    rng = np.random.default_rng([seed, 3])
    order = rng.permutation(len(pool))
    count = round(COPIES * len(pool))
    sources = order[count : count + -(-count // copies)]
    again = [pool[i] for i in np.repeat(sources, copies)[:count]]
    mixed = [pool[i] for i in order[count:]] + again
    return [{**mixed[i], "row": n} for n, i in enumerate(rng.permutation(len(mixed)))]


def irreducible(setup: Setup, pool: Sequence[Row], path: Path) -> Path:
    """The table of losses under the reference model."""
    once = list({r["id"]: r for r in pool}.values())
    sums, counts = row_losses(AutoModelForCausalLM.from_pretrained(setup.reference()), once).T
    pq.write_table(pa.table({"id": [r["id"] for r in once], "loss": sums / counts}), path)
    return path


def methods(setup: Setup, pool: Sequence[Row], seed: int) -> dict[str, Any]:
    against = irreducible(setup, pool, setup.work / f"irreducible-{seed}.parquet")
    return {
        "full": Random(seed=seed),
        "random": Random(seed=seed),
        "max_loss": MaxLoss(),
        "rho_loss": RhoLoss(against=str(against)),
        "uncertainty": Uncertainty(),
        "gradient_norm": GradientNorm(),
        "uds": UDS(seed=seed),
        "uds_norm": UDS(seed=seed, alpha_normalised=0.0),
        "uds_nearest": UDS(seed=seed, distance="nearest"),
        "uds_by_length": UDS(seed=seed, length_norm="length"),
        "uds_nearest_by_length": UDS(seed=seed, distance="nearest", length_norm="length"),
        "uds_distance": UDS(seed=seed, alpha_normalised=1e6),
    }


def run(setup: Setup, rows: int, copies: int, seeds: int, arms: Sequence[str] = ()) -> Found:
    """Arm -> what each seed came to."""
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        pool = copied(setup.pool(seed, rows), copies, seed)
        tokens = sum(len(r["input_ids"]) for r in pool)
        budget = 2 * tokens * KEEP // OF
        tuned = {
            name: _arm(name, setup, pool, method, seed, budget)
            for name, method in methods(setup, pool, seed).items()
            if not arms or name in arms
        }
        for name, (tuner, facts) in tuned.items():
            found.setdefault(name, []).append({**facts, "loss": tuner.until(budget)})
            if "full" in tuned:
                full = tuned["full"][0].curve
                seconds = needed(tuner.curve, full[-1][2])[1]
                found[name][-1]["to_full"] = seconds / full[-1][1]
                found[name][-1]["full_loss"] = full[-1][2]
    return found


def _arm(
    name: str, setup: Setup, pool: list[Row], method: Any, seed: int, budget: int
) -> tuple[Tuner, dict[str, Any]]:
    tuner = setup.tuner()
    of = KEEP if name == "full" else OF
    stream = Stream(pool, method, tuner.model, keep=KEEP, of=of, collate=collate, seed=seed)
    tuner.measure()
    seen: set[str] = set()
    chosen = repeats = 0
    due, scoring = budget / POINTS, 0.0
    while tuner.steps < stream.steps_per_epoch or (tuner.tokens < budget and name != "full"):
        start = time.process_time()
        batch = next(stream)
        scoring += time.process_time() - start
        if tuner.steps < stream.steps_per_epoch:
            for row in batch["row"].tolist():
                repeats += pool[row]["id"] in seen
                seen.add(pool[row]["id"])
                chosen += 1
        tuner.step(batch)
        if tuner.tokens >= due:
            tuner.measure()
            due += budget / POINTS
    if tuner.curve[-1][0] < tuner.tokens:
        tuner.measure()
    return tuner, {
        "repeats": repeats / chosen,
        "tokens": tuner.tokens,
        "steps": tuner.steps,
        "rows": tuner.rows,
        "seconds": tuner.curve[-1][1],
        "scoring": scoring,
        "curve": tuner.curve,
    }


def table(found: Found) -> str:
    """A Markdown table, best loss first."""
    lines = [
        "| arm | held-out loss | minus random | to full's | repeats % | scoring s | of all s |"
        " tokens a row |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(found, key=lambda n: float(np.mean([r["loss"] for r in found[n]]))):
        runs = found[name]
        cells = [
            told([r["loss"] for r in runs]),
            told(apart(found, name, "random", "loss")) if "random" in found else "",
            told([r["to_full"] for r in runs], 2) if "full" in found else "",
            told([100 * r["repeats"] for r in runs], 1),
            told([r["scoring"] for r in runs], 1),
            told([r["seconds"] for r in runs], 1),
            told([r["tokens"] / r["rows"] for r in runs], 0),
        ]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def apart(found: Found, name: str, base: str, what: str) -> list[float]:
    return [a[what] - b[what] for a, b in zip(found[name], found[base], strict=True)]


def goals(found: Found) -> list[dict[str, Any]]:
    judged: list[dict[str, Any]] = []
    for arm, text in (("uds", "UDS"), ("uds_nearest", "UDS to the nearest")):
        if {arm, "uds_norm"} <= set(found):
            ratio = [
                u["repeats"] / max(n["repeats"], 1e-9)
                for u, n in zip(found[arm], found["uds_norm"], strict=True)
            ]
            mean, half = interval(ratio)
            judged.append({
                "name": f"repeats among what {text} chooses, of those of the nuclear norm alone",
                "goal": 2 / 3, "measured": round(mean, 4), "half_width": half,
                "met": bool(mean + (half or 0) <= 2 / 3),
            })  # fmt: skip
    if {"uds", "random"} <= set(found):
        mean, half = interval(apart(found, "uds", "random", "loss"))
        judged.append({
            "name": "held-out loss of UDS minus random's, at equal tokens trained on",
            "goal": 0, "measured": round(mean, 4), "half_width": half,
            "met": bool(mean - (half or 0) <= 0),
        })  # fmt: skip
    return judged
