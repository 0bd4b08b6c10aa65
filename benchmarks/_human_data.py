"""What `human_quality.py` measures on, written as JSON lines from a folder of public data.

    pool           the mixed pool (`_mixed_pool.py`) on which the scoring model is trained, without
                   the answers that are measured below
    instructions   pairs of CoachLM: an Alpaca example as it was (`good` false) and as experts
                   revised it (true); `group` is the pair
    pages          Common Crawl pages that people would keep (true) or not; `group` is the page,
                   `agreed` whether its judges were of one mind
    reference      instructions: Self-Instruct's seed tasks and twice as many examples of LIMA;
                   pages: WikiText-2 paragraphs and BBC news, in equal numbers
    aim            every fifth document of the reference, for scores that take a gradient of each

Nothing that is measured lies in the reference or, word for word, in the pool. All draws are seeded.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import _mixed_pool
import numpy as np

Row = Mapping[str, Any]
_WRAPPED = "### Instruction:"


def write(
    data: Path, out: Path, characters: int, pairs: int, pages: int, reference: int
) -> dict[str, Any]:
    """Write all files under `out`; what was left out, and why."""
    rng = np.random.default_rng(0)
    measured = {"instructions": _coachlm(data), "pages": _dclm(data)}
    left = {"pairs with an empty half": len(measured["instructions"])}
    measured["instructions"] = _whole(measured["instructions"])
    left = {k: (n - len(measured["instructions"])) // 2 for k, n in left.items()}
    seen = {_text(row) for rows in measured.values() for row in rows}
    answers = {row["response"] for row in measured["instructions"]}
    for name, count in (("instructions", pairs), ("pages", pages)):
        _lines(out / f"{name}.jsonl", _groups(measured[name], count, rng))
    _mixed_pool.write(data, out, characters)
    pool = list(_read(out / "pool.jsonl"))
    fresh = _apart(pool, seen | {a[: _mixed_pool.LONGEST].strip() for a in answers})
    _lines(out / "pool.jsonl", fresh)
    left["answers taken out of the pool"] = len(pool) - len(fresh)
    trained = {row["text"] for row in fresh}
    for name, rows in (("instructions", _examples(data, rng)), ("pages", _articles(data, rng))):
        apart = _apart(rows, seen | trained)[:reference]
        _lines(out / f"{name}-reference.jsonl", apart)
        _lines(out / f"{name}-aim.jsonl", apart[::5])
    return left


def _coachlm(data: Path) -> list[Row]:
    with gzip.open(data / "instruct" / "coachlm" / "expert_revision.json.gz", "rt") as file:
        found = json.load(file)
    return [
        {
            **_pair(*(row[f"{side} {part}"] for part in ("Instruction", "Input", "Response"))),
            "group": number, "good": side == "Revised",
        }
        for number, row in enumerate(found)
        for side in ("Raw", "Revised")
    ]  # fmt: skip


def _pair(instruction: str, given: str, response: str) -> dict[str, str]:
    return {"prompt": f"{instruction}\n{given}".strip(), "response": response.strip()}


def _whole(rows: Sequence[Row]) -> list[Row]:
    """Pairs of which both sides have a prompt and a response, and differ."""
    empty = {row["group"] for row in rows if not (row["prompt"] and row["response"])}
    same = {a["group"] for a, b in zip(rows[::2], rows[1::2], strict=True) if _text(a) == _text(b)}
    return [row for row in rows if row["group"] not in empty | same]


def _dclm(data: Path) -> list[Row]:
    folder = data / "quality" / "dclm-human"
    agreed = {row["text"] for row in _read(folder / "agreement_data.jsonl.gz")}
    return [
        {"text": row["text"], "group": number, "good": bool(row["label"]),
         "agreed": row["text"] in agreed}
        for number, row in enumerate(_read(folder / "majority_data.jsonl.gz"))
    ]  # fmt: skip


def _examples(data: Path, rng: np.random.Generator) -> list[Row]:
    """Seed tasks and twice as many of LIMA's, in random order."""
    folder = data / "instruct"
    seeds = [
        _pair(row["instruction"], row["instances"][0]["input"], row["instances"][0]["output"])
        for row in _read(folder / "self-instruct" / "seed_tasks.jsonl.gz")
    ]
    with gzip.open(folder / "lima" / "fastchat_lima_1k.json.gz", "rt", encoding="utf-8") as file:
        turns = [[turn["value"] for turn in row["conversations"]] for row in json.load(file)]
    lima = [_pair(ask.rpartition(_WRAPPED)[2].strip(), "", answer) for ask, answer, *_ in turns]
    half = [lima[i] for i in rng.permutation(len(lima))][: 2 * len(seeds)]
    both = [row for row in seeds + half if row["prompt"] and row["response"]]
    return [both[i] for i in rng.permutation(len(both))]


def _articles(data: Path, rng: np.random.Generator) -> list[Row]:
    """Paragraphs of Wikipedia and news in turns, in random order."""
    folder, lines = data / "pretrain", []
    for name in ("valid", "test"):
        path = folder / "wikitext-2" / f"wiki.{name}.txt.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines += [line.strip() for line in file if len(line) > 400 and line[:2] != " ="]
    news = [row["text"] for row in _read(folder / "bbc-news" / "bbc.jsonl.gz")]
    news = list(dict.fromkeys(news))
    turns = zip(rng.permutation(len(lines)), rng.permutation(len(news)), strict=False)
    return [{"text": text} for i, j in turns for text in (lines[i], news[j])]


def _groups(rows: Sequence[Row], count: int, rng: np.random.Generator) -> list[Row]:
    """The rows of so many groups (0: all), in random order."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    chosen = {groups[i] for i in rng.permutation(len(groups))[: count or len(groups)]}
    found = [row for row in rows if row["group"] in chosen]
    return [found[i] for i in rng.permutation(len(found))]


def _apart(rows: Sequence[Row], others: set[str]) -> list[Row]:
    return [row for row in rows if _text(row) not in others]


def _text(row: Row) -> str:
    return str(row["text"]) if "text" in row else f"{row['prompt']}\n{row['response']}"


def _read(path: Path) -> Iterator[dict[str, Any]]:
    raw = path.read_bytes()
    for line in (gzip.decompress(raw) if path.suffix == ".gz" else raw).split(b"\n"):
        if line.strip():
            yield json.loads(line)


def _lines(path: Path, rows: Sequence[Row]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
