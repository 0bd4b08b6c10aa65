"""Statistics of the surface of a text: nine raw numbers in one pass, without a model.

    log_length            ln of the code points
    type_token_ratio      distinct words / words, in lower case; falls as a text grows
    mean_word_length      letters (and apostrophes) a word
    stop_word_share       words among the function words in STOP_WORDS / words; English only
    punctuation_share     characters that are neither letter, mark, digit nor white space / black
    digit_share           decimal digits / black                  black = all but white space
    capital_share         upper-case letters / letters that have a case
    readability           206.835 - 1.015 words / sentences - 84.6 syllables / words    (Flesch)
    duplicate_line_share  1 - distinct lines / lines, stripped, empty ones left out

A word is a run of letters, with apostrophes inside. A sentence ends at a run of `.`, `!` or `?`
before white space or the end, and at an empty line; a text with words has one at least. Syllables
of a word: runs of vowels (aeiouy), less one for a last `e` after a consonant other than `l`, one
at least. Readability is meant for English, is not bounded, and is far below 0 where no sentence
ends.

float32, NaN where there is nothing to divide by (an empty text has none of the nine). Rows stand
alone. No utility: neither end of any of these is better as such; `orthogonal` or a filter decides.
Cost: 8 MB/s on one core. Source: Flesch 1948; the choice follows replications of ODiS (arXiv
2510.18909) with cheap scores.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.nouns import Arrays, Scorer
from foresift.pipeline.tables import Column, content_texts

Floats = npt.NDArray[np.float64]
STOP_WORDS = frozenset([
    "a", "about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "because",
    "been", "but", "by", "can", "could", "did", "do", "for", "from", "had", "has", "have", "he",
    "her", "his", "how", "i", "if", "in", "into", "is", "it", "its", "just", "me", "more", "my",
    "no", "not", "of", "on", "one", "only", "or", "our", "out", "she", "so", "some", "than",
    "that", "the", "their", "them", "then", "there", "these", "they", "this", "to", "up", "was",
    "we", "were", "what", "when", "which", "who", "will", "with", "would", "you", "your",
])  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_SENTENCE = re.compile(r"[.!?]+(?=\s|$)|\n[^\S\n]*\n")
_VOWELS = re.compile(r"[aeiouy]+")
_SILENT = re.compile(r"[^aeiouyl]e$")
#: classes of characters
_WHITE, _DIGIT, _UPPER, _LOWER, _OTHER_WORD, _MARK = range(6)
_SHARE = "fraction, 0 to 1"


@dataclass(frozen=True, kw_only=True)
class Surface(Scorer):
    """Nine raw statistics of a text: length, words, stop words, characters, lines, readability."""

    columns: ClassVar[Mapping[str, Column]] = {
        "log_length": Column(pa.float32(), "ln of code points"),
        "type_token_ratio": Column(pa.float32(), _SHARE),
        "mean_word_length": Column(pa.float32(), "characters a word"),
        "stop_word_share": Column(pa.float32(), _SHARE),
        "punctuation_share": Column(pa.float32(), _SHARE),
        "digit_share": Column(pa.float32(), _SHARE),
        "capital_share": Column(pa.float32(), _SHARE),
        "readability": Column(pa.float32(), "Flesch reading ease, larger = easier"),
        "duplicate_line_share": Column(pa.float32(), _SHARE),
    }

    def score(self, batch: pa.Table) -> Arrays:
        texts = content_texts(batch)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {**_characters(texts), **_words(texts), **_lines(texts)}
        return {name: found[name].astype(np.float32) for name in self.columns}


def _characters(texts: Sequence[str]) -> dict[str, Floats]:
    """What is counted by character, from the code points of all texts at once."""
    lengths = np.array([len(t) for t in texts], dtype=np.int64)
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")
    rows = np.repeat(np.arange(len(texts)), lengths)
    cells = rows * 6 + _classes(points)
    white, digit, upper, lower, _, mark = (
        np.bincount(cells, minlength=6 * len(texts)).reshape(-1, 6).T
    )
    black = lengths - white
    return {
        "log_length": _over(np.log(lengths), lengths > 0),
        "punctuation_share": mark / black,
        "digit_share": digit / black,
        "capital_share": upper / (upper + lower),
    }


def _over(values: Floats, defined: npt.NDArray[np.bool_]) -> Floats:
    return np.where(defined, values, np.nan)


def _classes(points: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """The class of each code point; each distinct one is asked for once."""
    seen = np.zeros(0x110000, dtype=np.bool_)
    seen[points] = True
    kinds = np.zeros(0x110000, dtype=np.int64)
    distinct = np.flatnonzero(seen)
    kinds[distinct] = [_class(chr(p)) for p in distinct.tolist()]
    found: npt.NDArray[np.int64] = kinds[points]
    return found


def _class(character: str) -> int:
    if character.isspace():
        return _WHITE
    if character.isdecimal():
        return _DIGIT
    if character.isupper():
        return _UPPER
    if character.islower():
        return _LOWER
    accent = unicodedata.category(character).startswith("M")
    return _OTHER_WORD if character.isalnum() or accent else _MARK


def _words(texts: Sequence[str]) -> dict[str, Floats]:
    """What is counted by word; each distinct word is looked at once."""
    known = _Known()
    numbers: list[int] = []
    counts, types, sentences = [], [], []
    for text in texts:
        words = _WORD.findall(text.lower())
        numbers += map(known.__getitem__, words)
        counts.append(len(words))
        types.append(len(set(words)))
        sentences.append(_sentences(text) if words else 0)
    words_, kinds = np.array(counts, dtype=np.int64), np.array(types, dtype=np.int64)
    rows = np.repeat(np.arange(len(texts)), words_)
    about = np.array(known.about, dtype=np.int64).reshape(-1, 3)[np.array(numbers, dtype=np.int64)]
    length, stop, syllables = (np.bincount(rows, about[:, i], len(texts)) for i in range(3))
    ease = 206.835 - 1.015 * (words_ / np.array(sentences)) - 84.6 * (syllables / words_)
    return {
        "type_token_ratio": kinds / words_,
        "mean_word_length": length / words_,
        "stop_word_share": stop / words_,
        "readability": ease,
    }


def _sentences(text: str) -> int:
    """Stretches with a word in them, between the ends of sentences."""
    return sum(_WORD.search(part) is not None for part in _SENTENCE.split(text))


class _Known(dict[str, int]):
    """word -> its number; `about` holds (length, is a stop word, syllables) by number."""

    def __init__(self) -> None:
        super().__init__()
        self.about: list[tuple[int, bool, int]] = []

    def __missing__(self, word: str) -> int:
        self.about.append((len(word), word in STOP_WORDS, syllables(word)))
        self[word] = len(self.about) - 1
        return self[word]


def syllables(word: str) -> int:
    """Syllables of a lower-case word by the rule at the head of the file."""
    return max(1, len(_VOWELS.findall(word)) - bool(_SILENT.search(word)))


def _lines(texts: Sequence[str]) -> dict[str, Floats]:
    counts = np.zeros((len(texts), 2))
    for row, text in enumerate(texts):
        lines = [line for line in map(str.strip, text.split("\n")) if line]
        counts[row] = len(lines), len(set(lines))
    return {"duplicate_line_share": 1.0 - counts[:, 1] / counts[:, 0]}
