"""Is quality traded for diversity? Choices of equal tokens by one set of scores, compared.

    python benchmarks/diversity.py              3 seeds: about 20 minutes on two cores
    python benchmarks/diversity.py --smoke      under a minute; no goal is judged
    python benchmarks/diversity.py --arms top_by_mean,per_axis_top --seeds 1

The pool is the mixed one of `selection_quality.py`, a tenth of it noise. A 1M-parameter model is
warmed up on random text of it and measures loss, entropy and embeddings; eight numbers of the plain
text come from `surface`. Each of the ten scores has one sign, written in SIGNS, and their mean rank
is the quality score. (`surface.type_token_ratio` is not among them: it is the diversity of words in
a document, nearly what is measured here. A first run had it; see docs/benchmarks.md.) Then every
arm chooses the same tokens out of the pool and trains the warmed-up model on them, all else equal:

    random                 uniformly
    top_by_mean            largest mean rank, nothing else
    softmax_sample         mean rank in deviations over a temperature of 2, drawn (QuRating)
    per_axis_top           of the better half by the mean, the best of each of four orthogonal axes
                           of the scores (ODiS, with the floor of configs/orthogonal.yaml)
    per_axis_no_floor      the same of the whole pool
    weighted_coreset       of the better half by the mean: mean rank times the distance to what is
                           chosen, inside cells (D3)
    weighted_coreset_whole the same of the whole pool
    quality_then_diversity largest mean rank that is not within 0.9 of a chosen one (DEITA)
    cluster_quota          largest mean rank within each cluster, in proportion

Embeddings are centred (`whitened`); for DEITA's threshold 32 whitened axes of them.

Reported per arm, mean and 95 % t-interval over seeds: clusters covered (of 200 k-means clusters of
TF-IDF, which no arm saw), distinct-3 (distinct word trigrams over all), share of noise chosen, and
the loss after training on held-out text of the four clean kinds, each kind weighing the same.

Goals: per_axis_top and weighted_coreset cover more clusters and have a higher distinct-3 than
top_by_mean; their held-out loss is not above it (mean paired difference minus its half width <= 0).
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _mixed_pool
import _recipes
import numpy as np
import pyarrow as pa
from _selection_report import interval, told
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from foresift.pipeline.lm.evaluate import evaluate
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.tables import content_ids

ROOT = Path(__file__).resolve().parents[1]
TRAIN = {
    "train": "causal_lm", "length": 256, "batch_tokens": 2048, "learning_rate": 0.002,
    "schedule": "constant", "threads": 1,
}  # fmt: skip
SPARE = 1.05
CLUSTERS = 200
#: the direction in which a score is taken to be good: prose that the model can read
SIGNS = {
    "loss.nll": -1.0, "uncertainty.entropy": -1.0, "surface.log_length": 1.0,
    "surface.mean_word_length": 1.0, "surface.stop_word_share": 1.0,
    "surface.punctuation_share": -1.0,
    "surface.digit_share": -1.0, "surface.capital_share": -1.0, "surface.readability": 1.0,
    "surface.duplicate_line_share": -1.0,
}  # fmt: skip
MEASURED = ("clusters", "distinct_3", "noise", "loss")


def arms(budget: str) -> dict[str, list[dict[str, Any]]]:
    """Arm -> the steps between scoring and training."""
    mean, vector = "combined.utility", "whitened.vector"
    centred = {"score": "whitened", "embedding": "embedding.vector"}
    axes = [f"orthogonal.axis_{k}" for k in (1, 2, 3, 4)]
    lower = [name for name, sign in SIGNS.items() if sign < 0]
    orthogonal = {
        "score": "orthogonal", "by": list(SIGNS), "lower": lower, "axes": 4,
        "regressor": "none", "unsigned": "both", "unsigned_below": 0.3,
    }  # fmt: skip
    return {
        "random": [{"select": "random", "budget": budget}],
        "top_by_mean": [{"select": "topk", "by": mean, "budget": budget}],
        "softmax_sample": [
            {"select": "softmax_sample", "by": mean, "temperature": 2.0, "budget": budget}
        ],
        "per_axis_top": [
            {"select": "topk", "as": "floor", "by": mean, "budget": "50% rows"},
            orthogonal,
            {"select": "per_axis_top", "axes": axes, "budget": budget},
        ],
        "per_axis_no_floor": [
            orthogonal, {"select": "per_axis_top", "axes": axes, "budget": budget}
        ],
        "weighted_coreset": [
            centred,
            {"select": "weighted_coreset", "by": [mean], "embedding": vector, "pool": 0.5,
             "budget": budget},
        ],
        "weighted_coreset_whole": [
            centred,
            {"select": "weighted_coreset", "by": [mean], "embedding": vector, "budget": budget}
        ],
        "quality_then_diversity": [
            {**centred, "dimensions": 32, "whiten": True},
            {"select": "quality_then_diversity", "by": [mean], "embedding": vector,
             "budget": budget}
        ],
        "cluster_quota": [
            centred,
            {"score": "clusters", "embedding": vector},
            {"select": "cluster_quota", "clusters": "clusters.cluster", "by": mean,
             "budget": budget},
        ],
    }  # fmt: skip


def recipe(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The recipe of an arm."""
    steps = arms(f"{round(args.tokens * SPARE)} tokens")[name]
    return {
        "name": name, "seed": seed, "report": False,
        "data": {
            "read": "jsonl", "paths": [str(args.work / "pool" / "pool.jsonl")], "text": "text",
            "holdout": 0, "columns": ["kind"], "tokenizer": "configs/models/tiny",
        },
        "model": {"init": "configs/models/tiny", "max_length": 256, "seed": seed},
        "steps": [
            {**TRAIN, "tokens": args.warmup},
            {"score": ["loss", "uncertainty", "embedding", "surface"]},
            {"score": "combined", "by": SIGNS},
            *steps,
            {**TRAIN, "tokens": args.tokens, "continue_optimizer": True, "warmup": 0.0},
        ],
    }  # fmt: skip


class Judge:
    """What is measured of a choice; it knows clusters and held-out text that no arm sees."""

    def __init__(self, pool: Path, clusters: int) -> None:
        texts = [row["text"] for row in _rows(pool / "pool.jsonl")]
        features = make_pipeline(
            TfidfVectorizer(max_features=50_000, sublinear_tf=True, min_df=2),
            TruncatedSVD(64, random_state=0), Normalizer(),
        ).fit_transform(texts)  # fmt: skip
        found = MiniBatchKMeans(clusters, random_state=0, n_init=3).fit_predict(features)
        self.cluster = dict(zip(texts, found.tolist(), strict=True))
        self.held: dict[str, pa.Table] = {}
        kinds: dict[str, list[str]] = {}
        for row in _rows(pool / "held.jsonl"):
            kinds.setdefault(row["kind"], []).append(row["text"])
        for kind, held in kinds.items():
            table = pa.table({"text": held})
            self.held[kind] = table.append_column("id", content_ids(table))

    def measure(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        chosen = _recipes.kept(manifest, ["text", "kind"])
        texts = chosen["text"].to_pylist()
        grams = [g for text in texts for g in _trigrams(text)]
        checkpoint = Path(_recipes.step(manifest, "train")["path"]) / "checkpoint"
        spec = ModelSpec(init=str(checkpoint), max_length=256)
        losses = {k: evaluate([t], spec)["token_mean"] for k, t in self.held.items()}
        return {
            "clusters": len({self.cluster[t] for t in texts}),
            "distinct_3": len(set(grams)) / max(len(grams), 1),
            "noise": float(np.mean([k == "noise" for k in chosen["kind"].to_pylist()])),
            "loss": float(np.mean(list(losses.values()))),
            "documents": len(texts), "losses": losses,
        }  # fmt: skip


def _trigrams(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return list(zip(words, words[1:], words[2:], strict=False))


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


Found = Mapping[str, Sequence[Mapping[str, Any]]]


def table(found: Found) -> str:
    """A Markdown table, best loss first."""
    lines = [
        "| arm | clusters covered | distinct-3 | noise | held-out loss | minus top_by_mean |",
        "|---|---|---|---|---|---|",
    ]
    ranked = sorted(found, key=lambda n: float(np.mean([r["loss"] for r in found[n]])))
    for name in ranked:
        runs = found[name]
        digits = {"clusters": 1}
        cells = [told([r[m] for r in runs], digits.get(m, 3)) for m in MEASURED]
        lines.append("| " + " | ".join([name, *cells, told(_apart(found, name, "loss"))]) + " |")
    return "\n".join(lines)


def _apart(found: Found, name: str, measure: str) -> list[float]:
    """Paired differences to top_by_mean, seed by seed."""
    base = found.get("top_by_mean", found[name])
    return [a[measure] - b[measure] for a, b in zip(found[name], base, strict=True)]


def goals(found: Found) -> list[dict[str, Any]]:
    """More clusters, higher distinct-3, and a loss that is not above that of the mean's top."""
    judged = []
    for name in ("per_axis_top", "weighted_coreset"):
        if not {name, "top_by_mean"} <= set(found):
            continue
        for measure in ("clusters", "distinct_3"):
            mean, half = interval(_apart(found, name, measure))
            judged.append({
                "name": f"{name}: {measure} above top_by_mean's", "goal": 0,
                "measured": round(mean, 4), "half_width": half, "met": bool(mean - (half or 0) > 0),
            })  # fmt: skip
        mean, half = interval(_apart(found, name, "loss"))
        judged.append({
            "name": f"{name}: held-out loss not above top_by_mean's", "goal": 0,
            "measured": round(mean, 4), "half_width": half, "met": bool(mean - (half or 0) <= 0),
        })  # fmt: skip
    return judged


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "out" / "diversity")
    parser.add_argument("--arms", default="", help="names with commas; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=130_000, help="training tokens of an arm")
    parser.add_argument("--warmup", type=int, default=300_000)
    parser.add_argument("--jobs", type=int, default=2, help="recipes at a time, a core each")
    parser.add_argument("--characters", type=int, default=9_000_000)
    args = parser.parse_args()
    if args.smoke:
        args.work = Path(tempfile.mkdtemp(prefix="foresift-diversity-"))
        args.seeds, args.tokens, args.warmup, args.jobs = 1, 8_000, 16_000, 1
        args.arms, args.characters = "random,top_by_mean,weighted_coreset", 400_000
    if not args.data.exists():
        raise SystemExit(f"no data at {args.data}; name its folder with --data")
    args.work.mkdir(parents=True, exist_ok=True)
    _mixed_pool.write(args.data, args.work / "pool", args.characters)
    _mixed_pool.write_held(args.data, args.work / "pool", 10_000 if args.smoke else 120_000)
    names = args.arms.split(",") if args.arms else list(arms("1"))
    jobs = [(name, seed) for seed in range(args.seeds) for name in names]

    def run(job: tuple[str, int]) -> dict[str, Any]:
        path = args.work / f"{job[0]}-{job[1]}.yaml"
        return _recipes.run(recipe(*job, args), path, args.work / "out")

    for seed in range(args.seeds):  # warm-up and scores are shared: made once, by the first arm
        run((names[0], seed))
    with ThreadPoolExecutor(args.jobs) as pool:
        manifests = dict(zip(jobs, pool.map(run, jobs), strict=True))
    judge = Judge(args.work / "pool", 20 if args.smoke else CLUSTERS)
    found = {n: [judge.measure(manifests[n, s]) for s in range(args.seeds)] for n in names}
    print(table(found))
    print(json.dumps({
        "benchmark": "diversity", "arms": found, "goals": [] if args.smoke else goals(found),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
