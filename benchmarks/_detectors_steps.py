"""Which detectors find noise in chains of thought that other people put in or marked?

    python benchmarks/_detectors_steps.py [--data ../shared/data]      minutes on one core
    python benchmarks/_detectors_steps.py --smoke                  under a minute; goals not judged

Sets, each with traces that are clean and traces that are not:

    nora-<task>-<kind>    NoRa: sentences put into right rationales (base-9 sums, kinship), that are
                          irrelevant or inaccurate. Clean: the same items without them
    mistake-<task>        BIG-Bench-Mistake: model traces; noisy where people marked a wrong step
    gsm8k-<model>         GSM8K solutions by a model; noisy where the answer is wrong (rightness of
                          the answer is not noise of a step: a wrong plan has right sums)
    ... steps             single steps. NoRa: those put in against all others, of noisy traces.
                          Mistakes: the marked step against those before it

Items (questions) are cut in two by hash. The first half trains the model (its clean traces, with
those of GSM8K's train split) and fits `combined`, a logistic regression over the numbers of all
detectors; the second half is reported. Intervals: 95 % by bootstrap over items. Baselines: chance
(`random`), length, and the loss of the whole trace (`perplexity`; of a step, its loss itself is a
number of `step_noise`), each in the direction that is better on the first half. One seed of the
model; it is small and knows little beyond these sets.

What was not held out: the rules of `arithmetic` were written while looking at both halves of these
sets (above all which digits a base has), so its rows say that the rules do what they should here,
not how they do elsewhere. The defaults of `step_noise` (floor, threshold) were set on first halves,
after a run had shown on second halves that a floor of 0.1 was too small; goals were put into words
after that run.

Whole traces of NoRa say little: sentences were added, so length tells them apart perfectly. Of its
single steps the wrong sums are shorter than any other, so there length is perfect as well.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _recipes
import numpy as np
import numpy.typing as npt
import torch
import xxhash
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from foresift.scorers._steps import steps
from foresift.scorers.step_noise import jumps

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
TASKS = ("math_base-9", "commonsense_sym")
MISTAKES = ("multistep_arithmetic", "logical_deduction", "word_sorting")
RESAMPLES = 100
Floats = npt.NDArray[np.float64]


@dataclass
class Row:
    """One trace, and which stretches of it are noise."""

    set: str
    item: str
    prompt: str
    trace: str
    noisy: bool
    spans: list[tuple[int, int, bool]] = field(default_factory=list)
    """(first, one behind the last, is noise) of the steps that are judged."""
    numbers: dict[str, float] = field(default_factory=dict)
    steps: dict[str, list[float]] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether it is of the half to train and fit with."""
        return xxhash.xxh3_64_intdigest(self.item.encode()) % 2 == 0


def run(data: Path, smoke: bool) -> dict[str, Any]:
    """Rows of {set, detector, auroc, low, high, average_precision, n, positives}, and goals."""
    work = ROOT / "benchmarks" / "out" / ("steps-smoke" if smoke else "steps")
    work.mkdir(parents=True, exist_ok=True)
    every = list(_sets(data / "reasoning", 12 if smoke else 150))
    _measure(every, _clean(data / "reasoning", smoke), work, 20_000 if smoke else 1_000_000)
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(row.set for row in every):
        mine = [row for row in every if row.set == name]
        rows += _documents(name, mine, 5 if smoke else RESAMPLES)
        if mine[0].set.startswith(("nora", "mistake")):
            rows += _single(f"{name} steps", mine, 5 if smoke else RESAMPLES)
    return {"rows": rows, "goals": [] if smoke else goals(rows)}


def _sets(folder: Path, most: int) -> Iterator[Row]:
    """All traces that are scored; of NoRa and GSM8K, so many items of a task."""
    for task in TASKS:
        rows = _json(folder / "nora" / f"{task}.jsonl.gz")
        items = list(dict.fromkeys(r["item"] for r in rows))[:most]
        for r in rows:
            if r["item"] not in items:
                continue
            kinds = [r["noise_type"]] if r["noise_type"] != "none" else ["irrelevant", "inaccurate"]
            for kind in kinds:
                spans = _places(r["rationale"], r["sentences"], r["noise_flags"])
                yield Row(f"nora-{task}-{kind}", f"{task} {r['item']}", r["question"],
                          r["rationale"], r["noise_type"] != "none", spans)  # fmt: skip
    for task in MISTAKES:
        for number, r in enumerate(_json(folder / "bigbench-mistake" / f"{task}.jsonl.gz")):
            if most < 100 and number >= 4 * most:
                break
            wrong = r["mistake_index"]
            until = [] if wrong is None else r["steps"][: wrong + 1]
            trace = "\n".join(r["steps"])
            spans = _places(trace, until, [k == wrong for k in range(len(until))])
            yield Row(f"mistake-{task}", r["input"], r["input"], trace, wrong is not None, spans)
    solved = _json(folder / "gsm8k" / "example_model_solutions.jsonl.gz")
    for r in solved[: 3 * most]:
        for model in MODELS:
            text = r[model]["solution"]
            wrong = not r[model]["is_correct"]
            yield Row(f"gsm8k-{model}", r["question"], r["question"], text, wrong)


def _places(text: str, parts: Sequence[str], flags: Sequence[Any]) -> list[tuple[int, int, bool]]:
    """Where each part stands in the text, one after the other."""
    found, at = [], 0
    for part, flag in zip(parts, flags, strict=True):
        start = text.find(part.strip(), at)
        if start >= 0:
            at = start + len(part.strip())
            found.append((start, at, bool(flag)))
    return found


def _clean(folder: Path, smoke: bool) -> list[Row]:
    """What the model is trained on: clean traces of the first halves, and other solved problems."""
    found = []
    for task in TASKS:
        for r in _json(folder / "nora" / f"{task}.jsonl.gz"):
            if r["noise_type"] == "none":
                found.append(
                    Row("", f"{task} {r['item']}", r["question"], r["rationale"], noisy=False)
                )
    for task in MISTAKES:
        for r in _json(folder / "bigbench-mistake" / f"{task}.jsonl.gz"):
            # the right ones are few, so steps before the mistake are taken as well
            right = r["steps"][: r["mistake_index"]]
            found.append(Row("", r["input"], r["input"], "\n".join(right), noisy=False))
    found = [row for row in found if row.fits and row.trace]
    solved = _json(folder / "gsm8k" / "train.jsonl.gz")[: 100 if smoke else 4000]
    return found + [Row("", "", r["question"], r["answer"], noisy=False) for r in solved]


def _json(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _measure(every: list[Row], clean: list[Row], work: Path, tokens: int) -> None:
    """Train on what is clean, score everything by a recipe, and put the numbers into the rows."""
    distinct = {(r.prompt, r.trace): k for k, r in enumerate(every)}
    order = list(distinct)
    for name, pairs in (("clean", [(r.prompt, r.trace) for r in clean]), ("traces", order)):
        lines = [json.dumps({"prompt": p, "response": t}) + "\n" for p, t in pairs]
        (work / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    model = {"init": "configs/models/tiny", "max_length": 1024, "seed": 0}
    warm = {
        "name": "steps-warm", "seed": 0, "report": False, "model": model,
        "data": _read(work / "clean.jsonl"),
        "steps": [{"train": "causal_lm", "length": 1024, "batch_tokens": 4096, "threads": 1,
                   "tokens": tokens, "repeat": True, "learning_rate": 0.002}],
    }  # fmt: skip
    trained = _recipes.run(warm, work / "warm.yaml", work / "runs")
    checkpoint = Path(_recipes.step(trained, "train")["path"]) / "checkpoint"
    score = {
        "name": "steps-score", "seed": 0, "report": False, "data": _read(work / "traces.jsonl"),
        "model": {**model, "init": str(checkpoint), "tokenizer": ""},
        "steps": [{"score": "arithmetic"}, {"score": ["loss", "step_noise"]}],
    }  # fmt: skip
    _numbers(every, order, _recipes.run(score, work / "score.yaml", work / "runs"))


def _read(path: Path) -> dict[str, Any]:
    return {
        "read": "jsonl", "paths": [str(path)], "prompt": "prompt", "response": "response",
        "holdout": 0, "tokenizer": "configs/models/tiny",
    }  # fmt: skip


def _numbers(every: list[Row], order: Sequence[tuple[str, str]], manifest: Any) -> None:
    sums = _recipes.column(_recipes.step(manifest, "score", 0), ["noise", "findings"]).to_pylist()
    loss = _recipes.column(_recipes.step(manifest, "score", 1), ["nll"])["nll"].to_pylist()
    names = ["jump", "worst", "unrelated", "noise", "nll", "overlap"]
    noise = _recipes.column(_recipes.step(manifest, "score", 2), names).to_pylist()
    place = {pair: k for k, pair in enumerate(order)}
    for row in every:
        k = place[row.prompt, row.trace]
        told = noise[k]
        row.numbers = {
            "arithmetic": sums[k]["noise"], "step_noise.jump": told["jump"],
            "step_noise.worst": told["worst"], "step_noise.unrelated": told["unrelated"],
            "step_noise.noise": told["noise"],
            "length": float(len(row.trace)), "perplexity": loss[k],
        }  # fmt: skip
        spans = steps(row.trace)
        found = [f for f in sums[k]["findings"] if f["reason"] != "answer"]
        wrong = [f["start"] - len(row.prompt) - 1 for f in found]
        means = np.array(told["nll"], dtype=np.float64)
        row.steps = {
            "arithmetic": [float(sum(a <= w < b for w in wrong)) for a, b in spans],
            "step_noise.jump": jumps(means).tolist(), "step_noise.nll": means.tolist(),
            "step_noise.unrelated": [1 - x for x in told["overlap"]],
            "length": [float(b - a) for a, b in spans],
        }  # fmt: skip


def _documents(name: str, some: Sequence[Row], resamples: int) -> list[dict[str, Any]]:
    """Rows of whole traces."""
    numbers = _table([row.numbers for row in some])
    flags = np.array([row.noisy for row in some], dtype=np.bool_)
    return _rows(name, numbers, flags, some, resamples)


def _single(name: str, some: Sequence[Row], resamples: int) -> list[dict[str, Any]]:
    """Rows of the steps that are judged; a step of ours belongs where it begins."""
    numbers, flags, whose = [], [], []
    for row in some:
        for k, (start, _) in enumerate(steps(row.trace)):
            judged = [bad for a, b, bad in row.spans if a <= start < b]
            if row.noisy and judged:
                numbers.append({n: v[k] for n, v in row.steps.items()})
                flags.append(judged[0])
                whose.append(row)
    return _rows(name, _table(numbers), np.array(flags, dtype=np.bool_), whose, resamples)


def _table(rows: Sequence[Mapping[str, float]]) -> dict[str, Floats]:
    """Detector -> noise of each row; where it says nothing, the middle of what it says."""
    found = {}
    for name in rows[0]:
        told = np.array([np.nan if r[name] is None else r[name] for r in rows], dtype=np.float64)
        known = told[np.isfinite(told)]
        found[name] = np.where(np.isfinite(told), told, np.median(known) if len(known) else 0.0)
    return found


def _rows(
    name: str, numbers: dict[str, Floats], flags: npt.NDArray[np.bool_], whose: Sequence[Row],
    resamples: int,
) -> list[dict[str, Any]]:  # fmt: skip
    fits = np.array([row.fits for row in whose], dtype=np.bool_)
    used = [n for n in numbers if n not in ("length", "perplexity")]
    rng = np.random.default_rng(0)
    numbers = {**numbers, "random": rng.random(len(flags))}
    for name_ in ("length", "perplexity"):
        if name_ in numbers and _reversed(flags[fits], numbers[name_][fits]):
            numbers[name_] = -numbers[name_]
    if len(set(flags[fits].tolist())) == 2:
        matrix = np.column_stack([numbers[n] for n in used])
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        numbers["combined"] = model.fit(matrix[fits], flags[fits]).decision_function(matrix)
    said, items = (
        flags[~fits],
        np.array([r.item for r, f in zip(whose, fits, strict=True) if not f]),
    )
    if len(set(said.tolist())) < 2:
        return []
    draws = _draws(items, resamples, rng)
    found = []
    for detector, values in numbers.items():
        mine = values[~fits]
        spread = [roc_auc_score(said[d], mine[d]) for d in draws if 0 < said[d].sum() < len(d)]
        low, high = np.percentile(spread or [np.nan], [2.5, 97.5])
        found.append({
            "set": name, "detector": detector, "auroc": float(roc_auc_score(said, mine)),
            "low": float(low), "high": float(high),
            "average_precision": float(average_precision_score(said, mine)),
            "n": len(said), "positives": float(said.mean()),
        })  # fmt: skip
    return found


def _reversed(flags: npt.NDArray[np.bool_], values: Floats) -> bool:
    """Whether small values go with noise."""
    both = len(set(flags.tolist())) == 2
    return both and roc_auc_score(flags, values) < 0.5


def _draws(items: npt.NDArray[Any], count: int, rng: np.random.Generator) -> list[Any]:
    """Rows of items drawn with replacement."""
    _, group = np.unique(items, return_inverse=True)
    rows = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    return [
        np.concatenate([rows[k] for k in rng.integers(0, len(rows), len(rows))])
        for _ in range(count)
    ]


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the detectors are held to."""
    of = {(row["set"], row["detector"]): row for row in rows}

    def auroc(name: str, detector: str, end: str = "auroc") -> float:
        return float(of[name, detector][end])

    def rivals(name: str) -> float:
        return max(of[name, b]["auroc"] for b in ("length", "perplexity", "random")
                   if (name, b) in of)  # fmt: skip

    nora, maths = "nora-math_base-9", "mistake-multistep_arithmetic"
    other = "nora-commonsense_sym"
    marked = [f"mistake-{task} steps" for task in MISTAKES]
    judged = (
        ("arithmetic: wrong sums put into base-9 rationales, AUROC of a trace at least 0.95",
         auroc(f"{nora}-inaccurate", "arithmetic") >= 0.95),
        ("arithmetic: the same by step, at least 0.9",
         auroc(f"{nora}-inaccurate steps", "arithmetic") >= 0.9),
        ("arithmetic: marked mistakes in multi-step sums, low end above every baseline",
         all(auroc(n, "arithmetic", "low") > rivals(n) for n in (maths, f"{maths} steps"))),
        ("step_noise: low end of jump above every baseline for irrelevant steps of both tasks and "
         "inaccurate ones of kinship",
         all(auroc(f"{t} steps", "step_noise.jump", "low") > rivals(f"{t} steps")
             for t in (f"{nora}-irrelevant", f"{other}-irrelevant", f"{other}-inaccurate"))),
        ("step_noise: the same for steps that people marked in traces of a model",
         all(auroc(n, "step_noise.jump", "low") > rivals(n) for n in marked)),
    )  # fmt: skip
    return [{"goal": text, "met": bool(met)} for text, met in judged]


def table(found: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    names = ("set", "detector", "auroc", "low", "high", "average_precision", "n", "positives")
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for row in found["rows"]:
        cells = [f"{row[n]:.3f}" if type(row[n]) is float else str(row[n]) for n in names]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"- {'met' if g['met'] else 'NOT MET'}: {g['goal']}" for g in found["goals"]]
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(table(run(args.data, args.smoke)))


if __name__ == "__main__":
    main()
