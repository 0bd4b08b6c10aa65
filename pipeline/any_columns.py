"""Which columns of rows hold the content, seen from the first rows of a file.

first_objects(path)   of JSON lines or of one JSON array, whose end may lie further on
firstfirst_objects(path)      of a parquet file, its columns of strings and of turns
choose(rows, text)    reader fields: what `text` says, else messages, prompt and response under
                      one of their usual names, `text` under one of its, else the column of
                      strings that is longest
told(fields, rows)    the same in words, and what is not read
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.errors import DataError, nearest

PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("query", "response"),
)
CHATS = ("messages", "conversations", "conversation")
TEXTS = ("text", "content", "raw_content", "document", "body", "article", "code", "chosen")
#: columns taken along where they are there: key paths, languages, licences
SOURCES = ("source", "subset", "dataset", "domain", "url")
CARRIED = ("language", "lang", "license", "licence")
#: what turns are made of in another usual form
_SHARE = ("from", "value")
#: rows and bytes looked at
ROWS, HEAD = 50, 1 << 20
#: bytes taken at a time: what lies before a broken place is had
STEP = 1 << 10


def head_of(path: str) -> bytes:
    """The first bytes, decompressed; of an archive that is cut off, those that are there."""
    head = b""
    try:
        with fsspec.open(path, "rb", compression="infer") as handle:
            while len(head) < HEAD and (more := handle.read(min(STEP, HEAD - len(head)))):
                head += more
    except Exception as error:  # what a broken archive raises differs by its kind
        if not head:
            raise DataError(f"cannot be read ({error})", where=path) from error
    return head


def first_objects(path: str) -> list[dict[str, Any]]:
    """The first objects of a file of JSON lines or of one array."""
    head = head_of(path)
    rows = objects(head)
    if not rows and head.lstrip(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        rows = _elements(head)
    if not rows:
        raise DataError("has no JSON object in its first rows", where=path)
    return rows


def objects(head: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line in head.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        rows += [value] if isinstance(value, dict) and value else []
        if len(rows) == ROWS:
            break
    return rows or _cut_off(head)


def _cut_off(head: bytes) -> list[dict[str, Any]]:
    """The fields of a single line that is longer than what is looked at."""
    if len(head) < HEAD or not head.startswith(b"{"):
        return []
    text, fields = head.decode("utf-8", "ignore"), dict[str, Any]()
    decoder, at = json.JSONDecoder(), 1
    try:
        while True:
            key, at = decoder.raw_decode(text, _skip(text, at))
            at = _skip(text, at, ":")
            fields[key] = "..." if text[at] == '"' else None
            _, at = decoder.raw_decode(text, at)
            at = _skip(text, at, ",")
    except (ValueError, IndexError, TypeError):
        return [fields] if fields else []


def _skip(text: str, at: int, what: str = "") -> int:
    while text[at].isspace() or text[at] == what:
        at += 1
    return at


def _elements(head: bytes) -> list[dict[str, Any]]:
    """The first objects of an array, whose end may lie beyond what is looked at."""
    text, rows = head.decode("utf-8", "ignore"), list[dict[str, Any]]()
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    while len(rows) < ROWS:
        try:
            value, at = decoder.raw_decode(text, _skip(text, at))
            at = _skip(text, at, ",")
        except (ValueError, IndexError, RecursionError):
            break
        rows += [value] if isinstance(value, dict) and value else []
    return rows


def first_rows(path: str) -> list[dict[str, Any]]:
    """The first rows of a parquet file; a row of nothing where it has none."""
    try:
        with pq.ParquetFile(path if "://" not in path else fsspec.open(path).open()) as file:
            names = [f.name for f in file.schema_arrow if shown(f.type)]
            batch = next(file.iter_batches(ROWS, columns=names), None)
            rows = batch.to_pylist() if batch is not None else []
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"not a parquet file ({error})", where=path) from error
    if not rows:
        raise DataError("holds no document: the first file has no rows", where=path)
    return rows


def shown(kind: pa.DataType) -> bool:
    """Whether a column may hold text, turns or labels."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return str(kind) in ("string", "large_string", "string_view") or (
        listed and pa.types.is_struct(kind.value_type)
    )


def choose(rows: Sequence[Mapping[str, Any]], text: str, where: str) -> dict[str, Any]:
    """Reader fields for rows that look like these."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    strings = {n: _length(rows, n) for n in names}
    fields = {n: mean for n, mean in strings.items() if mean is not None}
    chat = next((n for n in CHATS if any(_turns(row.get(n)) for row in rows)), "")
    found: dict[str, str]
    if text:
        found = content_of([n.strip() for n in text.split(",")], dict.fromkeys(names), where)
    elif chat:
        found = {"messages": chat}
    elif other := next((n for n in CHATS if any(_turns(r.get(n), _SHARE) for r in rows)), ""):
        raise DataError(
            f"turns of {other!r} have from and value; a reader needs role and content", where=where
        )
    elif pair := next((p for p in PAIRS if fields.keys() >= set(p)), None):
        found = {"prompt": pair[0], "response": pair[1]}
    elif named := next((n for n in TEXTS if n in fields), ""):
        found = {"text": named}
    elif fields:
        found = {"text": max(fields, key=lambda n: (fields[n], n))}
    else:
        raise DataError(f"no column of strings or turns among {names}; use --text", where=where)
    used = set(found.values())
    more: dict[str, Any] = {}
    if source := next((n for n in SOURCES if n in fields and n not in used), ""):
        more["source"] = source
    if carried := [n for n in CARRIED if n in fields and n not in used]:
        more["columns"] = carried
    return {**found, **more}


def content_of(names: Sequence[str], known: Mapping[str, Any], where: str) -> dict[str, str]:
    """The fields that `--text` says."""
    for name in names:
        if known and name not in known:
            raise DataError(f"no column {name!r}{nearest(name, known)}", where=where)
    if len(names) == 2:
        return {"prompt": names[0], "response": names[1]}
    if len(names) != 1:
        raise DataError(f"takes one column or two, got {', '.join(names)}", where="--text")
    return {"messages" if names[0] in CHATS else "text": names[0]}


def _length(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The mean length of a column of strings; None: of something else, or of nothing."""
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values or not all(isinstance(v, str) for v in values):
        return None
    return sum(map(len, values)) / len(values)


def _turns(value: Any, keys: tuple[str, str] = ("role", "content")) -> bool:
    """Whether a value is a conversation of turns with these keys."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(t, dict) and set(keys) <= set(t) for t in value)


def told(fields: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What was decided of the columns, in words."""
    if "prompt" in fields:
        told = f"prompts are {fields['prompt']!r}, responses {fields['response']!r}"
    elif "messages" in fields:
        told = f"conversations are {fields['messages']!r}"
    else:
        told = f"text is {fields['text']!r}"
    if "source" in fields:
        told += f", sources {fields['source']!r}"
    used = {fields.get(n) for n in ("text", "messages", "prompt", "response", "source")}
    names = list(dict.fromkeys(name for row in rows for name in row))
    rest = [n for n in names if n not in used and n not in fields.get("columns", ())]
    more = f", and {len(rest) - 8} more" if len(rest) > 8 else ""
    return told + (f"; not read: {', '.join(rest[:8])}{more}" if rest else "")
