"""Instruction pairs with planted defects: garbled answers, near-copies, and topics on their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline.corpus import Corpus
from tests.corpora import make_corpus

#: garbled response -> the clean one, for `restore`
CLEAN: dict[str, str] = {}


@dataclass(frozen=True)
class Planted:
    """A pool of pairs and what is wrong with which row."""

    table: pa.Table
    """prompt, response, m.before, m.after, m.vector, m.rating"""
    kinds: np.ndarray[Any, Any]
    """`fine`, `garbled`, `copy` or `alone` for each row."""

    def corpus(self, folder: Path) -> Corpus:
        """One shard, with the columns beside it."""
        columns = {n: [self.table[n]] for n in self.table.column_names if "." in n}
        content = self.table.select(["prompt", "response"])
        return make_corpus(folder, [content], columns=columns)


def planted(n: int = 400, share: float = 0.05, seed: int = 0) -> Planted:
    """8 topics in 32 dimensions; a `share` each is garbled, a near-copy, or a topic of its own."""
    rng = np.random.default_rng(seed)
    kinds = np.full(n, "fine", dtype=object)
    each, order = int(share * n), rng.permutation(n)
    for place, kind in enumerate(("garbled", "copy", "alone")):
        kinds[order[place * each : (place + 1) * each]] = kind
    topic = rng.integers(0, 8, n)
    vectors = np.eye(8, 32)[topic] + 0.1 * rng.standard_normal((n, 32))
    alone, copies = kinds == "alone", np.flatnonzero(kinds == "copy")
    vectors[alone] = rng.standard_normal((alone.sum(), 32))
    fine = np.flatnonzero(kinds == "fine")
    vectors[copies] = vectors[fine[: len(copies)]] + 1e-4 * rng.standard_normal((len(copies), 32))
    prompts = [f"Say number {i} of topic {t}." for i, t in enumerate(topic)]
    answers = [f"Number {i} of topic {t} is as clear as it can be." for i, t in enumerate(topic)]
    bad = kinds == "garbled"
    for row in np.flatnonzero(bad):
        clean = answers[row]
        answers[row] = "".join(rng.permutation(list(clean)))[: len(clean) // 2]
        CLEAN[answers[row]] = clean
    table = pa.table(
        {
            "prompt": prompts,
            "response": answers,
            "m.before": 4.0 + 0.4 * rng.standard_normal(n) + 2.5 * bad,
            "m.after": 2.0 + 0.4 * rng.standard_normal(n) + 3.0 * bad,
            "m.vector": pa.array(vectors.astype(np.float32).tolist(), pa.list_(pa.float32())),
            "m.rating": 7.0 + rng.standard_normal(n) - 5.0 * bad,
        }
    )
    return Planted(table, kinds)


def restore(rows: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """A refiner that knows the clean originals; what is added repeats the prompt."""
    return [
        {"prompt": f"Once more: {row['prompt']}", "response": row["response"]}
        if row["action"] == "add"
        else {"prompt": row["prompt"], "response": CLEAN.get(row["response"], row["response"])}
        for row in rows
    ]
