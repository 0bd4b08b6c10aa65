"""The ledger: which document entered which round, shard and optimizer step. Append-only.

    id         the document                 shard   of the data set that was trained on
    round      of the recipe                step    of the training, from 1
    tokens     of it that were trained in this step

Round, shard and tokens are null in a training that chose its rows as it went (`stream_ledger.py`);
step and tokens are null where a command of the user's did not say.

While a training goes on, `Log` appends files to a folder, each whole or not at all:

    ledger/000-00000.parquet   attempt 0, first file     ...     001-00004.parquet   attempt 1, ...

What a step trains on is written before a checkpoint of that step is, so no checkpoint holds more
than the ledger says. An attempt that goes on from the checkpoint of step s (`after`) makes void
what earlier attempts wrote of later steps: those weights died with their process. Nothing is
edited; a reader leaves the void rows out. `Log.seal` puts what counts into one file at the end,
which is the same whatever was interrupted.

Size: about 18 bytes an exposure, of which the id is 16. Cost of `find`: one read of the ids, and of
the rest where they are; memory of the row groups that are looked through at once.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from foresift.pipeline.errors import DataError, StoreError
from foresift.pipeline.store import ShardWriter, StepDir, shard_facts, temporary
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
#: rows kept in memory until a file of the log is written, and rows of a row group when sealed
BUFFER, GROUP = 1 << 16, 1 << 18
#: row groups looked through at once, and ids of each
THREADS, BLOCK = 4, 1 << 15
_NAME = re.compile(r"(\d{3,})-(\d{5,})\.parquet")
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]
Row = tuple[bytes, int | None, int | None, int | None, int | None]


class Log:
    """Appends exposures to a folder; `flush` before a checkpoint is published."""

    def __init__(self, folder: Path, after: int = 0) -> None:
        """A new attempt, which goes on from the checkpoint of step `after`; it is on disk at once.

        So what earlier attempts wrote of later steps is void from here on.
        """
        self.folder, self.after = folder, after
        self.attempt = max((_attempt(p) + 1 for p in _segments(folder)), default=0)
        self._files: list[Path] = []
        self._rows: list[Row] = []
        self.flush()

    def add(self, rows: Iterable[Row]) -> None:
        """Exposures: (id, round, shard, step, tokens), steps in ascending order."""
        self._rows += rows
        if len(self._rows) >= BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory."""
        if not self._rows and self._files:
            return
        path = self.folder / f"{self.attempt:03d}-{len(self._files):05d}.parquet"
        with ShardWriter(path, SCHEMA, plain=["id"]) as writer:
            writer.facts.update({"attempt": self.attempt, "after": self.after})
            writer.write(rows_table(self._rows))
        self._rows = []
        self._files.append(path)

    def seal(self, path: Path) -> None:
        """Write all that counts to one file, in row groups of one size, and remove the folder."""
        self.flush()
        with ShardWriter(path, SCHEMA, plain=["id"]) as writer:
            for table in _regrouped(Ledger.open(self.folder).tables()):
                writer.write(table)
        gone = temporary(self.folder)  # whole or gone: a reader never sees a part of it
        self.folder.rename(gone)
        shutil.rmtree(gone)

    def discard(self) -> None:
        """Take away what this attempt wrote: its weights are gone and no checkpoint holds any."""
        for path in self._files:
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def _regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of GROUP rows, whatever the files were."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        while rows >= GROUP:
            whole = pa.concat_tables(held).combine_chunks()
            yield whole.slice(0, GROUP).combine_chunks()
            held, rows = [whole.slice(GROUP)], rows - GROUP
    if rows:
        yield pa.concat_tables(held).combine_chunks()


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
        """Of a training's directory, of a folder of a `Log`, or of one file.

        Where a directory has a log and a sealed file, the training is being done again, unless
        `stage.json` says that it is over.
        """
        if path.is_file():
            return cls(((path, None),))
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        found = _segments(folder)
        sealed = path / FILE
        if sealed.exists() and (StepDir(path).done or not found):
            return cls(((sealed, None),))
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
        return pa.concat_tables([_nothing(), *self.tables()])

    def find(self, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
        """The exposures of some documents, in the order in which they were trained."""
        wanted = _Wanted(id_words(ids))
        if not len(wanted.pairs):
            return _nothing()
        with ThreadPoolExecutor(THREADS) as pool:
            groups = list(pool.map(_groups, (path for path, _ in self.files)))
            files = zip(self.files, groups, strict=True)
            parts = [(path, bound, group) for (path, bound), n in files for group in range(n)]
            found = list(pool.map(lambda part: _matches(part, wanted), parts))
        return pa.concat_tables([_nothing(), *found])


def document_id(name: str) -> bytes:
    """The 16 bytes that stand for a document in a ledger: those that 32 hex digits spell, else the
    128-bit hash (xxh3) of the name."""
    if re.fullmatch(r"[0-9a-f]{32}", name):
        return bytes.fromhex(name)
    return xxhash.xxh3_128_digest(name.encode())


def among(ids: pa.Array | pa.ChunkedArray, words: Words) -> Bools:
    """[n] whether each id is one of those whose two words are given, [m, 2]."""
    return _Wanted(words).among(id_words(ids))


class _Wanted:
    """Ids to look for: a table of the top bits of a 64-bit key leaves few to compare in full."""

    def __init__(self, words: Words) -> None:
        self.pairs = _pairs(words)
        self.keys = np.unique(_keys(words))
        bits = min(24, max(16, len(words).bit_length() + 8))
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(1 << bits, dtype=np.bool_)
        self.table[self.keys >> self.shift] = True

    def among(self, words: Words) -> Bools:
        """[n] whether each id is wanted; as many at a time as stay in the cache."""
        here = np.zeros(len(words), dtype=np.bool_)
        if len(self.keys):
            for start in range(0, len(words), BLOCK):
                here[start + self._places(words[start : start + BLOCK])] = True
        return here

    def _places(self, words: Words) -> npt.NDArray[np.intp]:
        """Which of some ids are wanted."""
        keys = _keys(words)
        at = np.flatnonzero(self.table[keys >> self.shift])
        if len(at):
            place = np.minimum(np.searchsorted(self.keys, keys[at]), len(self.keys) - 1)
            at = at[self.keys[place] == keys[at]]
        if len(at):
            at = at[np.isin(_pairs(words[at]), self.pairs)]
        return at


def _keys(words: Words) -> Words:
    """[n] 64 bits for two words, of which the upper ones differ (Fibonacci hashing)."""
    keys: Words = words[:, 0] ^ (words[:, 1] << np.uint64(1))
    keys *= np.uint64(0x9E3779B97F4A7C15)
    return keys


def _pairs(words: Words) -> npt.NDArray[np.void]:
    kind = np.dtype([("high", "<u8"), ("low", "<u8")])
    return np.ascontiguousarray(words).view(kind).ravel()


def _nothing() -> pa.Table:
    """No exposure. (Like pa.array of numpy, `SCHEMA.empty_table` would import pandas.)"""
    return pa.Table.from_batches([], schema=SCHEMA)


def _matches(part: tuple[Path, int | None, int], wanted: _Wanted) -> pa.Table:
    """What one row group (file, last step of it that counts, number) says of the wanted ids."""
    path, bound, group = part
    with _opened(path) as file:
        ids = file.read_row_group(group, columns=["id"])["id"]
        at = np.flatnonzero(wanted.among(id_words(ids)))
        if not len(at):
            return _nothing()
        rest = file.read_row_group(group, columns=SCHEMA.names[1:])
    rows = rest.add_column(0, SCHEMA.field("id"), ids)
    rows = rows.take(pa.Array.from_buffers(pa.int64(), len(at), [None, pa.py_buffer(at)]))
    return rows if bound is None else rows.filter(pc.less_equal(rows["step"], bound))


def _groups(path: Path) -> int:
    with _opened(path) as file:
        return int(file.num_row_groups)


def _segments(folder: Path) -> list[Path]:
    """The files of a log, in the order in which they were written."""
    named = [(_NAME.fullmatch(path.name), path) for path in folder.glob("*-*.parquet")]
    found = [(int(name[1]), int(name[2]), path) for name, path in named if name]
    return [path for _, _, path in sorted(found)]


def _attempt(path: Path) -> int:
    return int(path.name.split("-")[0])


def _bounds(files: Sequence[Path]) -> dict[int, int | None]:
    """Attempt -> the last step of it that a later attempt did not make void."""
    first = {_attempt(path): path for path in reversed(files)}
    after = {attempt: int(shard_facts(path)["after"]) for attempt, path in first.items()}
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
