"""Do detectors of junk, boilerplate and contamination find what people, or the planter, marked?

    python benchmarks/_detectors_junk.py [--data ../shared/data]      some minutes on one core
    python benchmarks/_detectors_junk.py --smoke                      seconds; goals are not judged

Sets, and what is to be found in them:

    dclm-human     Common Crawl pages that most judges would not keep
    article-lines  lines of news pages that are not of the article (marked by hand)
    lilac-*        texts that carry a concept: toxicity, profanity, other languages, code ...
    sms-spam       messages that are spam
    cola           sentences that linguists reject
    tweets+junk    the control tweets of the brain-rot study; a third made junk by `noise_inject`
    contamination  pages with a planted question of GSM8K or MMLU, against pages with 12 words of
                   one, with a question of which every 8th word is replaced, or with none

Each set is cut in two by hash of the id. The first half fits the classifier and turns the baselines
(longer or shorter, more or less compressible) the better way round; the second half is reported.
The weights of the line model in `scorers/_junk_lines.py` come from the first half of article-lines
(every second page). `classifier` is given the labels of the first half; all others see none.
Intervals: 95 % by bootstrap over documents; over pages where lines are measured.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _recipes
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score, roc_auc_score

from foresift.pipeline.noise_inject import inject
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import content_ids
from foresift.scorers._contamination import WORD
from foresift.scorers._junk_lines import MENU, Lines
from foresift.scorers.boilerplate import Boilerplate
from foresift.scorers.junk import Junk
from foresift.scorers.quality_classifier import QualityClassifier

ROOT = Path(__file__).resolve().parents[1]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
DRAWS = 200


def run(data: Path, smoke: bool) -> dict[str, Any]:
    """Rows of {set, detector, auroc, low, high, average_precision, n}, and goals."""
    most = 120 if smoke else 10**9
    rows: list[dict[str, Any]] = []
    for name, texts, bad in _sets(data, most):
        rows += _documents(name, texts, bad)
    rows += _lines(data, most)
    planted, told = _contamination(data, 40 if smoke else 600)
    rows += planted
    return {"rows": rows, "contamination": told, "goals": [] if smoke else _goals(rows, told)}


def _sets(data: Path, most: int) -> Iterator[tuple[str, list[str], Flags]]:
    pages = _json(data / "quality/dclm-human/majority_data.jsonl.gz")
    yield "dclm-human", *_some([(r["text"], int(r["label"]) == 0) for r in pages], most)
    with gzip.open(data / "junk/sms-spam/sms.tsv.gz", "rt", encoding="utf-8") as file:
        messages = [line.rstrip("\n").split("\t", 1) for line in file]
    yield "sms-spam", *_some([(text, kind == "spam") for kind, text in messages], most)
    with gzip.open(data / "quality/cola/in_domain_train.tsv.gz", "rt", encoding="utf-8") as file:
        said = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    yield "cola", *_some([(row[3], row[1] == "0") for row in said], most)
    for path in sorted((data / "quality/lilac-concepts").glob("*.jsonl.gz")):
        marked = [(r["text"], bool(r["label"])) for r in _json(path)]
        yield f"lilac-{path.name.split('.')[0]}", *_some(marked, most)
    with gzip.open(data / "junk/brainrot-control/m1_control_en.json.gz", "rt") as file:
        tweets = [t["text"] for t in json.load(file)[: min(most, 4000)]]
    noisy = inject(pa.table({"text": tweets}), "junk", 1 / 3, seed=0)
    kinds = noisy["noise.kind"].to_pylist()
    both = list(zip(noisy["text"].to_pylist(), (k is not None for k in kinds), strict=True))
    yield "tweets+junk", *_some(both, most)


def _json(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _some(rows: list[tuple[str, bool]], most: int) -> tuple[list[str], Flags]:
    """Distinct texts that are not empty, the same few for a smoke run."""
    unique = list({text: bad for text, bad in rows if text.strip()}.items())
    if len(unique) > most:
        unique = [unique[i] for i in np.random.default_rng(0).permutation(len(unique))[:most]]
    return [t for t, _ in unique], np.array([b for _, b in unique], dtype=np.bool_)


def _documents(name: str, texts: list[str], bad: Flags) -> Iterator[dict[str, Any]]:
    """Every detector on one set of documents."""
    table = pa.table({"text": texts})
    table = table.append_column("id", content_ids(table))
    first = Rng(0).at("half", name).uniform(table["id"]) < 0.5
    junk = Junk().score(table)
    # (score, larger = worse; whether the first half may turn it)
    found: dict[str, tuple[Floats, bool]] = {
        "chance": (Rng(1).uniform(table["id"]), False),
        "length": (np.array([len(t) for t in texts], dtype=np.float64), True),
        "compressibility": (np.asarray(junk["zlib_ratio"]), True),
        "junk": (np.asarray(junk["junk"]), False),
        "junk, brief: 0": (np.asarray(Junk(brief=0).score(table)["junk"]), False),
        "junk.cues": (np.asarray(junk["cues"]), False),
    }
    with tempfile.TemporaryDirectory() as folder:
        found["boilerplate"] = (_fitted(Boilerplate(), table, Path(folder) / "b"), False)
        label = pa.array([None if not f else bool(b) for f, b in zip(first, bad, strict=True)])
        labelled = table.append_column("bad", label)
        part = QualityClassifier(label="bad", good="false")
        found["classifier"] = (_fitted(part, labelled, Path(folder) / "c"), False)
    rules = _heuristics(table)
    if rules is not None:
        found["heuristics"] = (rules, False)
    for detector, (score, turned) in found.items():
        if turned and roc_auc_score(bad[first], score[first]) < 0.5:
            score = -score
        yield _row(name, detector, bad[~first], score[~first])


def _fitted(part: Any, table: pa.Table, out: Path) -> Floats:
    out.mkdir()
    if isinstance(part, QualityClassifier):
        part.fit([table], (), out)
    else:
        part.fit([table], out)
    return -np.asarray(part.score(table, out)["utility"], dtype=np.float64)


def _heuristics(table: pa.Table) -> Floats | None:
    """Rules that a document breaks, where the scorer of rules is there."""
    try:
        kind: Any = importlib.import_module("foresift.scorers.heuristics").Heuristics
        found = kind().score(table)
        values = found["utility"] if "utility" in found else found["ok"]
        return -np.asarray(values, dtype=np.float64)
    except (ImportError, AttributeError, KeyError, TypeError):
        return None


def _row(name: str, detector: str, bad: Flags, score: Floats, groups: Any = None) -> dict[str, Any]:
    """Figures of one detector on one set; what has no score stands in the middle."""
    score = np.where(np.isfinite(score), score, np.nanmedian(score))
    low, high = _interval(bad, score, np.arange(len(bad)) if groups is None else groups)
    return {
        "set": name, "detector": detector, "auroc": round(float(roc_auc_score(bad, score)), 4),
        "low": low, "high": high, "n": len(bad), "bad": round(float(bad.mean()), 4),
        "average_precision": round(float(average_precision_score(bad, score)), 4),
    }  # fmt: skip


def _interval(bad: Flags, score: Floats, groups: npt.NDArray[np.int64]) -> tuple[float, float]:
    rng, members = np.random.default_rng(0), np.unique(groups)
    places = [np.flatnonzero(groups == g) for g in members] if len(members) < len(bad) else None
    areas = []
    for _ in range(DRAWS):
        drawn = rng.integers(0, len(members), len(members))
        rows = drawn if places is None else np.concatenate([places[d] for d in drawn])
        if 0 < bad[rows].sum() < len(rows):
            areas.append(roc_auc_score(bad[rows], score[rows]))
    low, high = np.quantile(areas, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)


def _lines(data: Path, most: int) -> Iterator[dict[str, Any]]:
    """Lines of the pages that the line model was not fitted on."""
    path = data / "quality/article-extraction/article-extraction.parquet"
    pages = pq.read_table(path).sort_by("id")
    bad, groups = list[Flags](), list[npt.NDArray[np.int64]]()
    found: dict[str, list[Floats]] = {}
    detectors: dict[str, Callable[[Lines], Floats]] = {
        "chance": lambda lines: Rng(0).uniform(content_ids(pa.table({"text": lines.texts}))),
        "length": lambda lines: -lines.sizes.astype(np.float64),
        "menu words": lambda lines: np.array(
            [bool(MENU.search(t.lower())) for t in lines.texts], float
        ),
        "boilerplate": lambda lines: 1 - lines.content(),
    }
    for number in range(1, min(len(pages), most), 2):
        lines = Lines.of(pages["page_text_html_text"][number].as_py())
        bad.append(~_of_article(lines, pages["gold_article_body"][number].as_py()))
        groups.append(np.full(len(bad[-1]), number))
        for name, detect in detectors.items():
            found.setdefault(name, []).append(detect(lines))
    for name, scores in found.items():
        whole = np.concatenate(scores)
        yield _row("article-lines", name, np.concatenate(bad), whole, np.concatenate(groups))


def _of_article(lines: Lines, body: str) -> Flags:
    """Whether each line stands in the marked body; short ones must be a line of it."""

    def plain(text: str) -> str:
        return re.sub(r"\W+", " ", text.lower()).strip()

    whole, short = f" {plain(body)} ", {plain(x) for x in body.split("\n")}
    found = [
        (line in short) if len(line.split()) < 5 else f" {line} " in whole
        for line in map(plain, lines.texts)
    ]
    return np.array(found, dtype=np.bool_)


def _contamination(data: Path, each: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """`each` pages with a whole question, with 12 words, with a noisy one, with none."""
    rng = np.random.default_rng(0)
    asked = {
        "gsm8k": data / "eval/decon/gsm8k_test-1.jsonl.gz",
        "mmlu": data / "eval/decon/mmlu_validation-1.jsonl.gz",
    }
    pages = pq.read_table(data / "pretrain/pile-domains/pile_cc.parquet", columns=["original"])
    clean = [t[:3000] for t in pages["original"].to_pylist()]
    every = [row["question"] for path in asked.values() for row in _json(path)]
    long = list(dict.fromkeys(q for q in every if len(q.split()) >= 20))
    chosen = [long[i] for i in rng.permutation(len(long))[:each]]
    parts = [WORD.findall(q) for q in chosen]
    kinds = {
        "verbatim": chosen,
        "12 words": [" ".join(words[3:15]) for words in parts],
        "every 8th word replaced": [
            " ".join("something" if k % 8 == 7 else w for k, w in enumerate(words))
            for words in parts
        ],
        "nothing": [""] * each,
    }
    texts = [
        _planted(clean[int(rng.integers(len(clean)))], q, rng) for qs in kinds.values() for q in qs
    ]
    kind = np.repeat(np.arange(len(kinds)), [len(qs) for qs in kinds.values()])
    found, seconds = _searched(texts, list(asked.values()))
    told: dict[str, Any] = {
        name: {
            "pages": int((kind == k).sum()),
            "contaminated": round(float(np.mean(found["contaminated"][kind == k])), 4),
            "hit": round(float(np.mean(found["hit"][kind == k])), 4),
            "score": round(float(np.median(found["score"][kind == k])), 4),
        }
        for k, name in enumerate(kinds)
    }
    told["megabytes_per_second"] = round(sum(map(len, texts)) / 1e6 / seconds, 2)
    length = np.array([len(t) for t in texts], dtype=np.float64)
    scores = {"length": length, "contamination.score": found["score"],
              "contamination.contaminated": found["contaminated"].astype(np.float64)}  # fmt: skip
    return [_row("contamination", n, kind == 0, s) for n, s in scores.items()], told


def _planted(page: str, question: str, rng: np.random.Generator) -> str:
    """A question between two lines of a page."""
    lines = page.split("\n")
    at = int(rng.integers(0, len(lines) + 1))
    return "\n".join([*lines[:at], question, *lines[at:]])


def _searched(texts: list[str], sets: list[Path]) -> tuple[dict[str, Any], float]:
    """What the scorer says of these pages, asked by a recipe, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.jsonl"
        rows = ({"text": text, "number": number} for number, text in enumerate(texts))
        pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = {"read": "jsonl", "prompt": "question", "response": "answer"}
        done = _recipes.run(
            {
                "name": "planted", "seed": 0, "report": False,
                "data": {"read": "jsonl", "paths": [str(pool)], "columns": ["number"],
                         "types": {"number": "int64"}, "holdout": 0},
                "steps": [{"score": "contamination",
                           "reference": [{**asked, "paths": [str(p)]} for p in sets]}],
            },
            Path(folder) / "recipe.yaml",
            Path(folder) / "out",
        )  # fmt: skip
        place = np.asarray(_recipes.column(_recipes.step(done, "read", 0), ["number"])["number"])
        told = _recipes.step(done, "score")
        table = _recipes.column(told, ["contaminated", "hit", "score"])
        order = np.argsort(place)
        return {n: np.asarray(table[n])[order] for n in table.column_names}, told["seconds"]


def _goals(rows: list[dict[str, Any]], told: dict[str, Any]) -> list[dict[str, Any]]:
    by = {(r["set"], r["detector"]): r for r in rows}

    def goal(name: str, goal: float, measured: float, met: bool) -> dict[str, Any]:
        return {"name": name, "goal": goal, "measured": measured, "met": bool(met)}

    share = told["verbatim"]["contaminated"]
    found = [goal("contamination: share of verbatim questions found", 1.0, share, share == 1)]
    for kind in ("12 words", "every 8th word replaced", "nothing"):
        share = told[kind]["contaminated"]
        name = f"contamination: pages with {kind} that are taken for one"
        found.append(goal(name, 0.01, share, share <= 0.01))
    pairs = (
        ("article-lines", "boilerplate"),
        ("tweets+junk", "junk"),
        ("sms-spam", "classifier"),
        ("dclm-human", "classifier"),
        ("tweets+junk", "classifier"),
    )
    for name, detector in pairs:
        rivals = [r["auroc"] for (s, d), r in by.items() if s == name and d in BASELINES]
        row = by[name, detector]
        found.append(goal(f"{name}: low end of {detector} above the best baseline", max(rivals),
                          row["low"], row["low"] > max(rivals)))  # fmt: skip
    return found


BASELINES = ("chance", "length", "compressibility", "menu words")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="seconds")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    args = parser.parse_args()
    if not args.data.exists():
        raise SystemExit(f"no data at {args.data}; name its folder with --data")
    began = time.perf_counter()
    found = run(args.data, args.smoke)
    print("| set | detector | AUROC | 95 % | average precision | bad | n |\n" + "|---" * 7 + "|")
    for r in found["rows"]:
        figures = (
            f"{r['auroc']:.3f} | {r['low']:.3f}-{r['high']:.3f} | {r['average_precision']:.3f}"
        )
        print(f"| {r['set']} | {r['detector']} | {figures} | {r['bad']:.2f} | {r['n']} |")
    print()
    seconds = round(time.perf_counter() - began)
    print(json.dumps({"benchmark": "detectors_junk", "seconds": seconds, **found}))


if __name__ == "__main__":
    main()
