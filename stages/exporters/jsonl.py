"""JSON lines: `part-00000.jsonl.gz`, ...; one object a line, UTF-8, keys in column order.

Numbers that JSON has no word for (NaN, infinities) become null; bytes become hex digits, dates ISO
text. The compressed bytes carry no time and no name: the same rows give the same file.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import zstandard

from foresift.stages.exporters._exporting import Exporter, Sink


@dataclass(frozen=True, kw_only=True)
class Jsonl(Exporter):
    """The chosen documents as JSON lines, compressed or plain."""

    compression: Literal["gz", "zst", "none"] = "gz"
    """`gz`, `zst` or `none`."""

    @property
    def suffix(self) -> str:
        return ".jsonl" + ("" if self.compression == "none" else f".{self.compression}")

    def sink(self, path: Path, schema: pa.Schema) -> Sink:
        return _Lines(open(path, "wb"), self.compression)


class _Lines:
    """Rows as JSON lines into a stream, which is closed with it."""

    def __init__(self, raw: IO[bytes], compression: str) -> None:
        self._raw = raw
        self._stream: Any = raw
        if compression == "gz":
            self._stream = gzip.GzipFile("", "wb", 6, raw, mtime=0)
        elif compression == "zst":
            self._stream = zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False)

    def write(self, table: pa.Table) -> None:
        columns = [_plain(table[name]) for name in table.column_names]
        for row in zip(*columns, strict=True):
            line = json.dumps(dict(zip(table.column_names, row, strict=True)), ensure_ascii=False)
            self._stream.write(line.encode() + b"\n")

    def close(self) -> None:
        if self._stream is not self._raw:
            self._stream.close()
        self._raw.close()


def _plain(column: pa.ChunkedArray) -> list[Any]:
    """Values that JSON can say."""
    values: list[Any] = column.to_pylist()
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return values
    return [_say(value) for value in values]


def _say(value: Any) -> Any:
    says: dict[type, Callable[[Any], Any]] = {
        float: lambda v: v if math.isfinite(v) else None,
        bytes: bytes.hex,
        dict: lambda v: {str(k): _say(x) for k, x in v.items()},
        list: lambda v: [_say(x) for x in v],
    }
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return says.get(type(value), str)(value)
