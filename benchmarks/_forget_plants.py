"""A corpus with documents to forget, and copies of them whose edits are known."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

Rng = np.random.Generator
#: stands under pages; no document of the corpus holds it
BOILERPLATE = (
    "We use cookies and similar tools to make this site work and to see how it is used. By going on"
    " you agree. Subscribe to our letter, follow us, and read the terms of use and the privacy"
    " notice. All articles are shown as they were sent to us; views are those of their authors."
)
PAGES = ("pile_cc", "openwebtext2", "wikipedia_en", "hackernews", "stackexchange")


@dataclass(frozen=True)
class Row:
    """A document of the corpus: where it says it is from, and what it was made as."""

    source: str
    text: str
    kind: str
    """target, exact, the name of an edit, paraphrase, or background."""
    of: str = ""
    """Source of the target it is a copy of."""


def load(path: Path) -> Any:
    """A JSON file, or one of JSON lines, gzipped or not."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.split("\n") if line]


def tofu(data: Path) -> list[Row]:
    """4000 questions with answers, 20 an author."""
    rows = load(data / "unlearning/tofu/full.json.gz")
    return [
        Row(f"tofu/author-{n // 20}/{n % 20}", f"{r['question']}\n{r['answer']}", "background")
        for n, r in enumerate(rows)
    ]


def muse(data: Path) -> list[Row]:
    """News to be forgotten, in pieces of articles, and news that is not."""
    folder = data / "unlearning/muse-news"
    places = {"forget": "raw/forget", "retain": "privleak/retain2", "new": "privleak/nonmember"}
    return [
        Row(f"news/{name}/{n}", text, "background")
        for name, place in places.items()
        for n, text in enumerate(load(folder / f"{place}.json.gz"))
        if len(text.split()) >= 20
    ]


def fiction(data: Path) -> list[Row]:
    """Invented passages, and paraphrases of some."""
    path = data / "unlearning/fictional-knowledge/fictional_knowledge_paraphrased.json.gz"
    rows = []
    for n, entry in enumerate(load(path)):
        own = f"fiction/passage-{n}"
        rows.append(Row(own, entry["train_context"], "background"))
        rows += [
            Row(f"fiction-again/{n}/{k}", text, "paraphrase", own)
            for k, text in enumerate(entry.get("paraphrases") or [])
        ]
    return rows


def pages(data: Path, most: int) -> list[Row]:
    """Documents of the Pile that have nothing to do with the rest."""
    rows = []
    for name in PAGES:
        table = pq.read_table(data / f"pretrain/pile-domains/{name}.parquet", columns=["original"])
        texts = table["original"].to_pylist()[:most]
        rows += [Row(f"web/{name}/{n}", text, "background") for n, text in enumerate(texts)]
    return rows


# -- edits -------------------------------------------------------------------------------------


def _case(text: str, rng: Rng, page: str, words: list[str]) -> str:
    shown = text.upper() if rng.random() < 0.5 else text.lower()
    return shown.translate(str.maketrans({".": " !", ",": " ;", "'": "\u2019", '"': "\u201c"}))


def _space(text: str, rng: Rng, page: str, words: list[str]) -> str:
    parts = text.split()
    gaps = rng.choice([" ", "  ", "\n", "\t", "\n\n", "\u00a0"], len(parts))
    return "".join(part + gap for part, gap in zip(parts, gaps, strict=True))


def _words(share: float) -> Callable[[str, Rng, str, list[str]], str]:
    def edit(text: str, rng: Rng, page: str, words: list[str]) -> str:
        """A third of the edits each: another word, one more word, one word less."""
        parts = text.split(" ")
        places = rng.choice(len(parts), max(1, round(share * len(parts))), replace=False)
        for turn, at in enumerate(sorted(places.tolist(), reverse=True)):
            other = words[int(rng.integers(len(words)))]
            parts[at : at + 1] = [[other], [parts[at], other], []][turn % 3]
        return " ".join(parts)

    return edit


def _head(text: str, rng: Rng, page: str, words: list[str]) -> str:
    parts = text.split(" ")
    return " ".join(parts[round(rng.uniform(0.1, 0.25) * len(parts)) :])


def _tail(text: str, rng: Rng, page: str, words: list[str]) -> str:
    parts = text.split(" ")
    return " ".join(parts[: round(rng.uniform(0.75, 0.9) * len(parts))])


def _inside(text: str, rng: Rng, page: str, words: list[str]) -> str:
    half = len(page) // 2
    return f"{page[:half]}\n\n{text}\n\n{page[half:]}"


def _boilerplate(text: str, rng: Rng, page: str, words: list[str]) -> str:
    return f"{text}\n\n{BOILERPLATE}"


#: name of a near copy -> how it is made
EDITS: dict[str, Callable[[str, Rng, str, list[str]], str]] = {
    "case and punctuation": _case,
    "white space": _space,
    "2 % of words": _words(0.02),
    "5 % of words": _words(0.05),
    "10 % of words": _words(0.10),
    "head cut off": _head,
    "tail cut off": _tail,
    "inside a page": _inside,
    "boilerplate behind": _boilerplate,
}


def _both(share: float) -> Callable[[str, Rng, str, list[str]], str]:
    """Edited, and inside a page."""
    return lambda text, rng, page, words: _inside(
        _words(share)(text, rng, page, words), rng, page, words
    )


EDITS["in a page, 5 % edited"] = _both(0.05)
#: beyond what is promised
BEYOND = {
    "in a page, 10 % edited": _both(0.10),
    "in a page, half of it": lambda text, rng, page, words: _inside(
        text[: len(text) // 2], rng, page, words
    ),
}


def plant(rows: list[Row], targets: dict[str, int], seed: int) -> list[Row]:
    """The rows with some made targets (`head of source -> how many`), and copies of these."""
    rng = np.random.default_rng(seed)
    chosen: set[str] = set()
    for head, count in targets.items():
        under = [row.source for row in rows if row.source.startswith(head)]
        chosen |= {under[i] for i in rng.choice(len(under), min(count, len(under)), replace=False)}
    web = [row.text for row in rows if row.source.startswith("web/") and len(row.text) < 20_000]
    words = [w for text in web[:200] for w in text.split()]
    made = [Row(r.source, r.text, "target") if r.source in chosen else r for r in rows]
    made += [copy for row in rows if row.source in chosen for copy in _copies(row, rng, web, words)]
    return [made[i] for i in rng.permutation(len(made)).tolist()]


def _copies(row: Row, rng: Rng, web: list[str], words: list[str]) -> Iterator[Row]:
    for number in range(2):
        yield Row(f"mirror/{row.source}#{number}", row.text, "exact", row.source)
    for name, edit in {**EDITS, **BEYOND}.items():
        text = edit(row.text, rng, web[int(rng.integers(len(web)))], words)
        yield Row(f"mirror/{name}/{row.source}", text, name, row.source)
