"""The ledger: which document entered which round, shard and optimizer step. Append-only.

    id         the document                 shard   of the data set that was trained on
    round      of the recipe                step    of the training, from 1; null where unknown
    tokens     of it that were trained in this step; null where unknown

While a training goes on, `Log` appends files to a folder, each whole or not at all:

    ledger/000-00000.parquet   attempt 0, first file     ...     001-00004.parquet   attempt 1, ...

What a step trains on is written before a checkpoint of that step is, so no checkpoint holds more
than the ledger says. An attempt that goes on from the checkpoint of step s (`after`) makes void
what earlier attempts wrote of later steps: those weights died with their process. Nothing is
edited; a reader leaves the void rows out. `Log.seal` puts what counts into one file at the end.

Size: about 18 bytes an exposure, of which the id is 16. Cost of `find`: one read of the ids.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline.errors import DataError, StoreError
from foresift.pipeline.store import ShardWriter, shard_facts
from foresift.pipeline.tables import ID, id_words

SCHEMA = pa.schema(
    [
        ("id", ID),
        ("round", pa.int32()),
        ("shard", pa.int32()),
        ("step", pa.int32()),
        ("tokens", pa.int32()),
    ]
)
#: of a training that is done, and of one that goes on or died
FILE, FOLDER = "ledger.parquet", "ledger"
#: rows kept in memory until a file of the log is written
BUFFER = 1 << 16
Bools = npt.NDArray[np.bool_]
Row = tuple[bytes, int, int, int | None, int | None]


class Log:
    """Appends exposures to a folder; `flush` before a checkpoint is published."""

    def __init__(self, folder: Path, after: int = 0) -> None:
        """A new attempt, which goes on from the checkpoint of step `after`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.after = folder, after
        self.attempt = max((_attempt(p) + 1 for p in _segments(folder)), default=0)
        self._files = 0
        self._rows: list[Row] = []

    def add(self, rows: Iterable[Row]) -> None:
        """Exposures: (id, round, shard, step, tokens), steps in ascending order."""
        self._rows += rows
        if len(self._rows) >= BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory."""
        if not self._rows and self._files:
            return
        path = self.folder / f"{self.attempt:03d}-{self._files:05d}.parquet"
        with ShardWriter(path, SCHEMA) as writer:
            writer.facts.update({"attempt": self.attempt, "after": self.after})
            writer.write(rows_table(self._rows))
        self._rows, self._files = [], self._files + 1

    def seal(self, path: Path) -> None:
        """Write all that counts to one file and remove the folder."""
        self.flush()
        with ShardWriter(path, SCHEMA) as writer:
            for table in Ledger.open(self.folder).tables():
                writer.write(table)
        shutil.rmtree(self.folder)


def rows_table(rows: Sequence[Row]) -> pa.Table:
    """Exposures as a table."""
    columns: Any = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


@dataclass(frozen=True)
class Ledger:
    """The exposures of one training: files, and the last step of each that counts."""

    files: tuple[tuple[Path, int | None], ...]

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Of a training's directory, of a folder of a `Log`, or of one file."""
        if path.is_file():
            return cls(((path, None),))
        if (path / FILE).exists():
            return cls(((path / FILE, None),))
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        found = _segments(folder)
        if not found:
            raise DataError("no ledger here (ledger.parquet, or files of one)", where=str(path))
        bounds = _bounds(found)
        return cls(tuple((file, bounds[_attempt(file)]) for file in found))

    def tables(self, columns: Sequence[str] = tuple(SCHEMA.names)) -> Iterator[pa.Table]:
        """What counts, in the order in which it was trained."""
        for path, bound in self.files:
            names = list(dict.fromkeys([*columns, *(["step"] if bound is not None else [])]))
            with _opened(path) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=names)
                    if bound is not None:
                        table = table.filter(pc.less_equal(table["step"], bound))
                    yield table.select(list(columns))

    def table(self) -> pa.Table:
        """All exposures that count."""
        return pa.concat_tables([SCHEMA.empty_table(), *self.tables()])

    def find(self, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
        """The exposures of some documents, in the order in which they were trained."""
        wanted = id_words(ids)
        found = [SCHEMA.empty_table()]
        for path, bound in self.files:
            with _opened(path) as file:
                for group in range(file.num_row_groups):
                    here = among(file.read_row_group(group, columns=["id"])["id"], wanted)
                    if here.any():
                        rows = file.read_row_group(group, columns=SCHEMA.names)
                        rows = rows.take(pa.array(np.flatnonzero(here)))
                        if bound is not None:
                            rows = rows.filter(pc.less_equal(rows["step"], bound))
                        found.append(rows)
        return pa.concat_tables(found)


def among(ids: pa.Array | pa.ChunkedArray, words: npt.NDArray[np.uint64]) -> Bools:
    """[n] whether each id is one of those whose two words are given, [m, 2]."""
    mine = id_words(ids)
    here: Bools = np.isin(mine[:, 0], words[:, 0])
    at = np.flatnonzero(here)
    pairs = np.dtype([("high", "<u8"), ("low", "<u8")])
    left = np.ascontiguousarray(mine[at]).view(pairs).ravel()
    here[at] = np.isin(left, np.ascontiguousarray(words).view(pairs).ravel())
    return here


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9][0-9]-*.parquet"))


def _attempt(path: Path) -> int:
    return int(path.name.split("-")[0])


def _bounds(files: Sequence[Path]) -> dict[int, int | None]:
    """Attempt -> the last step of it that a later attempt did not make void."""
    after = {_attempt(path): int(shard_facts(path)["after"]) for path in files}
    return {a: min((s for b, s in after.items() if b > a), default=None) for a in after}


def _opened(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"no ledger can be read here ({error})", where=str(path)) from error
    absent = sorted(set(SCHEMA.names) - set(file.schema_arrow.names))
    if absent:
        file.close()
        raise StoreError(f"a ledger has the column {absent[0]}", where=str(path))
    return file
