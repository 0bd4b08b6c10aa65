"""Hashes of many pieces of one buffer, and which of many hashes are the same. 64 bits throughout.

Two different pieces of a corpus get the same hash with a chance of about n^2 / 2^65, n of them
being compared; nothing here is meant to stand against texts made to collide.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

#: zero bytes that must stand behind the text of a buffer
PADDING = 8
#: pieces of more bytes are hashed one by one
_LONG = 512
_A, _B, _C = (
    np.uint64(x | 1) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_MASKS = np.array([(1 << 8 * k) - 1 for k in range(9)], dtype=np.uint64)


def mixed(values: Hashes) -> Hashes:
    """The values with every bit of each spread over all 64."""
    values = (values ^ (values >> np.uint64(32))) * _B
    values = (values ^ (values >> np.uint64(29))) * _C
    return values ^ (values >> np.uint64(32))


def range_hashes(buffer: Bytes, starts: Ints, stops: Ints) -> Hashes:
    """[n] the hash of buffer[start:stop] for each pair; PADDING bytes lie behind the last stop."""
    lengths = stops - starts
    loads = np.ndarray((len(buffer) - PADDING + 1,), "<u8", buffer.data, strides=(1,))
    found = mixed(lengths.astype(np.uint64) + _A)
    rows = np.flatnonzero(lengths)
    short = lengths <= _LONG
    at = 0
    if not short.all():
        rows = rows[short[rows]]
    while len(rows):
        left = lengths[rows] - at
        word = loads[starts[rows] + at] & _MASKS[np.minimum(left, 8)]
        folded = (found[rows] ^ word) * _A
        found[rows] = folded ^ (folded >> np.uint64(29))
        at += 8
        rows = rows[left > 8]
    found = mixed(found)
    for row in np.flatnonzero(~short).tolist():
        piece = buffer.data[int(starts[row]) : int(stops[row])]
        found[row] = xxhash.xxh3_64_intdigest(piece)
    return found


class Groups(NamedTuple):
    """Positions that share their key with another one, group by group."""

    members: Ints
    """Positions; ascending within a group."""
    first: npt.NDArray[np.bool_]
    """[members] whether a group begins here."""

    @property
    def starts(self) -> Ints:
        """[groups] where each group begins among the members."""
        return np.flatnonzero(self.first)

    @property
    def sizes(self) -> Ints:
        """[groups] positions of each group."""
        return np.diff(np.append(self.starts, len(self.members)))


def repeated(keys: Hashes) -> Groups:
    """The positions whose key occurs more than once.

    A sort of (upper bits of the key, position) in one number; where two keys share these bits and
    not the others, the full keys are sorted instead.
    """
    count = len(keys)
    mask = np.uint64((1 << max(1, (count - 1).bit_length())) - 1)
    packed = np.sort((keys & ~mask) | np.arange(count, dtype=np.uint64))
    order = (packed & mask).astype(np.int64)
    alike = (packed[1:] ^ packed[:-1]) <= mask
    ranked = keys[order]
    if not np.array_equal(alike, ranked[1:] == ranked[:-1]):
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        alike = ranked[1:] == ranked[:-1]
    after = np.append(False, alike)[:count]
    member = after | np.append(alike, False)[:count]
    return Groups(order[member], ~after[member])
