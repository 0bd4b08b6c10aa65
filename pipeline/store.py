"""What lies on disk: step directories whose shards appear whole or not at all.

    <out>/steps/<part>-<fp8>/part-00000.parquet ...   a shard; renamed into place once complete
    <out>/steps/<part>-<fp8>/stage.json               written last: it is there = done

A shard carries its own facts (counts, digest of its ids) in the parquet metadata, so that one
rename publishes both. Nothing in a step directory depends on clock, host or worker count.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from foresift.pipeline.errors import StoreError

_KEY = b"foresift"
Facts = dict[str, Any]


def temporary(path: Path) -> Path:
    """The name under which `path` is written before it is renamed."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def publish(partial: Path, path: Path) -> None:
    """Flush a finished temporary file to disk and rename it into place.

    Two processes may do the same work (a worker that outlived its driver, and the rerun). Both
    write the same bytes; the slower one finds its temporary file gone and the result in place.
    """
    try:
        with open(partial, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
    except FileNotFoundError:
        if not path.exists():
            raise


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(path)
    partial.write_text(text, encoding="utf-8")
    publish(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys so that it appears whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """JSON has no NaN; a figure that does not exist is null."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: Path) -> Facts:
    """A JSON object that `write_json` wrote."""
    try:
        loaded: Facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot be read ({error})", where=str(path)) from error
    return loaded


@dataclass(frozen=True)
class StepDir:
    """One step's directory. `done` once `stage.json` is there."""

    path: Path

    @property
    def done(self) -> bool:
        return (self.path / "stage.json").exists()

    def shard(self, name: str) -> Path:
        """The path of a shard, whether it exists or not."""
        return self.path / f"{name}.parquet"

    def shards(self) -> list[Path]:
        """The complete shards, in order."""
        return sorted(self.path.glob("part-*.parquet"))

    def facts(self) -> Facts:
        """What `stage.json` says."""
        try:
            loaded: Facts = json.loads((self.path / "stage.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"unreadable stage.json ({error})", where=str(self.path)) from error
        return loaded

    def open(self) -> None:
        """Make the directory."""
        self.path.mkdir(parents=True, exist_ok=True)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Clear away what killed processes left half-written, then declare the step done."""
        for partial in list(self.path.rglob(".*.tmp")):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)
        write_json(self.path / "stage.json", dict(facts))


class ShardWriter:
    """Writes one shard under a temporary name; leaving the `with` block without error publishes it.

    `facts` may be filled until then. Rows and the digest of the ids are added by the writer.
    Columns named in `plain` are written without a dictionary: values that hardly repeat.
    """

    def __init__(self, path: Path, schema: pa.Schema, plain: Collection[str] = ()) -> None:
        self.path = path
        self.facts: Facts = {}
        self._schema = schema
        self._repeating = [name for name in schema.names if name not in plain] if plain else True
        self._partial = temporary(path)
        self._ids = xxhash.xxh3_128()
        self._rows = 0

    def __enter__(self) -> ShardWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(
            self._partial, self._schema, compression="zstd", use_dictionary=self._repeating
        )
        return self

    def write(self, table: pa.Table) -> None:
        """Append rows (cast to the schema)."""
        if table.num_rows == 0:
            return
        if "id" in table.column_names:
            for chunk in table["id"].chunks:
                raw = memoryview(chunk.buffers()[1]) if len(chunk) else memoryview(b"")
                self._ids.update(raw[16 * chunk.offset : 16 * (chunk.offset + len(chunk))])
        self._rows += table.num_rows
        self._writer.write_table(table.select(self._schema.names).cast(self._schema))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
            else:
                with contextlib.suppress(OSError):  # a full disk says so twice
                    self._writer.close()
        finally:
            self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        self.facts |= {"rows": self._rows, "ids": self._ids.hexdigest()}
        packed = json.dumps(self.facts, sort_keys=True, ensure_ascii=False)
        self._writer.add_key_value_metadata({_KEY: packed.encode()})
        self._writer.close()
        publish(self._partial, self.path)


def write_shard(path: Path, table: pa.Table, facts: Mapping[str, Any] | None = None) -> Facts:
    """Write a whole shard at once and return its facts."""
    with ShardWriter(path, table.schema) as writer:
        writer.facts.update(facts or {})
        writer.write(table)
    return writer.facts


def shard_facts(path: Path) -> Facts:
    """The facts that a shard carries."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
        facts: Facts = json.loads(metadata[_KEY])
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"not a foresift shard ({error})", where=str(path)) from error
    return facts


def add_counts(parts: Iterable[Mapping[str, Any]]) -> Facts:
    """Sum the integer facts of shards (nested mappings too); everything else is left out."""
    total: Facts = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping):
                total[key] = add_counts([total.get(key, {}), value])
            elif isinstance(value, int) and not isinstance(value, bool):
                total[key] = total.get(key, 0) + value
    return total
