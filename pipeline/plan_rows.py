"""The rows of a plan, in plan order, in memory that does not grow with the corpus.

    plan.parquet   id, shard, row, weight, position, round; sorted by position

A plan orders rows across shards, so reading it row by row would open every shard again and again.
Instead the plan is cut into windows of consecutive positions; each shard is read once, front to
back (row groups without a wanted row are skipped), its rows are spilled to one file a window, and
the windows are handed out in order.

Cost: one read of the touched row groups, one write and one read of the chosen text in the system's
temporary folder (`TMPDIR`); a plan that fits in one window is never written. Memory: a few windows.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.corpus import Corpus, Shard
from foresift.pipeline.errors import StoreError
from foresift.pipeline.store import StepDir
from foresift.pipeline.tables import CONTENT

#: what a plan says of each of its rows, besides `id`
PLAN = ("weight", "position", "round", "shard", "row")
Ints = npt.NDArray[np.int64]


def read_plan(plan: StepDir) -> pa.Table:
    """The plan as a table, sorted by position: `id` and the columns of PLAN."""
    path = plan.path / "plan.parquet"
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=["id", *PLAN])
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"cannot read the plan ({error})", where=str(path)) from error


def rows_in_plan_order(
    corpus: Corpus,
    plan: StepDir,
    columns: Sequence[str] = (),
    window_rows: int = 1 << 16,
    *,
    window_bytes: int = 64 << 20,
    start: int = 0,
) -> Iterator[pa.Table]:
    """Tables of (id, content, `columns`, PLAN) in plan order, from the `start`-th entry on.

    A table ends after `window_rows` rows or about `window_bytes` of content.
    """
    entries = read_plan(plan).slice(start)
    shards = corpus.shards()
    windows = _windows(entries, shards, window_rows, window_bytes)
    with tempfile.TemporaryDirectory(prefix="foresift-rows-") as folder:
        several = len(windows) > 0 and windows[0] != windows[-1]
        spill = _Spill(Path(folder), window_bytes if several else sys.maxsize)
        numbers = np.asarray(entries["shard"])
        for number in np.unique(numbers):
            mine = np.flatnonzero(numbers == number)
            for table, which in _of_shard(shards[number], entries.take(pa.array(mine)), columns):
                spill.add(table, windows[mine[which]])
        for window in np.unique(windows):
            table = spill.take(int(window))
            yield table.take(pa.array(np.argsort(np.asarray(table["position"]), kind="stable")))


def _windows(
    entries: pa.Table, shards: Sequence[Shard], window_rows: int, window_bytes: int
) -> Ints:
    """The window of each entry: consecutive, bounded in rows and in bytes of content."""
    sizes = np.zeros(entries.num_rows, dtype=np.int64)
    numbers, rows = np.asarray(entries["shard"]), np.asarray(entries["row"])
    for number in np.unique(numbers):
        mine = numbers == number
        sizes[mine] = np.asarray(shards[number].load(["n_bytes"])["n_bytes"])[rows[mine]]
    before = np.cumsum(sizes) - sizes
    quotients: Ints = np.arange(len(sizes)) // window_rows + before // window_bytes
    return quotients


def _of_shard(
    shard: Shard, entries: pa.Table, columns: Sequence[str]
) -> Iterator[tuple[pa.Table, Ints]]:
    """The rows that `entries` ask of one shard, and which entry each one answers."""
    order = np.argsort(np.asarray(entries["row"]), kind="stable")
    rows = np.asarray(entries["row"])[order]
    beside = shard.load(list(dict.fromkeys(["id", *columns])))
    for first, batch in content_at(shard, rows):
        low, high = np.searchsorted(rows, [first, first + batch.num_rows])
        if low == high:
            continue
        wanted, which = rows[low:high], order[low:high]
        here, plan = beside.take(pa.array(wanted)), entries.take(pa.array(which))
        if not here["id"].equals(plan["id"]):
            raise StoreError("the plan names other documents than lie here", where=shard.name)
        found = batch.take(pa.array(wanted - first))
        out = {"id": here["id"]}
        out |= {name: found[name].cast(CONTENT[name]) for name in found.column_names}
        out |= {name: here[name] for name in columns} | {name: plan[name] for name in PLAN}
        yield pa.table(out), which


def content_at(shard: Shard, rows: Ints) -> Iterator[tuple[int, pa.Table]]:
    """(row number of the first row, batch of content) of the row groups that hold `rows`."""
    with pq.ParquetFile(shard.content) as file:
        span = range(*(shard.row_groups or (0, file.num_row_groups)))
        counts = [file.metadata.row_group(group).num_rows for group in span]
    starts = np.cumsum([0, *counts])
    wanted = np.searchsorted(rows, starts[1:]) > np.searchsorted(rows, starts[:-1])
    for hit, run in itertools.groupby(range(len(counts)), key=lambda k: bool(wanted[k])):
        groups = list(run)
        if not hit:
            continue
        first = int(starts[groups[0]])
        part = replace(shard, row_groups=(span[groups[0]], span[groups[-1]] + 1))
        for batch in part.content_batches():
            yield first, batch
            first += batch.num_rows


@dataclass
class _Spill:
    """Rows waiting for their window: in memory up to `limit` bytes, then in one file a window."""

    folder: Path
    limit: int
    tables: list[pa.Table] = field(default_factory=list)
    windows: list[Ints] = field(default_factory=list)
    size: int = 0

    def add(self, table: pa.Table, windows: Ints) -> None:
        """Keep rows, each for its window."""
        self.tables.append(table)
        self.windows.append(windows)
        self.size += table.nbytes
        if self.size > self.limit:
            self._flush()

    def take(self, window: int) -> pa.Table:
        """All rows of a window; its file is removed."""
        path = self.folder / f"{window}.arrow"
        here = [
            table.filter(pa.array(windows == window))
            for table, windows in zip(self.tables, self.windows, strict=True)
        ]
        if not path.exists():
            return pa.concat_tables(here)
        with pa.OSFile(str(path)) as source:
            end = source.size()
            while source.tell() < end:
                here.append(pa.ipc.open_stream(source).read_all())
        path.unlink()
        return pa.concat_tables(here)

    def _flush(self) -> None:
        """Append the rows kept so far to the files of their windows."""
        windows = np.concatenate(self.windows)
        order = np.argsort(windows, kind="stable")
        table = pa.concat_tables(self.tables).take(pa.array(order))
        found, starts = np.unique(windows[order], return_index=True)
        for window, low, high in zip(found, starts, [*starts[1:], len(order)], strict=True):
            with (
                open(self.folder / f"{window}.arrow", "ab") as sink,
                pa.ipc.new_stream(sink, table.schema) as writer,
            ):
                writer.write_table(table.slice(int(low), int(high - low)))
        self.tables, self.windows, self.size = [], [], 0
