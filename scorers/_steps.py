"""Traces and their steps: what detectors of reasoning noise look at, in characters.

    trace   the response of a pair, the last answer of the assistant, or a whole plain text
    before  what stands before it: the prompt, or all earlier turns joined by newlines
    start   where the trace begins in the content as one string (`tables.content_texts`)
    steps   the lines of a trace that are not empty; the sentences of its only line

A sentence ends at `.`, `!` or `?` (a bracket or quotation mark behind it belongs to it) before
white space. A decimal point has a digit behind it, so it ends nothing. Steps are stripped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from foresift.pipeline.tables import content_columns

Span = tuple[int, int]
By = Literal["auto", "line", "sentence", "blank_line"]
_LINE = re.compile(r"[^\n]+")
_PARAGRAPH = re.compile(r"(?:[^\n]|\n(?![^\S\n]*\n))+")
_SENTENCE = re.compile(r"\S(?:(?!(?<=[.!?])\s|(?<=[.!?][\"')\]])\s).)*", re.DOTALL)


@dataclass(frozen=True)
class Trace:
    """One answer, and where it stands."""

    text: str
    start: int
    before: str | None
    """None: nothing can stand before a plain text."""
    turns: Sequence[Mapping[str, Any]] = ()
    """Of a conversation, the turns before the answer."""


def traces(batch: pa.Table) -> list[Trace]:
    """The trace of each row; an empty one where there is no answer."""
    names = content_columns(batch.column_names)
    if names == ["text"]:
        return [Trace(t or "", 0, None) for t in batch["text"].to_pylist()]
    if names == ["prompt", "response"]:
        pairs = zip(batch["prompt"].to_pylist(), batch["response"].to_pylist(), strict=True)
        return [Trace(r or "", len(p or "") + 1, p or "") for p, r in pairs]
    return [_last(row or []) for row in batch["messages"].to_pylist()]


def _last(turns: Sequence[Mapping[str, Any]]) -> Trace:
    answers = [k for k, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        return Trace("", 0, "\n".join(t["content"] or "" for t in turns), turns)
    earlier = turns[: answers[-1]]
    before = "".join(f"{t['content'] or ''}\n" for t in earlier)
    return Trace(turns[answers[-1]]["content"] or "", len(before), before, earlier)


def steps(text: str, by: By = "auto") -> list[Span]:
    """First character and the one behind the last of each step, in order."""
    if by == "auto":
        lines = _spans(_LINE, text)
        return lines if len(lines) > 1 else steps(text, "sentence")
    if by == "sentence":
        found = [s for a, b in _spans(_LINE, text) for s in _spans(_SENTENCE, text, a, b)]
        return found
    return _spans(_LINE if by == "line" else _PARAGRAPH, text)


def _spans(
    pattern: re.Pattern[str], text: str, first: int = 0, last: int | None = None
) -> list[Span]:
    found = []
    for match in pattern.finditer(text, first, len(text) if last is None else last):
        part = match.group()
        start = match.start() + len(part) - len(part.lstrip())
        if part.strip():
            found.append((start, start + len(part.strip())))
    return found


def step_of(where: int, spans: Sequence[Span]) -> int:
    """The step that a character lies in (of those between, the one before); -1 before the first."""
    return sum(start <= where for start, _ in spans) - 1
