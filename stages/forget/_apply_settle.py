"""Settling a store: from what is applied to what is to be applied, in one change.

Everything is computed from the originals and the ids that are to be gone, so it does not matter in
which order requests come and go. Cost: one read of the ids of every shard that was read, plan and
ledger; writing of the files that hold a row that comes or goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.ledger import among
from foresift.pipeline.store import Facts, StepDir, read_json
from foresift.pipeline.tables import id_words
from foresift.pipeline.tombstones import FOLDER, TAINTED
from foresift.stages.forget import taint
from foresift.stages.forget._apply_store import (
    BACK,
    FORGET,
    KEEP,
    PUT,
    REMOVE,
    Applied,
    Op,
    State,
    Store,
)
from foresift.stages.forget._apply_units import Gone, Unit, Words, units


@dataclass
class Settled:
    """What a change did."""

    rows_read: int = 0
    rewritten: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    tainted: dict[str, Facts] = field(default_factory=dict)


def settle(
    store: Store, after: State, forgotten: pa.Table, statuses: Mapping[str, str],
    undone: Iterable[str] = (),
) -> Settled:  # fmt: skip
    """Bring the store to where `forgotten` (id, request) is gone and nothing else."""
    done, undone = Settled(), set(undone)
    before = id_words(store.forgotten["id"])
    going = [r for r in store.state.requests if r.id in undone]
    returning = _returning(store, after, undone)
    removing = _made_since(store, going, returning)
    ops: list[Op] = []
    words = id_words(forgotten["id"])
    tokens, done.rows_read = tokens_of(store, words)
    gone = Gone(words, tokens)
    ready, foreign = units(store)
    for unit in ready:
        if unit.place not in removing and unit.place not in returning:
            ops += _of_unit(unit, before, gone, done)
        if unit.place in after.replayed:  # its originals are of another making
            after.replayed[unit.place] = after.names()
    if not going and set(map(bytes, gone.words)) - set(map(bytes, before)):
        ops += _foreign(store, foreign, after, done)
        ops += [(REMOVE, place) for place in _half_exports(store)]
    for place in removing:
        ops += [(REMOVE, place), (FORGET, place)]
    done.removed += sorted(removing)
    for place in returning:
        kept = _returns(store, place, after)
        ops += [(BACK, place)] if kept else [(REMOVE, place), (FORGET, place)]
        (done.restored if kept else done.removed).append(place)
    ops += _taints(store, forgotten, removing, returning, done)
    for name, status in statuses.items():
        ops += status_op(store, name, status)
    store.commit([*store.stage_state(after, forgotten), *ops])
    store.returning.clear()
    return done


def _returning(store: Store, after: State, undone: set[str]) -> list[str]:
    """Directories that were made anew without a request that is undone: the originals return."""
    found = [place for place, without in after.replayed.items() if undone & set(without)]
    for place in found:
        del after.replayed[place]
    return sorted(found)


def _returns(store: Store, place: str, after: State) -> bool:
    """Whether the original is what is to be there: not where other requests cut its rows."""
    told = store.originals / place / "stage.json"
    return told.exists() and not (after.requests and read_json(told)["verb"] in ("order", "export"))


def _made_since(store: Store, going: Iterable[Applied], returning: list[str]) -> set[str]:
    """Steps and runs that were finished after a request was applied: they never saw its rows."""
    found: set[str] = set()
    for request in going:
        found |= {f"steps/{n}" for n in set(store.steps()) - set(request.steps)}
        found |= {f"runs/{n}" for n in set(store.runs()) - set(request.runs)}
    reads = {f"steps/{name}" for name in store.of_verb("read")}
    return found - reads - set(returning)


def _of_unit(unit: Unit, before: Words, gone: Gone, done: Settled) -> list[Op]:
    """The operations that bring a unit to where it is to be."""
    now = unit.hits(gone.words)
    done.rows_read += len(now)
    if np.array_equal(now, unit.hits(before)):
        return []
    if now.any():
        done.rewritten.append(unit.place)
        return unit.rewrite(gone)
    places = [f"{unit.place}/{name}" for name in unit.kept()]
    unit.store.returning.update(places)
    done.restored += [unit.place] if places else []
    return [(BACK, place) for place in places]


def _foreign(store: Store, exports: list[str], after: State, done: Settled) -> list[Op]:
    """Exports that cannot be rewritten here are set aside: the next run makes them again."""
    for place in exports:
        after.replayed[place] = after.names()
        done.removed.append(place)
    return [aside(store, place) for place in exports]


def aside(store: Store, place: str) -> Op:
    """Set a step's directory aside among the originals; an empty one takes its place."""
    store.stage(place).mkdir()
    return PUT if store.anew(place) else KEEP, place


def _half_exports(store: Store) -> list[str]:
    """Exports that were killed within may hold rows that go, and would go on from there."""
    steps = (p for p in (store.out / "steps").iterdir() if p.is_dir() and not StepDir(p).done)
    return sorted(f"steps/{p.name}" for p in steps if (p / "ids").is_dir())


def tokens_of(store: Store, words: Words) -> tuple[dict[bytes, int], int]:
    """Document -> its tokens, for some documents by their ids; and how many rows were read."""
    found, rows = dict[bytes, int](), 0
    for name in store.of_verb("read"):
        for path in StepDir(store.out / "steps" / name).shards():
            with pq.ParquetFile(path) as file:
                ids = file.read(columns=["id"])["id"]
                rows += len(ids)
                at = pa.array(np.flatnonzero(among(ids, words)))
                if len(at):
                    tokens = file.read(columns=["n_tokens"])["n_tokens"].take(at).to_pylist()
                    found |= dict(zip(ids.take(at).to_pylist(), tokens, strict=True))
    return found, rows


def _taints(
    store: Store, forgotten: pa.Table, removing: set[str], returning: list[str], done: Settled
) -> list[Op]:
    """Write what each training saw of what is gone; remove it where that is nothing."""
    trainings = {}
    for name in store.of_verb("train"):
        place = f"steps/{name}"
        if place not in removing:
            trainings[name] = store.out / place
    for place in returning:
        path = store.originals / place
        if (path / "stage.json").exists() and read_json(path / "stage.json")["verb"] == "train":
            trainings[Path(place).name] = path
        else:
            trainings.pop(Path(place).name, None)
    runs = [store.out / "runs" / name for name in store.runs()]
    found = taint.taints(trainings, forgotten, taint.parents_of(runs))
    done.tainted = found
    ops: list[Op] = []
    for name, path in trainings.items():
        place = f"steps/{name}/{TAINTED}"
        if name in found:
            ops.append(store.stage_json(place, found[name]))
        elif (path / TAINTED).exists():
            ops.append((REMOVE, place))
    return ops


def status_op(store: Store, name: str, status: str) -> list[Op]:
    """Write how far a request is, where its plan lies in this store."""
    place = f"{FOLDER}/{name}/request.json"
    if not (store.out / place).exists():
        return []
    return [store.stage_json(place, {**read_json(store.out / place), "status": status})]
