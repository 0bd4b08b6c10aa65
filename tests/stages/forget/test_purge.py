"""Purge: of what was forgotten, no byte is left in the store, and the rest still works."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import DataError
from foresift.pipeline.run import Run
from foresift.pipeline.store import StepDir, read_json, shard_facts, write_json
from foresift.stages.forget import _apply_scan as scan
from foresift.stages.forget import purge as module
from foresift.stages.forget.apply import apply, listed
from foresift.stages.forget.purge import purge
from foresift.stages.forget.undo import undo
from tests.inputs import texts, write
from tests.runs import go
from tests.stages.forget.deletions import plan_folder, status, step

MARK, OTHER = "Zqxmarker77", "Vkwmarker88"


def recipe(folder: Path, **data: Any) -> dict[str, Any]:
    rows: list[Any] = texts(40)
    rows[3] += f" {MARK}"
    rows[9] = f"{MARK} {rows[9]} write to {MARK.lower()}@mail.example.org or +1 212 555 0175"
    rows[17] += f" {OTHER}"
    rows.append(b'{"text": 5, "note": "' + MARK.encode() + b'"}')
    return {
        "name": "purged",
        "data": {"read": "jsonl", "paths": [str(write(folder / "in.jsonl", rows))], "holdout": 0.0,
                 "max_rejects": 0.2, **data},
        "steps": [
            {"score": "pii"}, {"score": "length"}, {"dedup": "minhash"},
            {"select": "topk", "by": "length.chars", "budget": "90% rows"},
            {"order": "shuffle"}, {"export": "jsonl"}, {"export": "hf"},
            {"export": "parquet", "redact": ["pii.findings"]},
        ],
        "report": True,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return go(recipe(tmp_path), tmp_path / "out")


def out_of(run: Run) -> Path:
    return run.path.parent.parent


def documents(run: Run, mark: str) -> list[bytes]:
    found: list[bytes] = []
    for shard in Corpus(step(run, "read")).shards():
        for table, _ in shard.stream(every=True):
            rows = zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
            found += [i for i, text in rows if mark in text]
    return found


def grep(out: Path, mark: str) -> list[str]:
    """The files in which a string stands, whatever their compression."""
    found = []
    for path in (p for p in sorted(out.rglob("*")) if p.is_file()):
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        if path.suffix == ".parquet":
            raw += repr(pq.read_table(path).to_pylist()).encode()
            raw += repr(pq.read_metadata(path).metadata).encode()
        if mark.lower().encode() in raw.lower():
            found.append(str(path.relative_to(out)))
    return found


def asked(out: Path, name: str, ids: list[bytes], mark: str) -> Path:
    """A plan whose sets quote the text, as `forget plan` writes them."""
    folder = plan_folder(out, name, ids)
    (folder / "forget.jsonl").write_text(json.dumps({"id": "1", "text": f"a\n{mark}"}) + "\n")
    (folder / "tofu").mkdir()
    (folder / "tofu" / "forget.json").write_text(json.dumps([mark]))
    key = {"level": "text", "value": f"what {mark} said"}
    write_json(folder / "request.json", {"id": name, "keys": [key], "status": "planned"})
    return folder


def test_after_a_purge_no_byte_of_the_text_is_left(run: Run, tmp_path: Path) -> None:
    out, ids = out_of(run), documents(run, MARK)
    assert len(ids) == 2
    assert len(grep(out, MARK)) >= 5
    shards = [(p, shard_facts(p)) for p in StepDir(step(run, "read")).shards()]
    apply([asked(out, "r1", ids, MARK)])
    told = purge(["r1"], out)
    assert grep(out, MARK) == []
    assert told["left"] == []
    assert [shard_facts(p) for p, _ in shards] == [facts for _, facts in shards]
    assert told["yours"][0]["rows"] == 2
    assert told["yours"][0]["paths"] == [str(tmp_path / "in.jsonl")]
    assert [s.split("#")[1] for s in told["yours"][0]["sources"]] == ["4", "10"]
    assert status(out, "r1") == "purged"
    assert read_json(out / "deletions" / "r1" / "request.json")["keys"][0]["level"] == "text"
    table = pq.read_table(out / "deletions" / "r1" / "lineage.parquet")
    assert sorted(table["doc_id"].to_pylist()) == sorted(ids)
    assert listed(out)[0]["status"] == "purged"
    # numbers of the rows went as well
    for path in StepDir(step(run, "score")).shards():
        rows = [r for r in pq.read_table(path).to_pylist() if r["id"] in ids]
        assert all(v is None for r in rows for k, v in r.items() if k != "id")
    # the others are as they were, and the store goes on working
    again = go(recipe(tmp_path), out)
    assert again.manifest["accounts"]["dropped_by_reason"]["forgotten"] == 2
    assert again.manifest["accounts"]["kept"] == run.manifest["accounts"]["kept"]
    assert len(documents(again, OTHER)) == 1
    with pytest.raises(DataError, match="'r1' is purged"):
        undo(["r1"], out)
    with pytest.raises(DataError, match="is purged"):
        apply(["r1"], out)
    with pytest.raises(DataError, match="purged already"):
        purge(["r1"], out)
    with pytest.raises(DataError, match="nothing to purge"):
        purge([], out)
    with pytest.raises(DataError, match="not applied here"):
        purge(["r7"], out)


def test_what_another_request_took_out_can_still_be_undone(run: Run) -> None:
    out = out_of(run)
    mine, other = documents(run, MARK), documents(run, OTHER)
    apply([asked(out, "r1", mine, MARK), asked(out, "r2", other, OTHER)])
    purge(["r1"], out)
    assert grep(out, MARK) == []
    undo(["r2"], out)
    plan = pq.read_table(step(run, "order") / "plan.parquet")["id"].to_pylist()
    assert not set(mine) & set(plan)
    assert set(other) <= set(plan)
    assert len(grep(out, OTHER)) >= 3
    assert grep(out, MARK) == []
    assert run.manifest["accounts"]["dropped_by_reason"]["forgotten"] == 2


def test_a_purge_that_was_killed_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    out = out_of(run)
    apply([asked(out, "r1", documents(run, MARK), MARK)])

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.blank, "read_shards", dies)
        with pytest.raises(KeyboardInterrupt):
            purge(["r1"], out)
    with pytest.raises(DataError, match="purge of r1 was interrupted"):
        undo(["r1"], out)
    purge([], out)
    assert grep(out, MARK) == []


def test_files_used_in_place_are_named(tmp_path: Path) -> None:
    rows = [*texts(30), f"{MARK} is here"]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": rows}), path)
    fields = recipe(tmp_path)
    fields["data"] = {"read": "parquet", "paths": [str(path)], "holdout": 0.0}
    fields["report"] = False
    before = path.read_bytes()
    run = go(fields, tmp_path / "out")
    out, ids = out_of(run), documents(run, MARK)
    apply([asked(out, "r1", ids, MARK)])
    told = purge(["r1"], out)
    assert grep(out, MARK) == []
    assert told["yours"][0]["in_place"] == {str(path): 1}
    assert path.read_bytes() == before


def test_words_that_others_have_are_no_trace(run: Run) -> None:
    from foresift.pipeline.tables import id_words
    from foresift.stages.forget._apply_store import Store

    ids = pa.array(documents(run, MARK), pa.binary(16))
    found = scan.distinctive(Store(out_of(run)), id_words(ids))
    assert {MARK, MARK.lower()} <= found
    everyone = {w for t in texts(40) for w in scan.words_of(t)}
    assert not found & everyone


def test_words_that_the_store_is_written_in_are_no_trace(tmp_path: Path) -> None:
    """`other` is a column of pii, `fingerprint` stands in every stage.json."""
    rows = [*texts(8), f"{MARK} other fingerprint"]
    assert not any("other" in row or "fingerprint" in row for row in rows[:8])
    data = {"read": "jsonl", "paths": [str(write(tmp_path / "in.jsonl", rows))], "holdout": 0.0}
    steps = [{"score": "pii"}, {"select": "random", "budget": "50%"}, {"order": "shuffle"}]
    fields = {"name": "own", "data": data, "steps": steps, "report": False}
    run = go(fields, tmp_path / "out")
    apply([plan_folder(out_of(run), "r1", documents(run, MARK))])
    told = purge(["r1"], out_of(run))
    assert not told["left"]
    assert not [place for place in told["removed"] if place.startswith("steps/")]
    assert not grep(out_of(run), MARK)


def test_a_trace_is_found_in_every_kind_of_file(tmp_path: Path) -> None:
    import zstandard

    nested = pa.array([[{"reason": "x", "value": MARK}]])
    pq.write_table(pa.table({"a": nested}), tmp_path / "nested.parquet")
    (tmp_path / "escaped.json").write_text(json.dumps({"a": f"one\n{MARK}"}))
    (tmp_path / "coded.json").write_text(json.dumps({"a": "Z\u00e4hlermarke"}))
    (tmp_path / "lines.jsonl.gz").write_bytes(gzip.compress(MARK.encode()))
    (tmp_path / "lines.jsonl.zst").write_bytes(zstandard.compress(MARK.encode()))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 " + MARK.encode())
    (tmp_path / "clean.json").write_text("{}")
    wanted = {MARK, "Z\u00e4hlermarke"}
    found = {p.name for p in tmp_path.iterdir() if scan.holds(p, wanted)}
    assert found == {p.name for p in tmp_path.iterdir()} - {"clean.json"}
