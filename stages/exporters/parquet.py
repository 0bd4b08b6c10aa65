"""Parquet files, compressed with zstd: `part-00000.parquet`, ...

Columns: id (string, 32 hex digits), the content, source, weight (float32), with a plan round
(int32), and the columns asked for in their own types.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from foresift.stages.exporters._exporting import Exporter, Sink


@dataclass(frozen=True, kw_only=True)
class Parquet(Exporter):
    """The chosen documents as parquet files."""

    @property
    def suffix(self) -> str:
        return ".parquet"

    def sink(self, path: Path, schema: pa.Schema) -> Sink:
        writer: Sink = pq.ParquetWriter(path, schema, compression="zstd")
        return writer
