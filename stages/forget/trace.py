"""Where a document is and where it went: rows, decisions, copies, trainings, exports, requests.

    id       32 hex digits                       text     a text, or @FILE
    key      a key path, or the head of one      entity   a name that stands in texts

Without `how` the argument is an id if it has 32 hex digits, a key if a source lies under it, else a
text. Of an id only columns of ids are scanned (some 16 bytes a row and an exposure) and the groups
of rows that hold it are read. Everything else looks at sources, or at all texts, as a request does.

Copies: rows of the same id (exact), rows that a `dedup` step put into one cluster (near), rows of
alike vectors (semantic). With `search` the texts are searched for near and substring copies too.

A checkpoint has seen a document if its step is not before the document's first one in that
training's ledger, or if its training went on from one that has; None where nobody can tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline.checkpoints import FINAL, Checkpoint, checkpoints
from foresift.pipeline.corpus import Shard
from foresift.pipeline.errors import DataError
from foresift.pipeline.job import Progress, silent
from foresift.pipeline.ledger import among
from foresift.pipeline.store import read_json
from foresift.pipeline.tables import ID, id_words
from foresift.pipeline.tombstones import FILE
from foresift.stages.forget._find_keys import text_id, under
from foresift.stages.forget._find_semantic import semantic
from foresift.stages.forget.history import Done, History
from foresift.stages.forget.request import Key, Request
from foresift.stages.forget.resolve import resolve
from foresift.stages.forget.taint import parents_of

HOW = ("id", "text", "key", "entity")
#: centred cosine from which a row is a semantic copy
ALIKE = 0.9
_ID = re.compile(r"[0-9a-fA-F]{32}")
#: what the plan of a run says of a document
_PLAN = ["id", "kept", "round", "position", "reason", "step"]


@dataclass(frozen=True)
class Trace:
    """All that a run knows of some documents."""

    how: str
    asked: str
    rows: list[dict[str, Any]]
    """Each row of them and of their exact copies: where it lies, and what was decided about it."""
    copies: list[dict[str, Any]]
    """Rows of other documents that are like them."""
    exposures: list[dict[str, Any]]
    checkpoints: list[dict[str, Any]]
    exports: list[dict[str, Any]]
    requests: list[dict[str, Any]]
    notes: list[str]

    def json(self) -> dict[str, Any]:
        """As one JSON object."""
        return dict(vars(self))


def trace(
    what: str, history: History, how: str = "", *, search: bool = False,
    progress: Progress = silent,
) -> Trace:  # fmt: skip
    """What the run knows of an id, a text, a key path or an entity."""
    if how and how not in HOW:
        raise DataError(f"no such thing to trace: {how!r} (one of {', '.join(HOW)})", where="--as")
    what = _given(what)
    how = how or kind_of(what, history)
    places = [(b, n, s) for b, c in enumerate(history.bases) for n, s in enumerate(c.shards())]
    notes: list[str] = []
    reasons: dict[bytes, tuple[str, float]] = {}
    known = how == "text" and any(_holding([text_id(what)], places))
    if how == "id" or (known and not search):
        ids = [bytes.fromhex(what) if how == "id" else text_id(what)]
    else:
        request = Request("(trace)", (Key(how, what),))
        wide = search or how == "text"
        found = resolve(request, history, progress, allow_all=True, expand=wide, semantic=2.0)
        notes += found.warnings
        ids, reasons = _split(found.rows)
    rows = _rows(ids, history, places)
    if how == "id" and not rows:
        raise DataError(f"no document {what} was read", where=str(history.run.path))
    if how == "id" and search:
        named = Request("(trace)", (Key("document", what.lower()),))
        found = resolve(named, history, progress, allow_all=True, semantic=2.0)
        _, reasons = _split(found.rows)
    copies = [*_found(reasons, ids, places), *_clustered(rows, history), *_alike(ids, history)]
    exposures, unknown = _exposures(ids, history)
    notes += [f"{name} has no ledger: it may have seen it" for name in unknown]
    return Trace(
        how, what, rows, _once(copies), exposures, _checkpoints(exposures, unknown, history),
        _exports(ids, history), _requests(ids, history), notes,
    )  # fmt: skip


def kind_of(what: str, history: History) -> str:
    """What an argument is."""
    if _ID.fullmatch(what):
        return "id"
    if len(what) <= 4096 and "\n" not in what:
        for corpus in history.bases:
            for shard in corpus.shards():
                if under(shard.load(["source"])["source"], what).any():
                    return "key"
    return "text"


def _given(what: str) -> str:
    """The argument, or what stands in the file that it names."""
    if not what.startswith("@"):
        return what
    try:
        return Path(what[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", where=what[1:]) from error


def _split(found: pa.Table) -> tuple[list[bytes], dict[bytes, tuple[str, float]]]:
    """The ids that are named or exact, and of the others what they are."""
    ids: dict[bytes, None] = {}
    others: dict[bytes, tuple[str, float]] = {}
    columns = (found[name].to_pylist() for name in ("id", "reason", "similarity"))
    for id_, reason, similarity in zip(*columns, strict=True):
        if reason in ("near", "substring"):
            others.setdefault(id_, (reason, round(similarity, 4)))
        else:
            ids[id_] = None
    return list(ids), {i: told for i, told in others.items() if i not in ids}


# -- rows and decisions ------------------------------------------------------------------------

Places = Sequence[tuple[int, int, Shard]]


def _words(ids: Sequence[bytes]) -> Any:
    return id_words(pa.array(list(ids), ID))


def _holding(ids: Sequence[bytes], places: Places) -> Iterator[tuple[int, int, Shard, Any]]:
    """(base, shard number, shard, rows) of the shards that hold any of the ids."""
    wanted = _words(ids)
    for base, number, shard in places:
        with pq.ParquetFile(shard.base, memory_map=True) as file:
            here = np.flatnonzero(among(file.read(columns=["id"])["id"], wanted))
        if len(here):
            yield base, number, shard, here


def _rows(ids: Sequence[bytes], history: History, places: Places) -> list[dict[str, Any]]:
    """Every row of the documents, with what the plan says of those that were selected from."""
    steps = {step.path.name: step.label for step in history.steps}
    names = [step.path.name for step in history.of("read")]
    starts = np.cumsum([0, *(s.rows for b, _, s in places if b == 0)])
    found = []
    for base, number, shard, rows in _holding(ids, places):
        beside = shard.load(["id", "source", "holdout"]).take(pa.array(rows)).to_pylist()
        plan = _planned(history.run.plan, rows + starts[number]) if base == 0 else {}
        for row, told in zip(rows.tolist(), beside, strict=True):
            line = {
                "id": told["id"].hex(), "base": base, "data": names[base], "shard": shard.name,
                "row": row, "source": told["source"], "holdout": told["holdout"],
            }  # fmt: skip
            said = plan.get(int(row + starts[number]), {}) if base == 0 else {}
            if said.get("id") == told["id"]:
                step = steps.get(said["step"], said["step"])
                line |= {n: said[n] for n in ("kept", "round", "position", "reason")}
                line["decision"] = step
            found.append(line)
    return found


def _planned(path: Path, rows: Any) -> dict[int, dict[str, Any]]:
    """What the plan says at some of its rows, which are those of the data set in their order."""
    found: dict[int, dict[str, Any]] = {}
    with pq.ParquetFile(path, memory_map=True) as file:
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            here = rows[(rows >= start) & (rows < stop)]
            if len(here):
                table = file.read_row_group(group, columns=_PLAN).take(pa.array(here - start))
                found |= dict(zip(here.tolist(), table.to_pylist(), strict=True))
            start = stop
    return found


# -- copies ------------------------------------------------------------------------------------


def _found(
    reasons: dict[bytes, tuple[str, float]], ids: Sequence[bytes], places: Places
) -> Iterator[dict[str, Any]]:
    """The copies that a search of the texts found."""
    if not reasons:
        return
    for base, _, shard, rows in _holding(list(reasons), places):
        table = shard.load(["id", "source"]).take(pa.array(rows))
        for row, told in zip(rows.tolist(), table.to_pylist(), strict=True):
            reason, similarity = reasons[told["id"]]
            yield _copy(reason, similarity, base, shard.name, row, told["id"], told["source"])


def _clustered(rows: Sequence[dict[str, Any]], history: History) -> Iterator[dict[str, Any]]:
    """Rows that a dedup step of the selection put into one cluster with one of some rows."""
    at: dict[str, list[int]] = {}
    for row in rows:
        if row["base"] == 0:
            at.setdefault(row["shard"], []).append(row["row"])
    shards = history.bases[0].shards()
    known = {bytes.fromhex(row["id"]) for row in rows}
    for step in (step for step in history.of("dedup") if step.main):
        keys: set[bytes] = set()
        for shard in shards:
            if shard.name in at:
                table = shard.sidecar(step.path, ["cluster", "cluster_size"])
                mine = table.take(pa.array(at[shard.name]))
                keys |= set(mine.filter(pc.greater(mine["cluster_size"], 1))["cluster"].to_pylist())
        if keys:
            yield from _members(step, shards, keys, known)


def _members(
    step: Done, shards: Sequence[Shard], keys: set[bytes], known: set[bytes]
) -> Iterator[dict[str, Any]]:
    """The rows of other documents in some clusters of a dedup step."""
    wanted = _words(sorted(keys))
    for shard in shards:
        clusters = shard.sidecar(step.path, ["cluster"])["cluster"]
        rows = np.flatnonzero(among(clusters, wanted) & np.asarray(clusters.is_valid()))
        if len(rows):
            table = shard.load(["id", "source"]).take(pa.array(rows))
            for row, told in zip(rows.tolist(), table.to_pylist(), strict=True):
                if told["id"] not in known:
                    yield _copy(step.label, None, 0, shard.name, row, told["id"], told["source"])


def _alike(ids: Sequence[bytes], history: History) -> Iterator[dict[str, Any]]:
    shards = history.bases[0].shards()
    for one in semantic(history, pa.array(list(ids), ID), ALIKE):
        told = shards[one.shard].load(["id", "source"]).slice(one.row, 1).to_pylist()[0]
        name = shards[one.shard].name
        yield _copy("semantic", one.similarity, 0, name, one.row, told["id"], told["source"])


def _copy(
    kind: str, similarity: float | None, base: int, shard: str, row: int, id_: bytes, source: str
) -> dict[str, Any]:
    return {
        "kind": kind, "similarity": None if similarity is None else round(similarity, 4),
        "id": id_.hex(), "base": base, "shard": shard, "row": row, "source": source,
    }  # fmt: skip


def _once(copies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row once, by the first that found it."""
    found: dict[tuple[int, str, int], dict[str, Any]] = {}
    for copy in copies:
        found.setdefault((copy["base"], copy["shard"], copy["row"]), copy)
    return list(found.values())


# -- where it went -----------------------------------------------------------------------------


def _exposures(ids: Sequence[bytes], history: History) -> tuple[list[dict[str, Any]], list[str]]:
    """What each training's ledger says of the documents; trainings without a ledger."""
    found: list[dict[str, Any]] = []
    unknown = []
    for training in history.trainings:
        try:
            ledger = history.ledger(training)
        except DataError:
            unknown.append(training.label)
            continue
        for line in ledger.find(pa.array(list(ids), ID)).to_pylist():
            told = {"training": training.label, "step_dir": training.path.name}
            found.append({**told, **line, "id": line["id"].hex()})
    return found, unknown


def _checkpoints(
    exposures: Sequence[dict[str, Any]], unknown: Sequence[str], history: History
) -> list[dict[str, Any]]:
    """Every checkpoint of the run's trainings, and whether it saw any of the documents."""
    known = _Seen(
        exposures, {t.path.name for t in history.trainings if t.label in unknown}, history
    )
    return [
        {
            "training": training.label,
            "step": one.step,
            "path": str(one.path),
            "saw": known.by(training.path, one),
        }
        for training in history.trainings
        for one in checkpoints(training.path)
    ]


class _Seen:
    """Which checkpoints saw the documents: by their own training, or by one it went on from."""

    def __init__(
        self, exposures: Sequence[dict[str, Any]], blind: set[str], history: History
    ) -> None:
        self._blind = blind
        self._steps: dict[str, list[int | None]] = {}
        for exposure in exposures:
            self._steps.setdefault(exposure["step_dir"], []).append(exposure["step"])
        self._parents = parents_of([history.run.path])
        self._paths = {t.path.name: t.path for t in history.trainings}
        told = history.run.manifest["steps"]
        self._starts = {Path(s["path"]).name: Path(str(s.get("model") or FINAL)).name for s in told}

    def by(self, training: Path, checkpoint: Checkpoint) -> bool | None:
        """True, False, or None where nobody can tell."""
        told = [self._own(training.name, checkpoint), self._before(training.name)]
        return True if True in told else None if None in told else False

    def _own(self, name: str, checkpoint: Checkpoint) -> bool | None:
        """Whether it is not before the first of the steps in its training's ledger."""
        steps = self._steps.get(name, [])
        if name in self._blind:
            return None
        if not steps or checkpoint.path.name == FINAL:
            return bool(steps)
        known = [step for step in steps if step is not None]
        if checkpoint.step is None or (known and checkpoint.step >= min(known)):
            return None if checkpoint.step is None else True
        return None if len(known) < len(steps) else False

    def _before(self, name: str) -> bool | None:
        """Whether the checkpoint from which a training started saw them."""
        parent = self._parents.get(name)
        if parent is None or parent not in self._paths or parent == name:
            return False
        path = self._paths[parent]
        start = [c for c in checkpoints(path) if c.path.name == self._starts.get(name, FINAL)]
        return self.by(path, start[0]) if start else self.by(path, Checkpoint(None, path / FINAL))


def _exports(ids: Sequence[bytes], history: History) -> list[dict[str, Any]]:
    """The exported files that hold any of the documents, by the lists of ids beside them."""
    wanted = _words(ids)
    found = []
    for step in history.of("export"):
        for path in sorted((step.path / "ids").glob("*.parquet")):
            count = int(among(pq.read_table(path, columns=["id"])["id"], wanted).sum())
            if count:
                told = {"step": step.label, "path": str(step.path), "file": _file(step, path)}
                found.append({**told, "rows": count})
    return found


def _file(step: Done, ids: Path) -> str:
    """The exported file beside a list of ids."""
    return next((p.name for p in sorted(step.path.glob(f"{ids.stem}.*"))), ids.stem)


def _requests(ids: Sequence[bytes], history: History) -> list[dict[str, Any]]:
    """Deletion plans of this store that name any of the documents, and what was forgotten."""
    wanted = _words(ids)
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(history.deletions.glob("*/lineage.parquet")):
        count = int(among(pq.read_table(path, columns=["doc_id"])["doc_id"], wanted).sum())
        if count:
            told = path.with_name("request.json")
            status = read_json(told).get("status") if told.exists() else None
            found[path.parent.name] = {
                "id": path.parent.name, "status": status, "documents": count,
            }  # fmt: skip
    path = history.deletions / FILE
    if path.exists():
        table = pq.read_table(path)
        gone = table.filter(pa.array(among(table["id"], wanted)))
        for name in pc.unique(gone["request"]).to_pylist():
            found.setdefault(name, {"id": name, "status": "applied", "documents": None})
    return list(found.values())
