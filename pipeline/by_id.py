"""Numbers that a fitted scorer learned about single documents, found again by their id.

    <out>/by_id/ids.npy    [m, 2] ids in ascending order     <out>/by_id/<name>.npy    [m] or [m, d]

The files are mapped into memory: looking up a batch reads what the batch needs. Cost: a binary
search an id. An id that is not there gets NaN (floats), -1 (integers) or False.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.tables import id_words

_FOLDER = "by_id"


def write_by_id(
    out: Path, words: npt.NDArray[np.uint64], arrays: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Store arrays with one entry a document; `words` are distinct ids, ascending (`Documents`)."""
    folder = out / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "ids.npy", words, allow_pickle=False)
    for name, values in arrays.items():
        assert len(values) == len(words), f"{name}: {len(values)} values for {len(words)} ids"
        np.save(folder / f"{name}.npy", np.ascontiguousarray(values), allow_pickle=False)


def read_by_id(out: Path, ids: pa.Array | pa.ChunkedArray) -> dict[str, npt.NDArray[Any]]:
    """The stored numbers of these ids, in their order."""
    folder = out / _FOLDER
    known = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
    place = _places(known, id_words(ids))
    found = {}
    for path in sorted(folder.glob("*.npy")):
        if path.stem == "ids":
            continue
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        values = np.full((len(place), *stored.shape[1:]), _nothing(stored.dtype), stored.dtype)
        values[place >= 0] = stored[place[place >= 0]]
        found[path.stem] = values
    return found


def _nothing(dtype: np.dtype[Any]) -> Any:
    return {"f": np.nan, "i": -1, "b": False}[dtype.kind]


def _places(known: npt.NDArray[np.uint64], wanted: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The position of each wanted id among the known ones, -1 where it is not there."""
    first = np.ascontiguousarray(known[:, 0])
    place = np.searchsorted(first, wanted[:, 0]).astype(np.int64)
    end = np.searchsorted(first, wanted[:, 0], side="right")
    same = np.full(len(wanted), -1, dtype=np.int64)
    while (open_ := (same < 0) & (place < end)).any():  # once, but for ids that share a word
        rows = np.flatnonzero(open_)
        hit = known[place[rows], 1] == wanted[rows, 1]
        same[rows[hit]] = place[rows[hit]]
        place[rows] += 1
    return same
