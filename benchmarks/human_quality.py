"""Which scores rank documents as people do? Every score that applies, in one table for each truth.

    python benchmarks/human_quality.py             under ten minutes on one core
    python benchmarks/human_quality.py --smoke     under a minute; no goal is judged
    python benchmarks/human_quality.py --pairs 0   all pairs of instructions, not 1,000

    instructions   Alpaca examples before and after experts revised them (CoachLM): the revised one
                   should rank above. They are longer in 83 % of the pairs
    pages          Common Crawl pages that a majority of judges would keep, or not (DCLM); and those
                   of them on which the judges agreed

`_human_data.py` says what is read. A 1M-parameter model is trained on a mixed pool and a second one
from it on the reference (clean text of the kind in question, none of which is measured). One recipe
for each truth then gives every row every score; models read 512 tokens of a row. `_human_table.py`
has the measures: AUROC over all rows, among rows of like length (a tenth of the lengths), in pairs
and in pairs of like length, with 95 % bootstrap intervals. No score sees what people said, and no
parameter was tuned on it. Columns without a declared good end are taken as they are: below 0.5,
smaller is better. One model and one draw of everything: intervals are those of the rows alone. Both
halves of a pair lie in one corpus, so that scores of neighbours see the other half. Middo's loss
after training is that of the reference model.

Goals: the best model-based score with a declared good end ranks better than chance, on all rows and
among rows of like length; its interval allows for having been chosen as the best of all such
scores. And every scorer on disk is measured, or is named with the reason why not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import _human_data
import _human_table as tables
import _recipes
import numpy as np
import pyarrow as pa
from _human_table import Row, Truth

from foresift.pipeline import parts
from foresift.pipeline.choice import scores
from foresift.pipeline.nouns import FittedModelScorer, ModelScorer

ROOT = Path(__file__).resolve().parents[1]
TINY = "configs/models/tiny"
#: tokens of a row that models read, its start token included
LENGTH = 512
TRAIN = {"train": "causal_lm", "length": 256, "batch_tokens": 2048, "repeat": True, "threads": 1}
CONTENT = {
    "instructions": {"prompt": "prompt", "response": "response"},
    "pages": {"text": "text"},
}
TITLES = {
    "instructions": {"auroc": "all rows", "level": "like length", "paired": "pairs",
                     "matched": "pairs of like length"},
    "pages": {"auroc": "majority", "agreed": "judges agree", "level": "like length"},
}  # fmt: skip
#: scorers that are not in the tables
LEFT_OUT = {
    "judge": "asks a language model behind an endpoint",
    "relation": "factors of a whole corpus, the same on every row",
    "source_bandit": "shares of sources, the same on every row of one",
}
NOT_PAIRS = {"ifd": "pages have no prompt"}
#: scores that aim at the reference, which `combined` averages; fixed before anything was measured
AIMED = (
    "target_similarity.per_ngram", "target_knn.utility", "excess_loss.utility",
    "influence.utility", "gradient_similarity.utility",
)  # fmt: skip
#: statistics of which axes are made: all but the share of duplicate lines, which pairs lack
SURFACE = (
    "log_length", "type_token_ratio", "mean_word_length", "stop_word_share", "punctuation_share",
    "digit_share", "capital_share", "readability",
)  # fmt: skip
#: scores of columns that the model gave
FROM_MODEL = (
    "clusters", "density", "semantic_duplicate", "middo", "target_knn", "combined",
)  # fmt: skip
#: columns that are names, not amounts
NAMES = ("clusters.cluster", "orthogonal.best")


def models(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The recipe that trains the scoring model and, from it, the reference model."""
    steps = [
        {**TRAIN, "tokens": args.tokens, "learning_rate": 0.002},
        {**TRAIN, "tokens": args.tokens // 4, "learning_rate": 0.001, "data": "reference"},
    ]
    return {
        "name": f"models-{name}", "seed": 0, "report": False, "steps": steps,
        "data": _file(args.work / "pool.jsonl", text="text"),
        "datasets": {"reference": _file(args.work / f"{name}-reference.jsonl", **CONTENT[name])},
        "model": {"init": TINY, "max_length": LENGTH},
    }  # fmt: skip


def _file(path: Path, **fields: Any) -> dict[str, Any]:
    return {"read": "jsonl", "paths": [str(path)], "holdout": 0, "tokenizer": TINY, **fields}


def measuring(name: str, checkpoints: tuple[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """The recipe that gives every row of a truth every score."""
    carried = ["group", "good", *(["agreed"] if name == "pages" else [])]
    data = _file(args.work / f"{name}.jsonl", **CONTENT[name], columns=carried)
    about = {
        kind: _file(args.work / f"{name}-{kind}.jsonl", **CONTENT[name])
        for kind in ("reference", "aim")
    }
    init, reference = ({"init": c, "max_length": LENGTH} for c in checkpoints)
    others = {"reference": reference, "short": {**init, "max_length": 256}}
    return {
        "name": f"human-{name}", "seed": 0, "report": False, "data": data, "datasets": about,
        "model": init, "models": others, "steps": steps(name, args),
    }  # fmt: skip


def steps(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All scores: the model's in one pass, then what is made of vectors, text and other scores."""
    aim = {"reference": "aim"}
    model = ["loss", "uncertainty", "gradient_norm", "excess_loss", "embedding", "influence"]
    model += ["gradient_similarity", *(["ifd"] if name == "instructions" else [])]
    passed: dict[str, Any] = {
        "score": model,
        "excess_loss": {"against": "irreducible.nll"},
        "influence": {**aim, "probes": args.probes, "probe_tokens": 128, "floor": 0.0},
        "gradient_similarity": {**aim, "variant": "cosin"},
    }
    lqs = {
        "score": "lqs", "model": "short", **aim, "steps": 3 * args.interval, "batch": 4,
        "interval": args.interval, "proxies": args.probes, "reference_documents": 16, "floor": 0.0,
    }  # fmt: skip
    diagnosis = {
        "before": "loss.nll", "after": "irreducible.nll", "embedding": "embedding.vector",
    }  # fmt: skip
    plain = {c: f"surface.{c}" for c in SURFACE}
    axes = {
        "by": list(plain.values()), "regressor": "none", "unsigned": "keep",
        "quality": [plain[c] for c in ("log_length", "stop_word_share", "readability")],
        "lower": [plain[c] for c in ("punctuation_share", "digit_share", "capital_share")],
    }  # fmt: skip
    return [
        {"score": "loss", "as": "irreducible", "model": "reference"},
        {"score": ["length", "surface"]},
        {"score": ["embedding"], "data": "reference"},
        passed,
        lqs,
        {"score": ["clusters", "density", "semantic_duplicate", "middo"], "middo": diagnosis},
        {"score": "target_similarity", "reference": "reference"},
        {"score": "target_similarity", "as": "target_knn", "reference": "reference",
         "method": "knn"},
        {"score": ["orthogonal", "combined"], "orthogonal": axes,
         "combined": {"by": dict.fromkeys(AIMED, 1.0)}},
    ]  # fmt: skip


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train, score, and compare every column with what people said."""
    trained = _recipes.run(models(name, args), args.work / f"models-{name}.yaml", args.work / "out")
    first, second = (
        str(Path(_recipes.step(trained, "train", n)["path"]) / "checkpoint") for n in (0, 1)
    )
    recipe = measuring(name, (first, second), args)
    done = _recipes.run(recipe, args.work / f"human-{name}.yaml", args.work / "out")
    truth = truth_of(name, done)
    found = list(columns(recipe, done))
    rows = tables.measured(found, truth)
    return {
        "rows": len(truth.good), "good": int(truth.good.sum()),
        "cut": int((np.asarray(_read(done, ["n_tokens"])["n_tokens"]) >= LENGTH).sum()),
        "seconds": {m["recipe"]: m["seconds"] for m in (trained, done)},
        "measured": sorted({part for _, part, _ in _parts(recipe)}), "table": rows,
    }  # fmt: skip


def truth_of(name: str, done: Mapping[str, Any]) -> Truth:
    """What people said of the rows, in their order."""
    carried = ["group", "good", "n_bytes", *(["agreed"] if name == "pages" else [])]
    read = _read(done, carried)  # carried columns are strings
    said = {k: np.asarray(read[k]) == "true" for k in carried if k in ("good", "agreed")}
    return Truth(
        good=said.pop("good"),
        group=np.asarray(read["group"]).astype(np.int64),
        length=np.asarray(read["n_bytes"], dtype=np.float64),
        subsets=said,
    )


def _read(done: Mapping[str, Any], names: list[str]) -> pa.Table:
    """Columns of the rows that are measured."""
    return _recipes.column(_recipes.step(done, "read", 0), names)


def columns(recipe: Mapping[str, Any], done: Mapping[str, Any]) -> Iterator[Row]:
    """Every amount that the recipe's scores gave the rows that are measured."""
    made = {told["name"]: told for told in done["steps"] if told["verb"] == "score"}
    for prefix, name, aside in _parts(recipe):
        kind = parts.find("score", name)
        asks = issubclass(kind, (ModelScorer, FittedModelScorer)) or prefix in FROM_MODEL
        for column, about in kind.columns.items():  # type: ignore[attr-defined]
            whole = f"{prefix}.{column}"
            if aside or whole in NAMES or not _amount(about.dtype):
                continue
            values = scores(_recipes.column(made[prefix], [column]), column)
            better = None if about.better == "neither" else about.better
            scored = float(np.mean(~np.isnan(values)))
            if scored:
                yield Row(whole, better, asks, scored, tables.oriented(values, better))


def _parts(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """(name in columns, name of the part, whether it scores another data set) of each score."""
    for step in recipe["steps"]:
        several = step["score"] if isinstance(step["score"], list) else [step["score"]]
        for name in several:
            yield step.get("as", name), name, "data" in step


def _amount(dtype: pa.DataType) -> bool:
    kinds = pa.types
    return bool(kinds.is_floating(dtype) or kinds.is_integer(dtype) or kinds.is_boolean(dtype))


def goals(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    told = []
    for name, result in found.items():
        for which, among in (("auroc", "all rows"), ("level", "rows of like length")):
            score, value, low = tables.best(result["table"], which)
            told.append({
                "name": f"{name}, {among}: best model-based score, {score} {value:.3f}; "
                "low end of its interval, corrected for the choice",
                "goal": 0.5, "measured": round(low, 4), "met": bool(low > 0.5),
            })  # fmt: skip
    missing = unmeasured(found)
    told.append({
        "name": f"scorers neither measured nor left out with a reason {missing}",
        "goal": 0, "measured": len(missing), "met": not missing,
    })  # fmt: skip
    return told


def unmeasured(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Scorers on disk that a table should have and has not."""
    missing = set()
    for name, result in found.items():
        known = {*result["measured"], *LEFT_OUT, *(NOT_PAIRS if name == "pages" else ())}
        missing |= set(parts.names("score")) - known
    return sorted(missing)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "out" / "human")
    parser.add_argument("--tokens", type=int, default=600_000, help="trained by the scoring model")
    parser.add_argument("--characters", type=int, default=2_500_000, help="of the pool")
    parser.add_argument("--pairs", type=int, default=1000, help="of instructions; 0: all")
    parser.add_argument("--pages", type=int, default=0, help="0: all")
    parser.add_argument("--reference", type=int, default=500, help="documents of a reference")
    parser.add_argument("--probes", type=int, default=200, help="labels of influence and LQS")
    parser.add_argument("--interval", type=int, default=4, help="of LQS; a third of its steps")
    args = parser.parse_args()
    if args.smoke:
        args.work = Path(tempfile.mkdtemp(prefix="foresift-human-"))
        args.tokens, args.characters, args.pairs, args.pages = 8_192, 200_000, 40, 60
        args.probes, args.reference, args.interval = 24, 30, 1
    if not args.data.exists():
        raise SystemExit(f"no data at {args.data}; name its folder with --data")
    args.work.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args, began = arguments(), time.perf_counter()
    left = _human_data.write(
        args.data, args.work, args.characters, args.pairs, args.pages, args.reference
    )
    found = {name: measure(name, args) for name in CONTENT}
    for name, result in found.items():
        print(
            f"\n{name}: {result['rows']} rows, {result['good']} preferred, "
            f"{result['cut']} cut after {LENGTH} tokens\n"
        )
        print(tables.markdown(result["table"], TITLES[name]))
    print("\n*: the score reads the model or its vectors. Left out:", LEFT_OUT | NOT_PAIRS)
    told = {n: {**r, "table": {x.name: x.told() for x in r["table"]}} for n, r in found.items()}
    print(json.dumps({
        "benchmark": "human_quality",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "seconds": round(time.perf_counter() - began),
        "left_out": {**left, **LEFT_OUT, **NOT_PAIRS},
        "results": told, "goals": [] if args.smoke else goals(found),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
