"""Text, markdown and code: one document a file, a paragraph or a line; docstrings and comments.

    split: file        source is the path; a blank file holds no document and is no row
    split: paragraph   runs of lines between blank lines; source is `path#line`
    split: line        lines that are not blank; source is `path#line`
    python: prose      `.py` files, whatever `split` is, give their docstrings and comment blocks,
                       each a document; source is `path#line`

Two kinds of path work on every machine: `python:site-packages` (the installed packages; or a part
of them, `python:site-packages/numpy`), and `python:<module>` for a module that holds a dict of
texts, such as `python:pydoc_data.topics`.
Line numbers count from 1. Cost: a pass over the bytes; `prose` parses source at some 3 MB/s.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash

from foresift.pipeline.parts import digest
from foresift.stages.readers._files import (
    BrokenStream,
    File,
    chunks,
    content_digest,
    find_files,
    line_blocks,
)
from foresift.stages.readers._json import BadRow, encodable
from foresift.stages.readers._python import (
    SCHEME,
    SITE,
    Unparsable,
    module_texts,
    prose,
    site_packages,
)
from foresift.stages.readers._reading import Reader
from foresift.stages.readers._units import BATCH_BYTES, EXCERPT, Batch, Piece, Rejects, Unit

_SUFFIXES = [
    ".txt", ".md", ".markdown", ".rst", ".tex", ".org", ".text",
    ".py", ".pyi", ".js", ".ts", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".go", ".rs",
    ".rb", ".jl", ".sh", ".sql", ".txt.gz", ".md.gz", ".txt.zst", ".md.zst",
    "README", "CHANGELOG", "CHANGES", "LICENSE", "LICENCE", "COPYING", "NOTICE", "METADATA",
]  # fmt: skip
#: (source, line, text)
Document = tuple[str, int, str]


@dataclass(frozen=True, kw_only=True)
class Text(Reader):
    """Text, markdown and code trees: one document a file, paragraph or line."""

    suffixes: list[str] = field(default_factory=lambda: list(_SUFFIXES))
    """Ends of file names read in folders and globs; an empty list reads everything."""
    exclude: list[str] = field(default_factory=list)
    """Globs of paths to leave out, such as `**/tests/**` (`*` crosses folders)."""
    max_bytes: int | None = None
    """Files larger than this are left out, as if excluded."""
    split: Literal["file", "paragraph", "line"] = "file"
    """What one document is."""
    python: Literal["whole", "prose", "both"] = "whole"
    """What a `.py` file gives: its text, its docstrings and comment blocks, or both."""

    def files(self) -> list[File]:
        modules = [p for p in self.paths if p.startswith(SCHEME) and not p.startswith(SITE)]
        site = [site_packages() + p.removeprefix(SITE) for p in self.paths if p.startswith(SITE)]
        plain = [p for p in self.paths if not p.startswith(SCHEME)]
        paths = plain + site
        found = find_files(paths, self.suffixes, self.exclude) if paths else []
        if site:  # so that the first part of a source is the package
            found = [_from_site(file) for file in found]
        kept = [f for f in found if self.max_bytes is None or f.size <= self.max_bytes]
        texts = {name: sum(map(len, module_texts(name).values())) for name in modules}
        return kept + [File(p, p.removeprefix(SCHEME), n) for p, n in sorted(texts.items())]

    def inputs(self) -> list[tuple[str, str]]:
        site, whole = site_packages(), xxhash.xxh3_128()
        installed = any(path.startswith(SITE) for path in self.paths)
        rest: list[tuple[str, str]] = []
        for file in self.files():
            if file.path.startswith(SCHEME):
                rest.append((file.path, digest(module_texts(file.path))))
            elif installed and file.path.startswith(f"{site}/"):
                whole.update(f"{file.name}\n{content_digest(file)}\n".encode())
            else:
                rest.append((file.path, content_digest(file)))
        return rest + ([(SITE, whole.hexdigest())] if installed else [])

    def pieces(self, files: list[File]) -> Iterator[Piece]:
        return (Piece(file, file.size) for file in files)

    def batches(self, unit: Unit, rejects: Rejects) -> Iterator[Batch]:
        documents: list[Document] = []
        held = 0
        for piece in unit.pieces:
            for document in self._documents(piece.file, rejects):
                documents.append(document)
                held += len(document[2])
                if held >= BATCH_BYTES:
                    yield _batch(documents)
                    documents, held = [], 0
        if documents:
            yield _batch(documents)

    def _documents(self, file: File, rejects: Rejects) -> Iterator[Document]:
        if file.path.startswith(SCHEME):
            for key, text in module_texts(file.path).items():
                yield f"{file.name}#{key}", 1, text
            return
        try:
            if self.split == "file" or self._code(file):
                yield from self._whole(file, rejects)
            else:
                yield from self._split(file, rejects)
        except BrokenStream as error:
            rejects.add(file.name, 1, str(error))

    def _whole(self, file: File, rejects: Rejects) -> Iterator[Document]:
        raw = b"".join(chunks(file))
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            rejects.add(file.name, line, "not UTF-8", raw[:EXCERPT].decode(errors="replace"))
            return
        if self._code(file):
            yield from _prose(file, text, rejects)
            if self.python == "prose":
                return
        if text and not text.isspace():
            yield file.name, 1, text

    def _code(self, file: File) -> bool:
        """Whether docstrings and comments are wanted of this file."""
        return self.python != "whole" and file.path.endswith(".py")

    def _split(self, file: File, rejects: Rejects) -> Iterator[Document]:
        """Paragraphs or lines, streamed; a line that is not UTF-8 spoils its document alone."""
        waiting: list[bytes] = []
        start = first = 1
        for block in line_blocks(chunks(file), BATCH_BYTES):
            block = block.removeprefix(b"\xef\xbb\xbf") if first == 1 else block
            lines = block.removesuffix(b"\n").split(b"\n")
            for number, line in enumerate(lines, first):
                blank = not line.strip()
                if waiting and (blank or self.split == "line"):
                    yield from _decoded(file, start, waiting, rejects)
                    waiting = []
                if not blank:
                    start = start if waiting else number
                    waiting.append(line.rstrip(b"\r"))
            first += len(lines)
        if waiting:
            yield from _decoded(file, start, waiting, rejects)


def _from_site(file: File) -> File:
    site = site_packages()
    inside = file.path.startswith(f"{site}/")
    return replace(file, name=posixpath.relpath(file.path, site)) if inside else file


def _prose(file: File, text: str, rejects: Rejects) -> Iterator[Document]:
    try:
        found = prose(text)
    except Unparsable as error:
        lines = text.split("\n")
        excerpt = lines[error.line - 1] if error.line <= len(lines) else ""
        rejects.add(file.name, error.line, str(error), excerpt)
        return
    for line, part in found:
        try:
            yield f"{file.name}#{line}", line, encodable(part, "docstring")
        except BadRow as error:
            rejects.add(file.name, line, str(error), part)


def _decoded(file: File, line: int, parts: list[bytes], rejects: Rejects) -> Iterator[Document]:
    raw = b"\n".join(parts)
    try:
        yield f"{file.name}#{line}", line, raw.decode()
    except UnicodeDecodeError:
        rejects.add(file.name, line, "not UTF-8", raw[:EXCERPT].decode(errors="replace"))


def _batch(documents: list[Document]) -> Batch:
    sources, lines, texts = zip(*documents, strict=True)
    table = pa.table({"text": pa.array(texts, pa.string()), "source": pa.array(sources)})
    return Batch([s.partition("#")[0] for s in sources], np.asarray(lines, np.int64), table)
