"""The user's own command: what it is given, what it must leave, and what its failure says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from foresift.pipeline.errors import DataError, ModelError, RecipeError
from foresift.pipeline.lm.model import load
from foresift.pipeline.nouns import Inputs, Job
from foresift.pipeline.store import Facts, StepDir
from foresift.stages.trainers._documents import tables
from foresift.stages.trainers.command import Command

#: a trainer in a few lines: checks what it was given and leaves a checkpoint
GOOD = """
import gzip, json, os, shutil, sys
from pathlib import Path
import pyarrow.parquet as pq
plan, data, out, tokens, seed, ledger, trained = sys.argv[1:]
ids = [i.hex() for i in pq.read_table(plan)["id"].to_pylist()]
rows = [json.loads(line) for line in gzip.open(data, "rt", encoding="utf-8")]
assert [r["id"] for r in rows] == ids and set(rows[0]) == {"id", "text", "weight"}
assert os.environ["FORESIFT_PLAN"] == plan and os.environ["FORESIFT_OUT"] == out
assert (tokens, seed) == ("500", "7") and Path(os.environ["FORESIFT_CHECKPOINT"]).exists()
shutil.copytree(trained, out, dirs_exist_ok=True)
if ledger == "yes":
    lines = [json.dumps({"id": i, "step": 1 + k // 8, "tokens": 9}) for k, i in enumerate(ids[:24])]
    Path(out, "ledger.jsonl").write_text("\\n".join(lines))
if ledger == "foreign":
    Path(out, "ledger.jsonl").write_text(json.dumps({"id": "00" * 16, "step": 1}))
if ledger == "broken":
    Path(out, "ledger.jsonl").write_text('{"id": 3}')
"""


def train(inputs: Inputs, out: Path, job: Job, script: str, *words: str, **fields: Any) -> Facts:
    StepDir(out).open()
    command = [sys.executable, "-c", script, *words]
    return Command(command=command, tokens=500, seed=7, **fields).run(inputs, StepDir(out), job)


def good(inputs: Inputs, out: Path, job: Job, ledger: str) -> Facts:
    places = ("{plan}", "{data}", "{out}", "{tokens}", "{seed}")
    trained = out.with_name("trained")
    assert inputs.model is not None
    load.__wrapped__(inputs.model).model.save_pretrained(trained)
    return train(inputs, out, job, GOOD, *places, ledger, str(trained))


def planned(inputs: Inputs) -> list[bytes]:
    return [i for table in tables(inputs) for i in table["id"].to_pylist()]


def test_its_ledger_is_kept(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    out = tmp_path / "out"
    assert good(inputs, out, job, "yes") == {"documents": 40, "ledger": "command"}
    rows = pq.read_table(out / "ledger.parquet").to_pylist()
    assert [r["id"] for r in rows] == planned(inputs)[:24]
    assert [r["step"] for r in rows] == [1] * 8 + [2] * 8 + [3] * 8
    assert (rows[0]["round"], rows[0]["shard"], rows[0]["tokens"]) == (3, 1, 9)
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint", "ledger.parquet"]
    assert inputs.model is not None
    loaded = load.__wrapped__(inputs.model.at(out / "checkpoint"))
    assert len(loaded.tokenizer) == 257


def test_without_a_ledger_every_planned_document_may_be_in_the_model(
    inputs: Inputs, tmp_path: Path, job: Job
) -> None:
    facts = good(Inputs(corpus=inputs.corpus, model=inputs.model), tmp_path / "out", job, "no")
    assert facts == {"documents": 40, "ledger": "plan"}
    table = pq.read_table(tmp_path / "out" / "ledger.parquet")
    assert table["step"].null_count == table["tokens"].null_count == 40
    assert table["id"].to_pylist() == planned(Inputs(corpus=inputs.corpus))
    assert table["shard"].to_pylist() == [0] * 25 + [1] * 15


@pytest.mark.parametrize(
    ("ledger", "message"),
    [("foreign", "1 documents that are not in the plan"), ("broken", r"its ledger\.jsonl is not")],
)
def test_a_ledger_that_cannot_be_true_is_refused(
    ledger: str, message: str, inputs: Inputs, tmp_path: Path, job: Job
) -> None:
    with pytest.raises(DataError, match=rf"train\.command: .*{message}"):
        good(inputs, tmp_path / "out", job, ledger)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failure_shows_the_last_lines(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    script = "import sys; [print('line', n) for n in range(50)]; sys.exit(3)"
    with pytest.raises(ModelError, match=r"train\.command: .* exit code 3") as caught:
        train(inputs, tmp_path / "out", job, script)
    assert "line 30\nline 31" in str(caught.value)
    assert "line 29" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("", r"left no checkpoint in \{out\}: .* there is nothing"),
        ("open(sys.argv[1] + '/config.json', 'w').write('{}')", "there is config.json"),
        (
            "[open(sys.argv[1] + n, 'w').write('{}') for n in "
            "('/config.json', '/model.safetensors')]",
            "model.safetensors cannot be read",
        ),
    ],
)
def test_success_without_a_checkpoint_is_an_error(
    script: str, message: str, inputs: Inputs, tmp_path: Path, job: Job
) -> None:
    with pytest.raises(ModelError, match=message):
        train(inputs, tmp_path / "out", job, f"import sys\n{script}", "{out}")


def test_a_program_that_is_not_there(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    part = Command(command=["no-such-program"])
    with pytest.raises(RecipeError, match=r"train\.command: cannot start 'no-such-program'"):
        part.run(inputs, StepDir(tmp_path / "out"), job)


def test_places_are_checked_before_any_work() -> None:
    with pytest.raises(RecipeError, match=r"steps\.1: .*no place \{dat\}; did you mean 'data'\?"):
        Command.parse({"command": ["train", "--data={dat}"]}, "steps.1")
    with pytest.raises(RecipeError, match="command is empty"):
        Command.parse({"command": []}, "steps.1")
    with pytest.raises(RecipeError, match="export is off"):
        Command.parse({"command": ["train", "{data}"], "export": False}, "steps.1")
    Command.parse({"command": ["train", '{"lr": 1}', "{out}"]}, "steps.1")


def test_without_export_no_text_is_written(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    script = "import os, sys; sys.exit(5 if os.environ['FORESIFT_DATA'] == '' else 0)"
    with pytest.raises(ModelError, match="exit code 5"):
        train(inputs, tmp_path / "out", job, script, export=False)
