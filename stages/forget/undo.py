"""Undo deletions: every byte of the originals returns, but for what other requests took out.

Steps and runs that were finished after the request was applied were computed without its rows: they
are removed, so that they are computed again (what was read stays). Trainings that were replayed
since become what they were. A request that was purged cannot be undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.errors import DataError
from foresift.pipeline.store import Facts
from foresift.stages.forget._apply_settle import settle
from foresift.stages.forget._apply_store import State, Store
from foresift.stages.forget.apply import refuse_purging
from foresift.stages.forget.folder import UNDONE


def undo(names: Sequence[str], out: Path) -> Facts:
    """Undo requests that are applied in a store, by their ids; without ids all of them."""
    with Store.open(out) as store:
        state = store.state
        refuse_purging(state, store)
        mine = list(dict.fromkeys(names)) or [r.id for r in state.requests if not r.purged]
        _check(mine, state, out)
        forgotten = store.forgotten
        stays = pc.invert(pc.is_in(forgotten["request"], value_set=pa.array(mine, pa.string())))
        left = forgotten.filter(stays)
        requests = [r for r in state.requests if r.id not in mine]
        after = State(requests, dict(state.replayed), [])
        statuses = dict.fromkeys(mine, UNDONE)
        done = settle(store, after, left, statuses, mine)
    back = len(set(forgotten["id"].to_pylist()) - set(left["id"].to_pylist()))
    return {
        "undone": mine,
        "documents": back,
        "rows_read": done.rows_read,
        "rewritten": done.rewritten,
        "restored": done.restored,
        "removed": done.removed,
        "tainted": done.tainted,
    }


def _check(names: Sequence[str], state: State, out: Path) -> None:
    if not names:
        raise DataError("nothing is applied here, so there is nothing to undo", where=str(out))
    for name in names:
        state.standing(name, out)
