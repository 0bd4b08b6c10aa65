"""What counting copies keeps on disk while it looks, and how rows become documents and clusters.

A document is an id; `weight` is how many rows have it. Documents stand in ascending order of their
ids, so nothing depends on the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import xxhash

from foresift.pipeline.components import Ints, Keys, bucket_pairs, find_clusters
from foresift.pipeline.normal_text import Words
from foresift.pipeline.tables import first_copies

#: files that the hashes of passages are parted into; one of them lies in memory at a time
PARTS = 64
_SHIFT = np.uint64(58)


def plain_keys(ids: Keys, plain: Words) -> Keys:
    """[documents, 2] 128 bits of each plain form; where that is empty the id stands for it."""
    keys = ids.copy()
    for number in np.flatnonzero(np.diff(plain.offsets)).tolist():
        digest = xxhash.xxh3_128_digest(plain.text(number))
        keys[number] = np.frombuffer(digest, dtype="<u8")
    return keys


@dataclass
class Spool:
    """Rows of numbers in files: appended to while looking, mapped into memory afterwards."""

    folder: Path
    bands: int

    def __enter__(self) -> Spool:
        names = ["ids", "plain", "bands", *(f"passages-{part}" for part in range(PARTS))]
        self._files: dict[str, IO[bytes]] = {n: (self.folder / n).open("wb") for n in names}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for file in self._files.values():
            file.close()

    def add(self, name: str, values: Keys) -> None:
        """Append rows of `ids`, `plain` or `bands`."""
        self._files[name].write(np.ascontiguousarray(values, dtype="<u8").tobytes())

    def add_passages(self, hashes: Keys, rows: Ints) -> None:
        """Append pairs of the hash of a passage and the row that has it."""
        part = (hashes >> _SHIFT).astype(np.int64)
        pairs = np.stack([hashes, rows.astype(np.uint64)], axis=1)
        for number in np.unique(part).tolist():
            self.add(f"passages-{number}", pairs[part == number])

    def read(self, name: str, width: int) -> Keys:
        """[rows, width] what was appended."""
        path = self.folder / name
        if not path.stat().st_size:
            return np.empty((0, width), dtype=np.uint64)
        return np.memmap(path, dtype="<u8", mode="r").reshape(-1, width)

    def passages(self) -> Iterator[Keys]:
        """[m, 2] (hash, row), one file after the other; equal hashes lie in one of them."""
        for part in range(PARTS):
            yield self.read(f"passages-{part}", 2)


@dataclass(frozen=True)
class Documents:
    """Distinct documents of a stream of rows."""

    words: Keys
    """[documents, 2] ids, ascending."""
    rows: Ints
    """One row of each."""
    of_row: Ints
    """[rows] the document of each row."""
    weight: Ints
    """Rows of each."""

    @classmethod
    def of(cls, ids: Keys) -> Documents:
        order = np.lexsort((ids[:, 1], ids[:, 0]))
        ranked = np.ascontiguousarray(ids[order])
        fresh = first_copies(ranked)
        number = np.cumsum(fresh) - 1
        of_row = np.empty(len(order), dtype=np.int64)
        of_row[order] = number
        weight = np.bincount(number, minlength=int(fresh.sum())).astype(np.int64)
        return cls(ranked[fresh], order[fresh].astype(np.int64), of_row, weight)


def equal(keys: Keys, weight: Ints) -> Ints:
    """[documents] rows of other documents, and other rows of its own, that have the same key."""
    _, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.reshape(-1)
    sizes = np.bincount(group, weight, minlength=1).astype(np.int64)
    return np.asarray(sizes[group] - 1, dtype=np.int64)


def clustered(keys: Iterable[Keys], weight: Ints) -> tuple[Ints, Ints]:
    """(rows of its cluster - 1, the first document of its cluster) of each document.

    Documents that share one of the keys are of one cluster.
    """
    pairs = np.concatenate([bucket_pairs(k) for k in keys])
    found = find_clusters(pairs, np.zeros(len(weight)))
    kept = np.arange(len(weight))
    kept[found.rows] = found.kept
    sizes = np.bincount(kept, weight, minlength=1).astype(np.int64)
    return sizes[kept] - 1, kept
