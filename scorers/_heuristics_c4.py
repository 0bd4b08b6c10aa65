"""C4's rules for lines, and the sentences of the lines that they leave.

A line is dropped for the first of these that holds, in this order:

    long_word      a word (between white space) of more than max_word_length characters
    no_terminal    its end, citations taken out, is none of . ? ! " ' or is "..."
    few_words      fewer than min_words_per_line words
    javascript     it names javascript
    policy         it speaks of terms of use, a privacy or cookie policy, or the use of cookies

A line that is not dropped by the first three drops the document where it holds "lorem ipsum" or
"{" (one with javascript only for the former). Sentences are counted in the lines that stay: a
sentence begins where a word that is no mark follows a mark that ends one. Citations are `[12]`,
`[]`, `[edit]` and `[citation needed]`; lines with one go through Python.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from foresift.scorers._heuristics_rules import Floats, places
from foresift.scorers._heuristics_text import Block, Bools, Lines
from foresift.scorers._words import ENDS, MARK, Words, kind_of
from foresift.scorers._words_english import words_of
from foresift.scorers._words_hash import Ints

POLICY = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)  # fmt: skip
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_QUICK_CITATION = re.compile(rb"\[(?:[0-9\x80-\xff]*|edit|citation needed)]")
_END = (".", "?", "!", '"', "'")
_DOTS = "..."


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is asked of lines and documents; as in the part that holds it."""

    no_terminal: bool
    max_word_length: int
    min_words: int
    javascript: bool
    policy: bool
    lorem_ipsum: bool
    curly_bracket: bool
    english: bool


@dataclass
class C4:
    """What the rules find in the lines of a block."""

    numbers: dict[str, Floats]
    """Lines dropped for each reason, all lines dropped, and sentences of those that stay."""
    lorem_ipsum: Ints
    """[documents] the first place for which the document is dropped, -1 where there is none."""
    curly_bracket: Ints


def c4(block: Block, words: Words, rules: Rules) -> C4:
    """Apply the rules to every line."""
    lines = block.split_lines
    cited = _cited(block, lines)
    left = np.ones(len(lines.starts), dtype=np.bool_)
    dropped: dict[str, Bools] = {}

    def drop(name: str, which: Bools) -> None:
        nonlocal left
        dropped[name] = left & which
        left = left & ~which

    drop("long_word", _long(block, lines, rules.max_word_length))
    drop("no_terminal", _open(block, lines, cited) & rules.no_terminal)
    drop("few_words", lines.last - lines.first < rules.min_words)
    lower = block.raw.lower()
    lorem = _first(block, lines, left, _phrases(lower, ["lorem ipsum"] * rules.lorem_ipsum))
    drop("javascript", _holds(lines, _phrases(lower, ["javascript"] * rules.javascript)))
    curly = _first(block, lines, left, _phrases(block.raw, ["{"] * rules.curly_bracket))
    policy = [phrase for phrase in POLICY if "cookie" not in phrase or b"cookie" in lower]
    drop("policy", _holds(lines, _phrases(lower, policy * rules.policy)))
    sentences = _sentences(block, lines, words)
    for line, text in cited.items():
        if left[line]:
            sentences[line] = sentences_of(text, rules.english)
    owner, count = lines.documents, len(lines.offsets) - 1
    per = {name: np.bincount(owner[which], minlength=count) for name, which in dropped.items()}
    numbers = {f"lines_{name}": found.astype(np.float64) for name, found in per.items()}
    numbers["lines_removed"] = sum(numbers.values(), start=np.zeros(count))
    kept = np.bincount(owner[left], sentences[left], minlength=count)
    numbers["sentences"] = kept.astype(np.float64)
    return C4(numbers, lorem, curly)


def _long(block: Block, lines: Lines, limit: int) -> Bools:
    """Lines with a piece of more characters than `limit`; -1: none."""
    found = np.zeros(len(lines.starts), dtype=np.bool_)
    if limit >= 0:
        starts, stops = block.pieces
        rows = np.flatnonzero(stops - starts > limit)
        rows = rows[block.characters(starts[rows], stops[rows]) > limit]
        found[np.searchsorted(lines.stops, starts[rows])] = True
    return found


def _cited(block: Block, lines: Lines) -> dict[int, str]:
    """Lines that hold a citation: stripped, with citations taken out."""
    if b"[" not in block.raw:
        return {}
    at = np.array([m.start() for m in _QUICK_CITATION.finditer(block.raw)], dtype=np.int64)
    found = {}
    for line in np.unique(np.searchsorted(lines.stops, at)).tolist():
        text = block.raw[lines.starts[line] : lines.stops[line]].decode(errors="ignore").strip()
        found[line] = _CITATION.sub("", text)
    return found


def _open(block: Block, lines: Lines, cited: dict[int, str]) -> Bools:
    """Lines that end in no terminal mark, or in an ellipsis."""
    black = np.flatnonzero(lines.last > lines.first)
    ends = block.pieces[1][lines.last[black] - 1]
    last = block.text[ends - 1]
    closed = np.isin(last, [ord(c) for c in _END]) & ~block.ends_with(ends, _DOTS.encode())
    found = np.ones(len(lines.starts), dtype=np.bool_)
    found[black] = ~closed
    for line, text in cited.items():
        found[line] = not text.endswith(_END) or text.endswith(_DOTS)
    return found


def _phrases(raw: bytes, phrases: list[str]) -> Ints:
    """Where any of these occurs, ascending."""
    found = [places(raw, phrase.encode()) for phrase in phrases]
    return np.sort(np.concatenate([np.empty(0, np.int64), *found]))


def _holds(lines: Lines, at: Ints) -> Bools:
    """Lines that one of these places lies in."""
    found = np.zeros(len(lines.starts), dtype=np.bool_)
    found[np.searchsorted(lines.stops, at)] = True
    return found


def _first(block: Block, lines: Lines, left: Bools, at: Ints) -> Ints:
    """[documents] the first of these places in a line that is left, -1 where there is none."""
    line = np.searchsorted(lines.stops, at)
    at, line = at[left[line]], line[left[line]]
    documents, first = np.unique(lines.documents[line], return_index=True)
    found = np.full(len(block.starts), -1, dtype=np.int64)
    found[documents] = at[first]
    return found


def _sentences(block: Block, lines: Lines, words: Words) -> Ints:
    """[lines] 1 + the marks that end a sentence with a word behind them, before the next mark."""
    ends = np.flatnonzero(words.kind & ENDS)
    stops = words.offsets[lines.last]
    line = np.searchsorted(stops, ends, side="right")
    limit = np.minimum(np.append(ends[1:], len(words.kind)), stops[line] if len(ends) else ends)
    plain = np.append(np.flatnonzero((words.kind & (ENDS | MARK)) == 0), len(words.kind))
    opened = plain[np.searchsorted(plain, ends)] < limit
    # white space other than one blank counts as a word of its own
    gap = words.offsets[:-1][_wide_gaps(block)]
    gap = np.append(gap, len(words.kind) + 1)
    at = gap[np.searchsorted(gap, ends, side="right")]
    opened |= (at <= limit) & (at < (stops[line] if len(ends) else ends))
    return 1 + np.bincount(line[opened], minlength=len(lines.starts))


def _wide_gaps(block: Block) -> Ints:
    """Pieces with more than one blank before them."""
    starts, stops = block.pieces
    odd = (starts[1:] - stops[:-1] > 1) | (block.text[stops[:-1]] != 32)
    return np.flatnonzero(odd) + 1


def sentences_of(line: str, english: bool) -> int:
    """The same for one line, word by word."""
    count, ended = 1, False
    pieces = re.findall(r"\S+|\s+", line)
    for number, piece in enumerate(pieces):
        if piece.isspace():
            blank = piece[1:] if number and piece[0] == " " else piece
            words = [blank] if blank else []
        else:
            words = words_of(piece) if english else [piece]
        for word in words:
            kind = kind_of(word)
            if ended and not kind & (ENDS | MARK):
                count, ended = count + 1, False
            elif kind & ENDS:
                ended = True
    return count
