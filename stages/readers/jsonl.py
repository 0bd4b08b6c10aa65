"""JSON lines: `.jsonl`, `.ndjson`, `.json` (lines or one array), plain, `.gz` or `.zst`.

A plain file larger than `shard_mb` is cut into byte ranges (a range owns the lines that begin in
it); a compressed file is one shard. Lines end with a newline only, so U+2028 and friends are text;
lines of nothing but white space are not rows, though they are counted in line numbers.

Cost: blocks of about 16 MB are parsed by Arrow at some 300 MB/s; a block that holds anything
unusual is parsed again line by line, which finds the same rows and the reason for each bad one.
Extra columns are strings (what is no string stays JSON text) unless `types` says otherwise.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from foresift.pipeline.errors import nearest
from foresift.pipeline.tables import CONTENT
from foresift.stages.readers._files import (
    STEP,
    BrokenStream,
    File,
    chunks,
    line_blocks,
    open_raw,
    scan,
)
from foresift.stages.readers._json import BadRow, chat, encodable, kind_of, parse
from foresift.stages.readers._reading import RowReader, files_of
from foresift.stages.readers._units import BATCH_BYTES, EXCERPT, Batch, Piece, Rejects, Unit

_PLAIN = (".jsonl", ".ndjson", ".json")
_SUFFIXES = tuple(s + c for s in _PLAIN for c in ("", ".gz", ".zst"))
_TYPES = {"string", "int64", "int32", "float64", "float32", "bool"}


@dataclass(frozen=True, kw_only=True)
class Jsonl(RowReader):
    """JSON lines and JSON arrays, plain or compressed, local or remote."""

    types: dict[str, str] = field(default_factory=dict)
    """Types of extra columns: string (default), int64, int32, float64, float32 or bool."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in self.types.items():
            if name not in self.columns:
                raise ValueError(f"types: {name!r} is not in columns{nearest(name, self.columns)}")
            if kind not in _TYPES:
                raise ValueError(f"types: {name}: no type {kind!r}{nearest(kind, _TYPES)}")

    def files(self) -> list[File]:
        return files_of(self, _SUFFIXES)

    def extra(self, files: list[File]) -> pa.Schema:
        return pa.schema([(name, self._type(name)) for name in self.columns])

    def _type(self, ours: str) -> pa.DataType:
        known = {"source": pa.string(), **CONTENT}
        return known.get(ours) or pa.type_for_alias(self.types.get(ours, "string"))

    def pieces(self, files: list[File]) -> Iterator[Piece]:
        step = self._step
        for file in files:
            if not file.path.endswith((".jsonl", ".ndjson")) or file.size <= step:
                yield Piece(file, file.size)
                continue
            newlines = scan(file).newlines
            for start in range(0, file.size, step):
                stop = min(start + step, file.size)
                yield Piece(file, stop - start, start, stop, 1 + newlines[start // STEP])

    @property
    def _step(self) -> int:
        """Bytes of one range: a multiple of the steps at which newlines are counted."""
        return (self.shard_mb << 20) // STEP * STEP

    def batches(self, unit: Unit, rejects: Rejects) -> Iterator[Batch]:
        for piece in unit.pieces:
            if piece.file.path.endswith((".json", ".json.gz", ".json.zst")) and _is_array(piece):
                yield from self._array(piece.file, rejects)
            else:
                yield from self._lines(piece, rejects)

    def _lines(self, piece: Piece, rejects: Rejects) -> Iterator[Batch]:
        line = piece.line
        try:
            if piece.stop is None:
                blocks = line_blocks(chunks(piece.file), BATCH_BYTES)
            else:
                skipped, blocks = _range(piece)
                line += skipped
            for block in blocks:
                block = block.removeprefix(b"\xef\xbb\xbf") if line == 1 else block
                yield from self._block(block, line, piece.file.name, rejects)
                line += block.count(b"\n")
        except BrokenStream as error:
            rejects.add(piece.file.name, line, str(error))

    def _block(self, block: bytes, line: int, file: str, rejects: Rejects) -> Iterator[Batch]:
        block = block if block.endswith(b"\n") else block + b"\n"
        table = self._fast(block)
        if table is not None:
            yield Batch(file, np.arange(line, line + table.num_rows), table)
            return
        rows, lines = [], []
        for number, raw in enumerate(block.split(b"\n"), line):
            if raw and not raw.isspace():
                try:
                    rows.append(self._row(parse(raw)))
                    lines.append(number)
                except BadRow as error:
                    excerpt = raw[: 4 * EXCERPT].decode(errors="replace")
                    rejects.add(file, number, str(error), excerpt)
        yield self._batch(file, lines, rows)

    def _fast(self, block: bytes) -> pa.Table | None:
        """The block by Arrow's parser, if it is nothing but good rows, one a line."""
        wanted = self.wanted
        rows = block.count(b"\n")
        if len(set(wanted.values())) < len(wanted) or not block.startswith(b"{"):
            return None
        if block.count(b"\n{") != rows - 1:
            return None
        schema = pa.schema([(field, self._type(ours)) for ours, field in wanted.items()])
        parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        size = pj.ReadOptions(use_threads=False, block_size=len(block) + 1)
        try:
            block.decode()
            table = pj.read_json(io.BytesIO(block), size, parse)
        except (UnicodeDecodeError, pa.ArrowInvalid):
            return None
        if table.num_rows != rows or any(table[wanted[n]].null_count for n in self.content):
            return None
        return table.select(list(wanted.values())).rename_columns(list(wanted))

    def _array(self, file: File, rejects: Rejects) -> Iterator[Batch]:
        """A file that is one JSON array; rows are numbered by element."""
        try:
            raw = b"".join(chunks(file))
            elements = parse(raw.removeprefix(b"\xef\xbb\xbf"))
        except BrokenStream as error:
            rejects.add(file.name, 1, str(error))
            return
        except BadRow as error:
            cause = error.__cause__
            line = cause.lineno if isinstance(cause, json.JSONDecodeError) else 1
            rejects.add(file.name, line, str(error))
            return
        for start in range(0, len(elements), 4096):
            rows, numbers = [], []
            for number, element in enumerate(elements[start : start + 4096], start + 1):
                try:
                    rows.append(self._row(element))
                    numbers.append(number)
                except BadRow as error:
                    excerpt = json.dumps(element)[:EXCERPT]
                    rejects.add(file.name, number, str(error), excerpt)
            yield self._batch(file.name, numbers, rows)

    def _batch(self, file: str, lines: list[int], rows: list[list[Any]]) -> Batch:
        columns = zip(*rows, strict=True) if rows else [[] for _ in self.wanted]
        arrays = {
            ours: pa.array(values, self._type(ours))
            for ours, values in zip(self.wanted, columns, strict=True)
        }
        return Batch(file, np.asarray(lines, dtype=np.int64), pa.table(arrays))

    def _row(self, value: Any) -> list[Any]:
        """The wanted values of one parsed line; BadRow says what is wrong with it."""
        if not isinstance(value, dict):
            raise BadRow(f"not an object but {kind_of(value)}")
        row: list[Any] = []
        for ours, name in self.wanted.items():
            if ours in CONTENT and name not in value:
                raise BadRow(f"no field {name!r}{nearest(name, list(value)[:20])}")
            given = value.get(name)
            row.append(chat(given, name) if ours == "messages" else self._value(ours, given))
        return row

    def _value(self, ours: str, value: Any) -> Any:
        if ours in CONTENT:
            if not isinstance(value, str):
                raise BadRow(f"{ours} is {kind_of(value)}, not a string")
        elif value is None:
            return None
        elif ours == "source" or self.types.get(ours, "string") == "string":
            if not isinstance(value, str):
                value = json.dumps(value, ensure_ascii=False)
        else:
            return self._typed(ours, value)
        return encodable(value, ours)

    def _typed(self, ours: str, value: Any) -> Any:
        """A number or truth value of the declared type; an integer may stand for a float."""
        kind = self._type(ours)
        python: type = bool if pa.types.is_boolean(kind) else int
        try:
            if pa.types.is_floating(kind) and type(value) in (int, float):
                return float(value)
            if type(value) is python:
                return pa.scalar(value, kind).as_py()
        except (pa.ArrowException, OverflowError):
            pass  # an integer that does not fit
        raise BadRow(f"{ours} is {kind_of(value)}, not {kind}")


def _is_array(piece: Piece) -> bool:
    try:
        for chunk in chunks(piece.file):
            if head := chunk.removeprefix(b"\xef\xbb\xbf").lstrip():
                return head.startswith(b"[")
    except BrokenStream:
        pass
    return False


def _range(piece: Piece) -> tuple[int, Iterator[bytes]]:
    """(lines skipped, blocks of the lines that begin in [start, stop))."""
    assert piece.stop is not None
    with open_raw(piece.file) as handle:
        skipped, position = 0, piece.start
        if piece.start:
            handle.seek(piece.start - 1)
            skipped = int(handle.readline() != b"\n")
            position = handle.tell()
    return skipped, line_blocks(_stretch(piece.file, position, piece.stop), BATCH_BYTES)


def _stretch(file: File, position: int, stop: int) -> Iterator[bytes]:
    """Bytes from `position` to the end of the last line that begins before `stop`."""
    last = b"\n"
    with open_raw(file) as handle:
        handle.seek(position)
        while position < stop and (block := handle.read(min(STEP, stop - position))):
            position += len(block)
            last = block
            yield block
        if not last.endswith(b"\n"):
            yield handle.readline()
