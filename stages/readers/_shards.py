"""One unit of reading: pieces of input files become one shard, and their bad rows a reject file.

    Unit      -> part-00007.parquet           good rows: content, BASE columns, extra columns
              -> part-00007.rejects.jsonl     bad rows: {file, line, reason, excerpt}; only if any

What a unit writes depends on its pieces and on the reader's fields, on nothing else. The reject
file is renamed into place before the shard, so that a shard that is there has its rejects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.beside import Beside
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts, ShardWriter
from foresift.pipeline.tables import BASE, CONTENT, content_bytes, content_ids
from foresift.pipeline.token_counts import count_tokens
from foresift.stages.readers._check import check
from foresift.stages.readers._units import Batch, Ints, Rejects, Unit


class Source(Protocol):
    """What a unit asks of its reader."""

    @property
    def tokenizer(self) -> str: ...

    @property
    def holdout(self) -> float: ...

    @property
    def holdout_seed(self) -> int: ...

    @property
    def content(self) -> tuple[str, ...]: ...

    def batches(self, unit: Unit, rejects: Rejects) -> Iterator[Batch]: ...

    def place(self, unit: Unit) -> Facts | None: ...


class _Unfit(Exception):
    """A file that was to be used in place holds a bad row."""


@dataclass(frozen=True)
class ReadUnit:
    """Reads one unit into one shard of the step directory."""

    reader: Source
    out: Path
    beside: Beside | None = None
    """Scores to take from the batches on the way."""

    def __call__(self, unit: Unit) -> Facts:
        place = self.reader.place(unit)
        if place is not None:
            try:
                return self._write(unit, place)
            except _Unfit:
                pass
        return self._write(unit, None)

    def _write(self, unit: Unit, place: Facts | None) -> Facts:
        path = self.out / f"{unit.name}.parquet"
        schema = self._schema(unit, place)
        counts = {"rows_in": 0, "holdout": 0, "n_bytes": 0, "n_tokens": 0}
        sources: dict[str, dict[str, int]] = {}
        scores = self.beside.open(unit.name) if self.beside else None
        with (
            Rejects(path.with_name(f"{unit.name}.rejects.jsonl")) as rejects,
            ShardWriter(path, schema) as writer,
        ):
            for batch in self.reader.batches(unit, rejects):
                table = self._finish(batch, rejects)
                if place is not None and rejects.count:
                    raise _Unfit
                rejects.settle()
                _count(table, counts, sources)
                writer.write(table)
                if scores is not None:
                    scores.add(table)
            if place is not None and rejects.count:
                raise _Unfit
            rejects.publish()
            counts["rows_in"] += rejects.count
            writer.facts |= {"rejected": rejects.count, "sources": sources, **counts}
            writer.facts |= {"in_place": int(place is not None)}
            writer.facts |= {"content": place} if place is not None else {}
        if scores is not None:
            scores.publish(path)
        return writer.facts

    def _schema(self, unit: Unit, place: Facts | None) -> pa.Schema:
        content = {} if place else {name: CONTENT[name] for name in self.reader.content}
        return pa.schema([*({**content, **BASE}).items(), *unit.extra])

    def _finish(self, batch: Batch, rejects: Rejects) -> pa.Table:
        """The good rows with their BASE columns."""
        table, lines = batch.table, batch.lines
        good = check(batch, self.reader.content, rejects)
        if not good.all():
            table, lines = table.filter(pa.array(good)), lines[good]
        ids = content_ids(table.select(list(self.reader.content)))
        drawn = Rng(self.reader.holdout_seed).at("holdout").uniform(ids) < self.reader.holdout
        base = {
            "id": ids,
            "source": _sources(table, batch.file, lines),
            "holdout": pa.array(drawn),
            "n_bytes": pa.array(content_bytes(table.select(list(self.reader.content)))),
            "n_tokens": pa.array(
                count_tokens(table.select(list(self.reader.content)), self.reader.tokenizer)
            ),
        }
        rest = {n: table[n] for n in table.column_names if n != "source"}
        return pa.table({**rest, **base})


def _sources(table: pa.Table, file: str | list[str], lines: Ints) -> Any:
    """The key path of each row: its own, else `<file>#<line>`."""
    if "source" in table.column_names and table["source"].null_count == 0:
        return table["source"]
    files = file if isinstance(file, str) else pa.array(file)
    default = pc.binary_join_element_wise(files, pa.array(lines).cast(pa.string()), "#")
    return pc.coalesce(table["source"], default) if "source" in table.column_names else default


def _count(table: pa.Table, counts: dict[str, int], sources: dict[str, dict[str, int]]) -> None:
    held = np.asarray(table["holdout"], dtype=np.bool_)
    counts["rows_in"] += table.num_rows
    counts["holdout"] += int(held.sum())
    for name in ("n_bytes", "n_tokens"):
        counts[name] += int(np.asarray(table[name], dtype=np.int64).sum())
    first = pc.list_element(pc.split_pattern_regex(table["source"], "[/#]", max_splits=1), 0)
    for held_out, rows in ((False, first), (True, first.filter(pa.array(held)))):
        for value in pc.value_counts(rows).to_pylist():
            entry = sources.setdefault(value["values"], {"rows": 0, "holdout": 0})
            entry["holdout" if held_out else "rows"] += value["counts"]
