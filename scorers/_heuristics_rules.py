"""The numbers behind the rules of Gopher and FineWeb, for all documents of a block at once.

Each function gives name -> [documents] float64, NaN where there is nothing to divide by.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foresift.scorers._heuristics_grams import Grams
from foresift.scorers._heuristics_text import Block, Bools, Lines
from foresift.scorers._words import LETTER, SYMBOL, Words
from foresift.scorers._words_hash import Ints, mixed, range_hashes, repeated
from foresift.scorers._words_tables import TERMINAL

Floats = npt.NDArray[np.float64]
_ELLIPSES = (b"...", "…".encode())
_BULLETS = (b"-", "•".encode())


def sums(values: npt.ArrayLike, offsets: Ints) -> Ints:
    """[documents] sums of values that lie one document after the other."""
    total = np.append(0, np.cumsum(values, dtype=np.int64))
    found: Ints = np.diff(total[offsets])
    return found


def over(above: npt.ArrayLike, below: npt.ArrayLike) -> Floats:
    """A ratio, NaN where it has no denominator."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(above, dtype=np.float64) / np.asarray(below, dtype=np.float64)
    return np.where(np.asarray(below) == 0, np.nan, ratio)


def places(raw: bytes, needle: bytes) -> Ints:
    """Where a row of bytes occurs, from the left and without overlaps."""
    found = []
    at = raw.find(needle)
    while at >= 0:
        found.append(at)
        at = raw.find(needle, at + len(needle))
    return np.array(found, dtype=np.int64)


# -- Gopher, quality ---------------------------------------------------------------------------


def gopher_quality(block: Block, words: Words, stop_words: int) -> dict[str, Floats]:
    """Words, symbols, bullets and stop words."""
    offsets = words.offsets[block.piece_offsets]
    counts = np.diff(offsets)
    spoken = (words.kind & SYMBOL) == 0
    spoken_words = sums(spoken, offsets)
    hashes = np.flatnonzero(block.text[: len(block.raw)] == ord("#"))
    ellipses = sum(block.each(places(block.raw, e)) for e in _ELLIPSES)
    bullets, trailing, lines = _bullets(block)
    seen = np.zeros((len(counts), stop_words + 1), dtype=np.bool_)
    stops = np.flatnonzero(words.stop)
    seen[np.searchsorted(offsets, stops, side="right") - 1, words.stop[stops]] = True
    return {
        "words": counts.astype(np.float64),
        "spoken_words": spoken_words.astype(np.float64),
        "mean_word_length": over(sums(words.length * spoken, offsets), spoken_words),
        "hash_ratio": over(block.each(hashes), counts),
        "ellipsis_ratio": over(ellipses, counts),
        "bullet_lines": over(bullets, lines),
        "ellipsis_lines": over(trailing, lines),
        "alphabetic_words": over(sums((words.kind & LETTER) > 0, offsets), counts),
        "stop_words": seen.sum(axis=1).astype(np.float64),
    }


def _bullets(block: Block) -> tuple[Ints, Ints, Ints]:
    """[documents] lines that begin with a bullet, lines that end with an ellipsis, all lines."""
    lines = block.split_lines
    black = np.flatnonzero(lines.last > lines.first)
    starts, stops = block.pieces
    begins, ends = starts[lines.first[black]], stops[lines.last[black] - 1]
    bullet = np.logical_or.reduce([block.ends_with(begins + len(b), b) for b in _BULLETS])
    trailing = np.logical_or.reduce([block.ends_with(ends, e) for e in _ELLIPSES])
    count = len(lines.offsets) - 1
    owner = lines.documents[black]
    found = (np.bincount(owner[which], minlength=count) for which in (bullet, trailing))
    return next(found), next(found), np.diff(lines.offsets)


# -- Gopher, repetition ------------------------------------------------------------------------


def gopher_repetition(block: Block, words: Words, again: Bools) -> dict[str, Floats]:
    """Lines, paragraphs and rows of words that occur again; `again` marks lines that do."""
    characters = block.characters(block.starts, block.stops)
    lines = block.lines
    full = lines.stops > lines.starts
    first, last = lines.offsets[:-1], lines.offsets[1:] - 1
    # a newline at either end of a text gives one more, empty, line
    edges = np.where(last > first, (~full[first]).astype(int) + ~full[last], 0)
    line_count = np.maximum(sums(full, lines.offsets) + edges, 1)
    line_copies = sums(again, lines.offsets) + (edges == 2)
    lengths = block.characters(lines.starts, lines.stops)
    paragraphs = _paragraphs(block, full)
    top, scanned = Grams(words.hash, words.length, words.offsets[block.piece_offsets]).characters()
    return {
        "duplicate_paragraphs": over(paragraphs[1], paragraphs[0]),
        "duplicate_paragraph_characters": over(paragraphs[2], characters),
        "duplicate_lines": over(line_copies, line_count),
        "duplicate_line_characters": over(sums(lengths * again, lines.offsets), characters),
        **{f"top_{n}_gram": over(found, characters) for n, found in top.items()},
        **{f"duplicated_{n}_grams": over(found, characters) for n, found in scanned.items()},
    }


def copies(block: Block, starts: Ints, stops: Ints, documents: Ints) -> Bools:
    """Which of these stretches are the same as an earlier one of their document."""
    owner = mixed(documents.astype(np.uint64))
    head = range_hashes(block.text, starts, np.minimum(stops, starts + 8))
    tail = range_hashes(block.text, np.maximum(starts, stops - 8), stops)
    # few have both ends and the length in common; only these are read in full
    alike = mixed(mixed(head + owner) + tail) + (stops - starts).astype(np.uint64)
    rows = np.sort(repeated(mixed(alike)).members)
    keys = range_hashes(block.text, starts[rows], stops[rows]) + owner[rows]
    groups = repeated(mixed(keys))
    found = np.zeros(len(starts), dtype=np.bool_)
    found[rows[groups.members[~groups.first]]] = True
    return found


def line_copies(block: Block) -> Bools:
    """Which lines between newlines are the same as an earlier one; never an empty one."""
    lines = block.lines
    full = np.flatnonzero(lines.stops > lines.starts)
    found = np.zeros(len(lines.starts), dtype=np.bool_)
    found[full] = copies(block, lines.starts[full], lines.stops[full], lines.documents[full])
    return found


def _paragraphs(block: Block, full: Bools) -> tuple[Ints, Ints, Ints]:
    """[documents] paragraphs, those that are copies, and the characters of these.

    Paragraphs of the stripped text, between rows of two newlines or more.
    """
    lines, (begins, ends) = block.lines, block.pieces
    offsets = block.piece_offsets
    some = offsets[1:] > offsets[:-1]
    low, high = block.stops.copy(), block.stops.copy()
    low[some], high[some] = begins[offsets[:-1][some]], ends[offsets[1:][some] - 1]
    owner = lines.documents
    inside = np.flatnonzero(full & (lines.stops > low[owner]) & (lines.starts < high[owner]))
    owner = owner[inside]
    head = np.append(True, owner[1:] != owner[:-1])[: len(inside)]
    head |= ~full[np.maximum(inside - 1, 0)]
    heads = np.flatnonzero(head)
    tails = np.append(heads[1:] - 1, len(inside) - 1)[: len(heads)]
    owner = owner[heads]
    starts = np.maximum(lines.starts[inside[heads]], low[owner])
    stops = np.minimum(lines.stops[inside[tails]], high[owner])
    counts = np.bincount(owner, minlength=len(some))
    several = counts[owner] > 1
    again = np.zeros(len(heads), dtype=np.bool_)
    again[several] = copies(block, starts[several], stops[several], owner[several])
    lengths = block.characters(starts, stops)[again]
    copied = np.bincount(owner[again], minlength=len(some))
    characters = np.bincount(owner[again], lengths, minlength=len(some)).astype(np.int64)
    return np.maximum(counts, 1), copied, characters


# -- FineWeb -----------------------------------------------------------------------------------


def fineweb(block: Block, words: Words, again: Bools, short_line_length: int) -> dict[str, Floats]:
    """Punctuation, length and copies of the lines with something in them; newlines."""
    lines = block.lines
    black = lines.last > lines.first
    counts = sums(black, lines.offsets)
    lengths = block.characters(lines.starts, lines.stops)
    short = black & (lengths <= short_line_length)
    newlines = np.diff(lines.offsets) - 1
    characters = block.characters(block.starts, block.stops) - newlines
    spoken = np.diff(words.offsets[block.piece_offsets])
    return {
        "terminal_lines": over(sums(_terminal(block, lines, black), lines.offsets), counts),
        "short_lines": over(sums(short, lines.offsets), counts),
        "duplicate_characters": over(
            sums(lengths * (again & black), lines.offsets), characters * (counts > 0)
        ),
        "newline_ratio": over(newlines, spoken),
    }


def _terminal_codes() -> npt.NDArray[np.int64]:
    return np.sort([int.from_bytes(c.encode(), "big") for c in TERMINAL])


_TERMINAL = _terminal_codes()


def _terminal(block: Block, lines: Lines, black: Bools) -> Bools:
    """Which lines with something in them end in a mark that ends sentences."""
    text, rows = block.text, np.flatnonzero(black)
    at = lines.stops[rows] - 1
    code = text[at].astype(np.int64)
    for back in (1, 2, 3):
        more = code >> 8 * (back - 1) & 0xC0 == 0x80
        code[more] |= text[at[more] - back].astype(np.int64) << 8 * back
    found = np.zeros(len(black), dtype=np.bool_)
    nearest = np.minimum(np.searchsorted(_TERMINAL, code), len(_TERMINAL) - 1)
    found[rows] = _TERMINAL[nearest] == code
    return found
