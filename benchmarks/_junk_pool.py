"""The pool of the benchmark of axes: WikiText-2 paragraphs, the Pile's domains, and made junk.

    shuffled      the words of a document in random order
    boilerplate   lines that sites repeat: subscribe, cookies, rights
    repeated      one sentence of a document, many times, a line each
    list          short items with bullets, numbers or prices, no sentence

Documents are cut after 2,000 characters. Everything is drawn from the seed.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

DOMAINS = (
    "pile_cc", "openwebtext2", "wikipedia_en", "pubmed_abstracts", "stackexchange", "hackernews",
    "github", "nih_exporter", "enron_emails", "dm_mathematics",
)  # fmt: skip
KINDS = ("shuffled", "boilerplate", "repeated", "list")
BOILERPLATE = (
    "Subscribe to our newsletter", "All rights reserved.", "Accept all cookies", "Read more",
    "Share this page on social media", "Terms of use | Privacy policy", "Log in to comment",
    "Copyright 2014", "Skip to main content", "Back to top", "Related articles", "Advertisement",
    "We use cookies to improve your experience.", "Click here to continue", "Sign up for free",
    "No comments yet", "Contact us", "Powered by our partners", "Page 1 of 12", "Next page",
)  # fmt: skip
LONGEST = 2000


def make(data: Path, documents: int, junk: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """(texts, kinds): half WikiText-2, half domains, and the share `junk` of made ones."""
    rng = np.random.default_rng(seed)
    made = round(documents * junk)
    half = (documents - made) // 2
    clean = {"wikitext": _wikipedia(data), "domains": _domains(data, rng)}
    rows = [
        (kind, texts[i])
        for kind, texts in clean.items()
        for i in rng.permutation(len(texts))[:half]
    ]
    for number in range(made):
        text = rows[rng.integers(0, 2 * half)][1]
        kind = KINDS[number % len(KINDS)]
        rows.append((kind, _junk(kind, text, rng)))
    rows = [rows[i] for i in rng.permutation(len(rows))]
    unique = dict.fromkeys((text, kind) for kind, text in rows)
    return [text for text, _ in unique], [kind for _, kind in unique]


def _junk(kind: str, text: str, rng: np.random.Generator) -> str:
    words = text.split() or ["nothing"]
    if kind == "shuffled":
        return " ".join(words[i] for i in rng.permutation(len(words)))
    lines = int(rng.integers(8, 40))
    if kind == "boilerplate":
        return "\n".join(BOILERPLATE[i] for i in rng.integers(0, len(BOILERPLATE), lines))
    if kind == "repeated":
        start = int(rng.integers(0, max(len(words) - 12, 0) + 1))
        return "\n".join([" ".join(words[start : start + int(rng.integers(4, 12))])] * lines)
    items = []
    for number in range(lines):
        item = " ".join(rng.choice(words, int(rng.integers(1, 4))))
        price = f" ${rng.integers(1, 500)}.{rng.integers(10, 99)}" if rng.random() < 0.5 else ""
        items.append(f"{'*' if rng.random() < 0.5 else f'{number + 1}.'} {item}{price}")
    return "\n".join(items)


def _domains(data: Path, rng: np.random.Generator) -> list[str]:
    texts = []
    for name in DOMAINS:
        path = data / "pretrain" / "pile-domains" / f"{name}.parquet"
        for text in pq.read_table(path, columns=["original"])["original"].to_pylist()[:500]:
            start = int(rng.integers(0, max(len(text) - LONGEST, 0) + 1))
            texts.append(text[start : start + LONGEST])
    return [t for t in texts if len(t) >= 40]


def _wikipedia(data: Path) -> list[str]:
    texts = []
    for name in ("valid", "test"):
        path = data / "pretrain" / "wikitext-2" / f"wiki.{name}.txt.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts += [x.strip()[:LONGEST] for x in file if len(x) > 100 and not x.startswith(" =")]
    return texts
