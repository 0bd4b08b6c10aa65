"""Runs of capitalised words that may name a person or a body, without a dictionary.

    word    an upper-case letter and lower-case ones behind it: Maria, O'Neil, McDonald, Jean-Luc
    name    two to MOST words with single spaces between them; initials (J. R.) and particles (von,
            de, al ...) may stand inside

A first word that begins a sentence is taken off where the same document has it in lower case, too
("Yesterday Paul Maier" with "yesterday" elsewhere). Longer runs are headings. Words in capitals
throughout, and scripts without case, have no names here; languages that capitalise nouns have more
than there are. What is asked for is not that each is a name, but that names are among them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import xxhash

MOST = 4


def _letters(upper: bool) -> str:
    """The upper- or lower-case letters as ranges of a character class."""
    wanted = [c for c in range(sys.maxunicode) if (chr(c).isupper() if upper else chr(c).islower())]
    starts = [c for c, before in zip(wanted, [-2, *wanted], strict=False) if c != before + 1]
    ends = [c for c, after in zip(wanted, [*wanted[1:], -2], strict=True) if c + 1 != after]
    return "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in zip(starts, ends, strict=True))


_UPPER, _LOWER = f"[{_letters(True)}]", f"[{_letters(False)}\u0300-\u036f]"
_WORD = (
    f"{_UPPER}(?:['’]{_UPPER})?{_LOWER}+(?:{_UPPER}{_LOWER}+)?(?:[-'’]{_UPPER}?{_LOWER}+)*"
    r"(?![\w@])"
)
_PARTICLE = "(?:von|van|vom|zu|de|der|den|ter|ten|del|della|di|da|dos|du|la|le|bin|ibn|al|el|y|e) "
_RUN = re.compile(
    rf"(?<![\w@./-]){_WORD}"
    rf"(?:[ \u00a0](?:{_UPPER}\.[ \u00a0]?){{0,3}}(?:{_PARTICLE}){{0,2}}{_WORD})+"
)
_ONE, _SMALL = re.compile(_WORD), re.compile(rf"(?<!\w){_LOWER}+(?!\w)")
#: what may stand before the first word of a sentence
_BEGINS = re.compile(r"(?:\A|[.!?:;\n|*•>])[\s\"'“”‘’«»()\[\]*#-]*\Z")


class Name(NamedTuple):
    """A name, hashed without its case, and its place."""

    key: int
    start: int
    stop: int


class _Text:
    """A document, and the words that it has in lower case."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def small(self) -> frozenset[str]:
        return frozenset(_SMALL.findall(self.text))


def names(text: str) -> Iterator[Name]:
    """The names of a text, in order."""
    document = _Text(text)
    for found in _RUN.finditer(text):
        start = found.start()
        words = list(_ONE.finditer(text, start, found.end()))
        first = words[0].group().lower()
        if _begins(text, start) and first in document.small:
            words = words[1:]
            start = words[0].start()
        if 2 <= len(words) <= MOST:
            plain = " ".join(text[start : found.end()].lower().split())
            yield Name(xxhash.xxh3_64_intdigest(plain.encode()), start, found.end())


def _begins(text: str, start: int) -> bool:
    """Whether a sentence begins here."""
    return _BEGINS.search(text, max(0, start - 12), start) is not None
