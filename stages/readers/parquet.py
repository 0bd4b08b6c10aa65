"""Parquet files, local or remote; what already has what is needed is used in place.

A unit is a run of row groups of one file, or several small files together. If the file is local,
its content columns are strings (or turns of role and content) and no row of the unit is bad, the
shard holds the BASE and extra columns only and points at the content:

    facts["content"] = {path, row_groups: [first, last + 1] or null, rename: [[theirs, ours], ...]}

Otherwise the content is copied. Either way ids and everything derived from them are the same.
Cost: one pass over the wanted columns; a bad row found in place makes that unit start again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.corpus import batch_rows
from foresift.pipeline.errors import DataError
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import CONTENT
from foresift.stages.readers._files import File, open_raw
from foresift.stages.readers._reading import RowReader, files_of
from foresift.stages.readers._tables import conform, usable
from foresift.stages.readers._units import Batch, Piece, Rejects, Unit

#: a file smaller than this share of a shard is copied together with its neighbours
SMALL_SHARE = 16


@dataclass(frozen=True, kw_only=True)
class Parquet(RowReader):
    """Parquet files, used in place where they are local and clean."""

    in_place: bool = True
    """Leave the text of local files where it is and write ids and counts only."""

    def files(self) -> list[File]:
        return files_of(self, (".parquet", ".pq"))

    def extra(self, files: list[File]) -> pa.Schema:
        return usable(_schema(files[0]), self.wanted, files[0].path, self.columns)

    def pieces(self, files: list[File]) -> Iterator[Piece]:
        for file in files:
            with _open(file) as parquet:
                usable(parquet.schema_arrow, self.wanted, file.path, self.columns)
                yield from _stretches(file, parquet.metadata, self.shard_mb << 20)

    def alone(self, piece: Piece) -> bool:
        size = self.shard_mb << 20
        return self.in_place and piece.file.local and piece.size * SMALL_SHARE > size

    def place(self, unit: Unit) -> Facts | None:
        piece = unit.pieces[0]
        if not self.in_place or len(unit.pieces) > 1 or not piece.file.local:
            return None
        with _open(piece.file) as parquet:
            schema, groups = parquet.schema_arrow, parquet.num_row_groups
        if not all(_same(schema.field(theirs).type, ours) for ours, theirs in self.fields.items()):
            return None
        whole = (piece.start, piece.stop) == (0, groups)
        return {
            "path": os.path.abspath(piece.file.path),
            "row_groups": None if whole else [piece.start, piece.stop],
            "rename": [[theirs, ours] for ours, theirs in self.fields.items()],
        }

    def batches(self, unit: Unit, rejects: Rejects) -> Iterator[Batch]:
        for piece in unit.pieces:
            assert piece.stop is not None
            names = list(dict.fromkeys(self.wanted.values()))
            groups, line = list(range(piece.start, piece.stop)), piece.line
            with _open(piece.file) as parquet:
                size = batch_rows(parquet, groups)
                batches = parquet.iter_batches(size, row_groups=groups, columns=names)
                for batch in _guarded(batches, piece.file):
                    table = pa.Table.from_batches([batch])
                    lines = np.arange(line, line + batch.num_rows)
                    table = conform(table, self.wanted, unit.extra, piece.file.path)
                    yield Batch(piece.file.name, lines, table)
                    line += batch.num_rows


def _open(file: File) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file.path if file.local else open_raw(file))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"not a parquet file ({error})", where=file.path) from error


def _schema(file: File) -> pa.Schema:
    with _open(file) as parquet:
        return parquet.schema_arrow


def _guarded(batches: Iterator[Any], file: File) -> Iterator[Any]:
    try:
        yield from batches
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"a damaged parquet file ({error})", where=file.path) from error


def _same(kind: pa.DataType, ours: str) -> bool:
    """Whether a column can be read as it lies."""
    if ours != "messages":
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    return bool(pa.types.is_list(kind) and kind.value_type == CONTENT["messages"].value_type)


def _stretches(file: File, metadata: Any, limit: int) -> Iterator[Piece]:
    """Runs of row groups of at most `limit` bytes, one group at least."""
    start, held, rows, line = 0, 0, 0, 1
    for group in range(metadata.num_row_groups):
        facts = metadata.row_group(group)
        if held and held + facts.total_byte_size > limit:
            yield Piece(file, held, start, group, line)
            line += rows
            start, held, rows = group, 0, 0
        held += facts.total_byte_size
        rows += facts.num_rows
    if held:
        yield Piece(file, held, start, metadata.num_row_groups, line)
