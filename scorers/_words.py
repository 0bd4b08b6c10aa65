"""The words of a whole buffer of text: each distinct piece is split once and remembered.

A piece is a run of characters without white space; its words spell it. A word has

    hash     64 bits of its bytes
    length   characters
    kind     bits: SYMBOL   nothing but marks and control characters (datatrove's set)
                   LETTER   at least one letter
                   ENDS     one mark that ends a sentence
                   MARK     nothing but punctuation (Unicode category P)
    stop     1 + its place among the stop words, or 0

What is remembered is a table of pieces by hash, emptied when it is full, so memory is flat and
nothing that is returned depends on what was seen before. Pieces of letters or of digits, with or
without one mark behind them, are split without Python (most of the new ones); others by
`_words_english.words_of`. Cost: about 20 ms a megabyte of English, of which new pieces take half.
"""

from __future__ import annotations

import functools
import threading
import unicodedata
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from foresift.scorers._words_cut import among, hash_of, word_starts
from foresift.scorers._words_hash import PADDING, Bytes, Hashes, Ints, range_hashes
from foresift.scorers._words_tables import SENTENCE_ENDS, SYMBOLS

Codes = npt.NDArray[np.uint8]
SYMBOL, LETTER, ENDS, MARK = 1, 2, 4, 8
#: pieces looked up at once, and pieces and words that are remembered at most
_SLICE, _PIECES, _WORDS = 1 << 17, 1 << 20, 1 << 21
_SLOTS = 1 << 21


class Words(NamedTuple):
    """Words of pieces, in order: piece i has words offsets[i] to offsets[i + 1]."""

    offsets: Ints
    hash: Hashes
    length: npt.NDArray[np.int32]
    kind: Codes
    stop: Codes


def kind_of(word: str) -> int:
    """The bits of one word."""
    if word.isalpha():
        return LETTER
    symbol = all(c in SYMBOLS for c in word)
    mark = all(unicodedata.category(c)[0] == "P" for c in word)
    return (
        SYMBOL * symbol
        | LETTER * any(c.isalpha() for c in word)
        | ENDS * (word in SENTENCE_ENDS)
        | MARK * mark
    )


_ASCII_KINDS = np.array([kind_of(chr(code)) for code in range(128)], dtype=np.uint8)


@functools.lru_cache(maxsize=4)
def lexicon(stop_words: tuple[str, ...], english: bool) -> Lexicon:
    """The one lexicon of a process for these settings."""
    return Lexicon(stop_words, english)


class Lexicon:
    """Words of pieces. May be asked from several threads."""

    def __init__(self, stop_words: tuple[str, ...], english: bool) -> None:
        assert len(stop_words) < 256, "stop words are numbered in a byte"
        self._stops = np.sort(hash_of(list(stop_words)))
        self._english = english
        self._lock = threading.Lock()
        self._keys = np.zeros(_SLOTS, dtype=np.uint64)
        self._entry = np.zeros(_SLOTS, dtype=np.int32)
        self._pieces, self._used = 0, 0
        self._make_room()

    def _clear(self) -> None:
        """Forget all pieces; room that was made for a very long document goes too."""
        self._keys[:] = 0
        self._pieces, self._used = 0, 0
        if len(self._first) != _PIECES or len(self._known.hash) != _WORDS:
            self._make_room()

    def _make_room(self) -> None:
        self._first = np.zeros(_PIECES, dtype=np.int64)
        self._count = np.zeros(_PIECES, dtype=np.int64)
        codes = np.zeros((2, _WORDS), dtype=np.uint8)
        hashes, lengths = np.zeros(_WORDS, dtype=np.uint64), np.zeros(_WORDS, dtype=np.int32)
        self._known = Words(self._first, hashes, lengths, *codes)

    def words(self, buffer: Bytes, starts: Ints, stops: Ints) -> Words:
        """The words of the pieces buffer[start:stop]; the buffer is padded for `range_hashes`."""
        with self._lock:
            parts = [
                self._slice(buffer, starts[i : i + _SLICE], stops[i : i + _SLICE])
                for i in range(0, max(1, len(starts)), _SLICE)
            ]
        counts = np.concatenate([np.diff(p.offsets) for p in parts])
        rest = [np.concatenate([p[k] for p in parts]) for k in range(1, 5)]
        return Words(np.concatenate([[0], np.cumsum(counts)]), *rest)

    def _slice(self, buffer: Bytes, starts: Ints, stops: Ints) -> Words:
        keys = np.maximum(range_hashes(buffer, starts, stops), np.uint64(1))
        entries = self._find(keys)
        missing = np.flatnonzero(entries < 0)
        if len(missing):
            self._learn(buffer, starts[missing], stops[missing], keys[missing])
            entries[missing] = self._find(keys[missing])
            if self._pieces > _PIECES // 2 or self._used > _WORDS // 2:
                found = self._gather(entries)
                self._clear()
                return found
        return self._gather(entries)

    def _gather(self, entries: Ints) -> Words:
        counts = self._count[entries]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        shift = self._first[entries] - offsets[:-1]
        at = np.repeat(shift, counts) + np.arange(offsets[-1])
        known = self._known
        return Words(offsets, known.hash[at], known.length[at], known.kind[at], known.stop[at])

    def _find(self, keys: Hashes) -> Ints:
        """[n] the entry of each key, -1 where there is none."""
        slots = (keys >> np.uint64(64 - (_SLOTS.bit_length() - 1))).astype(np.int64)
        found = np.full(len(keys), -1, dtype=np.int64)
        there = self._keys[slots]
        hit = there == keys
        found[hit] = self._entry[slots[hit]]
        rows = np.flatnonzero(~hit & (there != 0))
        while len(rows):
            slots[rows] = (slots[rows] + 1) & (_SLOTS - 1)
            there = self._keys[slots[rows]]
            hit = there == keys[rows]
            found[rows[hit]] = self._entry[slots[rows[hit]]]
            rows = rows[~hit & (there != 0)]
        return found

    def _insert(self, keys: Hashes, entries: Ints) -> None:
        """Put distinct new keys into the table."""
        slots = (keys >> np.uint64(64 - (_SLOTS.bit_length() - 1))).astype(np.int64)
        while len(keys):
            free = self._keys[slots] == 0
            self._keys[slots[free]] = keys[free]
            mine = self._keys[slots] == keys
            self._entry[slots[mine]] = entries[mine]
            keys, entries = keys[~mine], entries[~mine]
            slots = (slots[~mine] + 1) & (_SLOTS - 1)

    def _learn(self, buffer: Bytes, starts: Ints, stops: Ints, keys: Hashes) -> None:
        """Split the pieces that are new, each once."""
        keys, which = np.unique(keys, return_index=True)
        text, starts, stops = _apart(buffer, starts[which], stops[which])
        if self._english:
            at = np.flatnonzero(word_starts(text, starts, stops))
        else:
            at = starts
        first = np.searchsorted(at, starts)
        counts = np.diff(np.append(first, len(at)))
        ends = np.append(at[1:], 0)
        ends[first + counts - 1] = stops
        new = self._described(text, at, ends)
        self._remember(first, counts, new)
        self._insert(keys, self._pieces + np.arange(len(keys)))
        self._pieces += len(keys)

    def _remember(self, first: Ints, counts: Ints, new: Words) -> None:
        """Add what is new to what is known; makes room where there is none."""
        pieces, used = self._pieces + len(first), self._used + len(new.hash)
        if pieces > len(self._first) or used > len(self._known.hash):
            self._first, self._count = (
                np.append(a[: self._pieces], np.zeros(len(first) + _PIECES, a.dtype))
                for a in (self._first, self._count)
            )
            old, more = self._known, np.zeros(len(new.hash) + _WORDS)
            self._known = Words(
                self._first,
                np.append(old.hash[: self._used], more.astype(np.uint64)),
                np.append(old.length[: self._used], more.astype(np.int32)),
                np.append(old.kind[: self._used], more.astype(np.uint8)),
                np.append(old.stop[: self._used], more.astype(np.uint8)),
            )
        self._first[self._pieces : pieces] = self._used + first
        self._count[self._pieces : pieces] = counts
        known, here = self._known, slice(self._used, used)
        known.hash[here], known.length[here] = new.hash, new.length
        known.kind[here], known.stop[here] = new.kind, new.stop
        self._used = used

    def _described(self, text: Bytes, starts: Ints, stops: Ints) -> Words:
        """What there is to know of words, in order; `offsets` mean nothing."""
        hashes = range_hashes(text, starts, stops)
        wide = _within(text >= 0x80, starts, stops)
        inner = _within((text & 0xC0) == 0x80, starts, stops)
        kinds = _ASCII_KINDS[np.minimum(text, 127)]
        lengths = stops - starts
        kind = np.where(lengths == 1, kinds[starts], 0).astype(np.uint8) & np.uint8(ENDS)
        kind[_within(kinds & LETTER > 0, starts, stops) > 0] |= LETTER
        for bit in (SYMBOL, MARK):
            kind[_within(kinds & bit > 0, starts, stops) == lengths] |= bit
        for row in np.flatnonzero(wide).tolist():
            kind[row] = kind_of(text[starts[row] : stops[row]].tobytes().decode())
        place = np.searchsorted(self._stops, hashes)
        stop = np.where(among(hashes, self._stops), place + 1, 0).astype(np.uint8)
        return Words(starts, hashes, (lengths - inner).astype(np.int32), kind, stop)


def _within(which: npt.NDArray[np.bool_], starts: Ints, stops: Ints) -> Ints:
    """How many bytes of each stretch have it."""
    total = np.append(0, np.cumsum(which, dtype=np.int64))
    found: Ints = total[stops] - total[starts]
    return found


def _apart(buffer: Bytes, starts: Ints, stops: Ints) -> tuple[Bytes, Ints, Ints]:
    """The pieces one behind the other, a blank behind each, and PADDING; and where they lie."""
    sizes = stops - starts + 1
    ends = np.cumsum(sizes)
    at = np.repeat(starts - (ends - sizes), sizes) + np.arange(ends[-1])
    text = buffer[at]
    text[ends - 1] = ord(" ")
    return np.append(text, np.zeros(PADDING, dtype=np.uint8)), ends - sizes, ends - 1
