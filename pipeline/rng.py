"""Randomness that is derived, never carried: a value depends on (seed, id) or (seed, step) alone.

So results do not depend on shard order, worker count or restarts. The hash is the SplitMix64
finaliser (Steele, Lea, Flood 2014) over the two words of an id; exact copies of a document share
their id and therefore their draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from foresift.pipeline.tables import id_words

Floats = npt.NDArray[np.float64]


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The SplitMix64 finaliser: 64 bits that look like chance for any others."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Rng:
    """A source of draws keyed by a seed and a path of names: `Rng(0).at("round", 1)`."""

    seed: int
    path: tuple[str, ...] = ()

    def at(self, *names: str | int) -> Rng:
        """The source for a place below this one."""
        return Rng(self.seed, (*self.path, *(str(n) for n in names)))

    @property
    def key(self) -> int:
        """64 bits that stand for seed and path."""
        return int(xxhash.xxh3_64_intdigest(repr((self.seed, self.path)).encode()))

    def uniform(self, ids: pa.Array | pa.ChunkedArray) -> Floats:
        """One draw from the open interval (0, 1) for each id."""
        words = id_words(ids)
        with np.errstate(over="ignore"):
            mixed = mix(mix(words[:, 0] ^ np.uint64(self.key)) + words[:, 1])
        return (np.right_shift(mixed, np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52

    def gumbel(self, ids: pa.Array | pa.ChunkedArray) -> Floats:
        """One standard Gumbel draw for each id: -log(-log(u))."""
        draws: Floats = -np.log(-np.log(self.uniform(ids)))
        return draws

    def generator(self) -> np.random.Generator:
        """A numpy generator for draws that belong to no id (keyed by seed and path)."""
        return np.random.default_rng(self.key)
