"""Which rows a step may train on: a seeded order that is computed, not stored.

    position in an epoch -> row    a permutation keyed by (seed, epoch), invertible, O(1) memory

The permutation is a Feistel network over the smallest even number of bits that holds n - 1; what
falls outside is sent through again until it falls inside (cycle walking: Black and Rogaway 2002),
at most four times on average. The round function is the SplitMix64 finaliser.

A step takes `of` positions of one epoch. The last n % of positions of an epoch are dropped, so that
the candidates of a step are distinct rows; the permutation of the next epoch is another one, so no
row is left out for good.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foresift.pipeline.errors import DataError
from foresift.pipeline.rng import Rng, mix

Rows = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
ROUNDS = 6


class Permutation:
    """A one-to-one map of 0 .. n-1 onto itself, given by a key."""

    def __init__(self, n: int, key: Rng) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self.n = n
        self.half = max(1, ((n - 1).bit_length() + 1) // 2)
        self.keys = [np.uint64(key.at("round", r).key) for r in range(ROUNDS)]

    def __call__(self, positions: npt.ArrayLike) -> Rows:
        """The row at each position."""
        values = np.asarray(positions, dtype=np.int64)
        if len(values) and not (values.min() >= 0 and values.max() < self.n):
            raise ValueError(f"positions must lie in 0 .. {self.n - 1}")
        found = self._network(values.astype(np.uint64))
        while (outside := found >= np.uint64(self.n)).any():
            found[outside] = self._network(found[outside])
        return found.astype(np.int64)

    def _network(self, values: Words) -> Words:
        half, mask = np.uint64(self.half), np.uint64((1 << self.half) - 1)
        left, right = values >> half, values & mask
        with np.errstate(over="ignore"):
            for key in self.keys:
                left, right = right, left ^ (mix(right + key) & mask)
        joined: Words = (left << half) | right
        return joined


class CandidateOrder:
    """The rows of each step: `of` of n, in an order that the seed alone decides."""

    def __init__(self, n: int, of: int, seed: int) -> None:
        if n < 1:
            raise DataError("the data set has no rows", where="data")
        if of < 1:
            raise DataError(f"at least 1 candidate a step is needed, got {of}", where="of")
        if of > n:
            raise DataError(
                f"{of} candidates a step are more than the {n} rows of the data set", where="of"
            )
        self.n, self.of, self.seed = n, of, seed
        self.steps_per_epoch = n // of
        self._epoch: tuple[int, Permutation] | None = None

    def cursor(self, step: int) -> int:
        """The position in its epoch at which a step begins."""
        return step % self.steps_per_epoch * self.of

    def rows(self, step: int) -> Rows:
        """[of] row numbers of the candidates of a step, steps counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            key = Rng(self.seed).at("candidates", epoch)
            self._epoch = (epoch, Permutation(self.n, key))
        start = within * self.of
        return self._epoch[1](np.arange(start, start + self.of))
