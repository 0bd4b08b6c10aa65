"""Conditions over columns, such as `heuristics.ok and not x.flag and loss.nll / 2 < 4.5`.

    condition   not c | c and c | c or c | (c) | a boolean column | true | false
    comparison  value (= == != < <= > >=) value | value [not] in [constants] | value is [not] null
    value       column | number | 'text' | -value | value (+ - * /) value | (value)

A column is a public name (`loss.nll`); a name with other characters stands between backticks.
Numbers are compared as 64-bit floats. Missing values follow SQL: NaN counts as null, whatever
compares with null is unknown, `not unknown` is unknown, and a row whose answer is unknown is not
kept. Nothing is evaluated by Python: the text is parsed here and run by `pyarrow.compute`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from foresift.pipeline.conditions import Node, condition
from foresift.pipeline.errors import RecipeError

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
  | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
  | (?P<quoted>`[^`]+`)
  | (?P<name>[^\W\d]\w*(?:\.\w+)*)
  | (?P<op>==|!=|<=|>=|[=<>+\-*/()\[\],])
    )""",
    re.VERBOSE,
)
_WORDS = frozenset({"and", "or", "not", "in", "is", "null", "true", "false"})
_COMPARE = {"=": "=", "==": "=", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_DEPTH = 50


@dataclass(frozen=True)
class Expression:
    """A parsed condition."""

    text: str
    root: Node

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Read a condition; what it does not understand is a RecipeError with its position."""
        return cls(text, _Parser(text).whole())

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads, in the order in which they first appear."""
        found = (str(n.value) for n in _walk(self.root) if n.kind == "column")
        return tuple(dict.fromkeys(found))

    def clauses(self, table: pa.Table) -> Iterator[tuple[str, Any]]:
        """Each top-level `and` clause as written, and for each row whether it certainly holds."""
        parts = self.root.args if self.root.kind == "and" else (self.root,)
        for part in parts:
            yield self.text[part.start : part.end], condition(part, table)


def columns(text: str) -> tuple[str, ...]:
    """The columns that a condition reads."""
    return Expression.parse(text).columns


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for arg in node.args:
        yield from _walk(arg)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            start = at + len(text[at:]) - len(text[at:].lstrip())
            raise _error(text, start, f"unexpected {text[start]!r}")
        group = str(match.lastgroup)
        kind = "word" if group == "name" and match[group] in _WORDS else group
        found.append(_Token(kind, match[group], match.start(group), match.end()))
        at = match.end()
    return [*found, _Token("end", "", end, end)]


def _error(text: str, at: int, message: str) -> RecipeError:
    return RecipeError(f"{message} at position {at + 1} of {text!r}")


class _Parser:
    """Recursive descent, one method a level of binding."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str) or not text.strip():
            raise RecipeError(f"a condition is a non-empty string, got {text!r}")
        self.text = text
        self.tokens = _tokens(text)
        self.at = 0
        self.depth = 0

    def whole(self) -> Node:
        root = self._or()
        if self._now.kind != "end":
            raise self._unexpected()
        return root

    @property
    def _now(self) -> _Token:
        return self.tokens[self.at]

    def _take(self, *texts: str) -> _Token | None:
        """The current token if it is one of these words or operators."""
        token = self._now
        if token.kind in ("word", "op") and token.text in texts:
            self.at += 1
            return token
        return None

    def _expect(self, text: str) -> _Token:
        token = self._take(text)
        if token is None:
            raise self._unexpected(f"; expected {text!r}")
        return token

    def _unexpected(self, hint: str = "") -> RecipeError:
        token = self._now
        before = self.tokens[self.at - 1] if self.at else token
        if token.text == "(" and before.kind in ("name", "quoted"):
            return _error(self.text, before.start, f"there are no functions: {before.text!r}")
        what = f"unexpected {token.text!r}" if token.text else "unexpected end"
        return _error(self.text, token.start, what + hint)

    def _node(self, kind: str, value: Any, args: tuple[Node, ...], start: int) -> Node:
        return Node(kind, value, args, start, self.tokens[self.at - 1].end, self.text)

    def _many(self, word: str, below: Any) -> Node:
        start = self._now.start
        args = [below()]
        while self._take(word):
            args.append(below())
        return args[0] if len(args) == 1 else self._node(word, None, tuple(args), start)

    def _or(self) -> Node:
        return self._many("or", self._and)

    def _and(self) -> Node:
        return self._many("and", self._not)

    def _not(self) -> Node:
        start = self._now.start
        count = 0
        while self._take("not"):
            count += 1
        node = self._comparison()
        return self._node("not", None, (node,), start) if count % 2 else node

    def _comparison(self) -> Node:
        start = self._now.start
        left = self._sum()
        if token := self._take(*_COMPARE):
            node = self._node(_COMPARE[token.text], None, (left, self._sum()), start)
            if self._now.text in _COMPARE:
                raise self._unexpected("; comparisons do not chain, write `a < b and b < c`")
            return node
        if self._take("is"):
            negated = self._take("not")
            self._expect("null")
            node = self._node("is null", None, (left,), start)
            return self._node("not", None, (node,), start) if negated else node
        negated = self._take("not")
        if negated is None and self._now.text != "in":
            return left
        self._expect("in")
        node = self._node("in", self._list(), (left,), start)
        return self._node("not", None, (node,), start) if negated else node

    def _list(self) -> tuple[Any, ...]:
        self._expect("[")
        items: list[Any] = []
        while not self._take("]"):
            if items:
                self._expect(",")
            start = self._now.start
            items.append(self._constant())
            if type(items[-1]) is not type(items[0]):
                raise _error(self.text, start, "a list holds constants of one kind; unexpected one")
        return tuple(items)

    def _constant(self) -> Any:
        node = self._unary()
        if node.kind == "constant":
            return node.value
        if node.kind == "negative" and isinstance(node.args[0].value, float):
            return -node.args[0].value
        raise _error(self.text, node.start, "a list holds constants only; unexpected value")

    def _sum(self) -> Node:
        return self._left(("+", "-"), lambda: self._left(("*", "/"), self._unary))

    def _left(self, operators: tuple[str, ...], below: Any) -> Node:
        start = self._now.start
        node: Node = below()
        links = 0
        while token := self._take(*operators):
            links += 1
            if links > _DEPTH:
                raise _error(self.text, token.start, f"more than {_DEPTH} {token.text!r} in a row")
            node = self._node(token.text, None, (node, below()), start)
        return node

    def _unary(self) -> Node:
        start = self._now.start
        if self._take("-"):
            return self._node("negative", None, (self._nested(self._unary),), start)
        if self._take("("):
            node = self._nested(self._or)
            self._expect(")")
            return self._node(node.kind, node.value, node.args, start) if node.args else node
        return self._atom()

    def _nested(self, below: Any) -> Node:
        self.depth += 1
        if self.depth > _DEPTH:
            raise _error(self.text, self._now.start, f"nested more than {_DEPTH} deep")
        node: Node = below()
        self.depth -= 1
        return node

    def _atom(self) -> Node:
        token = self._now
        self.at += 1
        if token.kind == "number":
            return self._node("constant", float(token.text), (), token.start)
        if token.kind == "text":
            plain = re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.S)
            return self._node("constant", plain, (), token.start)
        if token.kind == "word" and token.text in ("true", "false"):
            return self._node("constant", token.text == "true", (), token.start)
        private = any(part.startswith("__") for part in token.text.split("."))
        if token.kind == "quoted" or (token.kind == "name" and not private):
            return self._node("column", token.text.strip("`"), (), token.start)
        self.at -= 1
        raise self._unexpected()
