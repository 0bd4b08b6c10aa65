"""Blocks of documents as bytes: where documents, lines and pieces lie, and their characters.

A block joins the UTF-8 of some documents, a newline behind each. Lines come in two kinds: between
newlines (FineWeb, Gopher's repetition), and as `str.splitlines` has them (C4, Gopher's quality);
they are the same where a block has no other line ends. A piece is a run without white space.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.tables import content_columns, content_texts, string_views
from foresift.scorers._words_hash import PADDING, Bytes, Ints

Bools = npt.NDArray[np.bool_]
#: bytes of a block; a longer document is a block of its own
BLOCK = 1 << 20
_NEWLINE, _RETURN = 10, 13
_SPACE, _BREAK, _LINE = 1, 2, 3


def _classes() -> bytes:
    """ASCII white space, and what of it ends a line."""
    table = bytearray(256)
    for code in range(128):
        if chr(code).isspace():
            table[code] = _BREAK if len(f"a{chr(code)}a".splitlines()) == 2 else _SPACE
    table[_NEWLINE] = _LINE
    return bytes(table)


_CLASSES = _classes()
_WIDE = [chr(code) for code in range(128, 0x10000) if chr(code).isspace()]


@dataclass(frozen=True)
class Lines:
    """Lines without what ends them; document d has lines offsets[d] to offsets[d + 1]."""

    starts: Ints
    stops: Ints
    offsets: Ints
    first: Ints
    """[lines] the first piece of each line ..."""
    last: Ints
    """[lines] ... and the piece behind its last one."""

    @functools.cached_property
    def documents(self) -> Ints:
        """[lines] the document of each line."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@dataclass(frozen=True)
class Block:
    """Some documents and what lies in them; places are bytes of `raw`."""

    raw: bytes
    starts: Ints
    """[documents] where each begins ..."""
    stops: Ints
    """[documents] ... and ends, without the newline behind it."""

    @functools.cached_property
    def text(self) -> Bytes:
        """The bytes as numbers, with PADDING behind them."""
        return np.frombuffer(self.raw + bytes(PADDING), dtype=np.uint8)

    @functools.cached_property
    def _spaces(self) -> Bytes:
        """[bytes] the class of each byte of white space, 0 elsewhere."""
        found = np.frombuffer(bytearray(self.raw.translate(_CLASSES)), dtype=np.uint8)
        if not self.raw.isascii():
            _mark_wide(self.text, found)
        return found

    @functools.cached_property
    def pieces(self) -> tuple[Ints, Ints]:
        """Starts and stops of all runs without white space."""
        black = np.append(self._spaces == 0, False)
        turns = np.flatnonzero(black[1:] != black[:-1]) + 1
        if len(black) > 1 and black[0]:
            turns = np.append(0, turns)
        return turns[0::2], turns[1::2]

    @functools.cached_property
    def piece_offsets(self) -> Ints:
        """[documents + 1] the pieces of each document."""
        return np.searchsorted(self.pieces[0], np.append(self.starts, len(self.raw)))

    @functools.cached_property
    def lines(self) -> Lines:
        """What lies between newlines; an empty document has one line."""
        return self._lines(np.flatnonzero(self.text[: len(self.raw)] == _NEWLINE))

    @functools.cached_property
    def split_lines(self) -> Lines:
        """What `str.splitlines` gives."""
        spaces = self._spaces
        ends = spaces >= _BREAK
        if b"\r" in self.raw:
            ends[:-1] &= ~((self.text[: len(ends) - 1] == _RETURN) & (spaces[1:] == _LINE))
        found = self.lines
        if np.count_nonzero(ends) != len(found.starts):
            found = self._lines(np.flatnonzero(ends))
        return _without_empty_ends(found)

    def _lines(self, ends: Ints) -> Lines:
        """Lines that end at these bytes; the end of each document is among them."""
        starts = np.append(0, ends[:-1] + 1)
        offsets = np.searchsorted(starts, np.append(self.starts, len(self.raw)))
        pieces = self.pieces[0]
        first = np.searchsorted(pieces, starts)
        return Lines(starts, ends, offsets, first, np.append(first[1:], len(pieces)))

    @functools.cached_property
    def _inner(self) -> Ints | None:
        """[bytes + 1] bytes before each that are not the first of a character; None if none is."""
        if self.raw.isascii():
            return None
        return np.append(0, np.cumsum((self.text & 0xC0) == 0x80, dtype=np.int32))

    def characters(self, starts: Ints, stops: Ints) -> Ints:
        """Characters from each place to another."""
        inner = self._inner
        return stops - starts if inner is None else stops - starts - (inner[stops] - inner[starts])

    def each(self, places: Ints) -> Ints:
        """[documents] how many of these places (ascending) lie in each document."""
        return np.searchsorted(places, self.stops) - np.searchsorted(places, self.starts)

    def ends_with(self, stops: Ints, tail: bytes) -> Bools:
        """Whether the bytes before each place are these."""
        found = stops >= len(tail)
        for back, byte in enumerate(reversed(tail), 1):
            found &= self.text[np.maximum(stops - back, 0)] == byte
        return found


def _mark_wide(text: Bytes, spaces: Bytes) -> None:
    """Give the bytes of white space outside ASCII their class; one that ends a line, its last."""
    leads = {char.encode()[0] for char in _WIDE}
    places = {lead: np.flatnonzero(text == lead) for lead in leads}
    for char in _WIDE:
        raw = char.encode()
        at = places[raw[0]]
        for more, byte in enumerate(raw[1:], 1):
            at = at[text[at + more] == byte]
        for more in range(len(raw)):
            spaces[at + more] = _SPACE
        if len(f"a{char}a".splitlines()) == 2:
            spaces[at + len(raw) - 1] = _BREAK


def _without_empty_ends(lines: Lines) -> Lines:
    """The lines without those that are empty and the last ones of their documents."""
    last = lines.offsets[1:] - 1
    gone = last[lines.starts[last] == lines.stops[last]]
    if len(gone) == 0:
        return lines
    keep = np.ones(len(lines.starts), dtype=np.bool_)
    keep[gone] = False
    fewer = np.append(0, np.cumsum(keep))
    return Lines(
        lines.starts[keep],
        lines.stops[keep],
        fewer[lines.offsets],
        lines.first[keep],
        lines.last[keep],
    )


def blocks(batch: pa.Table) -> Iterator[Block]:
    """The documents of a batch, in order."""
    texts: Iterator[memoryview | bytes]
    if content_columns(batch.column_names) == ["text"]:
        texts = string_views(batch["text"])
    else:
        texts = (text.encode() for text in content_texts(batch))
    held: list[memoryview | bytes] = []
    size = 0
    for text in texts:
        if held and size + len(text) > BLOCK:
            yield _block(held)
            held, size = [], 0
        held.append(text)
        size += len(text) + 1
    if held:
        yield _block(held)


def _block(texts: list[memoryview | bytes]) -> Block:
    stops = np.cumsum([len(t) + 1 for t in texts], dtype=np.int64) - 1
    return Block(b"\n".join([*texts, b""]), np.append(0, stops[:-1] + 1), stops)
