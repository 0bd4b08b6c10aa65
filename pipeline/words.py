"""Words of texts as hashes: what n-gram features and n-gram models of plain text are made of.

    words(text) = maximal runs of word characters, and maximal runs of what is neither word
                  character nor white space, of the lower-cased text          (WordPunct)
    hash        = xxh3-64 of the word's UTF-8 bytes

The same word has the same hash in every process and on every machine. Cost: some 3 M words/s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

_WORD = re.compile(r"\w+|[^\w\s]+")


@dataclass(frozen=True)
class Words:
    """Words of several texts, one text after the other."""

    ids: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.int64]
    """Words of each text."""


def hashed_words(texts: Iterable[str | None]) -> Words:
    """The hashed words of each text; a missing text has none."""
    hashes: dict[str, int] = _Hashes()
    ids: list[int] = []
    lengths = []
    for text in texts:
        words = _WORD.findall((text or "").lower())
        lengths.append(len(words))
        ids += map(hashes.__getitem__, words)
    return Words(np.array(ids, dtype=np.uint64), np.array(lengths, dtype=np.int64))


class _Hashes(dict[str, int]):
    """word -> hash, each taken once."""

    def __missing__(self, word: str) -> int:
        value = xxhash.xxh3_64_intdigest(word.encode())
        self[word] = value
        return value
