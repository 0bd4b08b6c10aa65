"""The longest common subsequence of two sequences: its length.

Cost: |a| |b| / 64 steps, bit-parallel (Hyyrö 2004).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def common(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence."""
    if len(a) > len(b):
        a, b = b, a
    places: dict[Hashable, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        met = row & places.get(word, 0)
        if met:
            row = (row + met | row - met) & full
    return len(a) - row.bit_count()
