"""Hugging Face datasets: folders written by `save_to_disk`, or hub ids.

Rows go through Arrow tables in the order of the data set; row numbers count from 1. The input of
the step's fingerprint is the data set's own fingerprint. A hub id needs the network unless it is
in the local cache. Cost: one pass over the wanted columns, memory-mapped.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline.errors import DataError, nearest
from foresift.stages.readers._files import File
from foresift.stages.readers._reading import RowReader
from foresift.stages.readers._tables import conform, usable
from foresift.stages.readers._units import BATCH_BYTES, Batch, Piece, Rejects, Unit


@dataclass(frozen=True, kw_only=True)
class Hf(RowReader):
    """Hugging Face data sets, from a folder written by `save_to_disk` or from the hub."""

    name: str | None = None
    """Configuration of a hub data set."""
    split: str = "train"
    """Split; a saved data set without splits has only its one."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""

    def files(self) -> list[File]:
        local = [os.path.abspath(p) if os.path.isdir(p) else p for p in self.paths]
        sizes = {path: int(self._load(path).data.nbytes) for path in sorted(set(local))}
        return [File(path, os.path.basename(path), size) for path, size in sizes.items()]

    def inputs(self) -> list[tuple[str, str]]:
        return [(f.path, str(self._load(f.path)._fingerprint)) for f in self.files()]

    def extra(self, files: list[File]) -> pa.Schema:
        schemas = [(self._load(f.path).features.arrow_schema, f.path) for f in files]
        found = [usable(schema, self.wanted, path, self.columns) for schema, path in schemas]
        return found[0]

    def pieces(self, files: list[File]) -> Iterator[Piece]:
        for file in files:
            rows = len(self._load(file.path))
            shards = max(1, -(-file.size // (self.shard_mb << 20)))
            step = max(1, -(-rows // shards))
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                size = file.size * (stop - start) // rows
                yield Piece(file, size, start, stop, start + 1)

    def batches(self, unit: Unit, rejects: Rejects) -> Iterator[Batch]:
        for piece in unit.pieces:
            assert piece.stop is not None
            names = list(dict.fromkeys(self.wanted.values()))
            rows = self._load(piece.file.path).select_columns(names).with_format("arrow")
            mean = piece.size // max(1, piece.stop - piece.start) + 1
            step = int(max(1, min(4096, BATCH_BYTES // mean)))
            for start in range(piece.start, piece.stop, step):
                table = rows[start : min(start + step, piece.stop)]
                lines = np.arange(start + 1, start + 1 + table.num_rows)
                table = conform(table, self.wanted, unit.extra, piece.file.path)
                yield Batch(piece.file.name, lines, table)

    def _load(self, path: str) -> Any:
        changed = os.stat(path).st_mtime_ns if os.path.isdir(path) else 0
        return _dataset(path, changed, self.name, self.split, self.revision)


@functools.lru_cache(maxsize=8)
def _dataset(path: str, changed: int, name: str | None, split: str, revision: str | None) -> Any:
    import datasets

    try:
        if not os.path.isdir(path):
            return datasets.load_dataset(path, name, split=split, revision=revision)
        found = datasets.load_from_disk(path)
    except (OSError, ValueError, ConnectionError) as error:
        raise DataError(f"no such data set ({error})", where=path) from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(f"no split {split!r}{nearest(split, found)}", where=path)
        return found[split]
    return found
