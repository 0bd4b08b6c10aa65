"""Apply and undo: atomic, reversible to the byte, idempotent, cheap for a stream of requests."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.errors import DataError, StoreError
from foresift.pipeline.run import Run
from foresift.pipeline.store import StepDir, read_json
from foresift.pipeline.tombstones import path_of
from foresift.stages.forget._apply_store import Store
from foresift.stages.forget.apply import apply, listed
from foresift.stages.forget.undo import undo
from tests.runs import go, recipe
from tests.stages.forget.deletions import alive, chosen, everything, plan_folder, status, step

FORMATS = ("jsonl", "parquet", "hf")


def fields() -> dict[str, Any]:
    made = recipe()
    made["steps"] = [*made["steps"], *({"export": name} for name in FORMATS)]
    return made


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return go(fields(), tmp_path / "out")


def out_of(run: Run) -> Path:
    return run.path.parent.parent


def exported(path: Path) -> list[str]:
    """The ids of an export, as its format keeps them."""
    found: list[str] = []
    for file in sorted(path.glob("part-*")):
        if file.name.endswith(".gz"):
            found += [json.loads(x)["id"] for x in gzip.decompress(file.read_bytes()).splitlines()]
        elif file.suffix == ".parquet":
            found += pq.read_table(file)["id"].to_pylist()
        else:
            with pa.OSFile(str(file)) as source:
                found += pa.ipc.open_stream(source).read_all()["id"].to_pylist()
    return found


def test_no_plan_and_no_export_lists_what_was_forgotten(run: Run) -> None:
    out, order = out_of(run), step(run, "order") / "plan.parquet"
    kept, before = chosen(run), pq.read_table(order)
    gone = kept[::3]
    told = apply([plan_folder(out, "r1", gone)])
    assert told["documents"] == len(gone)
    plan = pq.read_table(order)
    stays = [i for i in before["id"].to_pylist() if i not in gone]
    assert plan["id"].to_pylist() == stays
    assert plan["position"].to_pylist() == list(range(len(stays)))
    assert plan.schema == before.schema
    facts = StepDir(order.parent).facts()["facts"]
    assert facts["rows"] == len(stays)
    for told_of in run.manifest["steps"]:
        if told_of["verb"] == "export":
            path = Path(told_of["path"])
            assert exported(path) == [i.hex() for i in stays]
            ids = pq.read_table(path / "ids")["id"].to_pylist()
            assert ids == stays
            facts_of = StepDir(path).facts()["facts"]
            assert facts_of["rows"] == len(stays)
            assert facts_of["n_tokens"] == facts["n_tokens"]
    assert not set(gone) & alive(out, step(run, "read"))
    assert status(out, "r1") == "applied"


def test_the_plan_of_the_run_is_what_a_rerun_writes_and_its_accounts_add_up(run: Run) -> None:
    out = out_of(run)
    gone = chosen(run)[::2]
    apply([plan_folder(out, "r1", gone)])
    again = go(fields(), out)
    mine, theirs = pq.read_table(run.plan), pq.read_table(again.plan)
    assert mine.equals(theirs)
    assert run.manifest["accounts"] == again.manifest["accounts"]
    accounts = again.manifest["accounts"]
    assert accounts["dropped_by_reason"]["forgotten"] == len(gone)
    assert accounts["rows_in"] == accounts["kept"] + accounts["dropped"]
    assert all(s["cached"] for s in again.manifest["steps"])


def test_steps_that_come_later_never_see_the_rows(run: Run) -> None:
    out = out_of(run)
    gone = chosen(run)[:5]
    apply([plan_folder(out, "r1", gone)])
    wider = fields()
    wider["steps"][1]["budget"] = "100%"
    assert not set(gone) & set(chosen(go(wider, out)))


def test_undo_restores_every_byte(run: Run) -> None:
    out = out_of(run)
    before = everything(out)
    apply([plan_folder(out, "r1", chosen(run)[::2])])
    assert everything(out) != before
    told = undo(["r1"], out)
    assert everything(out) == before
    assert told["documents"] == len(chosen(run)[::2])
    assert not path_of(step(run, "read")).exists()
    assert not (out / "deletions" / "originals").exists()
    assert status(out, "r1") == "undone"


@pytest.mark.parametrize("first", ["r1", "r2"])
def test_undo_of_one_keeps_what_the_other_took_out(run: Run, first: str, tmp_path: Path) -> None:
    out = out_of(run)
    kept, before = chosen(run), everything(out)
    wanted = {"r1": kept[:6], "r2": kept[3:9]}
    apply([plan_folder(out, "r1", wanted["r1"])])
    apply([plan_folder(out, "r2", wanted["r2"])])
    undo([first], out)
    other = "r2" if first == "r1" else "r1"
    left = everything(out)
    assert set(chosen(run)) == set(kept) - set(wanted[other])
    undo([other], out)
    assert everything(out) == before
    apply([out / "deletions" / other])
    assert everything(out) == left


def test_steps_made_in_between_are_made_again_after_undo(run: Run) -> None:
    out = out_of(run)
    before, gone = everything(out), chosen(run)[:5]
    apply([plan_folder(out, "r1", gone)])
    wider = fields()
    wider["steps"][1]["budget"] = "100%"
    go(wider, out)
    told = undo(["r1"], out)
    assert len([name for name in told["removed"] if name.startswith("steps/")]) == 5
    assert everything(out) == before
    assert set(gone) <= set(chosen(go(wider, out)))


def test_a_second_time_changes_nothing_and_says_so(run: Run) -> None:
    out = out_of(run)
    folder = plan_folder(out, "r1", chosen(run)[:4])
    apply([folder])
    before = everything(out)
    told = apply([folder])
    assert (told["applied"], told["already"], told["rows_read"]) == ([], ["r1"], 0)
    assert everything(out) == before


def test_a_request_for_what_is_gone_costs_no_row(run: Run) -> None:
    out = out_of(run)
    kept = chosen(run)
    apply([plan_folder(out, "r1", kept[:4])])
    before = everything(out)
    told = apply([plan_folder(out, "r2", kept[:2])])
    assert (told["applied"], told["documents"], told["rows_read"]) == (["r2"], 0, 0)
    assert everything(out) == before
    undo(["r1"], out)
    assert not set(kept[:2]) & set(chosen(run))
    assert set(kept[2:]) <= set(chosen(run))


def test_a_stream_of_requests_reads_as_many_rows_as_one(tmp_path: Path) -> None:
    read = []
    for number in (1, 10):
        run = go(fields(), tmp_path / str(number))
        kept = chosen(run)[:12]
        parts = np.array_split(np.arange(12), number)
        folders = [
            plan_folder(out_of(run), f"r{i}", [kept[k] for k in part])
            for i, part in enumerate(parts)
        ]
        told = apply(folders)
        assert told["documents"] == 12
        read.append((told["rows_read"], len(told["rewritten"])))
    assert read[0] == read[1]


class Stop(Exception):
    """The process dies here."""


def dying(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Die before the `at`-th operation of a journal; 0: before the journal is there."""
    real, commit = Store._do, Store.commit
    count = iter(range(1, 10_000))

    def do(self: Store, kind: str, place: str) -> None:
        if next(count) == at:
            raise Stop
        real(self, kind, place)

    def never(self: Store, ops: Any) -> None:
        if at == 0:
            raise Stop
        commit(self, ops)

    monkeypatch.setattr(Store, "_do", do)
    monkeypatch.setattr(Store, "commit", never)


def test_killed_at_any_point_it_is_finished_or_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = go(recipe(), tmp_path / "out")
    out = out_of(run)
    whole, folder = everything(out), plan_folder(out, "r1", chosen(run)[::2])
    apply([folder])
    applied = everything(out)
    undo(["r1"], out)
    for act, before, after in ((apply, whole, applied), (undo, applied, whole)):
        at = 0
        while True:
            with monkeypatch.context() as patch:
                dying(patch, at)
                try:
                    apply([folder]) if act is apply else undo(["r1"], out)
                    break
                except Stop:
                    pass
            if at:
                with pytest.raises(StoreError, match="interrupted"):
                    go(recipe(), out)
            assert apply([], out)["documents"] == 0  # any command finishes it first
            assert everything(out) == (after if at else before)
            if at:  # back, to be killed at the next point
                undo(["r1"], out) if act is apply else apply([folder])
            assert everything(out) == before
            at += 1
        assert at > 6
        assert everything(out) == after


def test_bad_input_has_one_line(run: Run, tmp_path: Path) -> None:
    out = out_of(run)
    with pytest.raises(DataError, match="no deletion plan here"):
        apply([tmp_path / "nowhere"])
    half = plan_folder(out, "half", chosen(run)[:1])
    (half / "plan.json").unlink()
    with pytest.raises(DataError, match="written last"):
        apply([half])
    before = everything(out)
    with pytest.raises(DataError, match="1 of its 2 documents were never read"):
        apply([plan_folder(out, "other", [chosen(run)[0], b"0" * 16])])
    assert everything(out) == before
    with pytest.raises(DataError, match="lists no document"):
        apply([plan_folder(out, "none", [])])
    with pytest.raises(DataError, match="not applied here"):
        undo(["r9"], out)
    with pytest.raises(DataError, match="nothing is applied"):
        undo([], out)
    with pytest.raises(DataError, match="no steps here"):
        undo(["r1"], tmp_path)


def test_everything_can_be_asked_for(run: Run) -> None:
    """A request for all documents leaves empty plans and exports, which can still be undone."""
    out, before = out_of(run), everything(out_of(run))
    apply([plan_folder(out, "all", pq.read_table(run.plan)["id"].unique().to_pylist())])
    assert pq.read_table(step(run, "order") / "plan.parquet").num_rows == 0
    assert run.manifest["accounts"]["kept"] == 0
    undo(["all"], out)
    assert everything(out) == before


def test_the_requests_of_a_store_are_listed(run: Run) -> None:
    out = out_of(run)
    apply([plan_folder(out, "r1", chosen(run)[:2])])
    plan_folder(out, "r2", chosen(run)[:3])
    told = {one["id"]: (one["status"], one["documents"]) for one in listed(out)}
    assert told == {"r1": ("applied", 2), "r2": ("planned", 3)}
    assert read_json(out / "deletions" / "applied.json")["requests"][0]["id"] == "r1"


def test_whatever_comes_and_goes_what_is_left_is_what_is_applied(run: Run, tmp_path: Path) -> None:
    """A walk over requests that overlap; the oracle applies what is left to a fresh store."""
    out, kept = out_of(run), chosen(run)
    wanted = {"a": kept[:8], "b": kept[4:12], "c": kept[6:7] + kept[10:16]}
    shutil.copytree(out, tmp_path / "fresh")
    folders = {name: plan_folder(out, name, ids) for name, ids in wanted.items()}
    expected: dict[frozenset[str], dict[str, bytes]] = {frozenset(): everything(out)}
    rng, here = np.random.default_rng(5), set[str]()
    for _ in range(12):
        name = str(rng.choice(list(wanted)))
        if name in here:
            undo([name], out)
        else:
            apply([folders[name]])
        here ^= {name}
        key = frozenset(here)
        if key not in expected:
            fresh = tmp_path / "_".join(sorted(key))
            shutil.copytree(tmp_path / "fresh", fresh)
            apply([plan_folder(fresh, n, wanted[n]) for n in sorted(key)])
            expected[key] = everything(fresh)
        assert everything(out) == expected[key]
    assert len(expected) == 8


@pytest.mark.parametrize("order", ["rehearsal", "view_batch"])
def test_an_order_in_which_rows_come_again(order: str, tmp_path: Path) -> None:
    made = recipe()
    made["steps"][2] = {"order": order}
    run = go(made, tmp_path / "out")
    out, path = out_of(run), step(run, "order") / "plan.parquet"
    gone = chosen(run)[::4]
    before = [i for i in pq.read_table(path)["id"].to_pylist() if i not in gone]
    apply([plan_folder(out, "r1", gone)])
    plan = pq.read_table(path)
    assert plan["id"].to_pylist() == before
    assert plan["position"].to_pylist() == list(range(len(before)))
    facts = StepDir(path.parent).facts()["facts"]
    assert (facts["rows"], facts["documents"]) == (len(before), len(set(before)))
    again = go(made, out)
    assert pq.read_table(run.plan).equals(pq.read_table(again.plan))


def pairs(folder: Path) -> dict[str, Any]:
    rows = [{"prompt": f"what is {n}", "response": f"it is {n} " * (n % 7 + 1)} for n in range(40)]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "refined",
        "data": {"read": "jsonl", "paths": [str(path)], "holdout": 0.0,
                 "prompt": "prompt", "response": "response"},
        "steps": [
            {"score": "tests.stages.forget.deletions:Flags", "as": "flags"},
            {"export": "refined", "refiner": "stub", "hard": "flags.hard", "low": "",
             "sparse": "flags.sparse", "neighbours": "flags.near"},
        ],
        "report": False,
    }  # fmt: skip


def test_what_was_made_of_a_document_goes_with_it(tmp_path: Path) -> None:
    run = go(pairs(tmp_path), tmp_path / "out")
    out, path = out_of(run), step(run, "export")
    before = everything(out)
    file = path / "part-00000.jsonl.gz"
    rows = [json.loads(x) for x in gzip.decompress(file.read_bytes()).splitlines()]
    gone = {next(h for r in rows for h in r["hints"]), rows[-1]["origin"]}
    stay = [r for r in rows if not gone & {r["id"], r["origin"], *r["hints"]}]
    assert any(r["action"] == "added" and r["origin"] not in gone for r in rows if r not in stay)
    apply([plan_folder(out, "r1", map(bytes.fromhex, gone))])
    left = [json.loads(x) for x in gzip.decompress(file.read_bytes()).splitlines()]
    assert left == stay
    assert pq.read_table(path / "ids")["id"].to_pylist() == [
        bytes.fromhex(r["origin"]) for r in stay
    ]
    facts = StepDir(path).facts()["facts"]
    assert facts["rows"] == len(stay)
    for action in ("kept", "simplified", "added"):
        assert facts[action] == sum(r["action"] == action for r in stay)
    undo(["r1"], out)
    assert everything(out) == before


def test_an_export_of_unknown_format_is_made_again(tmp_path: Path) -> None:
    made = recipe()
    made["steps"].append({"export": "tests.stages.forget.deletions:Lines"})
    run = go(made, tmp_path / "out")
    out, file = out_of(run), step(run, "export") / "out.txt"
    before, gone = everything(out), chosen(run)[0]
    told = apply([plan_folder(out, "r1", [gone])])
    assert told["removed"] == [f"steps/{file.parent.name}"]
    assert not file.exists()
    go(made, out)
    assert len(file.read_text().split()) == len(chosen(run))
    assert gone.hex() not in file.read_text()
    undo(["r1"], out)
    assert everything(out) == before
