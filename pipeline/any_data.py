"""What lies at a path, and which reader reads it: for `foresift report`, where nobody says so.

    hf       a folder written by `save_to_disk` (dataset_info.json, dataset_dict.json)
    parquet  .parquet, .pq         jsonl   .jsonl, .ndjson, .json, plain, .gz or .zst
    text     what the text reader knows: .txt, .md, code ...; a single file of it is cut at blank
             lines, or at lines where there is none of those; of a folder each file is a document

In a folder the kind with most bytes is read, if its first file has a content column. A file with
another suffix is judged by its first bytes. The content of rows: `--text`, else messages, prompt
and response under one of their usual names, `text` under one of its, else the column of strings
that is longest in the first rows. Whatever was decided is said in a sentence, that nobody needs to
guess what was read. Nothing is read but the first rows of one file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foresift.pipeline.any_columns import (
    ROWS,
    choose,
    content_of,
    first_objects,
    first_rows,
    head_of,
    objects,
    shown,
    told,
)  # fmt: skip
from foresift.pipeline.errors import DataError, nearest
from foresift.pipeline.parts import find

ENDS = {
    "parquet": (".parquet", ".pq"),
    "jsonl": tuple(s + c for s in (".jsonl", ".ndjson", ".json") for c in ("", ".gz", ".zst")),
}
MARKS = ("dataset_info.json", "dataset_dict.json")
#: what people bring that no reader reads, and what to do about it
HINTS = {
    ".csv": "tables: pandas.read_csv(...).to_parquet(...)",
    ".tsv": "tables: pandas.read_csv(..., sep='\\t').to_parquet(...)",
    ".xlsx": "tables: pandas.read_excel(...).to_parquet(...)",
    ".arrow": "a data set: datasets.Dataset.from_file(...).to_parquet(...)",
    ".warc": "web pages: extract their text first",
    ".pdf": "pages: extract their text first",
    ".zip": "an archive: unpack it first",
    ".tar": "an archive: unpack it first",
}  # fmt: skip
SPLITS = ("file", "paragraph", "line")


@dataclass(frozen=True)
class Wish:
    """What the user said of the data; empty: decide."""

    read: str = ""
    """jsonl, parquet, text or hf."""
    text: str = ""
    """The content column, or `prompt,response` as the data calls them."""
    split: str = ""
    """What a document is in text files: file, paragraph or line."""


@dataclass
class Found:
    """A reader for a recipe's `data`, and what was decided."""

    fields: dict[str, Any]
    """`read`, `paths` and the names of columns."""
    said: list[str] = field(default_factory=list)
    bytes: int = 0
    """Size of the files, as they lie there."""

    @property
    def content(self) -> str:
        """`text`, `messages` or `pairs`."""
        return next((n for n in ("messages", "pairs") if _key(n) in self.fields), "text")


def _key(content: str) -> str:
    return "prompt" if content == "pairs" else content


def look(paths: Sequence[str], wish: Wish | None = None) -> Found:
    """Decide how `paths` are read; a DataError says what stands in the way."""
    wish = wish or Wish()
    if wish.split and wish.split not in SPLITS:
        raise DataError(f"no split {wish.split!r}{nearest(wish.split, SPLITS)}", where="--split")
    if wish.read == "hf" or (not wish.read and _saved(paths)):
        return _hf(list(paths), wish)
    files = _files(paths)
    kinds = [wish.read] if wish.read else _kinds(files)
    reasons: list[DataError] = []
    for kind in kinds:
        ours = [f for f in files if wish.read or len(files) == 1 or _kind(f) == kind]
        found = Found({"read": kind, "paths": list(paths)}, bytes=sum(size for _, size in ours))
        try:
            _columns(found, kind, ours, wish)
        except DataError as error:
            reasons.append(error)
            continue
        others = sorted(f for f, _ in files if f not in dict(ours))
        if others:
            what = "file is" if len(others) == 1 else "files are"
            mine = [p for p in paths if os.path.abspath(p) not in others]
            found.fields["paths"] = mine  # a shell's glob names all of them outright
            found.said.append(f"{len(others):,} other {what} passed over: {_endings(others)}")
        return found
    if len(reasons) == 1:
        raise reasons[0]
    raise DataError(_nothing(files, reasons), where=", ".join(paths))


def _columns(found: Found, kind: str, files: list[tuple[str, int]], wish: Wish) -> None:
    """Complete the reader of a kind."""
    count = f"{len(files):,} file{'s' * (len(files) != 1)}"
    if not any(size for _, size in files):
        raise DataError(_nothing(files, []), where=", ".join(found.fields["paths"]))
    if kind == "text":
        if len(files) == 1 and not wish.read:
            _by_bytes(files[0][0])  # an image may be called .txt
        found.fields["split"] = wish.split or _split(files)
        if all(_kind(f) != "text" for f in files):
            found.fields["suffixes"] = []  # whatever they are called
        what = f"a document is a {found.fields['split']}"
        found.said.insert(0, f"{count} of text; {what}")
        return
    if kind not in ENDS:
        raise DataError(f"no reader {kind!r}{nearest(kind, [*ENDS, 'text', 'hf'])}", where="--read")
    first = next((f for f, size in files if size), files[0][0])
    rows = first_objects(first) if kind == "jsonl" else first_rows(first)
    found.fields |= choose(rows, wish.text, first)
    found.said.insert(0, f"{count} of {kind}; {told(found.fields, rows)}")


# -- files -----------------------------------------------------------------------------------------


def _files(paths: Sequence[str]) -> list[tuple[str, int]]:
    """(path, size) of every file that is meant; hidden ones are passed over."""
    every: Any = find("read", "text").parse({"paths": list(paths), "suffixes": []}, "report")
    return [(file.path, file.size) for file in every.files()]


def _kinds(files: list[tuple[str, int]]) -> list[str]:
    """The kinds that are there, those with most bytes first."""
    sizes: Counter[str] = Counter()
    for path, size in files:
        if kind := _kind((path, size)):
            sizes[kind] += size + 1
    if len(files) == 1 and not sizes and files[0][1]:
        return [_by_bytes(files[0][0])]
    return [kind for kind, _ in sizes.most_common()]


def _kind(file: tuple[str, int]) -> str:
    """The kind of a file by the end of its name; empty: none of them."""
    name = file[0].lower()
    found = next((kind for kind, ends in ENDS.items() if name.endswith(ends)), "")
    text: Any = find("read", "text")
    return found or ("text" if file[0].endswith(tuple(text(paths=["."]).suffixes)) else "")


def _by_bytes(path: str) -> str:
    """The kind of a single file whose name does not tell it."""
    head = head_of(path)
    if head.startswith(b"PAR1"):
        return "parquet"
    if b"\0" in head or _broken(head) > 0.1:
        hint = f"; {HINTS[_ending(path)]}" if _ending(path) in HINTS else ""
        raise DataError(f"is not text, JSON lines or parquet but binary{hint}", where=path)
    if _ending(path) in (".csv", ".tsv"):
        hint = f"{HINTS[_ending(path)]}, or --read text for its lines"
        raise DataError(f"has no reader; {hint}", where=path)
    return "jsonl" if objects(head) else "text"


def _broken(head: bytes) -> float:
    """The share of characters that are no UTF-8; a last one that is cut off does not count."""
    text = head.decode("utf-8", "replace")
    return max(0, text.count("\ufffd") - 1) / max(len(text), 1)


def _split(files: list[tuple[str, int]]) -> str:
    """What a document is in text files."""
    if len(files) != 1:
        return "file"
    head = head_of(files[0][0]).strip()
    if b"\n\n" in head or b"\n\r\n" in head:
        return "paragraph"
    return "line" if b"\n" in head else "file"


def _ending(path: str) -> str:
    """The end of a name, compression aside."""
    name = Path(path.lower().removesuffix(".gz").removesuffix(".zst"))
    return name.suffix or name.name


def _endings(files: Iterable[str]) -> str:
    counts = Counter(map(_ending, files))
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    named = [f"{n:,} {ending}" for ending, n in ranked[:5]]
    return ", ".join(named) + (", ..." if len(counts) > 5 else "")


def _nothing(files: list[tuple[str, int]], reasons: Sequence[DataError]) -> str:
    """Why nothing here can be read."""
    if reasons:
        return "; ".join(map(str, reasons))
    if not any(size for _, size in files):
        return (
            "holds no document: "
            + ("the file is" if len(files) == 1 else "all files are")
            + (" empty")
        )
    hints = [HINTS[e] for e in sorted({_ending(f) for f, _ in files}) if e in HINTS]
    hint = f" ({'; '.join(hints)})" if hints else ""
    return (
        f"holds no file that a reader knows, only {_endings(f for f, _ in files)}{hint}; read are "
        "JSON lines (.gz, .zst), parquet, text, and data sets saved to disk"
    )


def _hf(paths: list[str], wish: Wish) -> Found:
    """A data set saved to disk, or on the hub where `--read hf` says so."""
    found = Found({"read": "hf", "paths": paths})
    if not _saved(paths):
        names = [n.strip() for n in wish.text.split(",") if n.strip()] or ["text"]
        found.fields |= content_of(names, {}, "--text")
        found.said.append(f"a data set on the hub; {told(found.fields, [])}")
        return found
    import datasets

    try:
        loaded: Any = datasets.load_from_disk(paths[0])
    except (OSError, ValueError) as error:
        raise DataError(f"no data set ({error})", where=paths[0]) from error
    if isinstance(loaded, dict):
        split = "train" if "train" in loaded else next(iter(loaded))
        found.fields["split"] = split
        found.said.append(f"of its splits {', '.join(loaded)} the split {split} is read")
        loaded = loaded[split]
    names = [f.name for f in loaded.features.arrow_schema if shown(f.type)]
    found.bytes = int(loaded.data.nbytes)
    rows = loaded.select(range(min(ROWS, len(loaded)))).select_columns(names).to_list()
    if not rows:
        raise DataError("holds no document: the data set has no rows", where=paths[0])
    found.fields |= choose(rows, wish.text, paths[0])
    found.said.insert(0, f"a saved data set; {told(found.fields, rows)}")
    return found


def _saved(paths: Sequence[str]) -> bool:
    return all(any((Path(path) / mark).is_file() for mark in MARKS) for path in paths)
