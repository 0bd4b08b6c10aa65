"""The rules of `heuristics` for one document at a time, as plain as they can be written."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import numpy as np

from foresift.scorers._words_english import words_of
from foresift.scorers._words_tables import SENTENCE_ENDS, SYMBOLS, TERMINAL

STOP = {"the", "be", "to", "of", "and", "that", "have", "with"}
POLICY = ["terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
          "use cookies"]  # fmt: skip


def words(text: str) -> list[str]:
    return [word for piece in text.split() for word in words_of(piece)]


def over(a: float, b: float) -> float:
    return a / b if b else float("nan")


def copies(items: list[str]) -> tuple[int, int]:
    again = [item for i, item in enumerate(items) if item in items[:i]]
    return len(again), sum(map(len, again))


def top(found: list[str], n: int) -> int:
    rows = [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]
    if not rows:
        return 0
    row, often = Counter(rows).most_common(1)[0]
    return len(row) * often


def scanned(found: list[str], n: int) -> int:
    met, i, characters = set(), 0, 0
    while i <= len(found) - n:
        row = tuple(found[i : i + n])
        if row in met:
            characters += len("".join(row))
            i += n
        else:
            met.add(row)
            i += 1
    return characters


def sentences(line: str) -> int:
    """Starts of sentences; white space other than one blank is a word, as in spaCy."""
    parts = re.findall(r"\S+|\s+", line)
    tokens: list[str] = []
    for i, part in enumerate(parts):
        if part.isspace():
            tokens += [part[1:] if i and part[0] == " " else part]
        else:
            tokens += words_of(part)
    count, ended = 1, False
    for token in filter(None, tokens):
        mark = all(unicodedata.category(c)[0] == "P" for c in token)
        if ended and not mark and token not in SENTENCE_ENDS:
            count, ended = count + 1, False
        elif token in SENTENCE_ENDS:
            ended = True
    return count


def quality(text: str) -> dict[str, float]:
    found, lines = words(text), text.splitlines()
    spoken = [w for w in found if any(c not in SYMBOLS for c in w)]
    return {
        "words": len(found),
        "spoken_words": len(spoken),
        "mean_word_length": over(sum(map(len, spoken)), len(spoken)),
        "hash_ratio": over(text.count("#"), len(found)),
        "ellipsis_ratio": over(text.count("...") + text.count("…"), len(found)),
        "bullet_lines": over(sum(x.lstrip().startswith(("•", "-")) for x in lines), len(lines)),
        "ellipsis_lines": over(sum(x.rstrip().endswith(("...", "…")) for x in lines), len(lines)),
        "alphabetic_words": over(sum(any(c.isalpha() for c in w) for w in found), len(found)),
        "stop_words": len(STOP & set(found)),
    }


def repetition(text: str) -> dict[str, float]:
    found, size = words(text), len(text)
    paragraphs = re.split(r"\n{2,}", text.strip())
    lines = re.split(r"\n+", text)
    (few, more), (some, many) = copies(paragraphs), copies(lines)
    return {
        "duplicate_paragraphs": few / len(paragraphs),
        "duplicate_paragraph_characters": over(more, size),
        "duplicate_lines": some / len(lines),
        "duplicate_line_characters": over(many, size),
        **{f"top_{n}_gram": over(top(found, n), size) for n in (2, 3, 4)},
        **{f"duplicated_{n}_grams": over(scanned(found, n), size) for n in range(5, 11)},
    }


def fineweb(text: str) -> dict[str, float]:
    lines = [line for line in text.split("\n") if line.strip()]
    return {
        "terminal_lines": over(sum(line.endswith(tuple(TERMINAL)) for line in lines), len(lines)),
        "short_lines": over(sum(len(line) <= 30 for line in lines), len(lines)),
        "duplicate_characters": over(copies(lines)[1], len(text.replace("\n", "")))
        if lines
        else float("nan"),
        "newline_ratio": over(text.count("\n"), len(words(text))),
    }


def c4(text: str, terminal: bool = True) -> tuple[dict[str, int], bool]:
    """Numbers, and whether a line drops the document."""
    dropped: Counter[str] = Counter()
    count, out = 0, False
    for line in map(str.strip, text.splitlines()):
        pieces = line.split()
        if any(len(p) > 1000 for p in pieces):
            dropped["long_word"] += 1
            continue
        line = re.sub(r"\[\d*]|\[edit]|\[citation needed]", "", line)
        lower = line.lower()
        if terminal and (not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")):
            dropped["no_terminal"] += 1
        elif len(pieces) < 3:
            dropped["few_words"] += 1
        else:
            out |= "lorem ipsum" in lower
            if "javascript" in lower:
                dropped["javascript"] += 1
                continue
            out |= "{" in line
            if any(p in lower for p in POLICY):
                dropped["policy"] += 1
            else:
                count += sentences(line)
    names = ("long_word", "no_terminal", "few_words", "javascript", "policy")
    numbers = {f"lines_{name}": dropped[name] for name in names}
    return {**numbers, "lines_removed": dropped.total(), "sentences": count}, out


def decisions(text: str) -> dict[str, bool]:
    """What the four filters keep."""
    q, r, f = quality(text), repetition(text), fineweb(text)
    lines, out = c4(text)
    return {
        "gopher_quality": 50 <= q["spoken_words"] <= 100_000
        and 3 <= q["mean_word_length"] <= 10
        and q["hash_ratio"] <= 0.1
        and q["ellipsis_ratio"] <= 0.1
        and q["bullet_lines"] <= 0.9
        and q["ellipsis_lines"] <= 0.3
        and q["alphabetic_words"] >= 0.8
        and q["stop_words"] >= 2,
        "gopher_repetition": text != ""
        and r["duplicate_paragraphs"] <= 0.3
        and r["duplicate_paragraph_characters"] <= 0.2
        and r["duplicate_lines"] <= 0.3
        and r["duplicate_line_characters"] <= 0.2
        and all(r[f"top_{n}_gram"] <= limit for n, limit in ((2, 0.2), (3, 0.18), (4, 0.16)))
        and all(r[f"duplicated_{n}_grams"] <= (20 - n) / 100 for n in range(5, 11)),
        "c4": not out and lines["sentences"] >= 5,
        "fineweb": not np.isnan(f["terminal_lines"])
        and f["terminal_lines"] >= 0.12
        and f["short_lines"] <= 0.67
        and f["duplicate_characters"] <= 0.01
        and f["newline_ratio"] <= 0.3,
    }
