"""The words of a piece: what an English tokenizer makes of characters between white space.

The rules are spaCy 3.8's for English, the tokenizer of datatrove's filters. A piece is, in this
order: a special one as it stands ("don't", ":-)"); else it loses marks at its front and at its end,
one on either side at a time, until what is left is special or has none; what is left is an address,
or is cut at marks between letters (hyphens, slashes, a full stop before a capital). Last, words
that follow one another and spell a special piece are taken together. The words of a piece spell the
piece.

One rule is not spaCy's: a piece of more than `LONGEST` characters is one word. Cost: 1 to 10
microseconds a piece; `_words.py` asks for each distinct piece once.
"""

from __future__ import annotations

import itertools
import re

from foresift.scorers._words_tables import (
    ALPHA,
    CURRENCY,
    ICONS,
    LOWER,
    PUNCTUATION,
    QUOTES,
    UNITS,
    UPPER,
    special_pieces,
)

LONGEST = 10_000


def _class(characters: str) -> str:
    """The inside of a class of a pattern. Ranges: `re` looks through wide characters one by one."""
    ranges: list[list[int]] = []
    for code in sorted(set(map(ord, characters))):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)


def _any(characters: str) -> str:
    return f"[{_class(characters)}]"


_MONEY = "|".join(["US\\$", "C\\$", "A\\$", *map(re.escape, CURRENCY)])
_MARKS = _any(PUNCTUATION + QUOTES + ICONS)
_PREFIX = re.compile(rf"[§%=—–]|\+(?![0-9])|\.\.+|{_MARKS}|{_MONEY}")
_SINGLE = frozenset(PUNCTUATION + QUOTES + ICONS + "—–")
#: what lets a full stop behind it go; the odd ones stand in spaCy's class by accident
_BEFORE_STOP = frozenset(LOWER + PUNCTUATION + QUOTES + "0123456789%²+|-")
_CAPITALS = frozenset(UPPER)
_DIGITS = frozenset("0123456789")
#: what goes where it follows a digit
AFTER_DIGIT = frozenset([*UNITS, *CURRENCY, "US$", "C$", "A$", "+"])
_AFTER_DIGIT_ENDS = frozenset(unit[-1] for unit in AFTER_DIGIT)
_LONGEST_UNIT = max(map(len, AFTER_DIGIT))
_INFIX = re.compile(
    rf"\.\.+|…|{_any(ICONS)}|(?<=[0-9])[-+*^](?=[0-9-])"
    rf"|(?<={_any(LOWER + QUOTES)})\.(?={_any(UPPER + QUOTES)})"
    rf"|(?<={_any(ALPHA)}),(?={_any(ALPHA)})"
    rf"|(?<=[0-9{_class(ALPHA)}])(?:---|--|——|[-–—~:<>=/])(?={_any(ALPHA)})"
)
_WIDE = "[A-Za-z0-9\u00a1-\uffff]"
_OCTET = r"(?:1?\d{1,2}|2[0-4]\d|25[0-5])"
_ADDRESS = re.compile(
    r"(?:[\w+.-]{2,}://)?(?:\S+@)?(?:"
    # four octets, not of a private network
    r"(?!(?:10|127)(?:\.\d{1,3}){3}|(?:169\.254|192\.168)(?:\.\d{1,3}){2}"
    r"|172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2})"
    rf"(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])(?:\.{_OCTET}){{2}}"
    r"\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4])"
    # or names between full stops, the last one of letters
    rf"|(?:(?:{_WIDE}[A-Za-z0-9\u00a1-\uffff_-]{{0,62}})?{_WIDE}\.)+{_any(LOWER)}{{2,63}}"
    r")(?::\d{2,5})?(?:[/?#]\S*)?$"
)

SPECIAL = special_pieces()
_LONGEST_SPECIAL = max(map(len, SPECIAL))


def is_prefix(char: str) -> bool:
    """Whether it comes off the front of a piece, where nothing follows it."""
    return _PREFIX.fullmatch(char) is not None


def is_suffix(char: str) -> bool:
    """Whether it comes off the end of a piece, whatever stands before it."""
    return char in _SINGLE


def before_stop(char: str) -> bool:
    """Whether a full stop behind it comes off."""
    return char in _BEFORE_STOP


def address(middle: str) -> bool:
    """Whether it is a name or number of a place on a network."""
    return _ADDRESS.match(middle) is not None


def words_of(piece: str) -> list[str]:
    """The words of a piece (characters without white space), in order."""
    if len(piece) > LONGEST or (piece.isalpha() and piece not in SPECIAL):
        return [piece]
    if piece in SPECIAL:
        return list(SPECIAL[piece])
    return _together(_affixes(piece, SPECIAL))


def _affixes(piece: str, special: dict[str, tuple[str, ...]]) -> list[str]:
    """Marks at the front, what is left, marks at the end."""
    start, stop = 0, len(piece)
    front: list[str] = []
    back: list[str] = []

    def known(low: int, high: int) -> bool:
        return 0 < high - low <= _LONGEST_SPECIAL and piece[low:high] in special

    while start < stop and not known(start, stop):
        found = _PREFIX.match(piece, start, stop)
        inner = found.end() if found else start
        if inner > start and known(inner, stop):
            front.append(piece[start:inner])
            start = inner
            break
        outer = stop - _suffix(piece, inner, stop)
        if outer < stop and known(start, outer):
            back.append(piece[outer:stop])
            stop = outer
            break
        if inner == start and outer == stop:
            break
        if inner > start:
            front.append(piece[start:inner])
        if outer < stop:
            back.append(piece[outer:stop])
        start, stop = inner, outer
    middle = piece[start:stop]
    return [*front, *(special.get(middle) or _inside(middle)), *reversed(back)]


def _suffix(piece: str, start: int, stop: int) -> int:
    """Characters of the mark at the end of piece[start:stop]."""
    if start == stop:
        return 0
    last = piece[stop - 1]
    before = piece[stop - 2] if stop - 2 >= start else ""
    if last in _SINGLE:
        return 2 if last == before == "…" else 1
    if last == ".":
        if before == ".":
            return stop - start - len(piece[start:stop].rstrip("."))
        earlier = piece[stop - 3] if stop - 3 >= start else ""
        capitals = before in _CAPITALS and earlier in _CAPITALS
        degrees = earlier == "°" and before in "FfCcKk"
        return int(before in _BEFORE_STOP or capitals or degrees)
    if last in "sS" and before in ("'", "’"):
        return 2
    if last in _AFTER_DIGIT_ENDS:
        for size in range(min(_LONGEST_UNIT, stop - start - 1), 0, -1):
            cut = stop - size
            if piece[cut - 1] in _DIGITS and piece[cut:stop] in AFTER_DIGIT:
                return size
    return 0


def _inside(middle: str) -> list[str]:
    """A piece without marks at its ends: whole, or cut at marks inside."""
    if not middle:
        return []
    if middle.isalnum() and middle.isascii():
        return [middle]
    if "." in middle and address(middle):
        return [middle]
    found, start = [], 0
    for mark in _INFIX.finditer(middle):
        if mark.start() == 0:
            continue
        if mark.start() > start:
            found.append(middle[start : mark.start()])
        found.append(mark.group())
        start = mark.end()
    if start < len(middle):
        found.append(middle[start:])
    return found


def _patterns() -> dict[tuple[str, str], list[tuple[str, ...]]]:
    """First two words -> rows that spell a special piece, where marks are taken off it."""
    found: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for piece in SPECIAL:
        row = tuple(_affixes(piece, {}))
        if len(row) > 1:
            found.setdefault((row[0], row[1]), []).append(row)
    return found


TOGETHER = _patterns()
_SECOND = frozenset(second for _, second in TOGETHER)


def _together(words: list[str]) -> list[str]:
    """Words of a row that spells a special piece are taken together; long rows first, then left."""
    if _SECOND.isdisjoint(words[1:]):
        return words
    spans = [
        (len(row), -i)
        for i, pair in enumerate(itertools.pairwise(words))
        if pair in TOGETHER
        for row in TOGETHER[pair]
        if tuple(words[i : i + len(row)]) == row
    ]
    if not spans:
        return words
    taken: set[int] = set()
    chosen: dict[int, int] = {}
    for length, at in sorted(spans, reverse=True):
        if -at not in taken and length - at - 1 not in taken:
            chosen[-at] = length
        taken.update(range(-at, length - at))
    found: list[str] = []
    i = 0
    while i < len(words):
        length = chosen.get(i, 0)
        row = words[i : i + max(1, length)]
        found += SPECIAL["".join(row)] if length else row
        i += len(row)
    return found
