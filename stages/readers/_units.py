"""What readers hand about: pieces of files, the units made of them, batches, and bad rows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.store import publish, temporary
from foresift.stages.readers._files import File

#: bytes of content in one batch
BATCH_BYTES = 16 << 20
#: characters of a bad row that are shown
EXCERPT = 200
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """A stretch of one input file; what `start` and `stop` count is the reader's affair."""

    file: File
    size: int
    """Bytes, about."""
    start: int = 0
    stop: int | None = None
    """None: to the end of the file."""
    line: int = 1
    """Number of its first line or row, from 1."""


@dataclass(frozen=True)
class Unit:
    """What becomes one shard; small and picklable."""

    number: int
    pieces: tuple[Piece, ...]
    extra: pa.Schema
    """Names and types of the columns carried along."""

    @property
    def name(self) -> str:
        return f"part-{self.number:05d}"


@dataclass
class Batch:
    """Rows as they were found."""

    file: str | list[str]
    """The file of all rows, or of each."""
    lines: Ints
    """Line or row number of each row, from 1."""
    table: pa.Table
    """Content under our names, extra columns, and `source` where rows name their own."""

    def place(self, row: int) -> tuple[str, int]:
        """File and line of a row."""
        file = self.file if isinstance(self.file, str) else self.file[row]
        return file, int(self.lines[row])


@dataclass
class Rejects:
    """The bad rows of one unit, written as they come and published at the end."""

    path: Path
    count: int = 0
    _waiting: list[dict[str, Any]] = field(default_factory=list)
    _handle: IO[str] | None = None

    def add(self, file: str, line: int, reason: str, excerpt: str = "") -> None:
        """Note a bad row."""
        row = {"file": file, "line": int(line), "reason": reason, "excerpt": excerpt[:EXCERPT]}
        self._waiting.append(row)
        self.count += 1

    def settle(self) -> None:
        """Write what was noted since the last time, in the order of lines."""
        if not self._waiting:
            return
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = open(temporary(self.path), "w", encoding="utf-8", errors="replace")  # noqa: SIM115
        for row in sorted(self._waiting, key=lambda r: int(r["line"])):
            self._handle.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._waiting.clear()

    def publish(self) -> None:
        """Rename the file into place, or see to it that there is none."""
        self.settle()
        if self._handle is None:
            self.path.unlink(missing_ok=True)
            return
        self._handle.close()
        publish(temporary(self.path), self.path)

    def __enter__(self) -> Rejects:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            self._handle.close()
            temporary(self.path).unlink(missing_ok=True)
