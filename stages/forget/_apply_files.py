"""Files of exports without some of their rows: JSON lines, parquet, Arrow streams.

Bytes of the rows that stay are as they were (JSON lines), or written again in the same schema.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
import zstandard

from foresift.pipeline.ledger import among
from foresift.pipeline.store import ShardWriter, read_json, shard_facts, write_json
from foresift.pipeline.tables import ID

Bools = npt.NDArray[np.bool_]
LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SUFFIXES = (*LINES, ".parquet", ".arrow")
#: columns that name the documents of which a row was made
ORIGINS = ("id", "origin", "hints")


def stem(name: str) -> str:
    """`part-00000` of `part-00000.jsonl.gz`."""
    return Path(name).name.partition(".")[0]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """A file of lines, decompressed; the reader ends it with the file."""
    with open(path, "rb") as raw:
        if path.name.endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as lines:
                yield io.BufferedReader(lines)  # type: ignore[arg-type,type-var]
        elif path.name.endswith(".zst"):
            with zstandard.ZstdDecompressor().stream_reader(raw) as stream:
                yield io.BufferedReader(stream)
        else:
            yield raw


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Any]:
    """A file of lines, compressed as its name says, without time and name in it."""
    with open(path, "wb") as raw:
        if path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as lines:
                yield lines
        elif path.name.endswith(".zst"):
            with zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False) as stream:
                yield stream
        else:
            yield raw


def tables(path: Path) -> Iterator[pa.Table]:
    """Tables of a parquet file or an Arrow stream."""
    if path.suffix == ".arrow":
        with pa.OSFile(str(path)) as source:
            for batch in pa.ipc.open_stream(source):
                yield pa.Table.from_batches([batch])
        return
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(4096):
            yield pa.Table.from_batches([batch])


def without(path: Path, into: Path, out: Bools) -> None:
    """Write a data file without the rows for which `out` is true."""
    if path.name.endswith(LINES):
        with reading(path) as lines, writing(into) as kept:
            for number, line in enumerate(lines):
                if not out[number]:
                    kept.write(line)
        return
    first = 0
    with _sink(path, into) as sink:
        for table in tables(path):
            stay = ~out[first : first + table.num_rows]
            first += table.num_rows
            sink.write_table(table.filter(pa.array(stay)))


@contextlib.contextmanager
def _sink(path: Path, into: Path) -> Iterator[Any]:
    if path.suffix == ".arrow":
        with pa.OSFile(str(path)) as source:
            schema = pa.ipc.open_stream(source).schema
        with pa.OSFile(str(into), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            yield writer
        return
    with pq.ParquetWriter(into, pq.read_schema(path), compression="zstd") as writer:
        yield writer


def shard_without(path: Path, into: Path, out: Bools, tokens: int) -> None:
    """Write a shard without some rows; its other facts stay, less so many tokens."""
    facts = shard_facts(path)
    with pq.ParquetFile(path) as file:
        table = file.read()
    with ShardWriter(into, table.schema.remove_metadata()) as writer:
        writer.facts.update({k: v for k, v in facts.items() if k not in ("rows", "ids")})
        if "n_tokens" in facts:
            writer.facts["n_tokens"] = max(facts["n_tokens"] - tokens, 0)
        writer.write(table.filter(pa.array(~out)).combine_chunks())


def goers(path: Path, words: npt.NDArray[np.uint64]) -> Bools:
    """[rows] which rows are, or were made of, one of the documents."""
    found = []
    if path.name.endswith(LINES):
        with reading(path) as lines:
            made = [[json.loads(line).get(name) for name in ORIGINS] for line in lines]
        found.append(_any_of(made, words))
    else:
        for table in tables(path):
            names = [n for n in ORIGINS if n in table.column_names]
            rows = zip(*(table[n].to_pylist() for n in names), strict=True)
            found.append(_any_of([list(row) for row in rows], words))
    return np.concatenate(found) if found else np.zeros(0, dtype=np.bool_)


def actions(path: Path, out: Bools) -> Counter[str]:
    """How many of some rows of refined data are kept, simplified, improved or added."""
    if path.name.endswith(LINES):
        with reading(path) as lines:
            told = [json.loads(line).get("action") for line in lines]
    else:
        told = [value for table in tables(path) for value in table["action"].to_pylist()]
    return Counter(told[row] for row in np.flatnonzero(out).tolist())


def _any_of(rows: list[list[Any]], words: npt.NDArray[np.uint64]) -> Bools:
    """[n] whether a row names a document that goes; ids are hex digits, or bytes."""
    named: list[tuple[int, bytes]] = []
    for number, row in enumerate(rows):
        for value in row:
            for each in value if isinstance(value, list) else [value]:
                if each is not None:
                    raw = each if isinstance(each, bytes) else bytes.fromhex(each)
                    named.append((number, raw))
    hit = among(pa.array([raw for _, raw in named], ID), words)
    out = np.zeros(len(rows), dtype=np.bool_)
    out[[number for (number, _), yes in zip(named, hit, strict=True) if yes]] = True
    return out


def stamp(path: Path, into: Path, lost: pa.ChunkedArray) -> None:
    """A data set of other rows has another fingerprint, for whoever caches by it."""
    state = read_json(path)
    raw = b"".join(lost.to_pylist())
    mixed = state["_fingerprint"].encode() + raw
    write_json(into, {**state, "_fingerprint": xxhash.xxh3_64_hexdigest(mixed)})
