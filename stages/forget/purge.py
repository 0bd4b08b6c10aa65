"""Purge: of what was forgotten, nothing is left in the store but ids, hashes and counts.

    originals        without the rows; gone altogether when no other request is applied
    read steps       rows blanked: ids and counts stay, so that sidecars still zip
    scores           rows null: numbers and findings of a text tell of it
    runs             reports removed (`foresift report RUN` writes them again), lines of logs too
    rejects          excerpts removed where they share words with what went
    deletion plans   ids, hashes, counts; sets with text removed, here and in other plans
    anything else    where a word of it is found: the step is removed, and is done again when run

Not to be undone. Refused while a training is tainted, unless forced; with `checkpoints`, tainted
checkpoints are removed. Files of the user (raw inputs, parquet used in place) are not touched: the
answer names them. A purge that was killed goes on when it is called again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline.errors import DataError
from foresift.pipeline.store import Facts, read_json, write_json, write_text
from foresift.pipeline.tables import id_words
from foresift.pipeline.tombstones import FOLDER, taint
from foresift.stages.forget import _apply_blank as blank
from foresift.stages.forget import _apply_scan as scan
from foresift.stages.forget._apply_settle import tokens_of
from foresift.stages.forget._apply_store import FORGET, ORIGINAL, Op, State, Store, remove
from foresift.stages.forget._apply_units import Gone, units
from foresift.stages.forget.apply import unfinished
from foresift.stages.forget.folder import LINEAGE, PURGED
from foresift.stages.forget.taint import drop_checkpoints

Words = npt.NDArray[np.uint64]
#: what stays of a deletion plan
KEPT = ("request.json", "lineage.parquet", "plan.json", "budget.json", "verdict.json")


def purge(
    names: Sequence[str], out: Path, *, checkpoints: bool = False, force: bool = False
) -> Facts:
    """Purge requests that are applied in a store, by their ids; without ids all of them."""
    with Store.open(out) as store:
        state = store.state
        mine = _mine(names, state, out)
        tainted = _tainted(store, mine)
        if tainted and not force:
            raise DataError(
                f"{len(tainted)} trainings still hold what they saw, the first is {tainted[0]};"
                " replay them first (`foresift forget replay`), or force it",
                where=str(out),
            )
        begun = [name for name, why in unfinished(store).items() if set(why) & set(mine)]
        if begun and not force:
            raise DataError(
                f"a replay is not finished, the first step that it set aside is {begun[0]}; finish"
                " it first (`foresift forget replay`), or force it",
                where=str(out),
            )
        forgotten = store.forgotten
        wanted = pa.array(mine, pa.string())
        ids = forgotten.filter(pc.is_in(forgotten["request"], value_set=wanted))["id"]
        state.purging = mine
        store.commit(store.stage_state(state, forgotten))
        told = _purge(store, state, mine, id_words(ids))
        if checkpoints:
            told["checkpoints"] = [p for n in tainted for p in drop_checkpoints(out / "steps" / n)]
        for name in mine:
            applied = state.of(name)
            assert applied is not None
            applied.purged = True
        state.purging = []
        store.commit(store.stage_state(state, forgotten))
    return {"purged": mine, "documents": len(pc.unique(ids)), "tainted": tainted, **told}


def _mine(names: Sequence[str], state: State, out: Path) -> list[str]:
    """The requests to purge: those of a purge that was killed among them."""
    wanted = list(dict.fromkeys(names)) or [r.id for r in state.requests if not r.purged]
    mine = list(dict.fromkeys([*state.purging, *wanted]))
    if not mine:
        raise DataError("nothing is applied here, so there is nothing to purge", where=str(out))
    for name in mine:
        state.standing(name, out)
    return mine


def _tainted(store: Store, names: Sequence[str]) -> list[str]:
    """The trainings that saw documents of the requests."""
    found = {name: taint(store.out / "steps" / name) for name in store.of_verb("train")}
    return [n for n, told in found.items() if told and set(told["requests"]) & set(names)]


def _purge(store: Store, state: State, mine: Sequence[str], words: Words) -> Facts:
    """Everything but the text itself first: where it lay is known by it."""
    _originals(store, state, mine, words)
    wanted = scan.distinctive(store, words) - scan.own_words(store)
    written = blank.sidecars(store, words)
    removed = []
    for name in blank.run_plans(store, words):
        removed += _without_report(store.out / "runs" / name)
    for name in mine:
        _plan_folder(store.folder / name)
    found = _found(store, wanted)
    left = []
    for path in found:
        cleaned = _clean(store, path, wanted)
        if cleaned is None:
            left.append(str(path.relative_to(store.out)))
        elif cleaned:
            removed.append(cleaned)
    theirs = blank.read_shards(store, words)
    return {"blanked": written, "removed": sorted(set(removed)), "left": left, "yours": theirs}


def _originals(store: Store, state: State, mine: Sequence[str], words: Words) -> None:
    """Take the rows out of the originals too; what trained on them goes."""
    if all(r.purged or r.id in mine for r in state.requests):
        remove(store.originals)
        return
    mixed = [p for p, without in state.replayed.items() if set(mine) & set(without)]
    ops: list[Op] = [(FORGET, place) for place in mixed]
    gone = Gone(words, tokens_of(store, words)[0])
    store.returning = {
        str(p.relative_to(store.originals)) for p in store.originals.rglob("*") if p.is_file()
    }
    for unit in units(store)[0]:
        if unit.kept() and unit.hits(words).any():
            kept = set(unit.kept())
            ops += [(ORIGINAL, p) for _, p in unit.rewrite(gone) if p.split("/", 2)[2] in kept]
    store.commit(ops)
    store.returning = set()


def _without_report(run: Path) -> list[str]:
    """Remove the page of a run, which shows excerpts."""
    if not (run / "report").exists():
        return []
    manifest = read_json(run / "manifest.json")
    manifest.pop("report", None)
    write_json(run / "manifest.json", manifest)
    shutil.rmtree(run / "report")
    return [f"runs/{run.name}/report"]


def _plan_folder(folder: Path) -> None:
    """Of a deletion plan keep ids, hashes and counts."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name not in KEPT:
            remove(path)
    path = folder / "request.json"
    if path.exists():
        told = read_json(path)
        keys = [_hashed(key) for key in told.get("keys", [])]
        write_json(path, {**told, "keys": keys, "status": PURGED})
    path = folder / "lineage.parquet"
    if path.exists():
        table = pq.read_table(path)
        for name in ("source", "key_path", "licence", "created_at"):
            if name in table.column_names:
                at = table.schema.get_field_index(name)
                none = pa.nulls(table.num_rows, LINEAGE.field(name).type)
                table = table.set_column(at, name, none)
        pq.write_table(table, path)


def _hashed(key: Facts) -> Facts:
    """What was asked for, by its digest."""
    if "value" not in key:
        return key
    value = str(key["value"]).encode()
    return {"level": key.get("level"), "sha256": hashlib.sha256(value).hexdigest()}


def _found(store: Store, wanted: set[str]) -> list[Path]:
    """Files with a word that only forgotten documents had; data sets are blanked by row."""
    reads = {store.out / "steps" / name for name in store.of_verb("read")}
    found = []
    for path in sorted(store.out.rglob("*")):
        own = path.parent in reads and path.name.startswith("part-") and path.suffix == ".parquet"
        if path.is_file() and not own and wanted and scan.holds(path, wanted):
            found.append(path)
    return found


def _clean(store: Store, path: Path, wanted: set[str]) -> str | None:
    """Take the words out of a file, or the file away; None: it must stay as it is."""
    if not path.exists():  # its step was removed
        return ""
    first, name, *rest = path.relative_to(store.out).parts
    if path.name.endswith(".tmp"):
        path.unlink()
    elif first == "runs" and rest == ["log.txt"]:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(path, "".join(x for x in lines if wanted.isdisjoint(scan.words_of(x))))
    elif first == "runs" and rest and rest[0] == "report":
        return (_without_report(store.out / "runs" / name) or [""])[0]
    elif path.name.endswith("rejects.jsonl"):
        _excerpts(path, wanted)
    elif path.name == "answers.jsonl" or (first == FOLDER and path.suffix == ".jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        stay = [x for x in lines if not x.strip() or wanted.isdisjoint(_words(json.loads(x)))]
        write_text(path, "".join(stay))
    elif first == FOLDER and rest and rest[-1] not in KEPT:
        remove(path)
    elif first == "steps" and name not in store.of_verb("read", "train"):
        remove(store.out / "steps" / name)
        return f"steps/{name}"
    else:
        return None
    return str(path.relative_to(store.out))


def _excerpts(path: Path, wanted: set[str]) -> None:
    """Rejected rows stay counted; their excerpts go."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if not wanted.isdisjoint(_words(row)):
            row["excerpt"] = ""
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def _words(row: object) -> set[str]:
    """The words of a JSON value, escapes undone."""
    return scan.words_of(json.dumps(row, ensure_ascii=False).replace("\\", " \\ "))
