"""Whether PDS and LQS labels are what they claim: what does a document do to a training run?

    python benchmarks/lqs.py                   50 steps, 256 documents: 40 minutes on one core
    python benchmarks/lqs.py --smoke           under a minute
    python benchmarks/lqs.py --data FOLDER     where the public data lie (default ../shared/data)

A 0.3M-parameter Llama is warmed up with AdamW on a mixed pool (web, encyclopedia, instructions,
maths, shuffled words). From there the inner run takes T SGD steps on 8 documents each; the aim is
32 worked solutions of grade-school maths. For each of N other documents of the pool,

    effect = sum_t J(theta_t) of the run - the same of the run with the document's loss added to
             every step, at w times the weight of one document of the batch

is found by running again: N + 1 whole runs for each w. At w = 1 the document is seen T times in
all, at w = 1 / T once, which is nearer to what labels are: a derivative, at w = 0. The labels come
from one backward sweep. Printed are their rank correlations with the effect, the mean label by kind
of document, and how well the ridge on n-grams predicts labels that it did not see, from M labels
looked at every tenth step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _mixed_pool
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from foresift.pipeline.lm.batches import batches
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.gradients.directional import sample
from foresift.pipeline.lm.gradients.hessian import loss_gradient
from foresift.pipeline.lm.gradients.reference import reference_set
from foresift.pipeline.lm.gradients.samples import Parameters, sample_losses
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.pipeline.lm.regress import Ridge, agreement, ngram_features
from foresift.scorers._trajectory import LanguageModel, Memory, backward, forward
from foresift.scorers.lqs import gammas, standardised

Floats = npt.NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[1]
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}  # fmt: skip
INTERVAL, GOAL = 10, 0.9


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        spec, texts, kinds, aims = prepare(Path(folder), args)
        result = measure(spec, texts, kinds, aims, args)
    for name, value in result.items():
        print(f"{name:24} {value}")
    print(json.dumps(summary(result, args)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--documents", type=int, default=256, help="whose effect is measured")
    parser.add_argument("--labelled", type=int, default=1024, help="labels for the ridge")
    parser.add_argument("--reference", type=int, default=32)
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0, 0.02])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=0.008)
    parser.add_argument("--warmup", type=int, default=600, help="AdamW steps before")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="few steps and documents")
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.documents, args.labelled, args.warmup = 6, 8, 40, 20
    return args


def prepare(
    folder: Path, args: argparse.Namespace
) -> tuple[ModelSpec, list[str], list[str], list[str]]:
    """The model, the pool with its kinds, and the reference."""
    _mixed_pool.write(args.data, folder, 2_000_000)
    lines = [json.loads(line) for line in (folder / "pool.jsonl").open(encoding="utf-8")]
    aims = [json.loads(s)["text"] for s in (folder / "reference.jsonl").open(encoding="utf-8")]
    (folder / "model.json").write_text(json.dumps(CONFIG))
    spec = ModelSpec(
        init=str(folder / "model.json"), tokenizer=str(ROOT / "configs/models/tiny"),
        max_length=args.max_length, attention="eager", device="cpu",
    )  # fmt: skip
    return spec, [r["text"] for r in lines], [r["kind"] for r in lines], aims[: args.reference]


def measure(
    spec: ModelSpec, texts: list[str], kinds: list[str], aims: list[str], args: argparse.Namespace
) -> dict[str, Any]:
    loaded = load(spec)

    def encoded(some: list[str]) -> Encoded:
        return encode(pa.table({"text": some}), loaded.tokenizer, spec)

    inner = args.steps * args.batch
    wide = max(args.documents, args.labelled)
    proxies, trained = encoded(texts[:wide]), encoded(texts[wide:][:inner])
    began = time.perf_counter()
    warm_up(loaded, encoded(texts[wide + inner :]), args)
    warmed = time.perf_counter()
    rows = list(np.arange(inner).reshape(args.steps, args.batch))
    aim = reference_set(encoded(aims), "token_mean")
    problem = LanguageModel(loaded, trained, rows, [(aim, 1.0)])
    start = problem.start()
    found = sweep(problem, start, proxies, args)
    swept = time.perf_counter()
    few = sample(proxies, list(range(args.documents)))
    losses = run(problem, start, None, 0, 0.0, args)
    effect = {w: effects(problem, start, few, sum(losses), w, args) for w in args.weights}
    return {
        "parameters": sum(v.numel() for v in start.values()),
        "reference_loss": [round(losses[0], 4), round(losses[-1], 4)],
        **{
            f"spearman_{name}_effect_{w:g}": agreement(values, found[name])["spearman"]
            for w, values in effect.items()
            for name in ("pds", "lqs")
        },
        "spearman_lqs_pds": agreement(found["pds"], found["lqs"])["spearman"],
        "helpful": [float((values > 0).mean()) for values in effect.values()],
        **{f"{k}_by_kind": by_kind(found[k], kinds) for k in ("pds", "lqs")},
        **extrapolated(proxies, found),
        "seconds_warm_up": round(warmed - began),
        "seconds_labels": round(swept - warmed),
        "seconds_effects": round(time.perf_counter() - swept),
    }


def warm_up(loaded: Loaded, pool: Encoded, args: argparse.Namespace) -> None:
    """Train on other documents, so that the model is past its first steps."""
    optimizer = torch.optim.AdamW(loaded.model.parameters(), 2e-3, weight_decay=0.1)
    rng = np.random.default_rng(0)
    for step in range(args.warmup):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, 10 * (1 - step / args.warmup))
        chosen = rng.choice(len(pool), 2 * args.batch, replace=False)
        for batch in batches(pool, chosen, 1 << 20):
            sample_losses(loaded.model, batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(loaded.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def sweep(
    problem: LanguageModel, start: Parameters, proxies: Encoded, args: argparse.Namespace
) -> dict[str, Floats]:
    """Labels of the first documents from every step, and of all from every tenth."""
    few = sample(proxies, list(range(args.documents)))
    every: dict[int, tuple[Floats, Floats]] = {}
    tenth: dict[int, tuple[Floats, Floats]] = {}
    interval = min(INTERVAL, args.steps // 2)

    def visit(t: int, theta: Parameters, along: Parameters | None) -> None:
        every[t] = problem.project(theta, few, along, True)
        if t % interval == 0 or t == args.steps:
            tenth[t] = problem.project(theta, proxies, along, True)

    store = Memory()
    forward(problem, start, args.steps, args.learning_rate, store, lambda: None)
    backward(problem, args.steps, args.learning_rate, store, visit, lambda: None)
    out = {}
    for name, looks in (("", every), ("tenth_", tenth)):
        dots, norms = (np.stack([looks[t][k] for t in sorted(looks)]) for k in (0, 1))
        out[name + "pds"] = dots[:-1].sum(0)
        out[name + "lqs"] = gammas(dots[1:-1], norms[1:-1], norms[-1])
    return out


def effects(
    problem: LanguageModel,
    start: Parameters,
    documents: Encoded,
    plain: float,
    weight: float,
    args: argparse.Namespace,
) -> Floats:
    """[N] by how much each document lowers sum_t J."""
    found = np.empty(len(documents))
    for row in range(len(documents)):
        found[row] = plain - sum(run(problem, start, documents, row, weight, args))
        if row % 16 == 15:
            print(f"{row + 1} of {len(documents)} runs", file=sys.stderr, flush=True)
    return found


def run(
    problem: LanguageModel,
    start: Parameters,
    documents: Encoded | None,
    row: int,
    weight: float,
    args: argparse.Namespace,
) -> list[float]:
    """J at theta_1, ..., theta_T, with a document added to every step."""
    theta, losses = start, []
    for t in range(args.steps):
        gradient = problem.descent(t, theta)
        if documents is not None:
            batch = next(batches(documents, np.array([row]), 1))
            more = loss_gradient(problem.loaded.model, batch, [weight / args.batch])
            gradient = {n: g + more[n] for n, g in gradient.items()}
        theta = {n: v - args.learning_rate * gradient[n] for n, v in theta.items()}
        losses.append(problem.loss(theta))
    return losses


def by_kind(values: Floats, kinds: list[str]) -> dict[str, float]:
    """Mean label of each kind, in standard deviations from the mean."""
    scores, here = standardised(values), np.array(kinds[: len(values)])
    return {k: round(float(scores[here == k].mean()), 2) for k in sorted(set(here.tolist()))}


def extrapolated(proxies: Encoded, found: dict[str, Floats]) -> dict[str, Any]:
    """Rank correlation of the ridge with labels out of fold; `cut`: labels cut at 3 deviations."""
    features, out = ngram_features(proxies), {}
    for name in ("pds", "lqs"):
        values = found["tenth_" + name]
        out[f"ridge_{name}"] = Ridge.fit(features, values).facts()["spearman"]
        out[f"ridge_{name}_cut"] = Ridge.fit(features, standardised(values)).facts()["spearman"]
        few = found[name]
        out[f"spearman_{name}_tenth"] = agreement(few, values[: len(few)])["spearman"]
    return out


def summary(result: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    goals = []
    for w in args.weights:
        measured = round(float(result[f"spearman_pds_effect_{w:g}"]), 4)
        name = f"rank correlation of PDS labels with the effect of a document of weight {w:g}"
        goals.append({"name": name, "goal": GOAL, "measured": measured, "met": measured >= GOAL})
    return {
        "benchmark": "lqs",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "results": result,
        "goals": goals,
    }


if __name__ == "__main__":
    main()
