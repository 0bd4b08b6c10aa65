"""The files of a data set, with sizes, SHA-256 and fields: what was exported, else what was read.

Digests are kept in `sha256.json` in the step's directory, by size and time of change, so a second
call reads nothing. Files that were read are listed only if they still give the step's fingerprint:
the report tells of what was measured, never of what lies there by now. `trouble` says why there is
nothing to list. Cost: one pass over the bytes, some 500 MB/s and more.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.any_columns import head_of, objects
from foresift.pipeline.errors import ForesiftError
from foresift.pipeline.parts import digest, find
from foresift.pipeline.store import Facts, StepDir, read_json, write_json
from foresift.pipeline.tables import content_columns
from foresift.stages.report.contents import Contents

KEPT = "sha256.json"
LINES, JSON, PARQUET = "application/jsonlines", "application/json", "application/x-parquet"
ARROW, TEXT = "application/vnd.apache.arrow.stream", "text/plain"
#: ends of names -> MIME type; what else there is, is text
FORMATS = {
    ".parquet": PARQUET, ".pq": PARQUET, ".jsonl": LINES, ".ndjson": LINES, ".json": JSON,
    ".arrow": ARROW,
}  # fmt: skip


@dataclass(frozen=True)
class DataFile:
    """One file."""

    path: str
    name: str
    """Its path below the folder of the data set."""
    bytes: int
    sha256: str
    format: str
    """MIME type of what is in it, compression aside."""


@dataclass(frozen=True)
class Column:
    """One field of its rows."""

    name: str
    type: str
    """text, messages, integer, number, boolean or other."""
    about: str


@dataclass(frozen=True)
class DataFiles:
    """The files, and what their rows are made of."""

    kind: str
    """`exported` or `read`."""
    files: list[DataFile]
    columns: list[Column]
    unit: str
    """What one document is: a row, a file, a paragraph, a line, docstrings."""
    trouble: str = ""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def data_files(contents: Contents) -> DataFiles:
    """The files of the last export of the selection, or of the corpus."""
    exports = contents.first_of("export")
    return _exported(contents, exports[-1]) if exports else _read(contents)


def _read(contents: Contents) -> DataFiles:
    step = contents.steps("read")[0]
    base = contents.base
    about = StepDir(base).facts()
    columns = [Column(n, *_CONTENT.get(n, ("text", ""))) for n in about["facts"].get("columns", [])]
    try:
        reader: Any = find("read", step["name"]).parse(about["fields"], "data")
        found = [_Input(f.path, f.name, f.size) for f in _opened(reader.files())]
        sums = _sums(base, found, lambda: _same(reader, about))
    except (ForesiftError, OSError, AttributeError) as error:
        return DataFiles("read", [], columns, "row", f"the files cannot be had: {error}")
    if sums is None:
        return DataFiles("read", [], columns, "row", "the files have changed since they were read")
    files = [DataFile(f.path, f.name, f.size, sums[f.path], _format(f.path)) for f in found]
    fields = about["fields"]
    named = [Column(fields.get(c.name) or c.name, c.type, c.about) for c in columns]
    if fields.get("source"):
        named.append(Column(fields["source"], "text", "where a document is from"))
    return DataFiles("read", files, named, _unit(fields))


#: content column -> type, meaning
_CONTENT = {
    "text": ("text", "the document"),
    "messages": ("messages", "the turns of the conversation"),
    "prompt": ("text", "what is asked"),
    "response": ("text", "what is answered"),
}


@dataclass(frozen=True)
class _Input:
    path: str
    name: str
    size: int


def _opened(files: Iterable[Any]) -> Iterable[Any]:
    """Files as they are; of a data set saved to disk the files in its folder."""
    for file in files:
        if not os.path.isdir(file.path):
            yield file
            continue
        for path in sorted(Path(file.path).rglob("*.arrow")):
            yield _Input(str(path), str(path.relative_to(file.path)), path.stat().st_size)


def _same(reader: Any, about: Facts) -> bool:
    """Whether the files still are those of the step."""
    inputs = reader.inputs()
    return bool(digest(["read", reader.fingerprint, inputs]) == about["fingerprint"])


def _unit(fields: Mapping[str, Any]) -> str:
    if fields.get("python", "whole") != "whole":
        return "docstring, comment or file"
    return str(fields.get("split", "row")) if "suffixes" in fields else "row"


def _exported(contents: Contents, step: Facts) -> DataFiles:
    path = contents.directory(step)
    inside = (f for f in sorted(path.rglob("*")) if f.is_file() and _data(f.relative_to(path)))
    found = [_Input(str(f), str(f.relative_to(path)), f.stat().st_size) for f in inside]
    try:
        sums = _sums(path, found, lambda: True) or {}
        files = [DataFile(f.path, f.name, f.size, sums[f.path], _format(f.path)) for f in found]
        columns = _columns(files[0]) if files else []
    except (OSError, ForesiftError, pa.ArrowException) as error:
        return DataFiles("exported", [], [], "row", f"the files cannot be read: {error}")
    return DataFiles("exported", files, columns, "row", "" if files else "nothing was exported")


def _data(path: Path) -> bool:
    """Whether a file of an export holds rows, and no log of them."""
    return _ending(path.name) in FORMATS and not {"ids", "redactions"} & set(path.parts[:-1]) and (
        path.name not in ("stage.json", KEPT, "dataset_info.json", "state.json")
    )  # fmt: skip


def _sums(out: Path, files: list[_Input], same: Any) -> dict[str, str] | None:
    """Path -> SHA-256; None where a file has to be read and is no longer what it was."""
    kept: dict[str, Any] = read_json(out / KEPT) if (out / KEPT).exists() else {}
    stamps = {f.path: _stamp(f) for f in files}
    known = {p: kept[p][1] for p, s in stamps.items() if p in kept and kept[p][0] == s}
    if len(known) == len(files):
        return known
    if not same():
        return None
    sums = {f.path: known.get(f.path) or _sha256(f.path) for f in files}
    write_json(out / KEPT, {path: [stamps[path], sums[path]] for path in sums})
    return sums


def _stamp(file: _Input) -> str:
    """Size and time of change of a local file; of a remote one its size."""
    changed = os.stat(file.path).st_mtime_ns if "://" not in file.path else 0
    return f"{file.size}:{changed}"


def _sha256(path: str) -> str:
    import fsspec

    hasher = hashlib.sha256()
    with fsspec.open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def _ending(path: str) -> str:
    name = path.lower()
    for packed in (".gz", ".zst"):
        name = name.removesuffix(packed)
    return os.path.splitext(name)[1]


def _format(path: str) -> str:
    """The MIME type; `.json` is JSON lines unless it is one array."""
    found = FORMATS.get(_ending(path), TEXT)
    if found == JSON:
        start = head_of(path).removeprefix(b"\xef\xbb\xbf").lstrip()
        return JSON if start.startswith(b"[") else LINES
    return found


def _columns(file: DataFile) -> list[Column]:
    """The fields of an exported file."""
    if file.format == PARQUET:
        schema = pq.read_schema(file.path)
    elif file.format == ARROW:
        with pa.memory_map(file.path) as source:
            schema = pa.ipc.open_stream(source).schema
    else:
        rows = objects(head_of(file.path))
        schema = pa.Table.from_pylist([json.loads(json.dumps(r)) for r in rows]).schema
    content = content_columns(schema.names)
    return [Column(f.name, _type(f), _CONTENT[f.name][1] if f.name in content else _OWN.get(
        f.name, "")) for f in schema]  # fmt: skip


_OWN = {
    "id": "128-bit hash of the document as it was read, in hex",
    "source": "where the document is from",
    "weight": "weight of the document",
    "round": "the round that chose it",
    "redacted": "whether pieces were replaced",
}


def _type(field: pa.Field) -> str:
    t, kind = pa.types, field.type
    if field.name == "messages":
        return "messages"
    for name, test in (
        ("text", t.is_string), ("text", t.is_large_string), ("boolean", t.is_boolean),
        ("integer", t.is_integer), ("number", t.is_floating),
    ):  # fmt: skip
        if test(kind):
            return name
    return "other"
