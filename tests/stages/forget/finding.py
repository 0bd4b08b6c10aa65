"""Corpora in which things are looked for: rows by source, read by a real recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.nouns import Arrays, Scorer
from foresift.pipeline.tables import Column, content_texts
from foresift.stages.forget.history import History
from foresift.stages.forget.request import Key, Request
from foresift.stages.forget.resolve import resolve
from foresift.stages.forget.resolved import Resolved
from tests.runs import go

STORY = (
    "The quick brown fox jumped over the lazy dog near the river bank while children played with"
    " their new red ball and parents talked about the weather of the last few days at length"
)
WORDS = [
    a + b + c for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u") for c in ("ndo", "ls")
]


def made(count: int, seed: int = 0) -> str:
    """So many words that mean nothing."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


def edited(text: str, share: float, seed: int = 0) -> str:
    """The same with a share of its words replaced by one that stands nowhere else."""
    rng, words = np.random.default_rng(seed), text.split(" ")
    for at in rng.choice(len(words), max(1, round(share * len(words))), replace=False):
        words[at] = f"zq{rng.integers(10**6)}"
    return " ".join(words)


@dataclass(frozen=True, kw_only=True)
class Direction(Scorer):
    """A vector of letters: texts with the same letters point the same way."""

    columns: ClassVar[Mapping[str, Column]] = {
        "vector": Column(pa.list_(pa.float32()), "letters counted")
    }

    def score(self, batch: pa.Table) -> Arrays:
        letters = "abcdefghijklmnopqrstuvwxyz"
        vectors = [[float(t.lower().count(x)) for x in letters] for t in content_texts(batch)]
        return {"vector": pa.array(vectors, pa.list_(pa.float32()))}


def store(
    folder: Path, rows: Sequence[tuple[str, Any]], *, steps: Sequence[Any] = (),
    data: Mapping[str, Any] | None = None, **fields: Any,
) -> History:  # fmt: skip
    """A finished run over rows of (source, text) or (source, fields)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write(folder / "corpus.jsonl", rows)
    read = {"read": "jsonl", "paths": [str(path)], "source": "source", "holdout": 0.0}
    recipe = {"name": "find", "data": read | dict(data or {}), "steps": list(steps)}
    return History.open(go(recipe | {"report": False} | fields, folder / "out").path)


def write(path: Path, rows: Sequence[tuple[str, Any]]) -> Path:
    lines = [{"source": s, **(c if isinstance(c, dict) else {"text": c})} for s, c in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def ask(history: History, *keys: tuple[str, str], name: str = "r-1", **options: Any) -> Resolved:
    """What a request for some keys means."""
    return resolve(Request(name, tuple(Key(*key) for key in keys)), history, **options)


def told(found: Resolved) -> dict[str, str]:
    """Source -> reason."""
    rows = found.rows
    return dict(zip(rows["source"].to_pylist(), rows["reason"].to_pylist(), strict=True))
