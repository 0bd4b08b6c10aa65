"""Part b of benchmarks/online_quality.py: which tokens of a step's rows count in the loss.

A fifth of the response tokens of the pool, at known positions, are replaced by random ones; they
stand in the context of what follows, too. Every row is trained on once an epoch, 16 a step; each
selector keeps 60 % of the response tokens. `clean_only` leaves out exactly the corrupted ones (what
a perfect selector would do, and more tokens than the others keep); `full` keeps all;
`sstoken_turned` is progress with the other sign, as one later implementation has it.

Random tokens of the whole vocabulary (`--noise vocabulary`) can be learned: not which one comes,
but that anything may. Their loss falls by 0.7 nats within 5 steps, before that of clean tokens
does, so that progress keeps them, trains on them and sees more progress; only a model that trains
on clean tokens alone makes less progress on them. With tokens drawn from the pool's responses
(`--noise responses`) there is less of this kind to learn.

    corrupted    share of corrupted among the tokens that are kept, first quarter of steps and rest
    loss         held-out loss on responses that are not corrupted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _online_quality_rows import Found, apart
from _online_quality_setup import Row, Setup, collate
from _selection_report import interval, told

from foresift.pipeline.online import IGNORED
from foresift.pipeline.stream import Stream
from foresift.stages.samplers.random import Random
from foresift.stages.samplers.random_tokens import RandomTokens
from foresift.stages.samplers.rho1 import Rho1
from foresift.stages.samplers.sstoken import SsToken

SIZE, SHARE, CORRUPTED = 16, 0.6, 0.2


def corrupted(pool: Sequence[Row], vocabulary: int, noise: str, seed: int) -> list[Row]:
    """A fifth of the response tokens replaced; never the end token."""
    rng = np.random.default_rng([seed, 4])
    tokens = np.arange(vocabulary)
    if noise == "responses":
        tokens = np.concatenate([r["input_ids"][r["counts"]][:-1] for r in pool])
    found = []
    for row in pool:
        ids, places = row["input_ids"].copy(), np.flatnonzero(row["counts"])[:-1]
        wrong = places[rng.random(len(places)) < CORRUPTED]
        drawn = rng.choice(tokens, len(wrong))
        marked = np.zeros(len(ids), dtype=np.bool_)
        marked[wrong] = drawn != ids[wrong]
        ids[wrong] = drawn
        found.append({**row, "input_ids": ids, "noise": marked})
    return found


def selectors(setup: Setup, seed: int) -> dict[str, Any]:
    return {
        "full": None,
        "clean_only": None,
        "random_tokens": RandomTokens(share=SHARE, seed=seed),
        "sstoken_attention": SsToken(gamma=0.0, rho=SHARE),
        "sstoken": SsToken(gamma=0.5, rho=SHARE),
        "sstoken_progress": SsToken(gamma=1.0, rho=SHARE),
        "sstoken_turned": SsToken(gamma=1.0, rho=SHARE, polarity="cur_minus_his"),
        "rho1": Rho1(reference=str(setup.reference()), share=SHARE),
    }


def run(
    setup: Setup, rows: int, epochs: int, noise: str, seeds: int, arms: Sequence[str] = ()
) -> Found:
    """Arm -> what each seed came to."""
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        pool = corrupted(setup.pool(seed, rows), len(setup.tokenizer), noise, seed)
        for name, selector in selectors(setup, seed).items():
            if not arms or name in arms:
                found.setdefault(name, []).append(_arm(name, setup, pool, selector, seed, epochs))
    return found


def _clean(some: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collated with the corrupted tokens left out of the loss."""
    batch = collate(some)
    batch["labels"] = batch["labels"].masked_fill(batch["noise"], IGNORED)
    return batch


def _arm(
    name: str, setup: Setup, pool: list[Row], selector: Any, seed: int, epochs: int
) -> dict[str, Any]:
    tuner = setup.tuner()
    stream = Stream(
        pool, Random(seed=seed), tuner.model, keep=SIZE, of=SIZE, seed=seed, tokens=selector,
        collate=_clean if name == "clean_only" else collate,
    )  # fmt: skip
    steps = epochs * stream.steps_per_epoch
    counts = np.zeros((steps, 2))
    tuner.measure()
    for step in range(steps):
        batch = next(stream)
        kept = batch["labels"] != IGNORED
        counts[step] = int((kept & batch["noise"]).sum()), int(kept.sum())
        tuner.step(batch)
        if (step + 1) % max(1, steps // 4) == 0:
            tuner.measure()
    loss = tuner.measure() if tuner.curve[-1][0] < tuner.tokens else tuner.curve[-1][2]
    early = max(1, steps // 4)
    first, rest = counts[:early].sum(0), counts[early:].sum(0)
    return {
        "loss": loss,
        "corrupted": float(counts[:, 0].sum() / counts[:, 1].sum()),
        "corrupted_first_quarter": float(first[0] / first[1]),
        "corrupted_rest": float(rest[0] / max(1.0, rest[1])),
        "kept": int(counts[:, 1].sum()),
        "seconds": tuner.curve[-1][1],
        "curve": tuner.curve,
    }


def table(found: Found) -> str:
    """A Markdown table, best loss first."""
    lines = [
        "| arm | held-out clean loss | minus random_tokens | corrupted % of kept |"
        " first quarter | rest | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(found, key=lambda n: float(np.mean([r["loss"] for r in found[n]]))):
        runs = found[name]
        keys = ("corrupted", "corrupted_first_quarter", "corrupted_rest")
        cells = [
            told([r["loss"] for r in runs]),
            told(apart(found, name, "random_tokens", "loss")) if "random_tokens" in found else "",
            *(told([100 * r[k] for r in runs], 1) for k in keys),
            told([r["seconds"] for r in runs], 1),
        ]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def goals(found: Found) -> list[dict[str, Any]]:
    if not {"sstoken", "random_tokens"} <= set(found):
        return []
    judged = []
    for what, text, goal in (
        ("corrupted_rest", "corrupted among the tokens ssToken keeps, minus random's", 0.0),
        ("loss", "held-out clean loss of ssToken minus that of random tokens", 0.0),
    ):
        mean, half = interval(apart(found, "sstoken", "random_tokens", what))
        judged.append({
            "name": text, "goal": goal, "measured": round(mean, 4), "half_width": half,
            "met": bool(mean + (half or 0) < goal),
        })  # fmt: skip
    return judged
