"""A Hugging Face data set: `datasets.load_from_disk(<the step's directory>)` gives it back.

Arrow stream files `part-00000.arrow`, ... with the `dataset_info.json` and `state.json` that
`datasets` expects. They are written here, not by `save_to_disk`, so that memory stays bounded and
the same rows give the same bytes. `load_dataset("parquet", ...)` reads the `parquet` exporter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from foresift.pipeline.store import shard_facts, write_json
from foresift.stages.exporters._exporting import Exporter, Sink


@dataclass(frozen=True, kw_only=True)
class Hf(Exporter):
    """The chosen documents as a data set of the `datasets` library."""

    @property
    def suffix(self) -> str:
        return ".arrow"

    def sink(self, path: Path, schema: pa.Schema) -> Sink:
        return _Stream(path, schema)

    def seal(self, out: Path, names: Sequence[str]) -> None:
        import datasets

        with pa.memory_map(str(out / names[0])) as source:
            schema = pa.ipc.open_stream(source).schema
        features = datasets.Features.from_arrow_schema(schema)
        datasets.DatasetInfo(features=features).write_to_directory(str(out))
        stems = [Path(name).stem for name in names]
        facts = [shard_facts(out / "ids" / f"{stem}.parquet") for stem in stems]
        held = "".join(fact["ids"] + fact.get("log", "") for fact in facts)
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": xxhash.xxh3_64_hexdigest(f"{schema}{held}".encode()),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": "train",
        }
        write_json(out / "state.json", state)


class _Stream:
    """An Arrow stream file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_stream(self._file, schema)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()
        self._file.close()
