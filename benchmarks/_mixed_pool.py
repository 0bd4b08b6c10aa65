"""The mixed pool of the selection benchmarks, written as JSON lines from a folder of public data.

    domains       8 of the Pile's domains                                40 % of the characters
    wikipedia     WikiText-2 paragraphs                                  15 %
    instructions  outputs of Alpaca's published selections               15 %
    gsm8k         worked solutions of grade-school maths (train split)   20 %
    noise         documents of the above with their words shuffled       10 %

    held          what `write_held` takes of the clean kinds, none of it in the pool

    reference     384 solutions of the test split: what the model should get better at; a recipe
                  holds two thirds of them out to measure on

Documents are cut after 1,200 characters. Everything is drawn from (seed, place).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

SHARES = {"domains": 0.40, "wikipedia": 0.15, "instructions": 0.15, "gsm8k": 0.20, "noise": 0.10}
DOMAINS = (
    "pile_cc", "openwebtext2", "wikipedia_en", "pubmed_abstracts", "stackexchange", "hackernews",
    "github", "nih_exporter",
)  # fmt: skip
ALPACA = (
    "random_9k", "claude_score_ge_4.5", "helpfulness_ge_4.5", "cherry_ifd_5_percent",
)  # fmt: skip
LONGEST = 1200
REFERENCE = 384


def write(data: Path, out: Path, characters: int = 9_000_000, seed: int = 0) -> dict[str, int]:
    """Write pool.jsonl and reference.jsonl; documents of the pool by kind."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    kinds = {
        "domains": _domains(data, rng),
        "wikipedia": _wikipedia(data),
        "instructions": _instructions(data),
        "gsm8k": _solutions(data, "train"),
    }
    pool: list[tuple[str, str]] = []
    for kind, texts in kinds.items():
        pool += [(kind, t) for t in _some(texts, SHARES[kind] * characters, rng)]
    noise = [_shuffled(pool[i][1], rng) for i in rng.permutation(len(pool))]
    pool += [("noise", t) for t in _some(noise, SHARES["noise"] * characters, rng)]
    rows = [{"text": pool[i][1], "kind": pool[i][0]} for i in rng.permutation(len(pool))]
    lines(out / "pool.jsonl", rows)
    held = _some(_solutions(data, "test"), 1e12, rng)
    lines(out / "reference.jsonl", [{"text": t} for t in held[:REFERENCE]])
    return {k: sum(r["kind"] == k for r in rows) for k in SHARES}


def write_held(data: Path, out: Path, characters: int = 120_000, seed: int = 0) -> None:
    """Write held.jsonl: so many characters of each clean kind, none in pool or reference."""
    rng = np.random.default_rng([seed, 1])
    used = set()
    for name in ("pool", "reference"):
        with open(out / f"{name}.jsonl", encoding="utf-8") as file:
            used |= {json.loads(line)["text"] for line in file}
    kinds = {
        # the same windows as in the pool, so that none overlaps one of another document's
        "domains": _domains(data, np.random.default_rng(seed)),
        "wikipedia": _wikipedia(data),
        "instructions": _instructions(data),
        "gsm8k": _solutions(data, "test"),
    }
    rows = []
    for kind, texts in kinds.items():
        fresh = [t for t in texts if t[:LONGEST].strip() not in used]
        rows += [{"text": t, "kind": kind} for t in _some(fresh, characters, rng)]
    lines(out / "held.jsonl", rows)


def _some(texts: list[str], characters: float, rng: np.random.Generator) -> list[str]:
    """Distinct texts in random order until there are so many characters."""
    found: dict[str, None] = {}
    left = characters
    for i in rng.permutation(len(texts)):
        text = texts[i][:LONGEST].strip()
        if left <= 0:
            break
        if len(text) >= 40 and text not in found:
            found[text] = None
            left -= len(text)
    return list(found)


def _shuffled(text: str, rng: np.random.Generator) -> str:
    words = text.split()
    return " ".join(words[i] for i in rng.permutation(len(words)))


def _domains(data: Path, rng: np.random.Generator) -> list[str]:
    texts = []
    for name in DOMAINS:
        path = data / "pretrain" / "pile-domains" / f"{name}.parquet"
        for text in pq.read_table(path, columns=["original"])["original"].to_pylist():
            start = int(rng.integers(0, max(len(text) - LONGEST, 0) + 1))
            texts.append(text[start : start + LONGEST])
    return texts


def _wikipedia(data: Path) -> list[str]:
    texts = []
    for name in ("valid", "test"):
        path = data / "pretrain" / "wikitext-2" / f"wiki.{name}.txt.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts += [line for line in file if len(line) > 100 and not line.startswith(" =")]
    return texts


def _instructions(data: Path) -> list[str]:
    texts = []
    for name in ALPACA:
        path = data / "instruct" / "alpaca" / f"{name}.json.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts += [row["output"] for row in json.load(file)]
    return texts


def _solutions(data: Path, split: str) -> list[str]:
    with gzip.open(data / "reasoning" / "gsm8k" / f"{split}.jsonl.gz", "rb") as file:
        return [json.loads(line)["answer"] for line in _split(file.read())]


def _split(raw: bytes) -> Iterator[bytes]:
    return (line for line in raw.split(b"\n") if line)


def lines(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
