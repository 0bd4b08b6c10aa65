"""Where the words of many pieces begin: the rules of `_words_english` on the bytes of all at once.

The pieces lie one behind the other in one buffer, a blank behind each. All of them lose their marks
step by step together; then marks between letters are found by looking at three bytes at a time.
What cannot be told from bytes is left to `words_of`: pieces with characters outside ASCII,
contractions, units behind figures ("5km"), foreign dollars, pieces with very many marks, and those
where words that follow one another spell a special piece.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foresift.scorers._words_english import (
    AFTER_DIGIT,
    LONGEST,
    SPECIAL,
    TOGETHER,
    address,
    before_stop,
    is_prefix,
    is_suffix,
    words_of,
)
from foresift.scorers._words_hash import PADDING, Bytes, Hashes, Ints, range_hashes
from foresift.scorers._words_tables import QUOTES

Bools = npt.NDArray[np.bool_]
_ROUNDS = 16
_BLANK, _DOT, _PLUS, _DOLLAR, _HYPHEN = b" .+$-"


def hash_of(words: list[str]) -> Hashes:
    """The hash of each word, as `range_hashes` has it."""
    raw = [w.encode() for w in words]
    ends = np.cumsum([len(r) for r in raw], dtype=np.int64)
    buffer = np.frombuffer(b"".join(raw) + bytes(PADDING), dtype=np.uint8)
    return range_hashes(buffer, np.append(0, ends)[:-1], ends)


def among(keys: Hashes, ranked: Hashes) -> Bools:
    """[n] whether each is one of those (sorted)."""
    if len(ranked) == 0:
        return np.zeros(len(keys), dtype=np.bool_)
    same: Bools = ranked[np.minimum(np.searchsorted(ranked, keys), len(ranked) - 1)] == keys
    return same


def _table(test: str | frozenset[str]) -> Bools:
    return np.array([code < 128 and chr(code) in test for code in range(256)])


_LETTER = _table("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_DIGIT = _table("0123456789")
_CAPITAL = _table("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_QUOTE = _table(QUOTES)
_ALNUM, _SMALL = _LETTER | _DIGIT, _LETTER & ~_CAPITAL
_PREFIX = np.array([code < 128 and is_prefix(chr(code)) for code in range(256)])
_SUFFIX = np.array([code < 128 and is_suffix(chr(code)) for code in range(256)])
_BEFORE_STOP = np.array([code < 128 and before_stop(chr(code)) for code in range(256)])
_UNIT = _table(frozenset(u for u in AFTER_DIGIT if len(u) == 1))
_UNIT_END = _table(frozenset(u[-1] for u in AFTER_DIGIT))
_DOLLARS = _table("UCA")
_FIGURE_SIGN, _JOINT = _table("+-*^"), _table(":<>=/-~")

_SPECIAL = np.sort(hash_of(list(SPECIAL)))
_CUT = np.sort(hash_of([piece for piece, words in SPECIAL.items() if len(words) > 1]))
_LONGEST_SPECIAL = max(len(p.encode()) for p in SPECIAL)
_STEP = np.uint64(0xD6E8FEB86659FD93)


def _pair(first: Hashes, second: Hashes) -> Hashes:
    return first * _STEP + second


_SECOND = np.sort(hash_of([second for _, second in TOGETHER]))
_PAIRS = np.sort(_pair(*(hash_of([pair[i] for pair in TOGETHER]) for i in (0, 1))))


def word_starts(text: Bytes, starts: Ints, stops: Ints) -> Bools:
    """[bytes] where a word begins; `text` is padded, and has a blank behind each piece."""
    begins = np.zeros(len(text), dtype=np.bool_)
    begins[starts] = True
    wide = np.append(0, np.cumsum(text >= 0x80))
    hard = (wide[stops] > wide[starts]) | (stops - starts > LONGEST)
    peeled = _Peeled(text, starts, stops, begins, hard)
    peeled.run()
    _cut_inside(text, peeled, begins)
    hard |= _spelled(text, starts, stops, begins)
    found: list[int] = []
    rows = np.flatnonzero(hard)
    for start, stop in zip(starts[rows].tolist(), stops[rows].tolist(), strict=True):
        begins[start:stop] = False
        for word in words_of(text[start:stop].tobytes().decode()):
            found.append(start)
            start += len(word.encode())
    begins[found] = True
    return begins


class _Peeled:
    """Pieces that lose their marks: what is left of each lies from low to high."""

    def __init__(self, text: Bytes, starts: Ints, stops: Ints, begins: Bools, hard: Bools) -> None:
        self.text, self.begins, self.hard = text, begins, hard
        self.low, self.high = starts.copy(), stops.copy()
        self.whole = np.zeros(len(starts), dtype=np.bool_)
        """[pieces] what is left is special: one word"""
        dots = text == _DOT
        places = np.where(dots, -1, np.arange(len(text)))
        self._before = np.maximum.accumulate(places)
        after = np.where(dots, len(text), np.arange(len(text)))
        self._after = np.minimum.accumulate(after[::-1])[::-1]

    def run(self) -> None:
        """Take marks off until none is left."""
        rows = np.flatnonzero(~self.hard)
        for _ in range(_ROUNDS):
            rows = self._round(rows)
            if len(rows) == 0:
                return
        self.hard[rows] = True

    def _round(self, rows: Ints) -> Ints:
        """One mark off each side; the rows that may have more."""
        rows = rows[~self._settle(rows, self.low[rows], self.high[rows])]
        low, high = self.low[rows], self.high[rows]
        inner = low + self._prefix(rows, low, high)
        found = self._settle(rows, inner, high) & (inner > low)
        self.begins[low] = True
        self.low[rows[found]] = inner[found]
        rest = ~found
        rows, low, inner, high = rows[rest], low[rest], inner[rest], high[rest]
        outer = high - self._suffix(rows, inner, high)
        found = self._settle(rows, low, outer) & (outer < high)
        cut = outer < high
        self.begins[outer[cut]] = True
        self.low[rows[~found]] = inner[~found]
        self.high[rows] = outer
        more = ~found & ((inner > low) | cut) & (inner < outer)
        return rows[more & ~self.hard[rows]]

    def _settle(self, rows: Ints, low: Ints, high: Ints) -> Bools:
        """Which stretches are special; these are done with."""
        found = (high > low) & (high - low <= _LONGEST_SPECIAL)
        near = np.flatnonzero(found)
        keys = range_hashes(self.text, low[near], high[near])
        found[near] = among(keys, _SPECIAL)
        self.whole[rows[found]] = True
        self.hard[rows[near[among(keys, _CUT)]]] = True
        return found

    def _prefix(self, rows: Ints, low: Ints, high: Ints) -> Ints:
        """Bytes of the mark in front."""
        first, second, third = (self.text[low + k] for k in range(3))
        found = _PREFIX[first].astype(np.int64)
        found[(first == _PLUS) & _DIGIT[second]] = 0
        run = np.minimum(self._after[low], high) - low
        found = np.where(first == _DOT, np.where(run > 1, run, 0), found)
        dollar = (second == _DOLLAR) | ((second == ord("S")) & (third == _DOLLAR))
        self.hard[rows[_DOLLARS[first] & dollar]] = True
        return found

    def _suffix(self, rows: Ints, low: Ints, high: Ints) -> Ints:
        """Bytes of the mark at the end of what lies from low to high."""
        size = high - low
        last, before, earlier = (self._back(low, high, k) for k in (1, 2, 3))
        found = _SUFFIX[last].astype(np.int64)
        run = high - 1 - np.maximum(self._before[np.maximum(high - 1, 0)], low - 1)
        dot = _BEFORE_STOP[before] | (_CAPITAL[before] & _CAPITAL[earlier])
        found = np.where(last == _DOT, np.where(run > 1, run, dot), found)
        found[((last | 32) == ord("s")) & (before == ord("'"))] = 2
        found[_UNIT[last] & _DIGIT[before]] = 1
        near = [_DIGIT[self._back(low, high, k)] for k in (3, 4, 5)]
        units = _UNIT_END[last] & ~_DIGIT[before] & np.logical_or.reduce(near)
        self.hard[rows[units & (size > 0)]] = True
        return np.where(size > 0, found, 0)

    def _back(self, low: Ints, high: Ints, places: int) -> Bytes:
        """The byte so many places before the end; 0 where that lies outside."""
        at = high - places
        return np.where(at >= low, self.text[np.maximum(at, 0)], 0).astype(np.uint8)


def _cut_inside(text: Bytes, peeled: _Peeled, begins: Bools) -> None:
    """Cut what is left of pieces at marks between letters or figures."""
    low, high = peeled.low, peeled.high
    left = low < high
    begins[low[left]] = True
    plain = np.append(0, np.cumsum(_ALNUM[text]))
    rows = np.flatnonzero(
        left & ~peeled.whole & ~peeled.hard & (plain[high] - plain[low] < high - low)
    )
    dots = np.append(0, np.cumsum(text == _DOT))
    for row in rows[dots[high[rows]] > dots[low[rows]]].tolist():
        if address(text[low[row] : high[row]].tobytes().decode()):
            peeled.whole[row] = True
    rows = rows[~peeled.whole[rows]]
    inside = np.zeros(len(text) + 1, dtype=np.int8)
    inside[low[rows]] = 1
    inside[high[rows]] = -1
    core = np.cumsum(inside[:-1], dtype=np.int8).astype(np.bool_)
    seen = np.where(core, text, _BLANK)
    for at, size in _infixes(seen):
        begins[at] = True
        after = at + size
        begins[after[core[after]]] = True


def _infixes(seen: Bytes) -> list[tuple[Ints, Ints | int]]:
    """Places and lengths of the marks inside; blank is what does not belong."""
    before, here, after = seen[:-2], seen[1:-1], seen[2:]
    figure = _DIGIT[before] & _FIGURE_SIGN[here] & (_DIGIT[after] | (after == _HYPHEN))
    stop = (here == _DOT) & (_SMALL[before] | _QUOTE[before]) & (_CAPITAL[after] | _QUOTE[after])
    comma = (here == ord(",")) & _LETTER[before] & _LETTER[after]
    joint = _JOINT[here] & _ALNUM[before] & _LETTER[after]
    found: list[tuple[Ints, Ints | int]] = [(np.flatnonzero(figure | stop | comma | joint) + 1, 1)]
    hyphens = seen == _HYPHEN
    pairs = np.flatnonzero(hyphens[1:-2] & hyphens[2:-1] & _LETTER[seen[:-3]]) + 1
    for size in (2, 3):
        if size == 3:
            pairs = pairs[hyphens[np.minimum(pairs + 2, len(seen) - 1)]]
        after = seen[np.minimum(pairs + size, len(seen) - 1)]
        found.append((pairs[_LETTER[after]], size))
    dots = np.concatenate([[False], seen == _DOT, [False]])
    turns = np.flatnonzero(dots[1:] != dots[:-1])
    runs = turns[1::2] - turns[0::2]
    inner = (runs > 1) & (seen[np.maximum(turns[0::2] - 1, 0)] != _BLANK)
    found.append((turns[0::2][inner], runs[inner]))
    return found


def _spelled(text: Bytes, starts: Ints, stops: Ints, begins: Bools) -> Bools:
    """Which pieces have two words in a row that may begin a special piece."""
    at = np.flatnonzero(begins)
    piece = np.searchsorted(starts, at, side="right") - 1
    ends = np.minimum(np.append(at[1:], len(text)), stops[piece])
    keys = range_hashes(text, at, ends)
    second = np.flatnonzero((piece[1:] == piece[:-1]) & among(keys[1:], _SECOND)) + 1
    second = second[among(_pair(keys[second - 1], keys[second]), _PAIRS)]
    found = np.zeros(len(starts), dtype=np.bool_)
    found[piece[second]] = True
    return found
