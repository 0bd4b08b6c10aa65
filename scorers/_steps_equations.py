"""Equations in prose: where they stand, what both sides are worth, whether they hold.

    equation     side = side = ...     each neighbouring pair of sides is compared
    side         numbers, + - * / x ^ mod, brackets, per cent, capital letters that stand for values

One side of a pair at least has an operator, or is a letter that has a value. What cannot be read as
a whole is no equation: `5 apples + 3 apples = 8 apples` and `3:30 + 15 = 3:45` are left alone. So
nothing is found wrong that was merely not understood. A calculator's marks, `<<2*3=6>>`, are
equations of their own, and nothing where they stand in another. Digits apart, `1 2 + 3 = 1 5`,
are one number.

Two values agree where they are equal, or where the left one has more digits than the right one
shows, up to rounding: by one unit of the last decimal place, or by less than 1 where a division is
left as a whole number. Per cent signs may be read as written or left away.

In base b (2 to 10, said by `in base-9` behind the equation, or for the whole trace) the digits are
those of the base: `6 + 7 = 14` holds in base 9, and an 8 is no number of base 8. `mod` is decimal:
it is how people convert.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from foresift.scorers._steps_expressions import Side, Token, Unreadable, agree, tokens

Span = tuple[int, int]
_MARK = re.compile(r"<<([^<>\n]*)>>")
_ASKED = re.compile(r"(?:what is|calculate|compute|evaluate)\s+([-\d(][-\d\s()+*/.,]*)", re.I)
_TAIL = re.compile(r"\s*(?:R\s?\d|remainder|:\d|[^\W\d]+[^\S\n]*[-+*/×÷][^\S\n]*[\d($])")
_IN_BASE = re.compile(r"\s*\(?in base[- ]?(\d{1,9})", re.IGNORECASE)
BASE = re.compile(r"\bbase[- ]?(\d{1,2})\b", re.IGNORECASE)
_INSIDE = ("num", "mod", "times", "name", "op", "open", "close")
_GOES_ON = ("of", "times", "by", "plus", "minus")


@dataclass(frozen=True)
class Equation:
    """Two sides of one sign."""

    start: int
    stop: int
    left: float
    right: float
    holds: bool
    operands: frozenset[float] = field(default_factory=frozenset)
    """Numbers (and values of letters) of the left side."""
    stated: bool = False
    """Whether the right side is a plain number: a result."""


def equations(
    text: str, base: int = 10, values: Mapping[str, float] | None = None
) -> Iterator[Equation]:
    """The equations of a trace in order, capital letters given values as they get them."""
    if "=" not in text:
        return
    known = dict(values or {})
    bare = _MARK.sub(lambda m: " " * len(m.group()), text)
    marked = [(m.start(1), m.group(1)) for m in _MARK.finditer(text)]
    found = list(_scan(bare, base, known, 0))
    for start, inner in marked:
        found += _scan(inner, 10, {}, start)
    yield from sorted(found, key=lambda e: (e.start, e.stop))


def asked(question: str, base: int = 10) -> float | None:
    """What the question's expression is worth: all of it (`(2 + 3) * 4 =`), or `what is 2 + 3`."""
    told = _ASKED.search(question)
    some = [t for t in tokens(told.group(1) if told else question) if t.text not in "=\n?"]
    side = _read(some, {}, base)
    return side.value if side is not None and side.operators else None


def number(text: str, base: int = 10) -> tuple[float, Span] | None:
    """The last number of a text and where it stands; None where it is too long to be one."""
    found = [t for t in tokens(text) if t.kind == "num"]
    if not found:
        return None
    last, before = found[-1], text[: found[-1].start].rstrip(" $€£")
    side = _read([last], {}, base)
    if side is None:
        return None
    minus = before.endswith("-") and not before[:-1].rstrip(" ").endswith(tuple("0123456789)"))
    return (-side.value if minus else side.value), (last.start, last.stop)


def _scan(text: str, base: int, known: dict[str, float], shift: int) -> Iterator[Equation]:
    every = tokens(text)
    signs = [k for k, t in enumerate(every) if t.kind == "eq"]
    last: tuple[int, Side | None] = (-1, None)
    for k in signs:
        left = last[1] if last[0] == k else _read(_leftwards(every, k), known, base)
        run = _rightwards(every, k)
        end = k + 1 + len(run)
        here = _base(text, run, base)
        right = _read(run, known, here)
        if right is not None and here != base:
            left = _read(_leftwards(every, k), known, here)
        tail = run[-1].stop if run else 0
        chained = end < len(every) and every[end].kind == "eq"
        if right is not None and not chained and _TAIL.match(text, tail):
            right = None
        last = (end, right)
        if right is None or left is None:
            if right is not None:
                _assign(every, k, right, known)
            continue
        named = len(left.tokens) == 1 and left.tokens[0].kind == "name"
        if left.operators or named:
            yield Equation(
                left.tokens[0].start + shift, right.tokens[-1].stop + shift,
                left.value, right.value, agree(left, right), left.operands,
                not right.operators,
            )  # fmt: skip
            if named:
                _assign(every, k, right, known)


def _assign(every: list[Token], sign: int, side: Side, known: dict[str, float]) -> None:
    """`A = 12`: from here on A is 12."""
    before = every[sign - 1] if sign else None
    alone = sign < 2 or every[sign - 2].kind not in _INSIDE
    if before is not None and before.kind == "name" and alone:
        known[before.text] = side.value


def _base(text: str, run: list[Token], base: int) -> int:
    said = _IN_BASE.match(text, run[-1].stop) if run else None
    if said:
        return int(said.group(1))
    return 10 if any(t.kind == "mod" for t in run) else base


def _leftwards(every: list[Token], sign: int) -> list[Token]:
    """The tokens of the side before a sign; none where it may begin earlier, `half of 3 + 4`."""
    start = sign
    while start and every[start - 1].kind in _INSIDE:
        start -= 1
    if 0 < start < sign:
        before = every[start - 1]
        touches = before.stop == every[start].start and before.text not in "\n\"'*"
        if touches or before.text.lower() in _GOES_ON:
            return []
    return _trim(every[start:sign], 0)


def _rightwards(every: list[Token], sign: int) -> list[Token]:
    stop = sign + 1
    while stop < len(every) and every[stop].kind in _INSIDE:
        stop += 1
    return _trim(every[sign + 1 : stop], -1)


def _trim(run: list[Token], end: int) -> list[Token]:
    """Without a bracket at this end that has no other half, `(3 + 4 = 7)`."""
    depth = sum((t.kind == "open") - (t.kind == "close") for t in run)
    kind = "open" if end == 0 else "close"
    while run and run[end].kind == kind and (depth > 0 if end == 0 else depth < 0):
        run = run[1:] if end == 0 else run[:-1]
        depth += -1 if end == 0 else 1
    return run


def _read(run: list[Token], known: Mapping[str, float], base: int) -> Side | None:
    try:
        return Side(run, known, 10 if any(t.kind == "mod" for t in run) else base)
    except Unreadable:
        return None
