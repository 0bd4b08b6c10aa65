"""Expressions in prose: tokens that may belong to them, and what they are worth.

Numbers, `+ - * / x ^ mod`, brackets, per cent, and capital letters that have a value. Currency
signs are left out. In base b the digits of a plain number are those of the base.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_TOKEN = re.compile(
    r"(?P<num>(?:(?<![\d.,])\d(?:\ \d)+(?![\d.,]|\ ?/)"
    r"|\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)%?)"
    r"|(?P<mod>\bmod\b)|(?P<times>(?<=[\d)\ ])[xX](?=\ ?[\d(.$]))|(?P<name>\b[A-Z]\b)"
    r"|(?P<op>\*\*|[-+*/^×÷−–·])|(?P<eq>=+)|(?P<open>[(\[])|(?P<close>[)\]])|(?P<cash>[$€£])"
    r"|(?P<space>[^\S\n]+)|(?P<other>[^\W\d]+|.|\n)"
)  # fmt: skip
_SAME = {"×": "*", "÷": "/", "−": "-", "–": "-", "·": "*", "^": "**", "x": "*", "X": "*"}
_LIMIT = 1e15
#: brackets and powers inside one another, and digits of a number, beyond which nothing is read
_DEEPEST, _LONGEST = 64, 100


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    start: int
    stop: int


class Unreadable(Exception):
    """Not an expression."""


def tokens(text: str) -> list[Token]:
    """Tokens that may belong to expressions, all else as `other`; white space and signs of money
    are left out."""
    found = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "other"
        if kind not in ("space", "cash"):
            written = match.group()
            found.append(Token(kind, _SAME.get(written, written), match.start(), match.end()))
    return found


class Side:
    """One expression, read by recursive descent."""

    def __init__(self, run: list[Token], known: Mapping[str, float], base: int) -> None:
        self.tokens, self.known, self.base, self.at, self.depth = run, known, base, 0, 0
        self.operators = sum(t.kind in ("mod", "times") or t.kind == "op" for t in run)
        self.places, self.divides, self.per_cent = 0, False, False
        self.operands: frozenset[float] = frozenset()
        if not run:
            raise Unreadable
        if len(run) > 1 and run[0].text == "-" and run[1].start > run[0].stop:
            raise Unreadable  # `apples - 3`: what is subtracted from is not here
        self.value = self._sum()
        if self.at < len(run) or abs(self.value) >= _LIMIT:
            raise Unreadable
        if run[0].text == "-" and len(run) == 2:
            self.operators = 0  # a negative number

    def _peek(self) -> str:
        return self.tokens[self.at].text if self.at < len(self.tokens) else ""

    def _sum(self) -> float:
        total = self._product()
        while self._peek() in ("+", "-"):
            sign = 1.0 if self._peek() == "+" else -1.0
            self.at += 1
            total += sign * self._product()
        return total

    def _product(self) -> float:
        total = self._factor()
        while (operator := self._peek()) in ("*", "/", "mod"):
            self.at += 1
            by = self._factor()
            if operator == "*":
                total *= by
            elif by == 0:
                raise Unreadable
            elif operator == "/":
                self.divides, total = True, total / by
            else:
                total %= by
            if math.isinf(total):
                raise Unreadable
        return total

    def _factor(self) -> float:
        sign = 1.0
        while self._peek() == "-":
            self.at += 1
            sign = -sign
        base = self._atom()
        if self._peek() == "**":
            self.at += 1
            self._enter()
            power = self._factor()
            self.depth -= 1
            if abs(power) > 64 or (base == 0 and power < 0) or (base < 0 and power % 1):
                raise Unreadable
            try:
                return sign * float(base**power)
            except OverflowError:
                raise Unreadable from None
        return sign * base

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Unreadable

    def _atom(self) -> float:
        if self.at >= len(self.tokens):
            raise Unreadable
        token = self.tokens[self.at]
        self.at += 1
        if token.kind == "open":
            self._enter()
            inside = self._sum()
            self.depth -= 1
            if self.at >= len(self.tokens) or self.tokens[self.at].kind != "close":
                raise Unreadable
            self.at += 1
            return inside
        if token.kind == "name" and token.text in self.known:
            found = self.known[token.text]
        elif token.kind == "num":
            found = self._number(token.text)
        else:
            raise Unreadable
        self.operands |= {found}
        return found

    def _number(self, text: str) -> float:
        digits = text.rstrip("%").replace(",", "").replace(" ", "")
        if len(digits) > _LONGEST or not 2 <= self.base <= 10:
            raise Unreadable
        self.per_cent |= text.endswith("%")
        if "." in digits:
            self.places = max(self.places, len(digits) - digits.index(".") - 1)
        if self.base == 10 or not digits.isdigit():
            return float(digits) / (100.0 if text.endswith("%") else 1.0)
        if max(map(int, digits)) >= self.base:
            return math.nan  # no number of this base: it agrees with nothing
        return float(int(digits, self.base))


def agree(left: Side, right: Side) -> bool:
    """Whether two sides are equal, up to the rounding that the right one shows."""
    if math.isnan(left.value) or math.isnan(right.value):
        return False
    largest, unit = max(abs(left.value), abs(right.value), 1.0), 10.0**-right.places
    # less than the last digit that is shown, so that 1,000,000,001 is not 1,000,000,002
    slack = max(min(1e-9 * largest, unit / 4), 2e-15 * largest)
    if abs(left.value / unit - round(left.value / unit)) > 1e-6:  # more digits than are shown
        if right.places:
            slack += unit
        elif left.divides and not right.operators:
            slack += 1.0 - 1e-9
    wanted = [left.value]
    if left.per_cent or right.per_cent:
        wanted += [left.value * 100, left.value / 100]
    return any(abs(w - right.value) <= slack for w in wanted)
