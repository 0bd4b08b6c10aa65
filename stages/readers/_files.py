"""Input files: finding them, telling whether they changed, and streaming their bytes.

A path is a file, a folder, a glob or an fsspec URL (`memory://`, `s3://`, ...). Files are named by
their path below the deepest folder without a wildcard; where two files would share a name, all are
named from the folder they have in common.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import posixpath
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import xxhash

from foresift.pipeline.errors import DataError

#: bytes read at once; newlines are counted at these steps
STEP = 1 << 20
_WILD = re.compile(r"[*?\[]")
_known: dict[tuple[str, int, int], Scan] = {}


class BrokenStream(Exception):
    """The rest of a compressed file cannot be read."""


@dataclass(frozen=True)
class File:
    """One input file; small and picklable."""

    path: str
    """Absolute path or URL."""
    name: str
    """What `source` and the rejects call it."""
    size: int

    @property
    def local(self) -> bool:
        return "://" not in self.path

    @property
    def compressed(self) -> bool:
        return self.path.endswith((".gz", ".zst"))


@dataclass(frozen=True)
class Scan:
    """What one pass over a file found."""

    digest: str
    newlines: tuple[int, ...]
    """Newlines before byte k * STEP."""


def find_files(
    paths: Sequence[str], suffixes: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[File]:
    """The files that `paths` mean, sorted by name; a path that matches nothing is a DataError.

    `suffixes` (none: all) are asked of what lies in folders and matches globs, not of a file that
    is named outright. Hidden files and folders are passed over.
    """
    found: dict[str, tuple[str, int]] = {}
    for path in paths:
        root, matches, outright = _expand(str(path))
        kept = [
            (file, size)
            for file, size in matches
            if outright or _wanted(posixpath.relpath(file, root), suffixes, exclude)
        ]
        if not kept:
            kinds = f" with a suffix in {', '.join(suffixes)}" if suffixes and matches else ""
            raise DataError(f"matches no file{kinds}", where=str(path))
        for file, size in kept:
            found.setdefault(file, (root, size))
    files = [File(f, posixpath.relpath(f, root), size) for f, (root, size) in found.items()]
    if len({f.name for f in files}) < len(files):
        common = posixpath.commonpath([root for root, _ in found.values()])
        files = [replace(f, name=posixpath.relpath(f.path, common)) for f in files]
    return sorted(files, key=lambda f: (f.name, f.path))


def _wanted(name: str, suffixes: Sequence[str], exclude: Sequence[str]) -> bool:
    if any(piece.startswith(".") for piece in name.split("/")):
        return False
    if suffixes and not name.endswith(tuple(suffixes)):
        return False
    return not any(fnmatch.fnmatchcase(n, p) for p in exclude for n in (name, f"/{name}"))


def _expand(path: str) -> tuple[str, list[tuple[str, int]], bool]:
    """(folder that names are relative to, files and sizes, whether one file was named outright)."""
    if "://" in path and not path.startswith("file://"):
        return _expand_remote(path)
    path = os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
    if os.path.isdir(path):
        return path, _walk(path), False
    if os.path.isfile(path):
        return os.path.dirname(path), [(path, os.path.getsize(path))], True
    matches = sorted(glob.glob(path, recursive=True)) if _WILD.search(path) else []
    files = [(m, os.path.getsize(m)) for m in matches if os.path.isfile(m)]
    return _fixed(path), files, False


def _walk(folder: str) -> list[tuple[str, int]]:
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        paths = [os.path.join(root, name) for name in sorted(names)]
        found += [(p, os.path.getsize(p)) for p in paths if os.path.isfile(p)]
    return found


def _expand_remote(url: str) -> tuple[str, list[tuple[str, int]], bool]:
    try:
        fs, path = fsspec.core.url_to_fs(url)
        if _WILD.search(url):
            details = fs.glob(path, detail=True)
            root, outright = _fixed(path), False
        elif outright := fs.isfile(path):
            details, root = {path: fs.info(path)}, posixpath.dirname(path)
        else:
            details, root = fs.find(path, detail=True), path
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"cannot be read ({error})", where=url) from error
    files = [
        (fs.unstrip_protocol(p), int(info["size"] or 0))
        for p, info in sorted(details.items())
        if info["type"] == "file"
    ]
    return fs.unstrip_protocol(root), files, outright


def _fixed(path: str) -> str:
    """The deepest folder of a path before its first wildcard."""
    match = _WILD.search(path)
    return posixpath.dirname(path[: match.start()] if match else path)


def open_raw(file: File) -> Any:
    """The bytes of a file as they lie there."""
    try:
        return open(file.path, "rb") if file.local else fsspec.open(file.path, "rb").open()
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror or error})", where=file.path) from error


def scan(file: File) -> Scan:
    """Digest and newline counts of a file; remembered while size and time of change stay."""
    if not file.local:
        return _scan(file)
    stat = os.stat(file.path)
    key = (file.path, stat.st_size, stat.st_mtime_ns)
    if key not in _known:
        _known[key] = _scan(file)
    return _known[key]


def _scan(file: File) -> Scan:
    hasher, counts = xxhash.xxh3_128(), [0]
    lines = file.path.endswith((".jsonl", ".ndjson"))
    with open_raw(file) as handle:
        while block := handle.read(STEP):
            hasher.update(block)
            if lines:
                counts.append(counts[-1] + block.count(b"\n"))
    return Scan(hasher.hexdigest(), tuple(counts))


def content_digest(file: File) -> str:
    """What stands for the content of a file in a step's fingerprint."""
    if file.local:
        return scan(file).digest
    fs, path = fsspec.core.url_to_fs(file.path)
    try:
        return f"{fs.protocol}:{file.size}:{fs.checksum(path)}"
    except (NotImplementedError, FileNotFoundError):
        return scan(file).digest


def chunks(file: File) -> Iterator[bytes]:
    """The (decompressed) bytes of a file; BrokenStream where the rest cannot be had."""
    with open_raw(file) as handle:
        step = STEP if not file.compressed else STEP // 16
        raw = iter(lambda: handle.read(step), b"")
        if file.path.endswith(".gz"):
            yield from _inflate(raw, lambda: zlib.decompressobj(wbits=31))
        elif file.path.endswith(".zst"):
            import zstandard

            yield from _inflate(raw, lambda: zstandard.ZstdDecompressor().decompressobj())
        else:
            yield from raw


def _inflate(raw: Iterator[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress a sequence of members or frames; zero padding between them is allowed."""
    import zstandard

    machine, fresh = new(), True
    try:
        for block in raw:
            while block := block.lstrip(b"\0") if fresh else block:
                out = machine.decompress(block)
                if out:
                    yield out
                block, fresh = (machine.unused_data, True) if machine.eof else (b"", False)
                machine = new() if fresh else machine
    except (zlib.error, zstandard.ZstdError) as error:
        raise BrokenStream(f"the file cannot be decompressed from here on ({error})") from error
    if not fresh:
        raise BrokenStream("the compressed file is cut off from here on")


def line_blocks(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Blocks of whole lines of about `size` bytes; a longer line makes a longer block."""
    pending: list[bytes] = []
    held = 0
    try:
        for piece in pieces:
            pending.append(piece)
            held += len(piece)
            cut = piece.rfind(b"\n") + 1 if held >= size else 0
            if cut:
                yield b"".join([*pending[:-1], piece[:cut]])
                pending, held = [piece[cut:]], len(piece) - cut
    except BrokenStream:
        whole = b"".join(pending)
        if cut := whole.rfind(b"\n") + 1:
            yield whole[:cut]
        raise
    if held:
        yield b"".join(pending)
