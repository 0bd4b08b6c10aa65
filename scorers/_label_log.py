"""Predictions of every epoch, from a trainer's log, and the targets of early learning.

A log is a parquet file, or a folder of them (one an epoch, or a process), in any order of rows:

    id             binary(16) or string of 32 hexadecimal digits: the corpus's id of the document
    epoch          integer, or step: ascending is later
    probabilities  list<float>, one a label, or
    loss           float, nats: -ln of the probability of the label that was trained on

    p     = clamp(probabilities, 1e-4, 1 - 1e-4)          pbar = p / sum p
    t     <- beta t + (1 - beta) pbar,  t = 0 before the first epoch of a document
    ELR's regulariser = weight mean_i ln(1 - <t_i, p_i>)   <= 0; smaller where p agrees with t

Several rows of a document in an epoch (augmentation, or a plan that repeats) count as their mean.
With losses p is exp(-loss), the probability of the given label alone. Memory: one epoch, and t.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import xxhash

from foresift.pipeline.errors import DataError, nearest
from foresift.pipeline.tables import ID, id_words
from foresift.pipeline.vectors import Vectors, vector_width
from foresift.scorers._label_samples import Words

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
CLAMP = 1e-4
KINDS = ("probabilities", "loss")
BLOCK = 1 << 22


def clamped(p: Floats) -> Floats:
    """Probabilities kept away from 0 and 1."""
    return np.clip(p, CLAMP, 1 - CLAMP)


def updated(target: Floats, p: Floats, beta: float) -> Floats:
    """[n, K] targets after an epoch with these probabilities."""
    inside = clamped(p)
    found: Floats = beta * target + (1 - beta) * inside / inside.sum(axis=1, keepdims=True)
    return found


def regulariser(target: Floats, p: Floats, weight: float = 1.0) -> float:
    """ELR's term beside the cross-entropy: larger agreement, smaller loss."""
    return float(weight * np.log(1 - (target * clamped(p)).sum(axis=1)).mean())


class EpochLog:
    """A log on disk; refuses what is none when it is opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._data = ds.dataset(path, format="parquet")
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"cannot be read as a log: {error}", where=path) from error
        have = self._data.schema.names
        for name in ("id", "epoch"):
            if name not in have:
                raise DataError(f"has no column {name!r}{nearest(name, have)}", where=path)
        kinds = [kind for kind in KINDS if kind in have]
        if not kinds:
            raise DataError("has neither `probabilities` nor `loss`", where=path)
        self.kind = kinds[0]
        if not pa.types.is_integer(self._data.schema.field("epoch").type):
            raise DataError("`epoch` is a whole number", where=path)

    @functools.cached_property
    def epochs(self) -> list[int]:
        """Epochs that are there, ascending."""
        column = self._data.to_table(columns=["epoch"])["epoch"]
        found: list[int] = sorted(pc.unique(column).drop_null().to_pylist())
        if not found:
            raise DataError("has no epoch", where=self.path)
        return found

    @functools.cached_property
    def width(self) -> int:
        """Probabilities a row, 1 for losses."""
        if self.kind == "loss":
            return 1
        width = 0
        for batch in self._data.to_batches(columns=[self.kind]):
            if batch.num_rows and not width:
                width = vector_width(pa.chunked_array([batch.column(0)]), self.kind)
        return width

    def epoch(self, number: int, place: Any, documents: int) -> tuple[Floats, Rows]:
        """([documents, width] mean probabilities of an epoch, how many rows they are of).

        place   ids -> numbers of documents, -1 for others
        """
        sums, counts = np.zeros((documents, self.width)), np.zeros(documents, dtype=np.int64)
        for table in self._tables(number):
            values = self._values(table)
            at = place(_ids(table["id"], self.path))
            good = (at >= 0) & np.isfinite(values).all(axis=1)
            np.add.at(sums, at[good], values[good])
            counts += np.bincount(at[good], minlength=documents)
        return sums / np.maximum(counts, 1)[:, None], counts

    def _tables(self, number: int) -> Iterator[pa.Table]:
        wanted = ["id", self.kind]
        rows = max(1, BLOCK // self.width)
        scanned = self._data.scanner(
            columns=wanted, filter=ds.field("epoch") == number, batch_size=rows
        )
        for batch in scanned.to_batches():
            if batch.num_rows:
                yield pa.Table.from_batches([batch]).filter(pc.is_valid(batch.column(0)))

    def _values(self, table: pa.Table) -> Floats:
        """[n, width] probabilities of rows; NaN where there are none."""
        if self.kind == "loss":
            losses = np.asarray(table["loss"].cast(pa.float64()).fill_null(np.nan))
            return np.exp(-np.where(losses < 0, np.nan, losses))[:, None]
        vectors = Vectors.of(table, self.kind)
        if vectors.width not in (0, self.width):
            raise DataError(
                f"{vectors.width} probabilities a row where others have {self.width}",
                where=self.path,
            )
        if vectors.width == 0:
            return np.full((table.num_rows, self.width), np.nan)
        found: Floats = vectors.raw(np.arange(vectors.rows)).astype(np.float64)
        return np.where((found < 0) | (found > 1 + 1e-6), np.nan, found)


def _ids(column: Any, where: str) -> Words:
    """Ids as words; strings are read as hexadecimal digits."""
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            raw = [bytes.fromhex(text) for text in column.to_pylist()]
            column = pa.chunked_array([pa.array(raw, pa.binary())])
        return id_words(column.cast(ID))
    except (ValueError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"`id` is no id of a document: {error}", where=where) from error


def contents(path: str) -> str:
    """A digest of a log, read again where a file of it changed; empty where there is none."""
    base = Path(path)
    files = sorted(base.rglob("*.parquet")) if base.is_dir() else [base]
    stamps = tuple((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.exists())
    return _digest(stamps)


@functools.lru_cache(maxsize=64)
def _digest(stamps: tuple[tuple[str, int, int], ...]) -> str:
    hasher = xxhash.xxh3_128()
    for name, _, _ in stamps:
        with open(name, "rb") as file:
            while piece := file.read(1 << 20):
                hasher.update(piece)
    return str(hasher.hexdigest())
