"""The plan file of a run: one line a document, in or out, and the accounts that must add up.

id        binary(16)        shard, row   where it lies
source    string            key path
kept      bool              whether it was chosen in any round
round     int32             the round that chose it (0: a recipe without rounds), else null
position  int64             its place in that round's order, else null
weight    float32           its weight, else null
rank      int64             its rank in the last decision about it, else null
reason    string            why it is in or out: the first decision that dropped it says so
step      string            the directory of that decision
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline import tombstones
from foresift.pipeline.corpus import Corpus, Shard
from foresift.pipeline.errors import StoreError
from foresift.pipeline.plan import MAIN, Decided, Plan
from foresift.pipeline.store import Facts, StepDir, publish, temporary
from foresift.pipeline.tables import ID

SCHEMA = pa.schema(
    {
        "id": ID,
        "shard": pa.int32(),
        "row": pa.int64(),
        "source": pa.string(),
        "n_tokens": pa.int64(),
        "kept": pa.bool_(),
        "round": pa.int32(),
        "position": pa.int64(),
        "weight": pa.float32(),
        "rank": pa.int64(),
        "reason": pa.string(),
        "step": pa.string(),
    }
)
HOLDOUT = "holdout"


def write_outcome(plan: Plan, path: Path) -> None:
    """Write `plan.parquet`, shard by shard."""
    line = next(each for each in plan.lines if each.name == MAIN)
    base = Corpus(line.views["data"].base)
    positions = _Positions(line.history)
    partial = temporary(path)
    with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        for number, shard in enumerate(base.shards()):
            writer.write_table(_shard(number, shard, line.history, positions))
    publish(partial, path)


def _shard(
    number: int, shard: Shard, history: Sequence[Decided], positions: _Positions
) -> pa.Table:
    base = shard.load(["id", "source", "n_tokens", "holdout"])
    rows = shard.rows
    gone = tombstones.forgotten(base["id"], shard.base.parent)
    state = _State(rows, np.asarray(base["holdout"]), gone)
    for decided in history:
        state.apply(decided, shard)
    chosen_in = [d for d in history if d.decisions or d.order]
    if not any(d.round for d in chosen_in):
        state.keep_rest(0)
    position = positions.of(number, rows, state.round)
    return pa.table(
        {
            "id": base["id"],
            "shard": pa.array(np.full(rows, number), pa.int32()),
            "row": pa.array(np.arange(rows), pa.int64()),
            "source": base["source"].cast(pa.string()),
            "n_tokens": base["n_tokens"],
            "kept": pa.array(state.kept),
            "round": pa.array(state.round, pa.int32(), mask=~state.kept),
            "position": pa.array(position, pa.int64(), mask=position < 0),
            "weight": pa.array(state.weight, pa.float32(), mask=~state.kept),
            "rank": pa.array(state.rank, pa.int64(), mask=state.rank < 0),
            "reason": pa.array(state.reason, pa.string()),
            "step": pa.array(state.step, pa.string()),
        },
        schema=SCHEMA,
    )


class _State:
    """What is known of the rows of one shard as the rounds go by."""

    def __init__(
        self, rows: int, holdout: np.ndarray[Any, Any], gone: np.ndarray[Any, Any]
    ) -> None:
        self.open = ~(holdout | gone)  # not yet dropped for good, not yet chosen
        self.kept = np.zeros(rows, dtype=np.bool_)
        self.round = np.zeros(rows, dtype=np.int64)
        self.rank = np.full(rows, -1, dtype=np.int64)
        self.weight = np.ones(rows, dtype=np.float32)
        self.reason = np.where(holdout, HOLDOUT, "read").astype(object)
        self.reason[gone] = tombstones.REASON
        self.step = np.where(holdout, HOLDOUT, "read").astype(object)
        self.step[gone] = tombstones.FOLDER

    def apply(self, decided: Decided, shard: Shard) -> None:
        """Follow one round's decisions; before the rounds, what is dropped is dropped for good."""
        alive = self.open.copy()
        for path in decided.decisions:
            table = shard.sidecar(path, ["kept", "rank", "weight", "reason"])
            kept = np.asarray(table["kept"].fill_null(False))
            judged = alive.copy()
            self.rank[judged] = np.asarray(table["rank"].fill_null(-1))[judged]
            self.weight[judged] = np.asarray(table["weight"].fill_null(1.0))[judged]
            self.reason[judged] = np.asarray(table["reason"].to_pylist(), dtype=object)[judged]
            self.step[judged] = path.name
            alive &= kept
        if decided.round:
            if decided.decisions:
                self._choose(alive, decided.round)
        else:
            self.open = alive

    def _choose(self, rows: np.ndarray[Any, Any], round: int) -> None:
        fresh = rows & ~self.kept
        self.kept |= fresh
        self.round[fresh] = round
        self.open &= ~fresh

    def keep_rest(self, round: int) -> None:
        """A recipe without rounds keeps whatever its decisions left."""
        self._choose(self.open.copy(), round)


class _Positions:
    """Row -> place in the order of a round."""

    def __init__(self, history: Sequence[Decided]) -> None:
        self._by_round: dict[int, pa.Table] = {}
        for decided in history:
            if decided.order is not None:
                columns = ["shard", "row", "position"]
                self._by_round[decided.round] = pq.read_table(
                    decided.order / "plan.parquet", columns=columns
                )

    def of(self, number: int, rows: int, rounds: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Place of each row of a shard in the order of its round, -1 where there is none."""
        found = np.full(rows, -1, dtype=np.int64)
        for round, table in self._by_round.items():
            here = table.filter(pc.equal(table["shard"], number))
            at = np.full(rows, -1, dtype=np.int64)
            at[np.asarray(here["row"])] = np.asarray(here["position"])
            mine = rounds == round
            found[mine] = at[mine]
        return found


def account(plan: Plan, path: Path) -> Facts:
    """The accounts of a run; StoreError when they do not add up."""
    reads = [s for s in plan.steps if s.verb == "read"]
    read = StepDir(reads[0].path).facts()["facts"]
    table = pq.read_table(path, columns=["kept", "reason", "n_tokens", "round"])
    return accounts_of(read, table, str(path))


def accounts_of(read: Facts, table: pa.Table, where: str) -> Facts:
    """The accounts of the plan of a run, given what its reader counted."""
    kept = table.filter(table["kept"])
    dropped = table.filter(pc.invert(table["kept"]))
    counts = pc.value_counts(dropped["reason"]).to_pylist()
    rounds = pc.value_counts(kept["round"]).to_pylist()
    accounts: Facts = {
        "rows_in": read["rows_in"],
        "rejected": read["rejected"],
        "rows": table.num_rows,
        "kept": kept.num_rows,
        "dropped": dropped.num_rows,
        "dropped_by_reason": {str(c["values"]): c["counts"] for c in counts},
        "kept_by_round": {str(c["values"]): c["counts"] for c in rounds},
        "n_tokens": pc.sum(table["n_tokens"]).as_py() or 0,
        "kept_tokens": pc.sum(kept["n_tokens"]).as_py() or 0,
    }
    if accounts["rows_in"] != accounts["rejected"] + accounts["kept"] + accounts["dropped"]:
        raise StoreError(f"the accounts do not add up: {accounts}", where=where)
    return accounts
