"""The store of a deletion: what is applied, what the originals are, and how all changes at once.

    <out>/deletions/applied.json       requests in the order in which they were applied
    <out>/deletions/forgotten.parquet  (id, request) of all of them
    <out>/deletions/originals/         files and step directories as they were before the first one
    <out>/deletions/.staging/          what is about to be put in place
    <out>/deletions/journal.json       operations that are being carried out

What lies in the store is a function of the originals and of the ids that are applied. A change is
written to `.staging` first, then its operations to the journal, then they are carried out. Killed
before the journal is there, nothing has happened; killed after, whoever opens the store next goes
on: each operation may be carried out twice. Readers refuse a store that has a journal.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.errors import DataError, StoreError, nearest
from foresift.pipeline.ledger import among
from foresift.pipeline.store import Facts, StepDir, read_json, temporary, write_json
from foresift.pipeline.tables import id_words
from foresift.pipeline.tombstones import FILE, FOLDER, JOURNAL, SCHEMA

APPLIED = "applied.json"
#: operations: put a staged path (`keep`: the original is kept), bring an original back, remove
PUT, KEEP, BACK, REMOVE = "put", "keep", "back", "remove"
#: of the originals: remove one, or put a staged path among them
FORGET, ORIGINAL = "forget", "original"
Op = tuple[str, str]


@dataclass
class Applied:
    """A request that was applied, and what was done at that time."""

    id: str
    documents: int
    steps: list[str]
    runs: list[str]
    purged: bool = False


@dataclass
class State:
    """What is applied, and which step directories were made anew without which requests."""

    requests: list[Applied] = field(default_factory=list)
    replayed: dict[str, list[str]] = field(default_factory=dict)
    purging: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        """The requests, in the order in which they were applied."""
        return [r.id for r in self.requests]

    def of(self, name: str) -> Applied | None:
        """A request by its id."""
        return next((r for r in self.requests if r.id == name), None)

    def standing(self, name: str, out: Path) -> Applied:
        """A request that is applied and not purged; DataError where there is none."""
        applied = self.of(name)
        if applied is None:
            raise DataError(
                f"request {name!r} is not applied here{nearest(name, self.names())}",
                where=str(out),
            )
        if applied.purged:
            raise DataError(
                f"request {name!r} is purged already: its documents are nowhere any more",
                where=str(out),
            )
        return applied


class Store:
    """An `--out` that documents are taken out of."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / FOLDER
        self.originals, self.staging = self.folder / "originals", self.folder / ".staging"
        self.journal = self.folder / JOURNAL
        self.replayed: set[str] = set()
        """Step directories that were made anew since: their originals are of another making."""
        self.returning: set[str] = set()
        """Files that the change being prepared brings back from the originals."""

    @classmethod
    @contextmanager
    def open(cls, out: Path) -> Iterator[Store]:
        """Of one writer at a time; what was interrupted is finished, or is as if never begun."""
        if not (out / "steps").is_dir():
            raise DataError("no steps here; give the --out of a run with --run", where=str(out))
        store = cls(out)
        store.folder.mkdir(exist_ok=True)
        with open(store.folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StoreError(
                    "another `foresift forget` is at work here", where=str(store.folder)
                ) from error
            store.recover()
            store.replayed = set(store.state.replayed)
            yield store

    # -- what is there ---------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What is applied."""
        path = self.folder / APPLIED
        if not path.exists():
            return State()
        told = read_json(path)
        try:
            requests = [Applied(**one) for one in told["requests"]]
            return State(requests, dict(told["replayed"]), list(told["purging"]))
        except (KeyError, TypeError) as error:
            raise StoreError(f"does not say {error} of what is applied", where=str(path)) from error

    @property
    def forgotten(self) -> pa.Table:
        """(id, request) of all that is applied."""
        path = self.folder / FILE
        return pq.read_table(path) if path.exists() else SCHEMA.empty_table()

    def steps(self) -> list[str]:
        """The step directories that are done."""
        return sorted(p.parent.name for p in (self.out / "steps").glob("*/stage.json"))

    def runs(self) -> list[str]:
        """The runs that are finished."""
        return sorted(p.parent.name for p in (self.out / "runs").glob("*/manifest.json"))

    def of_verb(self, *verbs: str) -> list[str]:
        """The done step directories of these verbs."""
        return [n for n in self.steps() if self.told(n).get("verb") in verbs]

    def told(self, step: str) -> Facts:
        """The `stage.json` of a step."""
        return StepDir(self.out / "steps" / step).facts()

    def source(self, place: str) -> Path:
        """The original of a file or directory, where it was changed; else itself."""
        kept = self.originals / place
        return kept if kept.exists() and not self.anew(place) else self.out / place

    def anew(self, place: str) -> bool:
        """Whether a path lies in a step directory that was made anew."""
        return "/".join(place.split("/")[:2]) in self.replayed

    def coming(self, place: str) -> Path:
        """A file as it will be after the change that is being prepared."""
        if (self.staging / place).exists():
            return self.staging / place
        return (self.originals if place in self.returning else self.out) / place

    # -- change ----------------------------------------------------------------------------------

    def stage(self, place: str) -> Path:
        """Where to write what is to be put at `place`."""
        path = self.staging / place
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def stage_json(self, place: str, value: Any) -> Op:
        """Stage a JSON file."""
        write_json(self.stage(place), value)
        return PUT, place

    def stage_state(self, state: State, forgotten: pa.Table) -> list[Op]:
        """Stage what is applied: first of all, so that no reader sees a row that is going."""
        place = f"{FOLDER}/{FILE}"
        first: Op = (REMOVE, place)
        if forgotten.num_rows:
            pq.write_table(forgotten.cast(SCHEMA), self.stage(place), compression="zstd")
            first = (PUT, place)
        if not state.requests:
            return [first, (REMOVE, f"{FOLDER}/{APPLIED}")]
        return [first, self.stage_json(f"{FOLDER}/{APPLIED}", asdict(state))]

    def commit(self, ops: Sequence[Op]) -> None:
        """Carry out operations; from here on they are carried out whatever happens."""
        write_json(self.journal, {"ops": [list(op) for op in ops]})
        self._finish()

    def recover(self) -> None:
        """Finish what a killed process began, or clear away what it had not begun."""
        if self.journal.exists():
            self._finish()
        shutil.rmtree(self.staging, ignore_errors=True)

    def _finish(self) -> None:
        for kind, place in read_json(self.journal)["ops"]:
            self._do(kind, place)
        _prune(self.originals)
        shutil.rmtree(self.staging, ignore_errors=True)
        self.journal.unlink()

    def _do(self, kind: str, place: str) -> None:
        """One operation; carried out again it changes nothing."""
        target, staged, kept = self.out / place, self.staging / place, self.originals / place
        if kind in (PUT, KEEP) and staged.exists():
            if kind == KEEP and target.exists():
                _keep(target, kept)
            if target.is_dir():
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, target)
        elif kind == BACK and kept.exists():
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(kept, target)
        elif kind == REMOVE:
            remove(target)
        elif kind == FORGET:
            remove(kept)
        elif kind == ORIGINAL and staged.exists():
            os.replace(staged, kept)


def _keep(target: Path, kept: Path) -> None:
    """Give a file, or the files of a directory, a second name among the originals."""
    if target.is_dir():
        for path in sorted(p for p in target.rglob("*") if p.is_file()):
            _keep(path, kept / path.relative_to(target))
    elif not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        link(target, kept)


def link(path: Path, name: Path) -> None:
    """A second name for a file; a copy where the file system has no such names."""
    try:
        os.link(path, name)
    except OSError:
        partial = temporary(name)
        shutil.copy2(path, partial)
        os.replace(partial, name)


def remove(path: Path) -> None:
    """A file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _prune(folder: Path) -> None:
    """Remove directories in which no file is left, the folder itself too."""
    for path in [*folder.glob("*/*"), *folder.glob("*"), folder]:
        if path.is_dir() and not any(p.is_file() for p in path.rglob("*")):
            shutil.rmtree(path)


def never_read(store: Store, ids: pa.Array) -> tuple[pa.Array, int]:
    """The documents that no data set of the store ever held, and how many rows were read."""
    rows = 0
    for name in store.of_verb("read"):
        for path in StepDir(store.out / "steps" / name).shards():
            if not len(ids):
                break
            with pq.ParquetFile(path) as file:
                here = id_words(file.read(columns=["id"])["id"])
            rows += len(here)
            ids = ids.filter(pa.array(~among(ids, here)))
    return ids, rows
