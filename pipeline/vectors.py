"""Columns of vectors: gathered row by row, so that a table larger than memory can lie in a file.

    unit(v)_i = v_i / |v_i|     in float64, stored as float32; NaN where there is no direction

A row has no direction where there is no vector, a component is not finite, or the length is 0.
Memory holds two numbers a row and the rows asked for; the vectors themselves stay where they are,
in the table or in the file that `spooled` wrote and mapped into memory. Cost: one pass for norms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.errors import DataError
from foresift.pipeline.tables import ID, first_copies, id_words

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
BLOCK = 1 << 14


def unit(vectors: npt.NDArray[Any]) -> Floats:
    """Each row over its L2 norm, in float64; NaN where there is no direction."""
    wide = vectors.astype(np.float64)
    norms = _norms(wide)
    norms[~(np.isfinite(norms) & (norms > 0))] = np.nan
    with np.errstate(invalid="ignore"):
        scaled: Floats = wide / norms[:, None]
    return scaled


def _norms(wide: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        norms: Floats = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return norms


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of a column, by row number."""

    width: int
    rows: int
    _chunks: tuple[_Chunk, ...]
    _bounds: Rows
    """First row of each chunk, and the number of rows."""
    _norms: Floats = field(repr=False)
    """[rows] length of each vector; NaN where there is none."""

    @classmethod
    def of(cls, table: pa.Table, name: str) -> Vectors:
        """A column of lists of floats; DataError where it is another kind or of several widths."""
        column = table[name]
        width = vector_width(column, name)
        chunks = tuple(_Chunk.of(chunk, width) for chunk in column.chunks)
        bounds = np.cumsum([0, *(len(c.starts) for c in chunks)]).astype(np.int64)
        norms = [chunk.norms(width) for chunk in chunks]
        return cls(width, len(column), chunks, bounds, np.concatenate([np.empty(0), *norms]))

    @property
    def valid(self) -> Bools:
        """[rows] whether a row has a direction."""
        found: Bools = np.isfinite(self._norms) & (self._norms > 0)
        return found

    @property
    def missing(self) -> int:
        """Rows without a vector, or with one that is not finite."""
        return int((~np.isfinite(self._norms)).sum())

    @property
    def zero(self) -> int:
        """Rows whose vector has no length."""
        return int((self._norms == 0).sum())

    def raw(self, rows: npt.ArrayLike) -> Matrix:
        """[k, width] vectors as they are; NaN where there is none."""
        wanted = np.asarray(rows, dtype=np.int64)
        found = np.full((len(wanted), self.width), np.nan, dtype=np.float32)
        which = np.searchsorted(self._bounds, wanted, side="right") - 1
        for number in np.unique(which):
            mine = np.flatnonzero(which == number)
            chunk = self._chunks[number]
            chunk.gather(wanted[mine] - self._bounds[number], found, mine)
        return found

    def unit(self, rows: npt.ArrayLike) -> Matrix:
        """[k, width] vectors of length 1; NaN where there is no direction."""
        wanted = np.asarray(rows, dtype=np.int64)
        found = self.raw(wanted)
        norms = np.where(self.valid[wanted], self._norms[wanted], np.nan)
        for start in range(0, len(wanted), BLOCK):
            part = slice(start, start + BLOCK)
            found[part] = found[part].astype(np.float64) / norms[part, None]
        return found


@dataclass(frozen=True, eq=False)
class _Chunk:
    """One Arrow array of lists: its flat values, and where each row begins (-1: nowhere)."""

    values: npt.NDArray[Any]
    starts: Rows

    @classmethod
    def of(cls, chunk: Any, width: int) -> _Chunk:
        n = len(chunk)
        if pa.types.is_null(chunk.type) or width == 0:
            return cls(np.empty(0, dtype=np.float32), np.full(n, -1, dtype=np.int64))
        if pa.types.is_fixed_size_list(chunk.type):
            starts = (np.arange(n, dtype=np.int64) + chunk.offset) * width
        else:
            starts = np.asarray(chunk.offsets)[:n].astype(np.int64)
        starts[~chunk.is_valid().to_numpy(zero_copy_only=False)] = -1
        return cls(chunk.values.to_numpy(zero_copy_only=False), starts)

    def norms(self, width: int) -> Floats:
        found = np.full(len(self.starts), np.nan)
        part = np.empty((BLOCK, width), dtype=np.float32)
        rows = np.flatnonzero(self.starts >= 0)
        for at in range(0, len(rows), BLOCK):
            some = rows[at : at + BLOCK]
            self.gather(some, part, np.arange(len(some)))
            found[some] = _norms(part[: len(some)].astype(np.float64))
        return found

    def gather(self, rows: Rows, out: Matrix, places: Rows) -> None:
        """Copy the vectors of `rows` to `out[places]`; rows without one are left alone."""
        have = self.starts[rows] >= 0
        if not have.any():
            return
        starts, places = self.starts[rows[have]], places[have]
        width = out.shape[1]
        if len(self.values) % width == 0 and not (starts % width).any():
            out[places] = self.values.reshape(-1, width)[starts // width]
        else:
            out[places] = self.values[starts[:, None] + np.arange(width)]


def vector_column(values: npt.NDArray[Any]) -> pa.Array:
    """[n, d] numbers as a column of lists of float32; null where a row holds NaN."""
    rows, width = values.shape
    missing = np.isnan(values).any(axis=1)
    bounds = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    flat = pa.array(np.where(missing[:, None], 0, values).astype(np.float32).ravel())
    return pa.ListArray.from_arrays(bounds, flat, mask=pa.array(missing))


def vector_width(column: pa.ChunkedArray, name: str) -> int:
    """The one width of all vectors of a column (0 where there are none)."""
    types, dtype = pa.types, column.type
    if types.is_null(dtype):
        return 0
    nested = types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype)
    if not nested or not types.is_floating(dtype.value_type):
        raise DataError(
            f"vectors are lists of floats, such as `embedding.vector`, not {dtype}", where=name
        )
    widths = pc.unique(pc.list_value_length(column).drop_null()).to_pylist()
    if len(widths) > 1:
        raise DataError(
            f"vectors of {len(widths)} different widths, such as {min(widths)} and {max(widths)}; "
            "give vectors of one model",
            where=name,
        )
    return int(widths[0]) if widths else 0


def unit_vectors(table: pa.Table, name: str, place: Rows) -> Matrix:
    """A column of vectors as [rows, width], each of length 1; NaN where there is no direction.

    Row i comes to `place[i]` (a permutation). All of it lies in memory.
    """
    vectors = Vectors.of(table, name)
    found = np.empty((vectors.rows, vectors.width), dtype=np.float32)
    for start in range(0, vectors.rows, BLOCK):
        rows = np.arange(start, min(start + BLOCK, vectors.rows))
        found[place[rows]] = vectors.unit(rows)
    return found


@dataclass(frozen=True, eq=False)
class Documents:
    """The distinct documents of a table that have a direction, in the order of their ids.

    Exact copies share an id and are seen once, so nothing depends on copies or on row order.
    """

    words: npt.NDArray[np.uint64]
    """[m, 2] ids."""
    rows: Rows
    """[m] row of the table that is taken for each: a copy's first."""
    vectors: Vectors

    @classmethod
    def of(cls, table: pa.Table, name: str, rows: Rows | None = None) -> Documents:
        """The documents of a table (or of some of its rows), with their vectors in `name`."""
        vectors = Vectors.of(table, name)
        alive = np.flatnonzero(vectors.valid)
        if rows is not None:
            alive = np.intersect1d(alive, rows)
        words = id_words(table["id"])[alive]
        order = np.lexsort((words[:, 1], words[:, 0]))  # stable: the first copy stays first
        words = words[order]
        first = first_copies(words)
        return cls(words[first], alive[order][first], vectors)

    def __len__(self) -> int:
        return len(self.rows)

    def unit(self, which: npt.ArrayLike) -> Matrix:
        """[k, width] vectors of length 1 of the documents with these numbers."""
        return self.vectors.unit(self.rows[np.asarray(which, dtype=np.int64)])


def spooled(tables: Iterable[pa.Table], columns: Sequence[str], path: Path) -> pa.Table:
    """Columns of a stream of tables, written to a file once and mapped into memory.

    The file may be removed while the table is in use. Cost: one write and one read of the columns.
    """
    writer, schema = None, None
    with pa.OSFile(str(path), "wb") as sink:
        for table in tables:
            part = table.select(columns)
            if writer is None:
                schema = part.schema
                writer = pa.ipc.new_file(sink, schema)
            writer.write_table(part.cast(schema))
        if writer is None:
            path.unlink()
            types = [ID if name == "id" else pa.null() for name in columns]
            return pa.schema(list(zip(columns, types, strict=True))).empty_table()
        writer.close()
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
