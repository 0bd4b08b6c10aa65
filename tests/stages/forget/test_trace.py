"""`foresift trace`: where a document is, its copies, and everything that it entered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from foresift.pipeline.checkpoints import FINAL, folder_name
from foresift.pipeline.cli import app
from foresift.pipeline.errors import DataError
from foresift.pipeline.ledger import FILE, SCHEMA
from foresift.pipeline.store import StepDir
from foresift.pipeline.tables import hex_id
from foresift.stages.forget._find_keys import text_id
from foresift.stages.forget.history import History
from foresift.stages.forget.trace import trace
from tests.runs import ROOT
from tests.stages.forget.deletions import plan_folder
from tests.stages.forget.finding import STORY, edited, made, store, write

ID_OF = hex_id(text_id(STORY))
ROWS = [
    ("web/a#1", STORY), ("web/b", STORY), ("web/near", edited(STORY, 0.03)),
    ("web/far", edited(STORY, 0.15)), *((f"other/{n}", made(40, 700 + n)) for n in range(12)),
]  # fmt: skip
STEPS = [
    {"dedup": "minhash", "bands": 40, "rows": 2, "threshold": 0.5},
    {"score": "tests.stages.forget.finding:Direction", "as": "embedding"},
    {"order": "shuffle"}, {"export": "jsonl"},
]  # fmt: skip


@pytest.fixture
def history(tmp_path: Path) -> History:
    return store(tmp_path, ROWS, steps=STEPS)


def training(
    history: History, name: str, exposures: list[tuple[bytes, int | None]] | None,
    saved: tuple[int, ...] = (), model: str | None = None,
) -> Path:  # fmt: skip
    """Write a training into the run: a ledger, checkpoints and the manifest's word of it."""
    step = StepDir(history.out / "steps" / name)
    step.open()
    if exposures is not None:
        rows = [{"id": i, "round": 1, "shard": 0, "step": s, "tokens": 5} for i, s in exposures]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), step.path / FILE)
    (step.path / FINAL).mkdir()
    for at in saved:
        (step.path / "checkpoints" / folder_name(at)).mkdir(parents=True)
    step.finish({})
    path = history.run.path / "manifest.json"
    manifest = json.loads(path.read_text())
    told = {"line": "selected", "repeat": 0, "round": 1, "fingerprint": name, "facts": {}}
    about = {"label": f"train {name}", "verb": "train", "name": name, "path": str(step.path)}
    manifest["steps"].append(about | told | {"model": model})
    path.write_text(json.dumps(manifest))
    return step.path


def saw(found: Any) -> dict[tuple[str, str], bool | None]:
    return {(c["training"], Path(c["path"]).name): c["saw"] for c in found.checkpoints}


def test_rows_say_where_they_lie_and_what_was_decided(history: History) -> None:
    found = trace(ID_OF, history)
    assert [(r["source"], r["row"], r["kept"]) for r in found.rows] == [
        ("web/a#1", 0, True), ("web/b", 1, False),
    ]  # fmt: skip
    first, second = found.rows
    assert first["position"] is not None
    assert first["holdout"] is False
    assert (second["reason"], second["decision"]) == ("exact copy", "dedup minhash")
    plan = {r["id"]: r for r in pq.read_table(history.run.plan).to_pylist() if r["kept"]}
    assert plan[text_id(STORY)]["position"] == first["position"]


def test_copies_come_from_clusters_vectors_and_a_search(history: History) -> None:
    found = {c["source"]: c["kind"] for c in trace(ID_OF, history).copies}
    assert found["web/near"] == "dedup minhash"
    searched = {c["source"]: c["kind"] for c in trace(ID_OF, history, search=True).copies}
    assert (searched["web/near"], searched["web/far"]) == ("near", "near")
    assert not any(source.startswith("other/") for source in searched)


def test_an_argument_is_an_id_a_key_or_a_text(history: History, tmp_path: Path) -> None:
    assert trace(ID_OF.upper(), history).how == "id"
    assert trace("web/a", history).how == "key"
    by_text = trace(STORY, history)
    assert by_text.how == "text"
    assert {r["source"] for r in by_text.rows} == {"web/a#1", "web/b"}
    unseen = trace(edited(STORY, 0.05, 9), history)
    assert not unseen.rows
    assert {c["source"] for c in unseen.copies if c["kind"] == "near"} >= {"web/a#1", "web/b"}
    (tmp_path / "t.txt").write_text(STORY)
    assert trace(f"@{tmp_path}/t.txt", history).rows == by_text.rows
    assert {r["source"] for r in trace("lazy dog", history, "entity").rows} >= {"web/a#1"}
    assert {r["source"] for r in trace("web", history, "key").rows} == {s for s, _ in ROWS[:4]}


def test_exposures_checkpoints_exports_and_requests_are_told(history: History) -> None:
    mine, other = text_id(STORY), text_id(ROWS[5][1])
    one = training(history, "t1", [(other, 1), (mine, 12), (mine, 31)], (10, 20))
    training(history, "t2", [(other, 1)], (10,), str(one / FINAL))
    training(history, "t3", [(other, 1)], (10,), str(one / "checkpoints" / folder_name(10)))
    plan_folder(history.out, "r-9", [mine])
    found = trace(ID_OF, History.open(history.out))
    assert [(e["training"], e["round"], e["step"]) for e in found.exposures] == [
        ("train t1", 1, 12), ("train t1", 1, 31),
    ]  # fmt: skip
    marks = saw(found)
    assert marks["train t1", "step-000010"] is False
    assert marks["train t1", "step-000020"] is True
    assert marks["train t1", FINAL] is True
    assert marks["train t2", "step-000010"] is True
    assert [(e["step"], e["rows"]) for e in found.exports] == [("export jsonl", 1)]
    assert found.exports[0]["file"] == "part-00000.jsonl.gz"
    assert found.requests == [{"id": "r-9", "status": "planned", "documents": 1}]
    unseen = trace(hex_id(other), History.open(history.out))
    assert unseen.requests == []


def test_a_training_that_went_on_from_a_clean_checkpoint_is_clean(history: History) -> None:
    mine, other = text_id(STORY), text_id(ROWS[5][1])
    one = training(history, "t1", [(other, 1), (mine, 12)], (10, 20))
    training(history, "t2", [(other, 1)], (), str(one / "checkpoints" / folder_name(10)))
    assert saw(trace(ID_OF, History.open(history.out)))["train t2", FINAL] is False


def test_what_no_ledger_tells_is_unknown(history: History) -> None:
    training(history, "t1", None, (10,))
    training(history, "t2", [(text_id(STORY), None)], (10,))
    found = trace(ID_OF, History.open(history.out))
    marks = saw(found)
    assert marks["train t1", "step-000010"] is marks["train t1", FINAL] is None
    assert marks["train t2", "step-000010"] is None
    assert marks["train t2", FINAL] is True
    assert found.notes == ["train t1 has no ledger: it may have seen it"]


def test_other_data_sets_are_looked_at_too(tmp_path: Path) -> None:
    aim = write(tmp_path / "aim.jsonl", [("aim/1", STORY), ("aim/2", made(30, 3))])
    data = {"aim": {"read": "jsonl", "paths": [str(aim)], "source": "source"}}
    found = trace(ID_OF, store(tmp_path, ROWS, datasets=data))
    assert [(r["base"], r["source"]) for r in found.rows][-1] == (1, "aim/1")
    assert "kept" not in found.rows[-1]


def test_what_was_never_read_is_refused(history: History) -> None:
    with pytest.raises(DataError, match=f"no document {'0' * 32} was read"):
        trace("0" * 32, history)
    with pytest.raises(DataError, match="no source lies under 'wbe'; nearest: 'web'"):
        trace("wbe", history, "key")
    with pytest.raises(DataError, match=r"nothing matches: text 'never seen"):
        trace("never seen by anybody", history)
    with pytest.raises(DataError, match="no such thing to trace: 'path'"):
        trace("web", history, "path")
    with pytest.raises(DataError, match="cannot be read"):
        trace("@absent.txt", history)


def test_the_command_prints_tables_or_json(history: History) -> None:
    training(history, "t1", [(text_id(STORY), 12)], (10,))
    shown = CliRunner().invoke(app, ["trace", ID_OF, "--run", str(history.out)])
    assert shown.exit_code == 0, shown.output
    for word in ("web/a#1", "train t1", "did not", "saw it"):
        assert word in shown.output
    told = CliRunner().invoke(app, ["trace", ID_OF, "--run", str(history.out), "--json"])
    found = json.loads(told.stdout.splitlines()[-1])
    assert found["rows"] == trace(ID_OF, History.open(history.out)).rows
    bad = CliRunner().invoke(app, ["trace", "0" * 32, "--run", str(history.out)])
    assert bad.exit_code == 2


def test_nothing_heavy_is_imported_for_it() -> None:
    code = "import sys, foresift.stages.forget.trace; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
