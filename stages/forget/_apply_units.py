"""Rewriting without forgotten rows: plans of order steps, plans of runs, exports.

    order    plan.parquet without the rows, positions from 0 again; rows and n_tokens in stage.json
    run      the rows stay with kept = false and the reason `forgotten`; positions are those of the
             order as it is now; the accounts in manifest.json are counted again
    export   every file without the rows; a made row (`refined`) goes with the documents it was made
             from; a file without rows stays, empty

What is written is a function of the originals and of the ids, whatever was applied before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline import outcome
from foresift.pipeline.ledger import among
from foresift.pipeline.plan import MAIN
from foresift.pipeline.store import Facts, read_json
from foresift.pipeline.tombstones import FOLDER, REASON
from foresift.stages.forget import _apply_files as files
from foresift.stages.forget._apply_store import KEEP, PUT, Op, Store

Words = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
PLAN, STAGE, MANIFEST = "plan.parquet", "stage.json", "manifest.json"


@dataclass(frozen=True)
class Gone:
    """The ids that are to go, and what they weigh."""

    words: Words
    tokens: Mapping[bytes, int]

    def of(self, ids: pa.ChunkedArray) -> Bools:
        """[n] which of some rows go."""
        return among(ids, self.words)

    def tokens_of(self, ids: pa.ChunkedArray) -> int:
        """Their tokens, each row counted."""
        return sum(self.tokens.get(id_, 0) for id_ in ids.to_pylist())


@dataclass(frozen=True)
class Unit(ABC):
    """Files that are rewritten together: a step's directory or a run's."""

    store: Store
    place: str
    """Below `<out>`: `steps/shuffle-1a2b3c4d`, `runs/...`."""

    def source(self, name: str) -> Path:
        """The original of one of its files."""
        return self.store.source(f"{self.place}/{name}")

    def into(self, name: str) -> Path:
        """Where one of its files is written."""
        return self.store.stage(f"{self.place}/{name}")

    def kept(self) -> list[str]:
        """Files whose originals are kept."""
        if self.store.anew(self.place):
            return []
        root = self.store.originals / self.place
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())

    def ids(self) -> pa.ChunkedArray:
        """The ids of its rows, before any was taken out."""
        return _ids(self.source(PLAN))

    def hits(self, words: Words) -> Bools:
        """[rows] which rows go."""
        return among(self.ids(), words)

    @abstractmethod
    def rewrite(self, gone: Gone) -> list[Op]:
        """Stage its files without the rows."""

    def _ops(self, names: Sequence[str]) -> list[Op]:
        kind = PUT if self.store.anew(self.place) else KEEP
        return [(kind, f"{self.place}/{name}") for name in names]


class OrderUnit(Unit):
    """The plan of an order step."""

    def rewrite(self, gone: Gone) -> list[Op]:
        before = pq.read_table(self.source(PLAN))
        out = gone.of(before["id"])
        plan = before.filter(pa.array(~out))
        at = plan.schema.get_field_index("position")
        place = pa.array(np.arange(plan.num_rows), pa.int64())
        plan = plan.set_column(at, plan.schema.field(at), place)
        pq.write_table(plan, self.into(PLAN), compression="zstd")
        told = read_json(self.source(STAGE))
        facts = dict(told["facts"])
        facts["rows"] = plan.num_rows
        facts["n_tokens"] -= gone.tokens_of(before["id"].filter(pa.array(out)))
        if "documents" in facts:
            facts["documents"] = plan.group_by(["shard", "row"]).aggregate([]).num_rows
        self.store.stage_json(f"{self.place}/{STAGE}", {**told, "facts": facts})
        return self._ops([PLAN, STAGE])


class RunUnit(Unit):
    """The plan and the accounts of a run."""

    def rewrite(self, gone: Gone) -> list[Op]:
        manifest = read_json(self.source(MANIFEST))
        table = pq.read_table(self.source(PLAN))
        out = gone.of(table["id"])
        plan = _forgotten(table, out, self._positions(table, out, manifest))
        pq.write_table(plan, self.into(PLAN), compression="zstd")
        given = {k: manifest["accounts"][k] for k in ("rows_in", "rejected")}
        accounts = outcome.accounts_of(given, plan, str(self.into(PLAN)))
        self.store.stage_json(f"{self.place}/{MANIFEST}", {**manifest, "accounts": accounts})
        return self._ops([PLAN, MANIFEST])

    def _positions(self, table: pa.Table, out: Bools, manifest: Facts) -> npt.NDArray[np.int64]:
        """[n] the place of each row in the order of its round as it is now, -1: none."""
        had = ~np.asarray(table["position"].is_null())
        rounds = np.asarray(table["round"].fill_null(-1))
        found = np.full(table.num_rows, -1, dtype=np.int64)
        for number in np.unique(rounds[had]):
            mine = np.flatnonzero(had & ~out & (rounds == number))
            order = self._order(table.take(pa.array(mine)), manifest, int(number))
            if order is None:  # it was done away with: what is left moves up
                before = np.asarray(table["position"].take(pa.array(mine)))
                found[mine[np.argsort(before, kind="stable")]] = np.arange(len(mine))
            else:
                found[mine] = _places(table.take(pa.array(mine)), order)
        return found

    def _order(self, rows: pa.Table, manifest: Facts, number: int) -> pa.Table | None:
        """The order of a round that holds these rows, as it is now."""
        told = [s for s in manifest["steps"] if s["verb"] == "order" and s["line"] == MAIN]
        for step in reversed([s for s in told if s["round"] == number and not s["repeat"]]):
            path = self.store.coming(f"steps/{Path(step['path']).name}/{PLAN}")
            if path.exists():
                order = pq.read_table(path, columns=["id", "shard", "row", "position"])
                if _holds(order, rows):
                    return order
        return None


def _key(table: pa.Table) -> npt.NDArray[np.int64]:
    """[n] shard and row in one number."""
    shard, row = np.asarray(table["shard"], dtype=np.int64), np.asarray(table["row"])
    key: npt.NDArray[np.int64] = (shard << 40) + row
    return key


def _holds(order: pa.Table, rows: pa.Table) -> bool:
    """Whether the rows are in the order, with the same ids."""
    keys, wanted = _key(order), _key(rows)
    at = np.argsort(keys, kind="stable")
    where = np.searchsorted(keys[at], wanted)
    if len(keys) == 0 or (where == len(keys)).any() or (keys[at][where] != wanted).any():
        return len(wanted) == 0
    ids: bool = order["id"].take(pa.array(at[where])).equals(rows["id"])
    return ids


def _places(rows: pa.Table, order: pa.Table) -> npt.NDArray[np.int64]:
    """The last place of each row in an order."""
    keys = _key(order)
    at = np.lexsort((np.asarray(order["position"]), keys))
    last = np.searchsorted(keys[at], _key(rows), side="right") - 1
    places: npt.NDArray[np.int64] = np.asarray(order["position"])[at][last]
    return places


def _forgotten(table: pa.Table, out: Bools, position: npt.NDArray[np.int64]) -> pa.Table:
    """The plan of a run in which some rows are forgotten."""
    gone = pa.array(out)
    none = pa.scalar(None)
    columns = {name: table[name] for name in table.column_names}
    for name in ("round", "weight", "rank"):
        columns[name] = pc.if_else(gone, none.cast(table.schema.field(name).type), table[name])
    columns["kept"] = pc.and_(table["kept"], pa.array(~out))
    columns["position"] = pa.chunked_array([pa.array(position, mask=position < 0)])
    columns["reason"] = pc.if_else(gone, REASON, table["reason"])
    columns["step"] = pc.if_else(gone, FOLDER, table["step"])
    return pa.table(columns, schema=table.schema)


class ExportUnit(Unit):
    """The files of an export step, row by row."""

    def _data(self) -> list[str]:
        """Its data files."""
        told = read_json(self.source(STAGE))
        return [str(name) for name in told["facts"].get("files", [])]

    @property
    def readable(self) -> bool:
        """Whether its files are of a kind that is known here."""
        known = all(name.endswith(files.SUFFIXES) for name in self._data())
        return known and bool(self._data()) and (self.store.out / self.place / "ids").is_dir()

    def ids(self) -> pa.ChunkedArray:
        found = [_ids(self.source(f"ids/{files.stem(name)}.parquet")) for name in self._data()]
        return pa.chunked_array([chunk for ids in found for chunk in ids.chunks], found[0].type)

    def hits(self, words: Words) -> Bools:
        """Also rows that were made after a document that goes."""
        hit = among(self.ids(), words)
        if read_json(self.source(STAGE))["facts"].get("added"):
            made = [files.goers(self.source(name), words) for name in self._data()]
            hit = hit | np.concatenate(made)
        return hit

    def rewrite(self, gone: Gone) -> list[Op]:
        told, names, out = read_json(self.source(STAGE)), list[str](), self.hits(gone.words)
        lost = self.ids().filter(pa.array(out))
        first = 0
        for name in self._data():
            beside = f"ids/{files.stem(name)}.parquet"
            rows = len(_ids(self.source(beside)))
            here = out[first : first + rows]
            first += rows
            files.without(self.source(name), self.into(name), here)
            tokens = gone.tokens_of(_ids(self.source(beside)).filter(pa.array(here)))
            files.shard_without(self.source(beside), self.into(beside), here, tokens)
            names += [name, beside]
            log = f"redactions/{files.stem(name)}.parquet"
            if self.source(log).exists():
                words = among(_ids(self.source(log)), gone.words)
                files.shard_without(self.source(log), self.into(log), words, 0)
                names.append(log)
        if self.source("state.json").exists():
            files.stamp(self.source("state.json"), self.into("state.json"), lost)
            names.append("state.json")
        facts = dict(told["facts"])
        facts["rows"] -= int(out.sum())
        facts["n_tokens"] = max(facts["n_tokens"] - gone.tokens_of(lost), 0)
        if "added" in facts:
            facts |= self._fewer(facts, out)
        self.store.stage_json(f"{self.place}/{STAGE}", {**told, "facts": facts})
        return self._ops([*names, STAGE])

    def _fewer(self, facts: Facts, out: Bools) -> Facts:
        """The counts of a refined data set, less those of the rows that go."""
        gone, first = Counter[str](), 0
        for name in self._data():
            rows = len(_ids(self.source(f"ids/{files.stem(name)}.parquet")))
            gone += files.actions(self.source(name), out[first : first + rows])
            first += rows
        return {name: facts[name] - count for name, count in gone.items()}


def units(store: Store) -> tuple[list[Unit], list[str]]:
    """What is rewritten, orders before runs; and exports whose format is not known here."""
    exports = [ExportUnit(store, f"steps/{name}") for name in store.of_verb("export")]
    found: list[Unit] = [OrderUnit(store, f"steps/{name}") for name in store.of_verb("order")]
    found += [unit for unit in exports if unit.readable]
    found += [RunUnit(store, f"runs/{name}") for name in store.runs()]
    return found, [unit.place for unit in exports if not unit.readable]


def _ids(path: Path) -> Any:
    with pq.ParquetFile(path) as file:
        return file.read(columns=["id"])["id"]
