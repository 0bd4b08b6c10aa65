"""Score once, choose many times: six choices of equal tokens, and what each of them covers.

python examples/choose_many_ways.py [OUT]       about 20 seconds on two cores

The tiny model has random weights: its embeddings tell texts apart, its losses mean little. So the
good here is what plain text tells (`surface`): long, varied, readable, few digits.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foresift import Recipe

HERE = Path(__file__).resolve().parent
GOOD = {
    "surface.log_length": 1.0,
    "surface.type_token_ratio": 1.0,
    "surface.readability": 1.0,
    "surface.digit_share": -1.0,
}
SCORES: list[dict[str, Any]] = [
    {"dedup": "exact"},
    {"score": ["surface", "embedding"]},
    {"select": "where", "keep": "surface.readability is not null"},
    {"score": "combined", "by": GOOD},
    {"score": "orthogonal", "by": list(GOOD), "lower": ["surface.digit_share"],
     "axes": 3, "regressor": "none", "unsigned": "both"},
    {"score": "clusters", "embedding": "embedding.vector"},
]  # fmt: skip
VECTORS = {"embedding": "embedding.vector"}
CHOICES: dict[str, dict[str, Any]] = {
    "random": {"select": "random"},
    "topk": {"select": "topk", "by": "combined.utility"},
    "per_axis_top": {
        "select": "per_axis_top",
        "axes": [f"orthogonal.axis_{k}" for k in (1, 2, 3)],
    },
    "weighted_coreset": {"select": "weighted_coreset", "by": ["combined.utility"], **VECTORS},
    "facility_location": {"select": "facility_location", **VECTORS},
    "cluster_quota": {
        "select": "cluster_quota",
        "clusters": "clusters.cluster",
        "by": "combined.utility",
    },
}


def recipe(choice: dict[str, Any]) -> dict[str, Any]:
    """The same scores, then one way to choose."""
    return {
        "name": choice["select"],
        "data": {"read": "jsonl", "paths": [f"{HERE}/corpus/*.jsonl.gz"], "source": "source"},
        "model": {"init": "configs/models/tiny", "max_length": 256},
        "steps": [*SCORES, {**choice, "as": "choice", "budget": "5%"}, {"export": "parquet"}],
        "report": False,
    }


def pairs(table: pa.Table) -> Iterable[tuple[str, str]]:
    """Id and text of each row."""
    return zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)


def distinct(texts: Iterable[str]) -> float:
    """Distinct word trigrams over all."""
    grams = [
        gram
        for words in (re.findall(r"\w+", text.lower()) for text in texts)
        for gram in zip(words, words[1:], words[2:], strict=False)
    ]
    return len(set(grams)) / len(grams)


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/choose")
    chosen: dict[str, dict[str, str]] = {}
    for name, choice in CHOICES.items():
        done = Recipe.parse(recipe(choice), name).run(out)
        files = Path(done.manifest["steps"][-1]["path"]).glob("part-*.parquet")
        tables = [pq.read_table(f, columns=["id", "text"]) for f in sorted(files)]
        chosen[name] = {i: t for table in tables for i, t in pairs(table)}
        cached = sum(step["cached"] for step in done.manifest["steps"])
        varied = distinct(chosen[name].values())
        print(
            f"{name:18} {len(chosen[name]):4} documents, distinct-3 {varied:.3f}, "
            f"{cached} steps were there already"
        )
    for a, b in itertools.combinations(chosen, 2):
        shared = len(chosen[a].keys() & chosen[b].keys())
        if shared > 0.2 * min(len(chosen[a]), len(chosen[b])):
            print(f"{a} and {b} share {shared}")


if __name__ == "__main__":
    main()
