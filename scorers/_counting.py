"""How often each of many 64-bit keys came, counted in chunks: 16 bytes a distinct key."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
#: keys held back before they are counted together
_TOGETHER = 1 << 20


@dataclass
class Counts:
    """How often each key came, counted in chunks."""

    _waiting: list[Keys] = field(default_factory=list)
    _size: int = 0
    _keys: Keys = field(default_factory=lambda: np.empty(0, np.uint64))
    _counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def add(self, keys: Keys) -> None:
        """Count each of these once more."""
        self._waiting.append(keys)
        self._size += len(keys)
        if self._size > max(_TOGETHER, len(self._keys)):
            self._merge()

    def _merge(self) -> None:
        every = np.concatenate([self._keys, *self._waiting])
        ones = np.ones(len(every) - len(self._keys), dtype=np.int64)
        keys, place = np.unique(every, return_inverse=True)
        weights = np.concatenate([self._counts, ones])
        self._counts = np.bincount(place.reshape(-1), weights, len(keys)).astype(np.int64)
        self._keys, self._waiting, self._size = keys, [], 0

    def total(self) -> tuple[Keys, npt.NDArray[np.int64]]:
        """(distinct keys, ascending; how often each came)."""
        self._merge()
        return self._keys, self._counts
