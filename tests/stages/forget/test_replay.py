"""Replay: exact deletion from the last clean checkpoint; purge: nothing is left."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from foresift.pipeline.cli import app
from foresift.pipeline.errors import DataError, StoreError
from foresift.pipeline.ledger import Ledger
from foresift.pipeline.run import Run
from foresift.pipeline.store import StepDir, read_json
from foresift.pipeline.tombstones import TAINTED
from foresift.stages.forget.apply import apply, listed
from foresift.stages.forget.purge import purge
from foresift.stages.forget.replay import replay
from foresift.stages.forget.undo import undo
from tests.runs import go
from tests.stages.forget.deletions import everything, model, plan_folder, step

TRAIN = {
    "train": "causal_lm", "tokens": 1280, "repeat": True, "length": 32, "batch_tokens": 64,
    "micro_tokens": 64, "threads": 1, "checkpoint_every": 4,
}  # fmt: skip
STEPS = 20


def recipe(folder: Path, rounds: int = 1) -> dict[str, Any]:
    return {
        "name": "trained",
        "data": {"read": "tests.parts:Texts", "shards": 2, "rows": 30},
        "model": model(folder),
        "rounds": {
            "count": rounds,
            "steps": [
                {"score": "loss"},
                {"select": "topk", "by": "loss.utility", "budget": "10 rows"},
                {"order": "shuffle"},
                TRAIN,
            ],
        },
        "evidence": {"against": []},
        "report": False,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    fields = recipe(folder)
    go(fields, folder / "out")
    return fields, folder / "out"


@pytest.fixture
def trained(made: tuple[dict[str, Any], Path], tmp_path: Path) -> tuple[dict[str, Any], Run]:
    """A store of its own for each test: what a store is called by is not in it."""
    fields, out = made
    shutil.copytree(out, tmp_path / "out")
    return fields, Run.open(tmp_path / "out")


Trained = tuple[dict[str, Any], Run]


def place(run: Run, verb: str, round: int = 1) -> Path:
    """The directory of a step in the store in which the run lies now."""
    return run.path.parent.parent / "steps" / step(run, verb, round).name


def first_steps(run: Run) -> dict[bytes, int]:
    """Document -> the first step that saw it."""
    table = Ledger.open(place(run, "train")).table()
    found: dict[bytes, int] = {}
    for id_, at in zip(table["id"].to_pylist(), table["step"].to_pylist(), strict=True):
        found.setdefault(id_, at)
    return found


def seen_from(run: Run, low: int) -> bytes:
    """The document whose first exposure is the earliest from a step on."""
    seen = first_steps(run)
    return min((i for i in seen if seen[i] >= low), key=lambda i: (seen[i], i))


def weights(training: Path) -> bytes:
    return (training / "checkpoint" / "model.safetensors").read_bytes()


def scratch(fields: dict[str, Any], run: Run, gone: bytes, folder: Path) -> Path:
    """The training from the beginning, without checkpoints, on the plan without a document."""
    out = folder / "scratch"
    shutil.copytree(run.path.parent.parent, out)
    apply([plan_folder(out, "s", [gone])])
    for verb in ("train", "evaluate"):
        shutil.rmtree(out / "steps" / place(run, verb).name)
    return Path(step(go(fields, out), "train"))


def test_a_replay_is_a_training_from_the_beginning_without_the_documents(
    trained: Trained, tmp_path: Path
) -> None:
    fields, run = trained
    out, training = run.path.parent.parent, place(run, "train")
    gone = seen_from(run, 9)
    first = first_steps(run)[gone]
    clean = (first - 1) // 4 * 4
    assert 8 <= clean < STEPS
    expected = weights(scratch(fields, run, gone, tmp_path))
    measured = read_json(place(run, "evaluate") / "stage.json")["facts"]
    told = apply([plan_folder(out, "r1", [gone])])
    about = told["tainted"][training.name]
    assert (about["first_step"], about["documents"]) == (first, 1)
    assert about == read_json(training / TAINTED)
    assert [c["step"] for c in about["checkpoints"]] == [*range(clean + 4, STEPS, 4), STEPS]
    assert listed(out)[0]["tainted"] == [training.name]
    with pytest.raises(StoreError, match=r"request r1 took out; `foresift forget replay`"):
        go(fields, out)
    assert weights(training) != expected
    done = replay(run.path, engine="local", workers=1)
    assert weights(training) == expected
    assert not (training / TAINTED).exists()
    assert gone not in first_steps(run)
    # it began at the last clean checkpoint, not earlier
    assert done["trainings"][0]["from_step"] == clean
    assert (done["steps"], done["steps_of_all"]) == (STEPS - clean, STEPS)
    assert done["flops"] == pytest.approx(done["flops_retraining"] * (STEPS - clean) / STEPS)
    log = (Path(done["run"]) / "log.txt").read_text()
    assert f"goes on from the checkpoint of step {clean}" in log
    # what measured the old model measures the new one
    assert done["done_again"] == [place(run, "evaluate").name]
    assert read_json(place(run, "evaluate") / "stage.json")["facts"] != measured
    again = go(fields, out)
    assert all(s["cached"] for s in again.manifest["steps"])
    with pytest.raises(DataError, match="no training of this run is tainted"):
        replay(run.path)


def test_undo_brings_the_first_training_back(trained: Trained) -> None:
    _, run = trained
    out, before = run.path.parent.parent, everything(run.path.parent.parent)
    folder = plan_folder(out, "r1", [seen_from(run, 9)])
    apply([folder])
    undo(["r1"], out)
    assert everything(out) == before
    apply([folder])
    replay(run.path, engine="local", workers=1)
    undo(["r1"], out)
    assert everything(out) == before


def test_a_document_of_the_first_step_costs_all(trained: Trained, tmp_path: Path) -> None:
    fields, run = trained
    gone = seen_from(run, 1)
    expected = weights(scratch(fields, run, gone, tmp_path))
    apply([plan_folder(run.path.parent.parent, "r1", [gone])])
    done = replay(run.path.parent.parent, "r1", engine="local", workers=1)
    assert (done["trainings"][0]["from_step"], done["steps"]) == (0, STEPS)
    assert weights(place(run, "train")) == expected
    assert done["flops"] == done["flops_retraining"]


def test_a_replay_that_died_goes_on(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    from foresift.stages.forget import replay as module

    _, run = trained
    out = run.path.parent.parent
    apply([plan_folder(out, "r1", [seen_from(run, 9)])])

    def dies(*_: Any) -> Run:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "run", dies)
        with pytest.raises(KeyboardInterrupt):
            replay(run.path, engine="local", workers=1)
    training = place(run, "train")
    assert not StepDir(training).done
    assert training.name in listed(out)[0]["replaying"]
    with pytest.raises(DataError, match="a replay is not finished"):
        purge(["r1"], out)
    done = replay(run.path, engine="local", workers=1)
    assert listed(out)[0]["replaying"] == []
    assert done["trainings"][0]["from_step"] >= 8
    assert done["trainings"][0]["steps_planned"] == done["trainings"][0]["steps"] == STEPS
    assert listed(out)[0]["tainted"] == []


def test_bad_replays_have_one_line(trained: Trained) -> None:
    _, run = trained
    with pytest.raises(DataError, match="no training of this run is tainted"):
        replay(run.path)
    with pytest.raises(DataError, match="'r9' is not applied here"):
        replay(run.path, "r9")
    with pytest.raises(DataError, match="`keep` or `redo`"):
        replay(run.path, selections="some")  # type: ignore[arg-type]
    path = run.path / "recipe.yaml"
    path.write_text(path.read_text().replace("rows: 30", "rows: 31"))
    with pytest.raises(DataError, match="does not plan to the same steps"):
        replay(run.path)


@pytest.mark.parametrize("selections", ["keep", "redo"])
def test_what_began_with_a_tainted_model_begins_anew(
    selections: Any, made: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    fields = copy.deepcopy(made[0])
    fields["rounds"]["count"] = 2
    out = tmp_path / "out"
    shutil.copytree(made[1], out)
    run = go(fields, out)
    before = everything(out)
    gone = seen_from(run, 9)
    first, second = place(run, "train"), place(run, "train", 2)
    choice = place(run, "select", 2)
    told = apply([plan_folder(out, "r1", [gone])])["tainted"]
    assert told[second.name]["inherited"] == first.name
    assert told[second.name]["first_step"] == 1
    done = replay(run.path, selections=selections, engine="local", workers=1)
    assert [t["from_step"] > 0 for t in done["trainings"]] == [True, False]
    assert done["steps_of_all"] == 2 * STEPS
    kept = [choice.name] if selections == "keep" else []
    assert done["kept_selections"] == kept
    assert (choice.name in done["done_again"]) == (selections == "redo")
    # the second round from the beginning, given the same choice, has the same bytes
    expected = weights(second)
    shutil.rmtree(second)
    go(fields, out)
    assert weights(second) == expected
    undo(["r1"], out)
    assert everything(out) == before


def test_the_commands_speak_plainly(trained: Trained) -> None:
    _, run = trained
    out = run.path.parent.parent
    folder = plan_folder(out, "r1", [seen_from(run, 9)])

    def call(*words: str, code: int = 0) -> str:
        found = CliRunner().invoke(app, ["forget", *words], catch_exceptions=False)
        assert found.exit_code == code, found.output
        return " ".join(found.output.split())

    name = place(run, "train").name
    assert "1 documents are gone, 2 plans and exports rewritten" in call("apply", str(folder))
    assert "applied already: r1" in call("apply", "r1", "--run", str(out))
    assert f"r1: applied, 1 documents, tainted: {name}" in call("list", "--run", str(out))
    assert "still hold what they saw" in call("purge", "--run", str(out), code=2)
    assert "1 documents are back" in call("undo", "r1", "--run", str(run.path))
    assert "not applied here" in call("undo", "r1", "--run", str(out), code=2)
    assert "nothing to do" in call("apply", "--run", str(out))
    call("apply", str(folder))
    said = call("replay", "--run", str(out), "--engine", "local", "--workers", "1")
    assert "from step 8 to 20" in said
    assert "12 of 20 steps" in said
    told = call("purge", "--run", str(out), "--json")
    assert json.loads(told[told.index("{") :])["left"] == []
    assert "no deletion plan here" in call("apply", "r7", "--run", str(out), code=2)


def test_a_forced_purge_removes_tainted_checkpoints(trained: Trained) -> None:
    fields, run = trained
    out, training = run.path.parent.parent, place(run, "train")
    apply([plan_folder(out, "r1", [seen_from(run, 9)])])
    with pytest.raises(DataError, match="1 trainings still hold what they saw"):
        purge(["r1"], out)
    told = purge(["r1"], out, force=True, checkpoints=True)
    assert f"steps/{training.name}/checkpoint" in told["checkpoints"]
    assert [p.name for p in sorted((training / "checkpoints").iterdir())] == [
        "step-000004",
        "step-000008",
    ]
    again = go(fields, out)
    assert "goes on from the checkpoint of step 8" in (again.path / "log.txt").read_text()
