"""Does selection by influence need fewer tokens than random text, its own cost included?

    python benchmarks/selection_quality.py              3 seeds: about 45 minutes on two cores
    python benchmarks/selection_quality.py --smoke      under a minute; no goal is judged
    python benchmarks/selection_quality.py --arms random,mates --seeds 1

The pool is mixed and real (`_mixed_pool.py`): domains of the Pile, Wikipedia, outputs of
instructions, worked solutions of grade-school maths, a tenth of shuffled noise. The aim is other
solutions. A 1M-parameter model is warmed up on random text; then each arm trains in rounds from the
same checkpoint with the same trainer, its optimizer going on, each round on text chosen from what
is left of the pool:

    random          random text
    same_lengths    random text with the lengths of what `mates` chose
    top_loss        largest loss under the latest model                of a random fifth of the pool
    bottom_ppl      smallest loss                                      of the same
    static          influence under the warmed-up model, asked once    of the whole pool
                    with as many labels as `mates` takes in all
    mates           influence model fitted on in every round           of 5 tokens for each kept
    mates_pool      the same, with every document left a candidate     of the whole pool
    direct          influence of every candidate, hard top-k (oracle)  of 5 tokens for each kept
    same_source     only solutions: who knows the source needs no model

Every arm is a recipe, run by foresift; FLOPs are those of the steps' facts (2 P a token forward,
6 P a token trained). What is reported, per seed and as a mean with a 95 % t-interval:

    loss            on held-out solutions after equal training tokens
    tokens          training tokens after the warm-up needed to reach random's final loss, as a
                    share of random's (linear between rounds)
    cost            the same in FLOPs, with all asking and scoring up to there included

`--frontier` runs `mates` at several prices (probes, tokens of each, reference documents) and writes
the curve to docs/selection_quality.svg. Goals: tokens and cost of `mates` at most half of random's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _mixed_pool
import _recipes
import _selection_report as report

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.5
TRAIN = {
    "train": "causal_lm", "length": 256, "batch_tokens": 2048, "learning_rate": 0.002,
    "schedule": "constant", "threads": 1,
}  # fmt: skip
#: tokens chosen for each that is trained on: start and end of documents are not counted
SPARE = 1.05
#: what one round of `mates` asks: documents labelled, tokens of each, documents of the reference
PRICE = (100, 64, 16)
FRONTIER = (
    (30, 64, 16), (60, 64, 16), (100, 64, 16), (100, 128, 32), (200, 128, 32), (400, 256, 64),
)  # fmt: skip


def influence(price: tuple[int, int, int]) -> dict[str, Any]:
    probes, tokens, documents = price
    return {
        "reference": "reference", "probes": probes, "probe_tokens": tokens,
        "reference_documents": documents, "floor": 0.0,
    }  # fmt: skip


def arms(args: argparse.Namespace) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Arm -> steps before the rounds, and steps of a round before its training."""
    kept = round(args.round * SPARE)
    budget = f"{kept} tokens"
    fifth = {"select": "random", "as": "candidates", "budget": f"{5 * kept} tokens"}
    gumbel = {
        "select": "gumbel_topk", "by": "influence.utility", "budget": budget,
        "standardise": True, "temperature": 0.25,
    }  # fmt: skip
    ask = {"score": ["influence"], "influence": influence(PRICE)}
    asked = (PRICE[0] * args.rounds, *PRICE[1:])
    once = {"score": ["influence"], "influence": influence(asked)}
    direct = {"score": ["influence"], "influence": {**influence(PRICE), "method": "direct"}}
    loss = {"score": ["loss"]}
    found: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
        "random": ([], [{"select": "random", "budget": budget}]),
        "top_loss": ([], [fifth, loss, {"select": "topk", "by": "loss.nll", "budget": budget}]),
        "bottom_ppl": (
            [],
            [fifth, loss, {"select": "topk", "by": "loss.nll", "lowest": True, "budget": budget}],
        ),
        "static": ([once], [gumbel]),
        "mates": ([], [fifth, ask, gumbel]),
        "mates_pool": ([], [ask, gumbel]),
        "direct": (
            [],
            [fifth, direct, {"select": "topk", "by": "influence.utility", "budget": budget}],
        ),
        "same_source": (
            [{"select": "where", "keep": "kind == 'gsm8k'"}],
            [{"select": "random", "budget": budget}],
        ),
    }
    for price in FRONTIER:
        ask_for = {"score": ["influence"], "influence": influence(price)}
        found["price_" + "_".join(map(str, price))] = ([], [fifth, ask_for, gumbel])
    return {name: {"before": before, "round": each} for name, (before, each) in found.items()}


def recipe(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The recipe of an arm."""
    arm = arms(args)[name]
    pool = args.work / "pool"
    train = {**TRAIN, "tokens": args.round, "continue_optimizer": True, "warmup": 0.0}
    return {
        "name": name, "seed": seed, "report": False,
        "data": {
            "read": "jsonl", "paths": [str(pool / "pool.jsonl")], "text": "text", "holdout": 0,
            "columns": ["kind"], "tokenizer": "configs/models/tiny",
        },
        "datasets": {
            "reference": {
                "read": "jsonl", "paths": [str(pool / "reference.jsonl")], "text": "text",
                "holdout": 0.667,
            }
        },
        "model": {"init": "configs/models/tiny", "max_length": 256, "seed": seed},
        "steps": [{**TRAIN, "tokens": args.warmup}, *arm["before"]],
        "rounds": {"count": args.rounds, "steps": [*arm["round"], train]},
        "evidence": {
            "against": ["length_matched_random"] if name == "mates" else [],
            "data": "reference",
        },
    }  # fmt: skip


def run(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run an arm; its manifest."""
    path = args.work / f"{name}-{seed}.yaml"
    return _recipes.run(recipe(name, seed, args), path, args.work / "out")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "out" / "selection")
    parser.add_argument("--arms", default="", help="names with commas; all by default")
    parser.add_argument("--frontier", action="store_true", help="`mates` at several prices instead")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--round", type=int, default=75_000, help="training tokens of a round")
    parser.add_argument("--warmup", type=int, default=300_000)
    parser.add_argument("--jobs", type=int, default=2, help="recipes at a time, a core each")
    parser.add_argument("--characters", type=int, default=9_000_000)
    args = parser.parse_args()
    if args.smoke:
        args.work = Path(tempfile.mkdtemp(prefix="foresift-selection-"))
        args.seeds, args.rounds, args.round, args.warmup = 1, 1, 8_000, 16_000
        args.arms, args.characters = "random,mates", 400_000
    if not args.data.exists():
        raise SystemExit(f"no data at {args.data}; name its folder with --data")
    args.work.mkdir(parents=True, exist_ok=True)
    kinds = _mixed_pool.write(args.data, args.work / "pool", args.characters)
    print("pool:", ", ".join(f"{n} {k}" for k, n in kinds.items()))
    prices = [n for n in arms(args) if n.startswith("price_")]
    usual = ["random", *prices] if args.frontier else [n for n in arms(args) if n not in prices]
    names = args.arms.split(",") if args.arms else usual
    if args.jobs > 1:  # the warm-up is shared: made once, by the first arm
        for seed in range(args.seeds):
            run(names[0], seed, args)
    jobs = [(name, seed) for name in names for seed in range(args.seeds)]
    with ThreadPoolExecutor(args.jobs) as pool:
        manifests = dict(zip(jobs, pool.map(lambda j: run(*j, args), jobs), strict=True))
    found = report.measure(manifests)
    print(report.table(found))
    if args.frontier:
        report.plot(found, ROOT / "docs" / "selection_quality.svg")
    goals = [] if args.smoke else report.goals(found, GOAL)
    print(json.dumps({"benchmark": "selection_quality", "arms": found, "goals": goals}))


if __name__ == "__main__":
    main()
