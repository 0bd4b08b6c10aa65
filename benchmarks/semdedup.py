"""Semantic duplicates against ground truth: pairs judged by people, pages read by ten extractors.

    python benchmarks/semdedup.py            everything, some minutes
    python benchmarks/semdedup.py --smoke    a part of each set; no goal is judged

Vectors need no model: hashed TF-IDF of words (or of character 3- to 5-grams), a truncated SVD to
128, learned without labels on the texts of each set. They know words, not meaning: a sentence
encoder should do better on paraphrases. Three questions:

1. Pairs. AUROC of the cosine against the label; precision and recall on the test split at the
   threshold that was best (F1) on the train split. Beside it the Jaccard similarity of word
   5-grams, which is what MinHash estimates, at its nominal threshold .72. code-refinement has no
   negatives: they are other methods, drawn by chance, which is easy. SICK pairs count as alike from
   4 of 5.
2. Documents. `semantic_duplicate` drops as many as `minhash` does (at two thresholds), then at its
   own eps, and then as many as it can before a page is lost: how many pages still have a document,
   and how many of all pairs of one page are found.
3. Cells. All texts in one pool: what share of duplicates lies within cells, by `clusters`,
   `restarts` and eps, against brute force on 20,000 documents.

Data: `../shared/data/neardup` from the repository's root, or --data.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.metrics import precision_recall_curve, roc_auc_score

from foresift.pipeline.cells import cell_count
from foresift.pipeline.engines.local import LocalEngine
from foresift.pipeline.planner import make_plan
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import run
from foresift.pipeline.tables import content_ids
from foresift.scorers.semantic_duplicate import SemanticDuplicate

DATA = Path(__file__).resolve().parents[1] / "../shared/data/neardup"
WIDTH, FEATURES, NGRAM, NOMINAL = 128, 1 << 18, 5, 0.72
RECALL = 0.95
Pair = tuple[str, str, int]
Floats = npt.NDArray[np.float64]


# -- the data ----------------------------------------------------------------------------------


def lines(path: Path) -> list[str]:
    """Lines of a file, packed or not."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return raw.decode("utf-8-sig").removesuffix("\n").split("\n")


def cells_of(path: Path, header: bool) -> Iterator[list[str]]:
    for line in lines(path)[header:]:
        yield line.rstrip("\r").split("\t")


def mrpc(folder: Path, split: str) -> list[Pair]:
    rows = cells_of(folder / f"msr_paraphrase_{split}.txt.gz", header=True)
    return [(row[3], row[4], int(row[0])) for row in rows]


def sick(folder: Path, split: str) -> list[Pair]:
    name = {"train": "SICK_train", "test": "SICK_test_annotated"}[split]
    rows = cells_of(folder / f"{name}.txt.gz", header=True)
    return [(row[1], row[2], int(float(row[3]) >= 4)) for row in rows]


def pan(folder: Path, split: str) -> list[Pair]:
    first, other = (lines(folder / f"pan-{split}_s{side}.txt.gz") for side in (1, 2))
    labels = map(int, lines(folder / f"pan-{split}.labels"))
    return list(zip(first, other, labels, strict=True))


def records(folder: Path, split: str) -> list[Pair]:
    rows = cells_of(folder / f"{split}.txt.gz", header=False)
    plain = (([re.sub(r"\bCOL \w+ VAL\b", " ", side) for side in row[:2]], row[2]) for row in rows)
    return [(a, b, int(label)) for (a, b), label in plain]


def code(folder: Path, split: str) -> list[Pair]:
    name = {"train": "valid", "test": "test"}[split]
    before, after = (lines(folder / f"{name}.{side}.gz") for side in ("buggy", "fixed"))
    turned = np.roll(np.random.default_rng(0).permutation(len(before)), 1)
    alike = [(a, b, 1) for a, b in zip(before, after, strict=True)]
    return alike + [(a, after[j], 0) for a, j in zip(before, turned, strict=True)]


SETS: dict[str, Callable[[Path, str], list[Pair]]] = {
    "mrpc": mrpc, "pan-paraphrase": pan, "sick": sick, "abt-buy": records,
    "amazon-google": records, "dblp-acm-dirty": records, "code-refinement-small": code,
}  # fmt: skip


def load(data: Path, name: str, most: int) -> dict[str, list[Pair]]:
    """The pairs of both splits, at most so many of each, drawn by chance."""
    found = {}
    for split in ("train", "test"):
        pairs = SETS[name](data / name, split)
        drawn = np.random.default_rng(1).permutation(len(pairs))[:most]
        found[split] = [pairs[i] for i in drawn]
    return found


# -- vectors -----------------------------------------------------------------------------------


def embed(texts: list[str], kind: str) -> npt.NDArray[np.float32]:
    """[n, WIDTH] hashed TF-IDF of `words` or `chars`, reduced by a truncated SVD, of length 1."""
    how: dict[str, Any] = {"token_pattern": r"\w+"}
    if kind == "chars":
        how = {"analyzer": "char_wb", "ngram_range": (3, 5)}
    counts = HashingVectorizer(
        n_features=FEATURES, alternate_sign=False, norm=None, **how
    ).transform(texts)
    counts = counts[:, np.unique(counts.indices)]  # empty columns cost time and say nothing
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    width = min(WIDTH, len(texts) - 1)
    made = TruncatedSVD(width, random_state=0).fit_transform(weighted).astype(np.float32)
    norms = np.linalg.norm(made, axis=1, keepdims=True)
    return np.where(norms > 1e-6, made / np.maximum(norms, 1e-6), 0).astype(np.float32)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}


def jaccard(a: str, b: str) -> float:
    """Similarity of the sets of word 5-grams (of a shorter text its one gram)."""
    first, other = shingles(a), shingles(b)
    return len(first & other) / max(1, len(first | other))


# -- 1. pairs ----------------------------------------------------------------------------------


def judged(similarity: Floats, labels: npt.NDArray[Any], threshold: float) -> dict[str, Any]:
    """Precision, recall and F1 of `similarity > threshold`."""
    said = similarity > threshold
    right = float((said & (labels == 1)).sum())
    precision, recall = right / max(1, said.sum()), right / max(1, (labels == 1).sum())
    f1 = 2 * precision * recall / max(precision + recall, 1e-12)
    return {"threshold": threshold, "precision": precision, "recall": recall, "f1": f1}


def best_threshold(similarity: Floats, labels: npt.NDArray[Any]) -> float:
    """The threshold of largest F1, just below the value that reaches it."""
    precision, recall, values = precision_recall_curve(labels, similarity)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(np.nextafter(values[int(f1[:-1].argmax())], -np.inf))


def pairs_rows(data: Path, name: str, most: int) -> list[dict[str, Any]]:
    """One row for each way to compare: words, chars, Jaccard."""
    splits = load(data, name, most)
    flat = [pair for split in splits.values() for pair in split]
    cut = len(splits["train"])
    labels = np.array([label for *_, label in flat])
    compared: dict[str, Floats] = {}
    for kind in ("words", "chars"):
        vectors = embed([a for a, *_ in flat] + [b for _, b, _ in flat], kind)
        first, other = vectors[: len(flat)], vectors[len(flat) :]
        compared[kind] = np.einsum("ij,ij->i", first, other).astype(np.float64)
    compared["jaccard"] = np.array([jaccard(a, b) for a, b, _ in flat])
    rows = []
    for kind, similarity in compared.items():
        chosen = best_threshold(similarity[:cut], labels[:cut])
        usual = NOMINAL if kind == "jaccard" else 1 - SemanticDuplicate().eps
        test, truth = similarity[cut:], labels[cut:]
        rows.append({
            "set": name, "by": kind, "pairs": len(truth), "positive": float(truth.mean()),
            "auroc": float(roc_auc_score(truth, test)),
            "chosen": judged(test, truth, chosen), "usual": judged(test, truth, usual),
        })  # fmt: skip
    return rows


# -- 2. documents ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pages:
    """Distinct documents, and the page that each was read from."""

    texts: list[str]
    group: npt.NDArray[np.int64]

    @classmethod
    def read(cls, data: Path, most: int) -> Pages:
        table = pq.read_table(data / "extractor-variants" / "extractor_variants.parquet")
        first = {t: g for t, g in zip(*(table[n].to_pylist() for n in ("text", "group")),
                                      strict=True) if t.strip()}  # fmt: skip
        first = dict(list(first.items())[:most])
        names = {g: i for i, g in enumerate(sorted(set(first.values())))}
        return cls(list(first), np.array([names[g] for g in first.values()]))

    def left(self, kept: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """Documents dropped, and pages that still have one."""
        return {"dropped": int((~kept).sum()), "pages": len(set(self.group[kept].tolist()))}

    def found(self, said: npt.NDArray[np.bool_]) -> dict[str, float]:
        """Precision and recall of pairs [n, n] against those of one page."""
        above = np.triu(np.ones_like(said), 1)
        same = (self.group[:, None] == self.group) & above
        right = float((said & same).sum())
        return {"precision": right / max(1, (said & above).sum()), "recall": right / same.sum()}


def minhash(pages: Pages, threshold: float | None) -> npt.NDArray[np.int64]:
    """The cluster of near-duplicates of each document, by the stage as it stands."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pages.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in pages.texts))
        fields = {
            "name": "pages",
            "data": {"read": "jsonl", "paths": [str(path)], "holdout": 0.0},
            "steps": [{"dedup": "minhash", "threshold": threshold}],
            "report": False,
        }
        done = run(make_plan(Recipe.parse(fields, "recipe"), Path(folder) / "out"), LocalEngine(1))
        step = Path(done.manifest["steps"][-1]["path"])
        table = pa.concat_tables(pq.read_table(p) for p in sorted(step.glob("part-*.parquet")))
    clusters = dict(zip(table["id"].to_pylist(), table["cluster"].to_pylist(), strict=True))
    names: dict[Any, int] = {}
    # a document without a cluster is one of its own
    own = [clusters[i] if clusters[i] is not None else i
           for i in content_ids(pa.table({"text": pages.texts})).to_pylist()]  # fmt: skip
    return np.array([names.setdefault(name, len(names)) for name in own])


def fitted(
    texts: list[str], vectors: npt.NDArray[np.float32], part: SemanticDuplicate
) -> tuple[Floats, dict[str, Any]]:
    """The similarity of each document, and what fitting said."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"id": content_ids(pa.table({"text": texts})), part.embedding: column})
    with tempfile.TemporaryDirectory() as folder:
        facts = part.fit([table], Path(folder))
        similarity = part.score(table, Path(folder))["similarity"]
    return np.nan_to_num(np.asarray(similarity, dtype=np.float64)), dict(facts)


def documents(pages: Pages) -> list[dict[str, Any]]:
    """What MinHash drops and leaves; what semantic duplicates leave at the same, and at their best.

    `by` words or chars; `at` says how many are dropped.
    """
    rows = []
    for threshold in (0.8, None):
        cluster = minhash(pages, threshold)
        kept = np.zeros(len(cluster), dtype=np.bool_)
        kept[np.unique(cluster, return_index=True)[1]] = True
        at = "as it stands" if threshold is None else f"threshold {threshold}"
        found = pages.found(cluster[:, None] == cluster)
        rows.append({"by": "minhash", "at": at, **pages.left(kept), **found})
    removals = {f"minhash {row['at']}": row["dropped"] for row in rows}
    for kind in ("words", "chars"):
        vectors = embed(pages.texts, kind)
        part = SemanticDuplicate()
        similarity = fitted(pages.texts, vectors, part)[0]
        order = np.argsort(-similarity, kind="stable")
        # the first document of a page, in the order of removal, that has nobody left behind it
        last = len(order) - 1 - np.unique(pages.group[order][::-1], return_index=True)[1]
        drops = {**removals, f"eps {part.eps}": int((similarity > 1 - part.eps).sum()),
                 "all pages left": int(last.min())}  # fmt: skip
        for at, number in drops.items():
            stays = np.ones(len(order), dtype=np.bool_)
            stays[order[:number]] = False
            lowest = float(similarity[~stays].min(initial=1.0))
            found = pages.found(vectors @ vectors.T >= lowest)
            rows.append({"by": kind, "at": at, **pages.left(stays), **found, "eps": 1 - lowest})
    return rows


# -- 3. cells ----------------------------------------------------------------------------------


def pool(data: Path, most: int) -> list[str]:
    """Every text of every set, once."""
    texts: dict[str, None] = dict.fromkeys(Pages.read(data, most).texts)
    for name in SETS:
        for pairs in load(data, name, most).values():
            texts.update(dict.fromkeys(t for a, b, _ in pairs for t in (a, b) if t.strip()))
    return list(texts)


def recalls(texts: list[str], checked: int) -> list[dict[str, Any]]:
    """Recall within cells by clusters, restarts and eps."""
    vectors = embed(texts, "words")
    many = cell_count(len(texts))
    part = partial(SemanticDuplicate, checked=checked)
    settings = [(0, 1, 0.01), (0, 1, 0.05), (0, 1, 0.2), (0, 2, 0.2)]
    settings += [(many, restarts, eps) for restarts in (1, 2) for eps in (0.05, 0.2)]
    rows = []
    for clusters, restarts, eps in settings:
        began = time.perf_counter()
        facts = fitted(texts, vectors, part(clusters=clusters, restarts=restarts, eps=eps))[1]
        keys = ("cells", "largest_cell", "share", "recall")
        seconds = round(time.perf_counter() - began, 1)
        rows.append({"clusters": clusters, "restarts": restarts, "eps": eps,
                     **{k: facts[k] for k in keys}, "seconds": seconds})  # fmt: skip
    return rows


# -- the tables --------------------------------------------------------------------------------


def goals(
    pairs: list[dict[str, Any]],
    pages: list[dict[str, Any]],
    cells: list[dict[str, Any]],
    smoke: bool,
) -> list[dict[str, Any]]:
    """Recall of the cells as they stand; pairs and pages against what MinHash does."""
    usual = next(r for r in cells if (r["clusters"], r["restarts"]) == (0, 1) and r["eps"] == 0.05)
    gaps = [a["auroc"] - b["auroc"] for a, b in zip(pairs[::3], pairs[2::3], strict=True)]
    most = max(row["dropped"] for row in pages if row["by"] == "minhash")
    safe = [row["dropped"] for row in pages if row["at"] == "all pages left"]
    rows = [
        ("share of duplicates that cells find (eps 0.05)", RECALL, usual["recall"]),
        ("AUROC of words over that of 5-gram Jaccard (worst set)", 0.0, float(min(gaps))),
        ("documents dropped before a page is lost, over MinHash's", 1.0, min(safe) / most),
    ]
    return [
        {"name": name, "goal": goal, "measured": value,
         "met": None if smoke or value is None else bool(value >= goal)}
        for name, goal, value in rows
    ]  # fmt: skip


def show(rows: list[dict[str, Any]], columns: dict[str, int]) -> None:
    """A table of some columns, each so wide; floats with three decimals."""
    print("".join(f"{name:>{width}}" for name, width in columns.items()))
    for row in rows:
        values = (row.get(name) for name in columns)
        texts = ("" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v)
                 for v in values)  # fmt: skip
        print("".join(f"{t:>{w}}" for t, w in zip(texts, columns.values(), strict=True)))
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--smoke", action="store_true", help="a part of each set")
    options = parser.parse_args()
    if not options.data.exists():
        raise SystemExit(f"{options.data} is not there; give --data")
    most = 300 if options.smoke else 100_000
    pairs = [row for name in SETS for row in pairs_rows(options.data, name, most)]
    flat = [
        {**row, **row["chosen"], "usual P": row["usual"]["precision"],
         "usual R": row["usual"]["recall"]} for row in pairs
    ]  # fmt: skip
    narrow = ("auroc", "threshold", "precision", "recall", "f1", "usual P", "usual R")
    show(flat, {"set": 22, "by": 9, "pairs": 7, "positive": 10, **dict.fromkeys(narrow, 10)})
    pages = documents(Pages.read(options.data, most))
    narrow = ("dropped", "pages", "eps", "precision", "recall")
    show(pages, {"by": 9, "at": 24, **dict.fromkeys(narrow, 10)})
    texts = pool(options.data, most)
    print(f"{len(texts)} texts in one pool")
    cells = recalls(texts, 2_000 if options.smoke else 20_000)
    show(cells, dict.fromkeys(cells[0], 13))
    judgement = goals(pairs, pages, cells, options.smoke)
    show(judgement, {"name": 60, "goal": 8, "measured": 10, "met": 7})
    print(json.dumps({"pairs": pairs, "pages": pages, "cells": cells, "goals": judgement}))


if __name__ == "__main__":
    main()
