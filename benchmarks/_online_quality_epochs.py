"""Part c of benchmarks/online_quality.py: which rows an epoch visits.

`full` visits the pool in each of 8 epochs. Each plan gets 70, 50 or 30 % of those visits:

    dynamic_random   leaves out that share of each epoch
    infobatch        prunes half of the easy rows; as many epochs as it needs (fewer than 8)
    seta             5 groups of equal size, a window of 3; leaves out at random what is missing

so that all have consumed the same rows when they are compared; `full` is read where it has consumed
as many. Every row's mean response loss counts once (InfoBatch: by its weight). A twentieth of the
rows have the response of another row.

    loss      held-out response loss at equal consumed rows
    wrong     share of such rows among the visits after the first epoch (0.05 in the pool)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from _online_quality_rows import Found, apart
from _online_quality_setup import Row, Setup, Tuner, collate
from _selection_report import interval, told

from foresift.pipeline.online import EpochPlan, Epochs
from foresift.stages.samplers.dynamic_random import DynamicRandom
from foresift.stages.samplers.infobatch import InfoBatch
from foresift.stages.samplers.seta import SeTa

SIZE, EPOCHS, WRONG = 16, 8, 0.05
SAVED = (0.3, 0.5, 0.7)
GROUPS, WINDOW = 5, 0.6


def mislabelled(pool: Sequence[Row], seed: int) -> list[Row]:
    """A twentieth of the rows get the response of the next one of them."""
    rng = np.random.default_rng([seed, 5])
    found = [{**row, "wrong": False} for row in pool]
    some = rng.permutation(len(pool))[: max(2, round(WRONG * len(pool)))]
    for i, j in zip(some, np.roll(some, 1), strict=True):
        prompt, response = pool[i], pool[j]
        size = int((~prompt["counts"]).sum())
        tail = response["input_ids"][response["counts"]]
        counts = np.arange(size + len(tail)) >= size
        ids = np.concatenate([prompt["input_ids"][:size], tail])
        found[i] |= {"input_ids": ids, "counts": counts, "noise": np.zeros_like(counts)}
        found[i] |= {"id": prompt["id"] + "-wrong", "wrong": True}
    return found


def plans(rows: int, saved: float, epochs: int) -> dict[str, tuple[EpochPlan, int]]:
    """Name -> plan and the epochs it is opened for."""
    visits = (1 - saved) * epochs
    info = InfoBatch(prune=0.5)
    needed = next(e for e in range(1, 99) if sum(info.open(rows, e, 0).forecast()) >= visits * rows)
    seta = {"groups": GROUPS, "window": WINDOW, "grouping": "quantile"}
    whole = sum(SeTa(**seta).open(rows, epochs, 0).forecast()) / rows
    return {
        "dynamic_random": (DynamicRandom(prune=saved), epochs),
        "infobatch": (info, needed),
        "seta": (SeTa(prune=max(0.0, 1 - visits / whole), **seta), epochs),
    }


def run(setup: Setup, rows: int, epochs: int, seeds: int, arms: Sequence[str] = ()) -> Found:
    """'arm saved' -> what each seed came to."""
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        pool = mislabelled(setup.pool(seed, rows), seed)
        opened = (DynamicRandom(prune=0.0).open(len(pool), epochs, seed), epochs)
        full, facts = _arm(setup, pool, *opened, epochs * len(pool))
        found.setdefault("full 0%", []).append({**facts, "loss": full.curve[-1][2]})
        for saved in SAVED:
            budget = round((1 - saved) * epochs * len(pool))
            name = f"full, stopped {saved:.0%}"
            found.setdefault(name, []).append({**facts, "rows": budget, "loss": full.until(budget)})
            for kind, (plan, count) in plans(len(pool), saved, epochs).items():
                if arms and kind not in arms:
                    continue
                tuner, told_ = _arm(setup, pool, plan.open(len(pool), count, seed), count, budget)
                row = {**told_, "loss": tuner.until(budget)}
                found.setdefault(f"{kind} {saved:.0%}", []).append(row)
    return found


def _arm(
    setup: Setup, pool: list[Row], running: Epochs, epochs: int, budget: int
) -> tuple[Tuner, dict[str, Any]]:
    """Train until the budget of rows is consumed or the plan has ended."""
    tuner = setup.tuner()
    tuner.measure(0.0)
    wrong = later = 0
    due = every = budget / 4
    for number in range(epochs):
        positions, weights = running.epoch(number)
        for start in range(0, len(positions), SIZE):
            size = min(SIZE, budget - tuner.rows)
            if size <= 0:
                break
            places = positions[start : start + size]
            some = [pool[i] for i in places]
            weight = torch.from_numpy(weights[start : start + size])
            running.update(places, tuner.step(collate(some), weight).double().numpy())
            if number:
                wrong, later = wrong + sum(r["wrong"] for r in some), later + len(some)
            if tuner.rows >= due:
                tuner.measure(float(tuner.rows))
                due += every
    if tuner.curve[-1][0] < tuner.rows:
        tuner.measure(float(tuner.rows))
    return tuner, {
        "rows": tuner.rows,
        "tokens": tuner.tokens,
        "wrong": wrong / later if later else float("nan"),
        "seconds": tuner.curve[-1][1],
        "curve": tuner.curve,
    }


def table(found: Found) -> str:
    """A Markdown table, by what is saved, best loss first."""
    lines = [
        "| arm, saved | held-out loss | minus dynamic random | rows consumed | wrong % of visits |",
        "|---|---|---|---|---|",
    ]
    order = sorted(found, key=lambda n: (n.split()[-1], np.mean([r["loss"] for r in found[n]])))
    for name in order:
        runs, base = found[name], f"dynamic_random {name.split()[-1]}"
        cells = [
            told([r["loss"] for r in runs]),
            told(apart(found, name, base, "loss")) if base in found else "",
            told([r["rows"] for r in runs], 0),
            told([100 * r["wrong"] for r in runs], 1),
        ]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def goals(found: Found) -> list[dict[str, Any]]:
    judged: list[dict[str, Any]] = []
    for saved in ("50%", "70%"):
        pair: tuple[str, str] = (f"seta {saved}", f"dynamic_random {saved}")
        if not set(pair) <= set(found):
            continue
        mean, half = interval(apart(found, *pair, "loss"))
        judged.append({
            "name": f"held-out loss of SeTa minus dynamic random's, {saved} saved", "goal": 0,
            "measured": round(mean, 4), "half_width": half, "met": bool(mean - (half or 0) <= 0),
        })  # fmt: skip
    return judged
