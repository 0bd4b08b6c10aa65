"""What a request finds in a curated corpus: exact and near copies by kind, and what it should not.

    python benchmarks/forget_requests.py             TOFU, MUSE-News, fictional knowledge, the Pile
    python benchmarks/forget_requests.py --smoke     a tenth of it, in seconds

The corpus holds all of TOFU (a question with its answer is a document), the news of MUSE that are
to be forgotten and that are not, the invented passages with their paraphrases, and pages of the
Pile. Of some documents (the targets) it holds two exact copies and one near copy of each kind, made
by edits that are known. A recipe reads and curates it: a holdout, exact and near duplicates
dropped. Then the targets are asked for: TOFU by id, news by their text, passages by key path.

    recall      of the copies of a kind, how many rows were found
                (of "in a page, half of it" 50 words are found, of shorter halves nothing: no goal)
    paraphrase  of the paraphrases of targets, how many were found: they are no copies
    false       rows that are no target and no copy of one, over all such rows
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from _forget_plants import BEYOND, EDITS, Row, fiction, muse, pages, plant, tofu

from foresift.pipeline.recipe import Recipe
from foresift.pipeline.tables import hex_id
from foresift.stages.forget._find_keys import text_id
from foresift.stages.forget.copies import Measure
from foresift.stages.forget.history import History
from foresift.stages.forget.request import Key, Request
from foresift.stages.forget.resolve import resolve

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
GOALS = {"exact": 1.0, "near": 0.95, "false": 0.01}


def corpus(data: Path, smoke: bool, seed: int) -> list[Row]:
    """Targets, their copies, and everything else, in a mixed order."""
    share = 10 if smoke else 1
    rows = tofu(data)[::share] + muse(data)[::share] + fiction(data) + pages(data, 1000 // share)
    few = {"tofu/": 200, "news/forget/": 100, "fiction/": 60}
    return plant(rows, {head: count // share for head, count in few.items()}, seed)


def curated(rows: list[Row], folder: Path) -> Path:
    """Read and curate them by a recipe; the run."""
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"text": row.text, "source": row.source}) + "\n")
    recipe = {
        "name": "requests",
        "data": {
            "read": "jsonl", "paths": [str(folder / "corpus.jsonl")], "source": "source",
            "holdout": 0.02, "shard_mb": 8,
        },
        "steps": [{"dedup": "exact", "normalise": True}, {"dedup": "minhash"}],
        "report": False,
    }  # fmt: skip
    Recipe.parse(recipe, "requests").run(folder / "out", "local", 1)
    return folder / "out"


def requests(rows: list[Row]) -> list[Request]:
    """One request for each way of asking."""
    targets = [row for row in rows if row.kind == "target"]
    keys: dict[str, list[Key]] = {"by-id": [], "by-text": [], "by-key": []}
    for row in targets:
        if row.source.startswith("tofu/"):
            keys["by-id"].append(Key("document", hex_id(text_id(row.text))))
        elif row.source.startswith("news/"):
            keys["by-text"].append(Key("text", row.text))
        else:
            keys["by-key"].append(Key("key", row.source))
    return [Request(name, tuple(found)) for name, found in keys.items() if found]


def measure(rows: list[Row], run: Path, near: float) -> dict[str, Any]:
    """Ask, and compare what was found with what was planted."""
    history = History.open(run)
    kinds = {row.source: row for row in rows}
    found: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for request in requests(rows):
        began = time.perf_counter()
        rows_found = resolve(request, history, measure=Measure(near=near)).rows
        seconds[request.id] = round(time.perf_counter() - began, 2)
        pairs = zip(rows_found["source"].to_pylist(), rows_found["reason"].to_pylist(), strict=True)
        for source, reason in pairs:
            found.setdefault(source, reason)
    targets = {row.source for row in rows if row.kind == "target"}
    table: dict[str, Any] = {}
    for kind in ("target", "exact", *EDITS, *BEYOND, "paraphrase"):
        asked = [r.source for r in rows if r.kind == kind and (not r.of or r.of in targets)]
        met = [s for s in asked if s in found]
        recall = round(len(met) / max(len(asked), 1), 4)
        table[kind] = {
            "rows": len(asked), "found": len(met), "recall": recall,
            "reasons": dict(collections.Counter(found[s] for s in met)),
        }  # fmt: skip
    others = [r.source for r in rows if r.kind == "background"]
    false = [s for s in others if s in found]
    return {
        "near": near, "kinds": table, "others": len(others), "false": len(false),
        "false_by": dict(collections.Counter(kinds[s].source.split("/")[0] for s in false)),
        "false_reasons": dict(collections.Counter(found[s] for s in false)),
        "examples": false[:5], "seconds": seconds,
    }  # fmt: skip


def goals(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal, what was measured, whether it is met."""
    kinds = told["kinds"]
    near = [kinds[name] for name in EDITS]
    recall = sum(k["found"] for k in near) / sum(k["rows"] for k in near)
    worst = min(k["recall"] for k in near)
    exact = min(kinds["target"]["recall"], kinds["exact"]["recall"])
    false = round(told["false"] / told["others"], 5)
    return [
        {"name": "exact copies found", "goal": GOALS["exact"], "measured": exact,
         "met": exact >= GOALS["exact"]},
        {"name": "near copies found", "goal": GOALS["near"], "measured": round(recall, 4),
         "met": recall >= GOALS["near"]},
        {"name": "near copies found, worst kind", "goal": GOALS["near"], "measured": worst,
         "met": worst >= GOALS["near"]},
        {"name": "unrelated documents found, at most", "goal": GOALS["false"], "measured": false,
         "met": false < GOALS["false"]},
    ]  # fmt: skip


def show(told: dict[str, Any]) -> None:
    """The table of one threshold."""
    print(f"similarity from {told['near']}; seconds {told['seconds']}")
    print(f"{'kind':<22}{'rows':>6}{'found':>7}{'recall':>9}  reasons")
    for name, row in told["kinds"].items():
        print(f"{name:<22}{row['rows']:>6}{row['found']:>7}{row['recall']:>9.4f}  {row['reasons']}")
    false, others = told["false"], told["others"]
    print(
        f"{'unrelated':<22}{others:>6}{false:>7}{false / others:>9.4f}  {told['false_reasons']}"
        f" {told['false_by']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the shared data sets")
    parser.add_argument("--near", type=float, nargs="+", default=[0.8], help="thresholds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a tenth of it")
    options = parser.parse_args()
    rows = corpus(options.data, options.smoke, options.seed)
    size = sum(len(row.text.encode()) for row in rows)
    print(f"{len(rows)} documents, {size / 1e6:.1f} MB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run = curated(rows, Path(folder))
        print(f"read and curated in {time.perf_counter() - began:.1f} s", flush=True)
        told = [measure(rows, run, near) for near in options.near]
    for one in told:
        show(one)
    report = {"documents": len(rows), "bytes": size, "thresholds": told, "goals": goals(told[0])}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
