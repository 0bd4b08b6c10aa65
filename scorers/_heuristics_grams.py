"""How much of each document its repeated rows of words make up, counted in characters.

    top n        length of the most frequent row of n words x how often it occurs; of equally
                 frequent ones the first; length with a space between words
    repeated n   a scan from the left: a row of n words that was met before counts with its length
                 (without spaces), and the scan goes on behind it; else it goes on one word later.
                 Only rows where the scan stood count as met

A row of n + 1 words occurs twice only where its first n words do, and its last n: each size looks
at what the size before left over, so that only pairs of words are sorted in full. The scan is the
one loop in Python, over places whose row occurs twice. Rows are compared by hash, word by word
(datatrove joins the words of a scanned row without spaces, so "ab c" is "a bc" there).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foresift.scorers._words_hash import Groups, Hashes, Ints, mixed, repeated

TOP = (2, 3, 4)
SCANNED = (5, 6, 7, 8, 9, 10)
_STEP = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Grams:
    """Rows of words of a block; document d has the words offsets[d] to offsets[d + 1]."""

    hash: Hashes
    length: npt.NDArray[np.int32]
    offsets: Ints

    def characters(self) -> tuple[dict[int, Ints], dict[int, Ints]]:
        """Size -> [documents] characters: of the top row, and of repeated rows."""
        counts = np.diff(self.offsets)
        documents = np.repeat(np.arange(len(counts)), counts)
        left = np.repeat(self.offsets[1:], counts) - np.arange(len(documents))
        before = np.append(0, np.cumsum(self.length, dtype=np.int64))
        places = np.arange(len(documents))
        keys = mixed(documents.astype(np.uint64)) + self.hash
        twice = np.ones(len(documents) + 1, dtype=np.bool_)
        top, scanned = {}, {}
        for size in range(2, max(SCANNED) + 1):
            chosen = twice[places + 1] & (left[places] >= size)
            places = places[chosen]
            keys = keys[chosen] * _STEP + self.hash[places + size - 1]
            groups = repeated(keys)
            if size in TOP:
                firsts, sizes = self._most_frequent(places[groups.members], groups, documents, size)
                ends = np.minimum(firsts + size, len(documents))
                lengths = before[ends] - before[firsts] + size - 1
                top[size] = np.where(counts >= size, lengths * sizes, 0)
            kept = np.sort(groups.members)
            if size in SCANNED:
                hits = _scan(places, groups, size)
                characters = np.append(0, np.cumsum(before[hits + size] - before[hits]))
                scanned[size] = np.diff(characters[np.searchsorted(hits, self.offsets)])
            twice[:] = False
            twice[places[kept]] = True
            places, keys = places[kept], keys[kept]
        return top, scanned

    def _most_frequent(
        self, members: Ints, groups: Groups, documents: Ints, size: int
    ) -> tuple[Ints, Ints]:
        """[documents] where the most frequent row stands first, and how often it occurs."""
        count = len(self.offsets) - 1
        firsts = members[groups.starts]
        weight = len(self.hash) + 1
        best = np.zeros(count, dtype=np.int64)
        np.maximum.at(best, documents[firsts], groups.sizes * weight - firsts)
        often = -(-best // weight)
        firsts = np.where(often > 1, often * weight - best, self.offsets[:-1])
        return firsts, np.maximum(often, 1)


def _scan(places: Ints, groups: Groups, size: int) -> Ints:
    """Where the scan of rows of this size meets one again.

    A later row of a group is met again unless the scan left out all earlier ones; it left out what
    lies behind a hit. So the loop is over later rows only, and asks for the first of the group.
    """
    later = np.flatnonzero(~groups.first)
    rows = places[groups.members[later]]
    order = np.argsort(rows)
    rows = rows[order]
    number = (np.cumsum(groups.first) - 1)[later][order]
    firsts = places[groups.members[groups.starts]][number]
    met = bytearray(len(groups.members))
    left_out = bytearray(int(rows[-1]) + size if len(rows) else 0)
    gap = b"\1" * (size - 1)
    found, free = [], 0
    for row, group, first in zip(rows.tolist(), number.tolist(), firsts.tolist(), strict=True):
        if row < free:
            continue
        if met[group] or not left_out[first]:
            found.append(row)
            free = row + size
            left_out[row + 1 : free] = gap
        met[group] = 1
    return np.array(found, dtype=np.int64)
