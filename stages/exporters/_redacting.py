"""Spans of findings replaced in the content, and a log of what was replaced.

    <EMAIL>              typed: the reason in capitals, between angle brackets
    <EMAIL:5a1be98d02>   pseudonym: with ten hex digits of a keyed hash of the value, so that the
                         same person stays the same in all documents and nobody can try values out

Spans are characters of `content_texts` (turns, or prompt and response, joined by a newline), and
are mapped back: a span over a joint is replaced in each of the fields that it touches, the joint
stays. Spans that overlap become one, named by the longest of them; equal ones by the first place,
then by name. A finding of a whole document has nothing that could be replaced: it is counted.

The log lists id, reason, start, stop (characters of the content as it was) and the replacement of
each piece, never a value. The id of a row stays that of the document as it was read, so that a
deletion finds it; the column `redacted` says that the content under it is another one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import Finding, findings, is_findings
from foresift.pipeline.personal import keyed
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import CONTENT, ID, content_columns, content_texts

LOG = pa.schema(
    [
        ("id", ID), ("reason", pa.string()), ("start", pa.int32()), ("stop", pa.int32()),
        ("replacement", pa.string()),
    ]
)  # fmt: skip
#: fewest bytes of a key
KEY_BYTES = 16


class Span(NamedTuple):
    """A stretch of a document's content to be replaced."""

    reason: str
    start: int
    stop: int


def read_key(variable: str) -> bytes:
    """The key that an environment variable holds."""
    key = os.environ.get(variable, "").encode("utf-8", "surrogateescape")
    if len(key) < KEY_BYTES:
        raise DataError(
            f"the environment variable holds no key of {KEY_BYTES} bytes", where=variable
        )
    return key


def merged(found: Iterable[Finding]) -> list[Span]:
    """Spans in order that do not overlap; empty ones and whole documents are left out."""
    spans: list[Span] = []
    longest = 0
    for f in sorted(found, key=lambda f: (f.start, -f.stop, f.reason)):
        if f.whole or f.start == f.stop:
            continue
        if not spans or f.start >= spans[-1].stop:
            spans.append(Span(f.reason, f.start, f.stop))
            longest = f.stop - f.start
            continue
        last = spans[-1]
        reason = f.reason if f.stop - f.start > longest else last.reason
        longest = max(longest, f.stop - f.start)
        spans[-1] = Span(reason, last.start, max(last.stop, f.stop))
    return spans


@dataclass
class Redacting:
    """Redacts table after table of one file, and counts."""

    columns: Sequence[str]
    key: bytes = b""
    """Empty: typed replacements."""
    rows: int = 0
    replaced: Counter[str] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)
    _digest: Any = field(default_factory=xxhash.xxh3_128)

    def table(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """(the table with its content redacted and a column `redacted`, its part of the log)."""
        todo = self._todo(table)
        log: dict[str, list[Any]] = {name: [] for name in LOG.names}
        flags = np.zeros(table.num_rows, dtype=np.bool_)
        if todo:
            rows = pa.array(list(todo), pa.int64())
            some = table.take(rows)
            fields = _fields(some)
            for at, (row, key, text) in enumerate(
                zip(todo, some["id"].to_pylist(), content_texts(some), strict=True)
            ):
                before = len(log["id"])
                fields[at] = self._row(fields[at], todo[row], text, key, log)
                flags[row] = len(log["id"]) > before
            table = _with_fields(table, list(todo), fields)
        self.rows += int(flags.sum())
        told = pa.table(log, LOG)
        for name in ("id", "start", "stop", "replacement"):
            self._digest.update(repr(log[name]).encode())
        return table.append_column("redacted", pa.array(flags)), told

    def facts(self) -> Facts:
        """What was replaced, and what could not be."""
        return {
            "redacted_rows": self.rows,
            "redactions": dict(sorted(self.replaced.items())),
            "not_replaceable": dict(sorted(self.whole.items())),
        }

    @property
    def digest(self) -> str:
        """Of the log so far."""
        return str(self._digest.hexdigest())

    def _todo(self, table: pa.Table) -> dict[int, list[Span]]:
        """Row -> its spans, for the rows that have any."""
        found: dict[int, list[Finding]] = {}
        for name in self.columns:
            column = table[name]
            if pa.types.is_null(column.type):
                continue
            if not is_findings(column.type):
                raise DataError(f"a column of findings is needed, not {column.type}", where=name)
            rows = np.flatnonzero(np.asarray(pc.fill_null(pc.list_value_length(column), 0)))
            some = column.take(pa.array(rows, pa.int64()))
            for row, here in zip(rows.tolist(), findings(some), strict=True):
                found.setdefault(row, []).extend(here)
                self.whole.update(f.reason for f in here if f.whole)
        spans = {row: merged(found[row]) for row in sorted(found)}
        return {row: some for row, some in spans.items() if some}

    def _row(
        self, fields: list[str], spans: list[Span], text: str, key: bytes, log: dict[str, list[Any]]
    ) -> list[str]:
        """The fields of one row with its spans replaced."""
        if spans[-1].stop > len(text):
            raise DataError("findings reach beyond the content", where=",".join(self.columns))
        first, out, at = 0, [], 0
        for value in fields:
            end = first + len(value)
            pieces, done = [], first
            while at < len(spans) and spans[at].start < end:
                span = spans[at]
                start, stop = max(span.start, first), min(span.stop, end)
                if start < stop:
                    shown = self._shown(span, text)
                    pieces += [text[done:start], shown]
                    done = stop
                    self.replaced[span.reason] += 1
                    for name, value_ in zip(
                        LOG.names, (key, span.reason, start, stop, shown), strict=True
                    ):
                        log[name].append(value_)
                if span.stop > end:
                    break  # it goes on in the next field
                at += 1
            out.append("".join([*pieces, text[done:end]]))
            first = end + 1
        return out

    def _shown(self, span: Span, text: str) -> str:
        if not self.key:
            return f"<{span.reason.upper()}>"
        name = _pseudonym(span, text[span.start : span.stop], self.key)
        return f"<{span.reason.upper()}:{name}>"


def _pseudonym(span: Span, value: str, key: bytes) -> str:
    try:
        return keyed(span.reason, value, key).hex()[:10]
    except ValueError:  # a merged span is no value of its type
        return keyed("", value, key).hex()[:10]


def _fields(table: pa.Table) -> list[list[str]]:
    """The strings of each row that `content_texts` joins."""
    names = content_columns(table.column_names)
    if names == ["messages"]:
        return [[m["content"] or "" for m in row or []] for row in table["messages"].to_pylist()]
    columns = [[value or "" for value in table[name].to_pylist()] for name in names]
    return [list(values) for values in zip(*columns, strict=True)]


def _with_fields(table: pa.Table, rows: list[int], fields: list[list[str]]) -> pa.Table:
    """The table with other content in some rows; what was null and stays empty stays null."""
    names = content_columns(table.column_names)
    for number, name in enumerate(names):
        values = table[name].to_pylist()
        for row, given in zip(rows, fields, strict=True):
            if name == "messages":
                turns = zip(values[row] or [], given, strict=True)
                values[row] = [
                    {"role": m["role"], "content": text if text or m["content"] else m["content"]}
                    for m, text in turns
                ]
            elif given[number] or values[row] is not None:
                values[row] = given[number]
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, CONTENT[name]))
    return table
