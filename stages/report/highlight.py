"""A piece of a text with what stands around it, masked: what a report shows of a finding.

Personal data are masked in the whole window first, and the marks are put into the masked text, so a
mark can cut nothing in two that is then not recognised. A mark that falls inside of something
masked moves outwards to its edge. What lies within GUARD characters of a cut edge of the window is
looked at and never shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from foresift.stages.report.mask import clean, excerpt, mask

#: characters shown on either side, and of the piece itself
CONTEXT, PIECE = 90, 200
#: characters looked at besides, so that nothing is cut in two before it is masked
GUARD = 300
#: characters that a mark is moved before it goes to the end of the window
NEAR = 64
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Marked:
    """Text before, in and behind a mark; a whole document stands in `after` alone."""

    before: str
    """What stands before the mark."""
    inside: str
    """What is marked."""
    after: str
    """What stands behind it."""


def marked(text: str, start: int, stop: int) -> Marked:
    """The characters from start to stop with their surroundings; start below 0: the beginning."""
    if start < 0 or start >= len(text):
        return Marked("", "", excerpt(text))
    stop = min(max(stop, start), len(text))
    end = min(stop, start + PIECE + 1)
    low, high = max(0, start - CONTEXT - GUARD), min(len(text), end + CONTEXT + GUARD)
    window = text[low:high]
    hidden = mask(window)
    edges = [
        _moved(window, hidden, min(GUARD, start - low), 1) if low else 0,
        _moved(window, hidden, start - low, -1),
        _moved(window, hidden, end - low, 1),
        _moved(window, hidden, max(len(window) - GUARD, end - low), -1)
        if high < len(text)
        else len(hidden),
    ]
    first, left, right, last = edges
    right = max(right, left)
    before, after = hidden[min(first, left) : left], hidden[right : max(last, right)]
    piece = _shown(hidden[left:right])
    return Marked(
        ("… " if low or len(before) > CONTEXT else "") + _shown(before[-CONTEXT:]).lstrip(),
        piece[:PIECE] + (" …" if end < stop or len(piece) > PIECE else ""),
        _shown(after[:CONTEXT]).rstrip()
        + (" …" if high < len(text) or len(after) > CONTEXT else ""),
    )


def _moved(window: str, hidden: str, at: int, step: int) -> int:
    """Where a place of the window is in its masked text, moved out of what is masked."""
    for i in range(at, at + step * NEAR, step):
        if not 0 < i < len(window):
            return 0 if i <= 0 else len(hidden)
        before = mask(window[:i])
        if before + mask(window[i:]) == hidden:
            return len(before)
    return 0 if step < 0 else len(hidden)


def _shown(text: str) -> str:
    return _SPACE.sub(" ", clean(text))
