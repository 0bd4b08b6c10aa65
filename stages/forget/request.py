"""Requests: who asks for what to be forgotten, as lines of JSON.

    {"id": "r-17", "keys": [{"level": "key", "value": "clinic-3/patient-12"}], "scope": "source",
     "legal_basis": "GDPR 17", "received_at": "2026-11-02", "approver": "dpo@example.org"}

One line is a request; `id` may be missing (it is then the digest of the keys). A key has a level:

    document   an id, 32 hex digits
    text       a text: its exact copies, and near ones
    key        the head of a key path in `source`, at any depth: `bucket/file`, `clinic/patient`
    entity     a name that stands in the text
    licence    a label of the column of licences
    personal   a keyed hash of a personal value (`pii.keys`)

`scope` says what is asked: verbatim (the wording), facts (what it says), entity, source.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foresift.pipeline.errors import DataError, nearest
from foresift.pipeline.parts import digest

LEVELS = ("document", "text", "key", "entity", "licence", "personal")
SCOPES = ("verbatim", "facts", "entity", "source")
FIELDS = ("id", "keys", "scope", "legal_basis", "received_at", "approver")
#: an id names a folder
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: what else lies beside these folders
TAKEN = ("originals", "applied.json", "journal.json", "forgotten.parquet")


@dataclass(frozen=True)
class Key:
    """One thing that is asked for."""

    level: str
    value: str


@dataclass(frozen=True)
class Request:
    """Who asks for what to be forgotten."""

    id: str
    keys: tuple[Key, ...]
    scope: str = "verbatim"
    about: dict[str, str] = field(default_factory=dict)
    """legal_basis, received_at, approver, where given."""

    def json(self) -> dict[str, Any]:
        """As it is written to `request.json`."""
        keys = [{"level": k.level, "value": k.value} for k in self.keys]
        return {"id": self.id, "keys": keys, "scope": self.scope, **self.about}


def read_requests(path: Path) -> list[Request]:
    """The requests of a file, in its order; DataError names the file and the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a value may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"no requests can be read here ({error})", where=str(path)) from error
    found: dict[str, tuple[Request, int]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        request = _request(line, f"{path}:{number}")
        if request.id in found:
            raise DataError(
                f"request {request.id!r} stands on line {found[request.id][1]} already",
                where=f"{path}:{number}",
            )
        found[request.id] = request, number
    if not found:
        raise DataError("no request in this file", where=str(path))
    return [request for request, _ in found.values()]


def _request(line: str, where: str) -> Request:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=where) from error
    if not isinstance(told, dict):
        raise DataError("a request is an object with `keys`", where=where)
    for name in told:
        if name not in FIELDS:
            raise DataError(f"a request has no {name!r}{nearest(name, FIELDS)}", where=where)
    keys = told.get("keys")
    if not isinstance(keys, list) or not keys:
        raise DataError("`keys` is a list of {level, value}, at least one", where=where)
    parsed = tuple(_key(key, f"{where}, key {i}") for i, key in enumerate(keys, 1))
    scope = told.get("scope", "verbatim")
    if scope not in SCOPES:
        raise DataError(f"no scope {scope!r}{nearest(str(scope), SCOPES)}", where=where)
    name = told.get("id") or digest([[k.level, k.value] for k in parsed])[:12]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise DataError(
            f"an id is a string of up to 100 letters, digits, '.', '_' and '-', not {name!r}",
            where=where,
        )
    if name in TAKEN:
        raise DataError(f"{name!r} is a name that the store itself uses", where=where)
    about = {n: str(told[n]) for n in FIELDS[3:] if told.get(n) is not None}
    return Request(name, parsed, scope, about)


def _key(told: Any, where: str) -> Key:
    if not isinstance(told, dict) or set(told) != {"level", "value"}:
        raise DataError('a key is {"level": ..., "value": ...}', where=where)
    level, value = told["level"], told["value"]
    if level not in LEVELS:
        raise DataError(f"no level {level!r}{nearest(str(level), LEVELS)}", where=where)
    if not isinstance(value, str) or not value.strip():
        raise DataError("a value is a string that is not empty", where=where)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError("a value has half a character (a lone surrogate)", where=where)
    if level == "document" and not re.fullmatch(r"[0-9a-fA-F]{32}", value):
        raise DataError(f"a document's id has 32 hex digits, not {value!r}", where=where)
    return Key(level, value.lower() if level == "document" else value)
