"""JSON values: parsed, checked, named; BadRow says why one is no row."""

from __future__ import annotations

import json
from typing import Any


class BadRow(Exception):
    """A line that is no row, and why."""


def parse(raw: bytes) -> Any:
    """The value of one line or file."""
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 (byte {error.start + 1} of the line)") from error
    except json.JSONDecodeError as error:
        raise BadRow(f"malformed JSON: {error.msg} (column {error.colno})") from error
    except (RecursionError, ValueError) as error:
        raise BadRow(f"JSON that cannot be read: {error}") from error


def chat(value: Any, name: str) -> list[dict[str, str]]:
    """The turns of a conversation, role and content alone."""
    if not isinstance(value, list):
        raise BadRow(f"{name} is {kind_of(value)}, not a list of turns")
    for turn in value:
        for key in ("role", "content"):
            if not (isinstance(turn, dict) and isinstance(turn.get(key), str)):
                raise BadRow("messages hold a turn without the strings role and content")
            encodable(turn[key], name)
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def encodable(value: str, name: str) -> str:
    """The string, if UTF-8 can hold it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{name} holds half a surrogate pair: no UTF-8") from error
    return value


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "a string"}
    names |= {"bool": "a truth value", "int": "a number", "float": "a number"}
    return names[type(value).__name__]
