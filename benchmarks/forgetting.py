"""Curate up front, or unlearn later? Both on one corpus of which every secret is known.

    python benchmarks/forgetting.py              3 seeds: about an hour on two cores
    python benchmarks/forgetting.py --smoke      under a minute; no goal is judged
    python benchmarks/forgetting.py --tune       first finds each method's learning rate

Corpus `_forgetting_corpus.py`; arms `_forgetting_arms.py` (training), `_forgetting_replay.py`
(exact deletion) and `_forgetting_unlearn.py`; measures `_forgetting_measures.py`; table, costs and
gates `_forgetting_table.py`. Each seed's numbers are kept in `--out`; what is there is not
computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import _forgetting_arms as arms
import _forgetting_measures as measures
import _forgetting_table as table
import _forgetting_unlearn as later
from _forgetting_corpus import build
from _forgetting_replay import replayed, same_weights

ROOT = Path(__file__).resolve().parents[1]
ABLATIONS = ("dedup", "pii", "junk")
TRAINED = ("none", "curated", "dedup", "pii", "junk", "oracle")
#: a seed that is in no table: learning rates are chosen on it
TUNING = 90
SMOKE = later.Settings(0.1, methods=("npo", "ssd"), requests=1)


def one_seed(seed: int, tier: arms.Tier, folder: Path, settings: later.Settings) -> dict[str, Any]:
    """Every arm of one seed: its measures, what it took, and exposure after relearning."""
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    rows, truth = build(seed, tier.items, tier.background)
    found: dict[str, Any] = {}
    names = [n for n in TRAINED if tier is not arms.SMOKE or n not in ABLATIONS]
    trained = {name: arms.run(name, rows, truth, folder, tier, seed) for name in names}
    for name, arm in trained.items():
        curating, training = arm.seconds
        found[name] = _told(arm.checkpoint, truth, arm.flops, curating + training)
        found[name]["curating_seconds"] = curating
    place, requests = replayed(folder / "corpus.jsonl.gz", truth, folder, tier, seed)
    last = requests["all"]["replay"]
    found["replay"] = _told(place, truth, last["flops"], last["seconds"]) | {
        "requests": requests, "same_as_oracle": same_weights(place, trained["oracle"].checkpoint)
    }  # fmt: skip
    found["removed"] = table.removed(trained, rows, truth)
    model, tokenizer = later.load(trained["none"].checkpoint)
    texts = sorted(truth.deletion)
    for method in settings.methods:
        done = later.forgotten(model, tokenizer, texts, truth, method, settings, seed)
        found[f"U {method}"] = _told((done.model, tokenizer), truth, done.flops, done.seconds)
    last, told = later.stream(model, tokenizer, truth, settings, seed)
    found["U stream"] = _told((last, tokenizer), truth, told["flops"], told["seconds"]) | told
    curated, _ = later.load(trained["curated"].checkpoint)
    kept = {row["text"] for row in arms.exported(trained["curated"].curate or {})}
    missed = [text for text in texts if text in kept] or texts[:1]
    done = later.forgotten(curated, tokenizer, missed, truth, "npo", settings, seed)
    found["curated + npo"] = _told((done.model, tokenizer), truth, done.flops, done.seconds)
    found["curated + npo"]["missed"] = len(missed)
    return found


def _told(place: Any, truth: Any, flops: float, seconds: float) -> dict[str, Any]:
    model, tokenizer = later.load(place) if isinstance(place, Path) else place
    return {
        "measures": measures.measure(model, tokenizer, truth),
        "relearned": later.after_relearning(model, tokenizer, truth),
        "held": measures.held(model, tokenizer, truth, 16, 1),
        "flops": flops,
        "seconds": seconds,
    }


def tune(tier: arms.Tier, folder: Path) -> dict[str, float]:
    """Method -> the learning rate that comes nearest to the oracle for the least bits."""
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    rows, truth = build(TUNING, tier.items, tier.background)
    trained = {n: arms.run(n, rows, truth, folder, tier, TUNING) for n in ("none", "oracle")}
    model, tokenizer = later.load(trained["none"].checkpoint)
    oracle, _ = later.load(trained["oracle"].checkpoint)
    want = _secrets(oracle, tokenizer, truth)
    bits = measures.validation(model, tokenizer, truth)
    rates = {}
    for method, (_, tried) in later.METHODS.items():

        def cost(rate: float, method: str = method) -> float:
            one = later.Settings(rates={method: rate})
            done = later.forgotten(model, tokenizer, sorted(truth.deletion), truth, method, one, 0)
            gap = abs(_secrets(done.model, tokenizer, truth) - want)
            more = measures.validation(done.model, tokenizer, truth) - bits
            return gap + 5 * max(0.0, more) if more == more else float("inf")

        rates[method], costs = _best(tried, cost)
        print(f"tuned {method}: {rates[method]:g}  {costs}", flush=True)
    return rates


def _best(
    tried: tuple[float, ...], cost: Callable[[float], float]
) -> tuple[float, dict[float, float]]:
    """The cheapest of the values, and of up to two beyond an edge that is still the cheapest."""
    costs = {rate: cost(rate) for rate in tried}
    for _ in range(2):
        best = min(costs, key=lambda rate: costs[rate])
        if best not in (min(costs), max(costs)):
            break
        beyond = best * 3 if best == max(costs) else best / 3
        costs[beyond] = cost(beyond)
    return min(costs, key=lambda rate: costs[rate]), costs


def _secrets(model: Any, tokenizer: Any, truth: Any) -> float:
    return sum(measures.held(model, tokenizer, truth, 16, half) for half in (0, 1)) / 2


def main() -> None:
    """Run the seeds, print the table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="one small seed, under a minute")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tune", action="store_true", help="find the learning rates first")
    parser.add_argument("--workers", type=int, default=2, help="seeds at the same time")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "forgetting")
    asked = parser.parse_args()
    tier = arms.SMOKE if asked.smoke else arms.STANDARD
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) if asked.smoke else asked.out
        rates = _rates(out, tier, asked.tune and not asked.smoke)
        settings = SMOKE if asked.smoke else later.Settings(rates=rates)
        seeds = range(1 if asked.smoke else asked.seeds)
        if asked.smoke:
            found = [one_seed(0, tier, out / "seed-0", settings)]
        else:
            spawn = get_context("spawn")
            with ProcessPoolExecutor(asked.workers, mp_context=spawn) as pool:
                found = list(pool.map(_kept, [(s, tier, out, settings) for s in seeds]))
    print(table.show(found))
    goals = table.goals(found)
    if asked.smoke:
        goals = [{**goal, "met": None} for goal in goals]
    print(json.dumps({"seconds": round(time.perf_counter() - began), "goals": goals}))


def _rates(out: Path, tier: arms.Tier, wanted: bool) -> dict[str, float]:
    """The tuned learning rates, from the file where they are kept."""
    path = out / "rates.json"
    if wanted and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(tune(tier, out / f"seed-{TUNING}")))
    rates: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    return rates


def _kept(job: tuple[int, arms.Tier, Path, later.Settings]) -> dict[str, Any]:
    """One seed, from its file where it is done."""
    seed, tier, out, settings = job
    path = out / f"seed-{seed}.json"
    if not path.exists():
        found = one_seed(seed, tier, out / f"seed-{seed}", settings)
        path.write_text(json.dumps(found, indent=1))
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept


if __name__ == "__main__":
    main()
