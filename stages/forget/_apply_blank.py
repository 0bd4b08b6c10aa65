"""Blanking rows of shards: ids, counts and places stay, so that sidecars still zip; the rest goes.

    read steps      content empty, further columns null, `source` cut to its head
    scores, dedup   every column null but `id` and what a decision is (kept, rank, weight, reason)
    plans of runs   `source` cut to its head

Files are replaced one by one, each whole; a second time changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline.corpus import DECISION, Corpus
from foresift.pipeline.errors import StoreError
from foresift.pipeline.ledger import among
from foresift.pipeline.store import Facts, ShardWriter, publish, shard_facts, temporary
from foresift.pipeline.tables import BASE, CONTENT, ID
from foresift.stages.forget._apply_store import Store

Words = npt.NDArray[np.uint64]


def read_shards(store: Store, words: Words) -> list[Facts]:
    """Blank the rows in every data set; returns what is the user's to remove."""
    theirs = []
    for name in store.of_verb("read"):
        told, rows, sources = store.told(name), 0, list[str]()
        in_place: dict[str, int] = {}
        for shard in Corpus(store.out / "steps" / name).shards():
            base = shard.load(["id", "source"])
            out = among(base["id"], words)
            if not out.any():
                continue
            rows += int(out.sum())
            sources += base["source"].filter(pa.array(out)).to_pylist()
            if shard.content != shard.base:
                in_place[str(shard.content)] = in_place.get(str(shard.content), 0) + int(out.sum())
            _rewrite(shard.base, words, stays=[c for c in BASE if c != "source"])
        if rows:
            paths = (told.get("fields") or {}).get("paths")
            theirs.append(
                {"step": name, "rows": rows, "paths": paths, "in_place": in_place,
                 "sources": sources}
            )  # fmt: skip
    return theirs


def sidecars(store: Store, words: Words) -> list[str]:
    """Blank the rows beside the data sets; returns the files that were written anew."""
    written = []
    apart = {*store.of_verb("read", "export", "order", "train")}
    for folder in sorted((store.out / "steps").iterdir()):
        if folder.name in apart or not folder.is_dir():
            continue
        for path in sorted(folder.glob("part-*.parquet")):
            try:
                done = _rewrite(path, words, stays=["id", *DECISION])
            except StoreError:  # no shard of ours: the scan looks into it
                continue
            if done:
                written.append(str(path.relative_to(store.out)))
    return written


def run_plans(store: Store, words: Words) -> list[str]:
    """Cut the key paths in the plans of runs; returns the runs that knew the documents."""
    found = []
    for name in store.runs():
        path = store.out / "runs" / name / "plan.parquet"
        table = pq.read_table(path)
        out = among(table["id"], words)
        if out.any():
            found.append(name)
            heads = _heads(table["source"], out)
            if not heads.equals(table["source"]):
                at = table.schema.get_field_index("source")
                partial = temporary(path)
                table = table.set_column(at, table.schema.field(at), heads)
                pq.write_table(table, partial, compression="zstd")
                publish(partial, path)
    return found


def _rewrite(path: Path, words: Words, stays: Sequence[str]) -> bool:
    """Blank rows of one shard in all columns but those that stay; whether any was there."""
    facts = shard_facts(path)
    with pq.ParquetFile(path) as file:
        if "id" not in file.schema_arrow.names or file.schema_arrow.field("id").type != ID:
            return False
        if not among(file.read(columns=["id"])["id"], words).any():
            return False
    schema = pq.read_schema(path).remove_metadata()
    with ShardWriter(path, schema) as writer:
        writer.facts.update({k: v for k, v in facts.items() if k not in ("rows", "ids")})
        for table in _tables(path):
            writer.write(_blank(table, among(table["id"], words), stays))
    if writer.facts != facts:
        raise StoreError("its rows are not what its facts say", where=str(path))
    return True


def _tables(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(4096):
            yield pa.Table.from_batches([batch])


def _blank(table: pa.Table, out: npt.NDArray[np.bool_], stays: Sequence[str]) -> pa.Table:
    rows = pa.array(np.arange(table.num_rows), mask=out)
    columns = {}
    for name in table.column_names:
        column = table[name]
        if name not in stays:
            if name == "source":
                column = _heads(column, out)
            else:
                column = column.take(rows)
                if name in CONTENT and CONTENT[name] == pa.string():
                    empty = pc.and_(pa.array(out), True)
                    column = pc.if_else(empty, pa.scalar("", column.type), column)
        columns[name] = column
    return pa.table(columns)


def _heads(sources: pa.ChunkedArray, out: npt.NDArray[np.bool_]) -> pa.ChunkedArray:
    """Key paths cut to their first part where `out` is true: the accounts count by it."""
    head = pc.list_element(pc.split_pattern_regex(sources, "[/#]", max_splits=1), 0)
    return pc.if_else(pa.array(out), head, sources)
