"""Sentences, words, names and numbers of a text, as the sets of a deletion plan need them.

    words           runs of letters and digits, lower case, with inner apostrophes and hyphens
    content words   those of two characters and more that are no function word of English
    sentences       cut behind . ! ? (and those of Chinese and Japanese) and at line ends
    names           two to five capitalised words in a row, `of`, `de`, `van` ... between them;
                    a function word that only begins the sentence is left off
    numbers         digits with what stands between them: 1956, 08/09/1956, 3.5

A language that does not capitalise has no names here; its words still count. Cost: about 10 MB/s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import xxhash

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"')\]\u201d\u2019]))\s+(?=[^a-z\s])"
    r"|(?<=[\u3002\uff01\uff1f])|\s*\n\s*"
)
_TITLE = re.compile(r"(?:^|\W)(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|No|vs|[A-Z])\.$")
_INSIDE = frozenset(["of", "de", "la", "da", "der", "den", "van", "von", "bin", "al", "el", "du"])
_FUNCTION = """
a about above after again against all also am an and any are as at be because been before
being below between both but by can could did do does doing down during each few for from
further had has have having he her here hers him his how i if in into is it its just me more
most my no nor not now of off on once only or other our out over own same she should so some
such than that the their them then there these they this those through to too under until up
very was we were what when where which while who whom why will with would you your"""
FUNCTION = frozenset(_FUNCTION.split())
#: words of a run that forget and holdout must not share
GRAM = 13


def words(text: str) -> list[str]:
    """The words in their order, lower case."""
    return WORD.findall(text.lower())


def content_words(text: str) -> list[str]:
    """The words that say something, in their order."""
    return [word for word in words(text) if len(word) > 1 and word not in FUNCTION]


def sentences(text: str) -> list[str]:
    """The sentences of a text, without white space at their ends."""
    found: list[str] = []
    for piece in _END.split(text):
        piece = piece.strip()
        if found and piece and _TITLE.search(found[-1]):
            found[-1] += f" {piece}"
        elif piece:
            found.append(piece)
    return found


def names(text: str) -> list[tuple[int, int]]:
    """(start, stop) of each name."""
    found, run = [], list[tuple[int, int]]()
    for start, stop, word in _tokens(text):
        if run and not (text[run[-1][1] : start] == " " and len(run) < 5):
            found += _name(text, run)
            run = []
        if word[0].isupper() or (run and word in _INSIDE):
            run.append((start, stop))
        elif run:
            found += _name(text, run)
            run = []
    return found + _name(text, run)


def _tokens(text: str) -> Iterator[tuple[int, int, str]]:
    for match in WORD.finditer(text):
        word = match.group()
        stop = match.end() - 2 if word.endswith(("'s", "\u2019s")) else match.end()
        yield match.start(), stop, word


def _name(text: str, run: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """A run of words as a name, cut at both ends; nothing where less than two are left."""
    spans = list(run)
    while spans and text[slice(*spans[0])].lower() in FUNCTION:
        del spans[0]
    while spans and not text[spans[-1][0]].isupper():
        del spans[-1]
    return [(spans[0][0], spans[-1][1])] if len(spans) > 1 else []


def capitalised(text: str) -> list[tuple[int, int]]:
    """(start, stop) of single capitalised words that do not begin the text."""
    return [
        (start, stop)
        for start, stop, word in _tokens(text)
        if start and word[0].isupper() and len(word) > 2 and word.lower() not in FUNCTION
    ]


def numbers(text: str) -> list[tuple[int, int]]:
    """(start, stop) of each number of two digits and more."""
    return [m.span() for m in NUMBER.finditer(text) if len(m.group()) > 1]


def grams(text: str, size: int = GRAM) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each run of `size` words; punctuation and case do not count."""
    hashes = [xxhash.xxh3_64_intdigest(w.encode()) for w in re.findall(r"\w+", text.lower())]
    count = len(hashes) - size + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    each = np.array(hashes, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for place in range(size):
            total = total * np.uint64(0x9E3779B97F4A7C15) + each[place : place + count]
    return total


def halves(text: str) -> tuple[str, str]:
    """The first half of the words of a text, and the rest, without the white space between."""
    found = list(re.finditer(r"\S+", text))
    if len(found) < 2:
        return "", text
    cut = found[(len(found) + 1) // 2].start()
    return text[:cut].rstrip(), text[cut:]
