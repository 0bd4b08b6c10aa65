"""Which candidate pairs agree in enough minima of their signatures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from foresift.pipeline.normal_text import Ints

_PAIRS = 1 << 14


def verified(pairs: Ints, shards: Sequence[Path], slots: int, threshold: float) -> Ints:
    """The pairs that agree in at least `threshold` of their `slots` minima.

    `shards` hold the minima of all rows in order; only those of rows in pairs are kept in memory.
    """
    pairs = np.unique(pairs, axis=0)
    rows, ends = np.unique(pairs, return_inverse=True)
    ends = ends.reshape(-1, 2)
    minima = _minima(rows, shards, slots)
    least = math.ceil(threshold * slots - 1e-9)
    good = np.zeros(len(pairs), dtype=np.bool_)
    for at in range(0, len(pairs), _PAIRS):
        left, right = ends[at : at + _PAIRS].T
        good[at : at + _PAIRS] = (minima[left] == minima[right]).sum(axis=1) >= least
    return pairs[good]


def _minima(rows: Ints, shards: Sequence[Path], slots: int) -> npt.NDArray[np.uint32]:
    """[rows, slots] minima of the rows given (ascending)."""
    found = [np.empty((0, slots), dtype=np.uint32)]
    start = 0
    for path in shards:
        with pq.ParquetFile(path) as file:
            stop = start + file.metadata.num_rows
            here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
            if len(here):
                column = file.read(columns=["minima"])["minima"].take(here).to_pylist()
                found.append(np.frombuffer(b"".join(column), dtype="<u4").reshape(-1, slots))
        start = stop
    return np.concatenate(found)
