"""Apply deletion plans: after it nothing that comes later sees the documents.

    forgotten list   the ids join `<out>/deletions/forgotten.parquet`: no later step sees them
    plans            of order steps and of runs are rewritten without them, and exports
    trainings        that saw one get `tainted.json`, and those that started from such a one

All at once or not at all, and reversible (`undo`) until `purge`. Steps that are done stay done. A
second time, or for documents that are gone already, nothing is rewritten. Several requests cost
as much as one: rows are read once for all of them. Not while a run is at work in the same store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.errors import DataError
from foresift.pipeline.ledger import among
from foresift.pipeline.store import Facts, StepDir
from foresift.pipeline.tables import ID, id_words
from foresift.pipeline.tombstones import FOLDER, SCHEMA, taint
from foresift.stages.forget._apply_settle import Settled, settle, status_op
from foresift.stages.forget._apply_store import Applied, State, Store, never_read
from foresift.stages.forget._apply_units import Words
from foresift.stages.forget.folder import APPLIED, PURGED, DeletionPlan


@dataclass(frozen=True)
class _Wanted:
    """A request and the documents of its plan."""

    id: str
    path: Path
    ids: pa.Array
    status: str


def apply(plans: Sequence[str | Path], out: Path | None = None) -> Facts:
    """Apply the deletion plans in these folders (or with these ids, given `out`) to their store."""
    wanted = [_wanted(folder_of(plan, out)) for plan in plans]
    out = _store_of(wanted, out)
    with Store.open(out) as store:
        state = store.state
        refuse_purging(state, store)
        known = id_words(store.forgotten["id"])
        fresh = [w for w in {w.id: w for w in wanted}.values() if state.of(w.id) is None]
        told: Facts = {
            "applied": [w.id for w in fresh],
            "already": [w.id for w in wanted if state.of(w.id) is not None],
        }
        added = pa.concat_tables([SCHEMA.empty_table(), *(_rows(w) for w in fresh)])
        new = len(pc.unique(added.filter(pa.array(~among(added["id"], known)))["id"]))
        checked = _check(fresh, known, store)
        done = _carry_out(store, state, fresh, added, new)
    return {
        **told,
        "documents": new,
        "rows_read": checked + done.rows_read,
        "rewritten": done.rewritten,
        "removed": done.removed,
        "tainted": done.tainted,
    }


def _carry_out(
    store: Store, state: State, fresh: Sequence[_Wanted], added: pa.Table, new: int
) -> Settled:
    """Change the store, or, where all documents are gone already, only say so."""
    if not fresh:
        return Settled()
    after = _joined(state, fresh, store)
    statuses = dict.fromkeys((w.id for w in fresh), APPLIED)
    forgotten = pa.concat_tables([store.forgotten, added])
    if new:
        return settle(store, after, forgotten, statuses)
    ops = store.stage_state(after, forgotten)
    store.commit([*ops, *(op for name in statuses for op in status_op(store, name, APPLIED))])
    return Settled()


def folder_of(plan: str | Path, out: Path | None) -> Path:
    """The folder of a plan, given as a path, or as a request's id in a store."""
    path = Path(plan)
    if path.is_dir() or out is None:
        return path
    return out / FOLDER / str(plan)


def _wanted(path: Path) -> _Wanted:
    plan = DeletionPlan.open(path)
    request = plan.request
    name = request.get("id")
    if not isinstance(name, str) or not name:
        raise DataError("its request.json has no id", where=str(path))
    if request.get("status") == PURGED:
        raise DataError(f"request {name!r} is purged: there is nothing left to do", where=str(path))
    table = plan.lineage
    if "doc_id" not in table.column_names:
        raise DataError("its lineage.parquet has no column doc_id", where=str(path))
    ids = pc.unique(table["doc_id"].cast(ID))
    if not len(ids):
        raise DataError("its lineage lists no document: nothing is asked for", where=str(path))
    return _Wanted(name, path, ids, str(request.get("status", "")))


def _store_of(wanted: Sequence[_Wanted], out: Path | None) -> Path:
    """The store that the plans lie in."""
    if out is not None:
        return out
    if not wanted:
        raise DataError("name a deletion plan, or the store with --run", where="forget apply")
    stores = {w.path.resolve().parent.parent for w in wanted}
    if len(stores) > 1 or wanted[0].path.resolve().parent.name != FOLDER:
        raise DataError(
            "these plans do not lie in the deletions/ of one store; name it with --run",
            where=str(wanted[0].path),
        )
    return stores.pop()


def _check(fresh: Sequence[_Wanted], known: Words, store: Store) -> int:
    """DataError for a plan whose documents were never read here; rows read to see it."""
    ids = pc.unique(pa.chunked_array([w.ids for w in fresh], ID))
    unread, rows = never_read(store, ids.filter(pa.array(~among(ids, known))))
    for one in fresh:
        here = int(among(one.ids, id_words(unread)).sum())
        if here:
            raise DataError(
                f"{here} of its {len(one.ids)} documents were never read in {store.out}; it is the"
                " plan of another store",
                where=str(one.path),
            )
    return rows


def _rows(one: _Wanted) -> pa.Table:
    names = pa.array([one.id] * len(one.ids), pa.string())
    return pa.table({"id": one.ids, "request": names}, schema=SCHEMA)


def _joined(state: State, fresh: Sequence[_Wanted], store: Store) -> State:
    steps, runs = store.steps(), store.runs()
    added = [Applied(one.id, len(one.ids), steps, runs) for one in fresh]
    return State([*state.requests, *added], dict(state.replayed), state.purging)


def refuse_purging(state: State, store: Store) -> None:
    """DataError while a purge is not finished: what it began cannot be taken back."""
    if state.purging:
        raise DataError(
            f"the purge of {', '.join(state.purging)} was interrupted; finish it with `foresift"
            " forget purge`",
            where=str(store.folder),
        )


def listed(out: Path) -> list[Facts]:
    """The requests of a store: id, status, documents, tainted trainings, unfinished replays."""
    store = Store(out)
    found: dict[str, Facts] = {}
    for path in sorted((out / FOLDER).glob("*/request.json")):
        if (path.parent / "plan.json").exists():
            plan = DeletionPlan(path.parent)
            told = plan.request
            name = str(told.get("id", path.parent.name))
            found[name] = {"status": told.get("status", ""), "documents": plan.lineage.num_rows}
        else:
            found[path.parent.name] = {"status": "not finished", "documents": 0}
    for one in store.state.requests:
        status = PURGED if one.purged else APPLIED
        found[one.id] = {"status": status, "documents": one.documents}
    tainted, begun = _tainted(store), unfinished(store)
    return [
        {
            "id": name, **told, "tainted": [t for t, names in tainted.items() if name in names],
            "replaying": [t for t, names in begun.items() if name in names],
        }
        for name, told in found.items()
    ]  # fmt: skip


def unfinished(store: Store) -> dict[str, list[str]]:
    """Steps that a replay has set aside and not made again yet -> the requests it was for."""
    return {
        place.rpartition("/")[2]: names
        for place, names in store.state.replayed.items()
        if (store.originals / place).exists() and not StepDir(store.out / place).done
    }


def _tainted(store: Store) -> dict[str, list[str]]:
    """Training -> the requests that taint it."""
    steps = {name: taint(store.out / "steps" / name) for name in store.of_verb("train")}
    return {name: list(told["requests"]) for name, told in steps.items() if told}
