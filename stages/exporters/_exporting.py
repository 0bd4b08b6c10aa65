"""What all exporters share: which rows, in which order, in which columns, in how many files.

    with a plan       the rows of the plan, in its order, over all shards; files of `shard_mb`
    without           the alive rows in corpus order; neighbouring shards together up to `shard_mb`

Each file has `id` (32 hex digits), the content, `source`, `weight`, with a plan `round`, and the
`columns` asked for. Beside it `ids/part-00000.parquet` says which documents the file holds. Memory
does not grow with the corpus: tables of some 16 MB go through.

With `redact`, the spans of findings are replaced in the content (see `_redacting.py`); the rows get
a column `redacted`, and `redactions/part-00000.parquet` lists what was replaced in the file. `id`
stays that of the document as it was read, which is no longer the hash of what the file holds; so do
`n_tokens` and the columns, which are copied as they are. Of the steps of a recipe only an export
redacts: to train on redacted text, export, and read the export with a recipe of its own.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from foresift.pipeline.corpus import Shard
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Inputs, Job, Resources, Stage
from foresift.pipeline.plan_rows import rows_in_plan_order
from foresift.pipeline.store import Facts, ShardWriter, StepDir, publish, temporary
from foresift.pipeline.tables import CONTENT, ID
from foresift.stages.exporters._redacting import LOG, Redacting, read_key

_WEIGHT = "export.weight"
_OWN = ("id", "source", "weight", "round", "redacted", *CONTENT)

#: bytes of content put in order at once; about four times as much is held in memory
WINDOW_BYTES = 32 << 20


class Sink(Protocol):
    """An open file that takes tables of one schema."""

    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Exporter(Stage):
    """Writes the chosen documents to files that others read."""

    columns: list[str] = field(default_factory=list)
    """Further columns by their public names, such as `loss.nll`."""
    shard_mb: int = 128
    """Megabytes of content in one file, about."""
    redact: list[str] = field(default_factory=list)
    """Columns of findings whose spans are replaced in the content, such as `pii.findings`; `id`
    stays that of the document as read, `redacted` marks the rows, `redactions/` lists the pieces.
    A `train` step reads the text as it is: to train on redacted text, read such an export."""
    replacement: Literal["typed", "pseudonym"] = "typed"
    """`typed`: `<EMAIL>`; `pseudonym`: `<EMAIL:5a1be98d02>`, the same for the same value."""
    key_env: str = ""
    """Environment variable with the key of pseudonyms, 16 bytes or more."""

    def __post_init__(self) -> None:
        for name in self.columns:
            if name in _OWN or self.columns.count(name) > 1:
                raise ValueError(f"columns: {name!r} is there already")
        if self.shard_mb < 1:
            raise ValueError("shard_mb must be at least 1")
        if len(set(self.redact)) < len(self.redact):
            raise ValueError("redact names a column twice")
        if (self.replacement == "pseudonym") != bool(self.key_env):
            raise ValueError("pseudonyms need key_env, and nothing else does")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.columns, *self.redact]))

    @property
    @abstractmethod
    def suffix(self) -> str:
        """End of the file names."""

    @abstractmethod
    def sink(self, path: Path, schema: pa.Schema) -> Sink:
        """Open one output file."""

    def seal(self, out: Path, names: Sequence[str]) -> None:
        """Write what the format needs beside its files."""

    def run(self, inputs: Inputs, out: StepDir, job: Job) -> Facts:
        assert inputs.corpus is not None, "an exporter is given a corpus"
        if inputs.plan is not None:
            beside = list(dict.fromkeys(["source", "n_bytes", "n_tokens", *self.needs]))
            tables = rows_in_plan_order(
                inputs.corpus, inputs.plan, beside, window_bytes=WINDOW_BYTES
            )
            parts = list(self._in_plan_order(tables, out))
        else:
            parts = self._in_corpus_order(inputs.corpus.shards(), out, job)
        names = [part["file"] for part in parts if part["rows"]]
        if not names:
            raise DataError("nothing was chosen, so there is nothing to export")
        self.seal(out.path, names)
        totals = {k: sum(int(part[k]) for part in parts) for k in ("rows", "n_tokens")}
        return {**totals, **(_redactions(parts) if self.redact else {}), "files": names}

    def _in_corpus_order(self, shards: list[Shard], out: StepDir, job: Job) -> list[Facts]:
        groups = list(_groups(shards, self.shard_mb << 20))
        task = ExportShards(self, out.path)
        paths = [_ids(out.path, number) for number in range(len(groups))]
        return job.map_shards(task, list(enumerate(groups)), paths, Resources(), "export")

    def _in_plan_order(self, tables: Iterable[pa.Table], out: StepDir) -> Iterator[Facts]:
        cut = _cut(tables, self.shard_mb << 20)
        for number, (_, pieces) in enumerate(itertools.groupby(cut, key=lambda piece: piece[0])):
            yield self.write_file(out.path, number, (table for _, table in pieces))

    def write_file(self, out: Path, number: int, tables: Iterable[pa.Table]) -> Facts:
        """Write one file, and which documents it holds; without rows there is no file."""
        path = out / f"part-{number:05d}{self.suffix}"
        sink, tokens = None, 0
        redacting = self._redacting()
        log = ShardWriter(out / "redactions" / f"part-{number:05d}.parquet", LOG)
        with (
            ShardWriter(_ids(out, number), pa.schema([("id", ID)])) as ids,
            log if redacting else nullcontext(),
        ):
            try:
                for table in tables:
                    tokens += int(np.asarray(table["n_tokens"], dtype=np.int64).sum())
                    ids.write(table.select(["id"]))
                    if redacting:
                        table, replaced = redacting.table(table)
                        log.write(replaced)
                    shown = self._shown(table)
                    if sink is None:
                        schema = shown.schema
                        sink = self.sink(temporary(path), schema)
                    sink.write(shown.cast(schema))
                if sink is not None:
                    sink.close()
                    publish(temporary(path), path)
            except BaseException:
                temporary(path).unlink(missing_ok=True)
                raise
            ids.facts |= {"n_tokens": tokens, "file": path.name}
            if redacting:
                ids.facts |= {**redacting.facts(), "log": redacting.digest}
        return ids.facts

    def _redacting(self) -> Redacting | None:
        if not self.redact:
            return None
        return Redacting(self.redact, read_key(self.key_env) if self.key_env else b"")

    def _shown(self, table: pa.Table) -> pa.Table:
        """The columns of the output; ids as people read them."""
        names = ["id", *(c for c in CONTENT if c in table.column_names), "source", "weight"]
        names += [c for c in ("round",) if c in table.column_names] + self.columns
        names += [c for c in ("redacted",) if self.redact]
        ids = pa.array([value.hex() for value in table["id"].to_pylist()], pa.string())
        return table.select(names).set_column(0, "id", ids)


@dataclass(frozen=True)
class ExportShards:
    """Writes the alive rows of some neighbouring shards to one file."""

    exporter: Exporter
    out: Path

    def __call__(self, item: tuple[int, list[Shard]]) -> Facts:
        number, shards = item
        tables = (table for shard in shards for table in self._tables(shard))
        return self.exporter.write_file(self.out, number, tables)

    def _tables(self, shard: Shard) -> Iterator[pa.Table]:
        decided = [mask.path for mask in shard.masks if mask.want]
        columns = ["source", "n_tokens", *self.exporter.needs]
        if decided:
            shard = replace(shard, columns=(*shard.columns, (_WEIGHT, decided[-1], "weight")))
            columns.append(_WEIGHT)
        for table, rows in shard.stream(list(dict.fromkeys(columns))):
            weight = table[_WEIGHT] if decided else pa.array(np.ones(len(rows), dtype=np.float32))
            out = {n: table[n] for n in table.column_names if n != _WEIGHT}
            out |= {n: out[n].cast(CONTENT[n]) for n in out if n in CONTENT}
            yield pa.table({**out, "weight": weight})


def _cut(tables: Iterable[pa.Table], size: int) -> Iterator[tuple[int, pa.Table]]:
    """(file, rows) in order; a new file begins where the content passes a multiple of `size`."""
    spent = 0
    for table in tables:
        sizes = np.asarray(table["n_bytes"], dtype=np.int64)
        files = (spent + np.cumsum(sizes) - sizes) // size
        spent += int(sizes.sum())
        found, starts = np.unique(files, return_index=True)
        for file, low, high in zip(found, starts, [*starts[1:], len(sizes)], strict=True):
            yield int(file), table.slice(int(low), int(high - low))


def _groups(shards: list[Shard], size: int) -> Iterator[list[Shard]]:
    """Neighbouring shards whose alive rows make about one file."""
    group: list[Shard] = []
    held = 0
    for shard in shards:
        mine = int(np.asarray(shard.load(["n_bytes"])["n_bytes"])[shard.alive()].sum())
        if group and held + mine > size:
            yield group
            group, held = [], 0
        group.append(shard)
        held += mine
    if group:
        yield group


def _redactions(parts: Iterable[Facts]) -> Facts:
    """The accounts of all files."""
    replaced: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    rows = 0
    for part in parts:
        rows += part["redacted_rows"]
        replaced.update(part["redactions"])
        whole.update(part["not_replaceable"])
    return {
        "redacted_rows": rows,
        "redactions": dict(sorted(replaced.items())),
        "not_replaceable": dict(sorted(whole.items())),
    }


def _ids(out: Path, number: int) -> Path:
    return out / "ids" / f"part-{number:05d}.parquet"
