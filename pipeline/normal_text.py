"""Normal forms of whole batches of documents, and where their words lie. All of it on UTF-8 bytes.

Two forms, each a rule for single characters followed by a collapse:

    plain   lower case; letters, digits and marks stay, every other character is a space;
            runs of spaces count as one. "It's 12.50!" -> "it s 12 50"
    loose   as plain, then combining marks of the canonical decomposition are stripped, every run of
            decimal digits becomes "0" and numbers that follow one another count as one.
            "costs 12.50 dollars" and "COSTS 7 dollars!" -> "costs 0 dollars"; "Café" -> "cafe"

Loose is a function of plain: documents with the same plain form have the same loose form. Format
characters (soft hyphen, zero-width joiner, byte order mark) vanish in both. Lower-casing is per
character, so the Greek final sigma keeps its own form.

Cost: about 10 ns a byte of ASCII. Runs of other characters pass through Python once and are
remembered.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Buffer: TypeAlias = "bytes | memoryview"
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_END = b"\xff"  # never part of UTF-8: stands before, between and after documents
_SPACE, _ZERO, _STOP = 32, 48, 255
_FOREIGN = re.compile(rb"[\x80-\xfe]+")
_REMEMBERED = 64
#: bytes of a word after which it counts as another word (base64, minified code)
WORD_BYTES = 256


def fold(char: str, loose: bool) -> str:
    """The normal form of one character, before runs are collapsed."""
    plain = "".join(_plain(c) for c in char.lower())
    if not loose:
        return plain
    return "".join(_loose(c) for c in unicodedata.normalize("NFD", plain))


def _plain(char: str) -> str:
    kind = unicodedata.category(char)
    if kind == "Cf":
        return ""
    return char if kind[0] in "LNM" else " "


def _loose(char: str) -> str:
    kind = unicodedata.category(char)
    if kind == "Mn":
        return ""
    return "0" if kind == "Nd" else _plain(char)


def _table(loose: bool) -> bytes:
    ascii_part = "".join(fold(chr(c), loose) for c in range(128)).encode()
    return ascii_part + bytes(range(128, 256))


_TABLES = {loose: _table(loose) for loose in (False, True)}


class _Folder(dict[int, str]):
    """A table for `str.translate` that fills itself."""

    def __init__(self, loose: bool) -> None:
        super().__init__()
        self.loose = loose

    def __missing__(self, code: int) -> str:
        self[code] = folded = fold(chr(code), self.loose)
        return folded


_FOLDERS = {loose: _Folder(loose) for loose in (False, True)}


def _fold_run(run: bytes, loose: bool) -> bytes:
    return run.decode().translate(_FOLDERS[loose]).encode()


_fold_short = functools.lru_cache(maxsize=1 << 16)(_fold_run)


def _fold_foreign(raw: bytes, loose: bool) -> bytes:
    """Fold the characters outside ASCII; the others are left for the byte table."""

    def replace(found: re.Match[bytes]) -> bytes:
        run = found.group()
        return (_fold_short if len(run) <= _REMEMBERED else _fold_run)(run, loose)

    return _FOREIGN.sub(replace, raw)


@dataclass(frozen=True)
class Words:
    """A batch of documents in normal form: `buffer[starts[i]:ends[i]]` is word i.

    Document d has the words `offsets[d]` to `offsets[d + 1]`; between two words of a document lies
    exactly one space, so the bytes from the start of a word to the end of a later one are the same
    wherever the same words stand.
    """

    buffer: Bytes
    starts: Ints
    ends: Ints
    offsets: Ints

    def text(self, document: int) -> memoryview:
        """The normal form of one document, without spaces at its ends."""
        first, last = int(self.offsets[document]), int(self.offsets[document + 1])
        if first == last:
            return memoryview(b"")
        return self.buffer.data[int(self.starts[first]) : int(self.ends[last - 1])]

    def cut(self) -> Words:
        """The same with words of more than WORD_BYTES bytes cut into several."""
        pieces = np.maximum(1, -(-(self.ends - self.starts) // WORD_BYTES))
        if len(pieces) == 0 or pieces.max() == 1:
            return self
        first = np.concatenate([[0], np.cumsum(pieces)])
        inside = np.arange(first[-1]) - np.repeat(first[:-1], pieces)
        starts = np.repeat(self.starts, pieces) + inside * WORD_BYTES
        ends = np.minimum(starts + WORD_BYTES, np.repeat(self.ends, pieces))
        return Words(self.buffer, starts, ends, first[self.offsets])


def words(documents: Iterable[Buffer], *, loose: bool) -> Words:
    """The normal form of a batch of documents."""
    folded = []
    for view in documents:
        raw = bytes(view)
        folded.append(raw if raw.isascii() else _fold_foreign(raw, loose))
    joined = _END.join([b"", *folded, b""]).translate(_TABLES[loose])
    buffer = np.frombuffer(joined, dtype=np.uint8)
    buffer = _collapse_numbers(_collapse(buffer, loose)) if loose else _collapse(buffer, loose)
    gap = (buffer == _SPACE) | (buffer == _STOP)
    turns = np.flatnonzero(gap[1:] != gap[:-1]) + 1
    starts, ends = turns[0::2], turns[1::2]
    stops = np.flatnonzero(buffer == _STOP)
    return Words(buffer, starts, ends, np.searchsorted(starts, stops).astype(np.int64))


def _collapse(buffer: Bytes, loose: bool) -> Bytes:
    """Each run of spaces (and of zeros where `loose`) becomes one."""
    here = buffer[1:]
    again = (here == _SPACE) | (here == _ZERO) if loose else here == _SPACE
    again &= here == buffer[:-1]
    return np.concatenate([buffer[:1], here[~again]])


def _collapse_numbers(buffer: Bytes) -> Bytes:
    """ "0 0 0" becomes "0": drop a space between two zeros, and the zero behind it."""
    zero = buffer == _ZERO
    between = np.flatnonzero(zero[:-2] & zero[2:] & (buffer[1:-1] == _SPACE)) + 1
    if len(between) == 0:
        return buffer
    keep = np.ones(len(buffer), dtype=np.bool_)
    keep[between] = False
    keep[between + 1] = False
    return buffer[keep]
