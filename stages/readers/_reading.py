"""What all readers share: fields, units of work, accounts, rejects, facts.

    files -> pieces -> units of about `shard_mb` -> one shard each -> rejects.jsonl, stage.json

Units are cut from the sorted list of files alone, so any number of workers writes the same bytes.
Every row is accounted for: rows_in = rows + rejected.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import SMALL_BYTES, Inputs, Job, Resources, Stage
from foresift.pipeline.store import Facts, StepDir, add_counts, publish, shard_facts, temporary
from foresift.pipeline.tables import BASE, CONTENT
from foresift.pipeline.token_counts import check_tokenizer, token_rule
from foresift.stages.readers._files import File, content_digest, find_files
from foresift.stages.readers._shards import ReadUnit
from foresift.stages.readers._units import Batch, Piece, Rejects, Unit

#: bytes of input that one process reads before others have started
SMALL = 8 << 20
#: named sources in stage.json; the rest is summed up as OTHER
MAX_SOURCES, OTHER = 1000, "(other)"


@dataclass(frozen=True, kw_only=True)
class Reader(Stage):
    """Reads files into shards with ids, a holdout and a list of bad rows."""

    paths: list[str] = field(default_factory=list)
    """Files, folders, globs or fsspec URLs; each must match something."""
    tokenizer: str = ""
    """What `n_tokens` counts: empty: ceil(n_bytes / 4); `bytes`; or a folder, file or hub id."""
    holdout: float = 0.005
    """Share of documents reserved by hash of the id; never selected, never trained."""
    holdout_seed: int = 0
    """Seed of that hash."""
    max_rejects: float = 0.01
    """Share of bad rows above which reading fails."""
    shard_mb: int = 128
    """Megabytes of input in one shard, about."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths must name at least one file, folder, glob or URL")
        if not (0 <= self.holdout < 1 and 0 <= self.max_rejects <= 1):
            raise ValueError("holdout must lie in [0, 1) and max_rejects in [0, 1]")
        if self.shard_mb < 1:
            raise ValueError("shard_mb must be at least 1")

    @property
    def content(self) -> tuple[str, ...]:
        """Our names of the content columns this reader gives."""
        return ("text",)

    @property
    def carried(self) -> list[str]:
        """Extra columns carried along."""
        return []

    @abstractmethod
    def files(self) -> list[File]:
        """The input files, sorted."""

    @abstractmethod
    def pieces(self, files: list[File]) -> Iterator[Piece]:
        """The files cut into stretches of at most a shard, where they can be cut."""

    @abstractmethod
    def batches(self, unit: Unit, rejects: Rejects) -> Iterator[Batch]:
        """The rows of a unit; what is no row at all goes to `rejects`."""

    def extra(self, files: list[File]) -> pa.Schema:
        """Names and types of the columns carried along."""
        return pa.schema([])

    def place(self, unit: Unit) -> Facts | None:
        """Where the content lies if it can stay there: path, row groups, rename."""
        return None

    def alone(self, piece: Piece) -> bool:
        """Whether a piece is a shard of its own, to be left in place."""
        return False

    def inputs(self) -> list[tuple[str, str]]:
        """(path, digest of the content) of each input file, sorted: the step's inputs."""
        return [(file.path, content_digest(file)) for file in self.files()]

    def units(self) -> list[Unit]:
        """The shards to be, in order."""
        files = self.files()
        extra = self.extra(files)
        groups = self._groups(self.pieces(files))
        return [Unit(number, tuple(group), extra) for number, group in enumerate(groups)]

    def _groups(self, pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
        """Neighbours together until they make a shard."""
        group: list[Piece] = []
        held = 0
        for piece in pieces:
            alone = self.alone(piece)
            if group and (alone or held + piece.size > self.shard_mb << 20):
                yield group
                group, held = [], 0
            group.append(piece)
            held += piece.size
            if alone:
                yield group
                group, held = [], 0
        if group:
            yield group

    def run(self, inputs: Inputs, out: StepDir, job: Job) -> Facts:
        check_tokenizer(self.tokenizer)
        units = self.units()
        paths = [out.shard(unit.name) for unit in units]
        _forget_shards_without_rejects(out, paths)
        size = sum(piece.size for unit in units for piece in unit.pieces)
        task = ReadUnit(self, out.path, job.beside)
        riding = 1 + (len(job.beside.parts) if job.beside else 0)  # scores that are taken at once
        small = Resources(small=size * riding < SMALL_BYTES)
        parts = job.map_shards(task, units, paths, small)
        _merge_rejects(out, paths)
        self._judge(parts, out)
        counts = add_counts([{k: v for k, v in p.items() if k != "content"} for p in parts])
        return {
            **counts,
            "sources": _largest(counts["sources"]),
            "tokens": token_rule(self.tokenizer),
            "columns": [*self.content, *self.carried],
        }

    def _judge(self, parts: list[Facts], out: StepDir) -> None:
        """Refuse a corpus that is empty or has too many bad rows."""
        rows, bad = (sum(part[k] for part in parts) for k in ("rows_in", "rejected"))
        if bad > self.max_rejects * rows:
            path = out.path / "rejects.jsonl"
            with open(path, encoding="utf-8") as handle:
                first = json.loads(handle.readline())
            raise DataError(
                f"{bad} of {rows} rows ({bad / rows:.1%}) were rejected, more than max_rejects = "
                f"{self.max_rejects:.1%}; the first: {first['file']}:{first['line']}: "
                f"{first['reason']}; all of them: {path}",
                where=", ".join(self.paths),
            )
        if bad == rows:
            raise DataError("holds no document", where=", ".join(self.paths))


@dataclass(frozen=True, kw_only=True)
class RowReader(Reader):
    """A reader of files that hold rows with named fields."""

    text: str | None = None
    """Field of plain documents; `text` when no content field is given."""
    messages: str | None = None
    """Field of conversations: a list of turns with `role` and `content`."""
    prompt: str | None = None
    """Field of the instruction of a pair; with `response`."""
    response: str | None = None
    """Field of the answer of a pair; with `prompt`."""
    source: str | None = None
    """Field with the key path of a row; default `<file>#<row>`, rows from 1."""
    columns: list[str] = field(default_factory=list)
    """Further fields carried along under their own names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = tuple(n for n in CONTENT if getattr(self, n) is not None)
        if given not in ((), ("text",), ("messages",), ("prompt", "response")):
            raise ValueError(f"give text, or messages, or prompt and response; got {given}")
        for name in self.columns:
            if name in CONTENT or name in BASE:
                raise ValueError(f"columns: {name!r} is a name of foresift's own")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns: a name comes twice in {self.columns}")

    @property
    def fields(self) -> dict[str, str]:
        """Our name of each content column -> the field in the files."""
        given = {n: getattr(self, n) for n in CONTENT if getattr(self, n) is not None}
        return given or {"text": "text"}

    @property
    def content(self) -> tuple[str, ...]:
        return tuple(self.fields)

    @property
    def carried(self) -> list[str]:
        return list(self.columns)

    @property
    def wanted(self) -> dict[str, str]:
        """Our name of every column that is read -> the field in the files."""
        own = {"source": self.source} if self.source else {}
        return {**self.fields, **own, **{name: name for name in self.columns}}


def files_of(reader: Reader, suffixes: tuple[str, ...]) -> list[File]:
    """The files a reader means, its own suffixes expected in folders."""
    return find_files(reader.paths, suffixes)


def _reject_file(shard: Path) -> Path:
    return shard.with_name(f"{shard.stem}.rejects.jsonl")


def _forget_shards_without_rejects(out: StepDir, paths: list[Path]) -> None:
    """Where a shard must be read again after the merge, those with merged rejects must be too."""
    if all(path.exists() for path in paths):
        return
    for path in paths:
        if path.exists() and shard_facts(path)["rejected"] and not _reject_file(path).exists():
            path.unlink()
    (out.path / "rejects.jsonl").unlink(missing_ok=True)


def _merge_rejects(out: StepDir, paths: list[Path]) -> None:
    """Put the rejects of all shards into one file, then remove theirs."""
    merged, parts = out.path / "rejects.jsonl", [_reject_file(path) for path in paths]
    if not merged.exists() and any(part.exists() for part in parts):
        with open(temporary(merged), "wb") as sink:
            for part in parts:
                if part.exists():
                    sink.write(part.read_bytes())
        publish(temporary(merged), merged)
    for part in parts:
        part.unlink(missing_ok=True)


def _largest(sources: dict[str, Any]) -> dict[str, Any]:
    """The sources with most rows by name, the rest as one."""
    ranked = sorted(sources, key=lambda name: (-sources[name]["rows"], name))
    kept = {name: sources[name] for name in ranked[:MAX_SOURCES]}
    rest = [sources[name] for name in ranked[MAX_SOURCES:]]
    return kept | ({OTHER: add_counts(rest)} if rest else {})
