"""The context of a prompt: what an answer may draw on, its passages, and the prompt without them.

    context    what the pattern finds in the prompt (its first group, where it has one): by default
               all paragraphs but the last; of a conversation, in the last turn before the answer
    passages   paragraphs of the context, stripped
    evidence   passages in which the answer occurs as whole words, in any case

A plain text has no context, nor has a prompt in which the pattern finds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from foresift.scorers._steps import Span, Trace, steps
from foresift.scorers._steps_fit import Before

#: everything before the last empty line
CONTEXT = r"(?s)\A(.*\S)\s*?\n[^\S\n]*\n"
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Context:
    """The context in the prompt of one answer."""

    trace: Trace
    prompt: str
    start: int
    """Where the prompt begins in the content as one string."""
    span: Span
    passages: Sequence[Span]
    """In the prompt."""

    def text(self, passage: Span) -> str:
        return self.prompt[passage[0] : passage[1]]

    def without(self, *gone: Span) -> Before:
        """What stands before the answer, without some stretches and the white space behind each."""
        prompt = self.prompt
        for start, stop in sorted(gone, reverse=True):
            prompt = prompt[:start] + prompt[stop:].lstrip()
        if not self.trace.turns:
            return prompt
        return [*self.trace.turns[:-1], {**self.trace.turns[-1], "content": prompt}]

    def evidence(self, answer: str) -> list[int]:
        """The passages in which the answer occurs."""
        wanted = _plain(answer).rstrip(".")
        if not wanted:
            return []
        pattern = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)")
        return [k for k, p in enumerate(self.passages) if pattern.search(_plain(self.text(p)))]


def _plain(text: str) -> str:
    return _SPACE.sub(" ", text).strip().lower()


def context(trace: Trace, pattern: re.Pattern[str]) -> Context | None:
    """The context of an answer, or None."""
    if trace.before is None or not trace.text:
        return None
    if trace.turns:
        prompt = trace.turns[-1]["content"] or ""
        start = len(trace.before) - 1 - len(prompt)
    else:
        prompt, start = trace.before, 0
    found = pattern.search(prompt)
    if not found:
        return None
    first, last = found.span(1 if pattern.groups else 0)
    if first >= last:
        return None
    inside = [(first + a, first + b) for a, b in steps(prompt[first:last], "blank_line")]
    return Context(trace, prompt, start, (first, last), inside)


def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern, or a ValueError that says what is wrong with it."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"context is no regular expression: {error}") from error
