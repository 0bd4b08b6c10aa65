"""The folder of a plan: what stands in it, its costs, and that it is whole or not there."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from foresift.pipeline.cli import app
from foresift.pipeline.errors import DataError
from foresift.pipeline.replay_cost import replay_steps
from foresift.pipeline.store import read_json, write_json
from foresift.stages.forget import plan as plan_module
from foresift.stages.forget.budget import (
    Met,
    budget,
    flops,
    met,
    model_tokens,
    roll_back,
)
from foresift.stages.forget.folder import LINEAGE, SETS, DeletionPlan
from foresift.stages.forget.history import History
from foresift.stages.forget.neighbours import key_path
from foresift.stages.forget.plan import plan_deletion, spans_of
from foresift.stages.forget.resolved import FOUND, Resolved
from tests.corpora import tree
from tests.stages.forget.planning import ids, make_run, plan, resolved, trained, under

PATIENT = under("clinic-0/patient-0")


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return make_run(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def documents(history: History) -> list[bytes]:
    found: list[bytes] = resolved(history, PATIENT).ids.to_pylist()
    return found


def test_every_file_is_there_and_counted(history: History) -> None:
    done = plan(history, resolved(history, PATIENT))
    names = {p.name for p in done.path.iterdir() if p.is_file()}
    assert names == {
        *(f"{name}.jsonl" for name in SETS), "lineage.parquet", "plan.json", "request.json",
        "keywords.json", "budget.json", "views.json",
    }  # fmt: skip
    assert done.facts["sets"] == {name: len(done.rows(name)) for name in SETS}
    assert done.request["status"] == "planned"
    assert done.request["keys"] == [{"level": "key", "value": "clinic-0"}]
    assert list(done.path.parent.iterdir()) == [done.path]
    for name in SETS:
        assert all(len(row["id"]) == 32 for row in done.rows(name))


def test_every_forget_row_has_a_line_of_lineage(tmp_path: Path, history: History) -> None:
    found = resolved(history, PATIENT)
    seen = trained(history, [found.ids.to_pylist()[:2]], name="lineage-1")
    done = plan(seen, found, out=tmp_path)
    table = done.lineage
    assert table.schema.equals(LINEAGE)
    lines = {line["doc_id"].hex(): line for line in table.to_pylist()}
    assert set(lines) == set(ids(done.rows("forget")))
    for row in done.rows("forget"):
        line = lines[row["id"]]
        assert line["content_sha256"] == hashlib.sha256(row["text"].encode()).hexdigest()
        assert line["key_path"] == ["clinic-0", "patient-0", "notes", row["source"].split("#")[1]]
        assert line["licence"] == "CC-BY-4.0"
        assert line["reason_included"] == row["reason"] == "key"
        assert line["duplicates_kept"] == 1


def test_exposures_are_those_of_the_ledgers(
    tmp_path: Path, history: History, documents: list[bytes]
) -> None:
    a, b, c = documents[:3]
    seen = trained(history, [[a, b"x" * 16], [b, a], []], name="first")
    seen = trained(seen, [[c], [a]], name="second", round=2)
    done = plan(seen, resolved(history, PATIENT), out=tmp_path)
    told: dict[bytes, Any] = {line["doc_id"]: line for line in done.lineage.to_pylist()}
    for id_, expected, first in (
        (a, [("first", 1), ("first", 2), ("second", 2)], 1),
        (b, [("first", 2)], 2),
        (c, [("second", 1)], 1),
        (documents[3], [], None),
    ):
        assert [(e["training"], e["step"]) for e in told[id_]["exposures"]] == expected
        assert told[id_]["first_step"] == first
    for done_step in seen.trainings:
        ledger = seen.ledger(done_step).find(pa.array(documents, pa.binary(16)))
        mine = [e for t in told.values() for e in t["exposures"]]
        assert len(ledger) == sum(e["training"] == done_step.path.name for e in mine)
    assert done.facts["exposures"] == 5
    assert done.budget["main"]["first_training"] == "first"


def test_budget_rolls_back_to_the_last_clean_checkpoint(
    tmp_path: Path, history: History, documents: list[bytes]
) -> None:
    a, other = documents[0], b"x" * 16
    steps = [[other]] * 4 + [[a, other]] + [[other]] * 5
    seen = trained(history, steps, saved=[2, 4, 5, 8], name="budget-1")
    lines = [Met(t, seen.ledger(t).find(pa.array([a], pa.binary(16)))) for t in seen.trainings]
    back = roll_back(lines)
    assert back is not None
    assert (back.step, back.path and back.path.name) == (4, "step-000004")
    told = budget(seen, lines, 50, 7)
    main = told["main"]
    assert main["roll_back_to"] == {
        "training": "budget-1", "step": 4, "what": "a checkpoint",
        "path": "steps/budget-1/checkpoints/step-000004",
    }  # fmt: skip
    assert main["first_step"] == 5
    assert main["replay_steps"] == 6 == replay_steps([2, 2, 1, 3, 2], 3)
    assert main["replay_tokens"] == 60  # 70 from step 5 on, less the ten of the document
    assert main["retrain_tokens"] == 100
    assert main["replay_flops"] == 6.0 * 1000 * 60
    assert main["unlearn_flops"]["NPO"] == 14.0 * 1000 * 50 * 10
    assert told["storage"] == {"plan": 7, "checkpoints": 100}


def test_a_later_training_is_replayed_whole(
    tmp_path: Path, history: History, documents: list[bytes]
) -> None:
    a, other = documents[0], b"x" * 16
    seen = trained(history, [[other]] * 3, name="clean")
    seen = trained(seen, [[a], [other]], name="met", round=2)
    seen = trained(seen, [[other], [a, other]], name="after", round=3)
    seen = trained(seen, [[other]] * 9, name="beside", line="random", round=2)
    told = budget(seen, met(seen, pa.array([a], pa.binary(16))), 10, 0)
    main = told["main"]
    assert main["roll_back_to"]["path"] == "steps/clean/checkpoint"
    assert main["replay_steps"] == 4
    assert main["replay_tokens"] == 30
    assert main["retrain_tokens"] == 60
    assert told["lines"]["random"]["roll_back_to"] is None
    assert told["lines"]["random"]["replay_flops"] == 0


def test_what_a_training_does_not_tell_is_null(history: History, documents: list[bytes]) -> None:
    seen = trained(history, [[documents[0]]], facts=False, name="silent")
    told = budget(seen, met(seen, pa.array(documents, pa.binary(16))), 10, 0)["main"]
    assert told["replay_flops"] is None
    assert told["replay_steps"] is None
    assert told["unlearn_flops"]["GA"] is None
    assert flops(10, 5) == 300.0


def test_planning_again_changes_nothing(history: History) -> None:
    found = resolved(history, PATIENT)
    before = tree(plan(history, found).path)
    assert tree(plan(history, found).path) == before


def test_a_plan_that_was_applied_is_not_written_over(history: History) -> None:
    found = resolved(history, PATIENT, name="r-2")
    done = plan(history, found)
    for status in ("applied", "purged"):
        write_json(done.path / "request.json", {**done.request, "status": status})
        before = tree(done.path)
        with pytest.raises(DataError, match=f"{status} already"):
            plan(history, found)
        assert tree(done.path) == before
    write_json(done.path / "request.json", {**done.request, "status": "undone"})
    assert plan(history, found).request["status"] == "planned"


def test_a_plan_is_whole_or_not_there(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolved(history, PATIENT)
    before = tree(plan(history, found, out=tmp_path).path)

    def broken(*args: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(plan_module, "write_views", broken)
    with pytest.raises(RuntimeError):
        plan(history, found, out=tmp_path)
    assert tree(tmp_path / "deletions" / "r-1") == before
    with pytest.raises(RuntimeError):
        plan(history, resolved(history, PATIENT, name="r-9"), out=tmp_path)
    assert [p.name for p in (tmp_path / "deletions").iterdir()] == ["r-1"]
    with pytest.raises(DataError, match="no deletion plan here"):
        DeletionPlan.open(tmp_path / "deletions" / "r-9")


def test_nothing_to_forget_is_no_plan(history: History) -> None:
    found = resolved(history, PATIENT)
    nothing = Resolved(found.request, FOUND.empty_table(), FOUND.empty_table())
    with pytest.raises(DataError, match=r"r-1.*nothing matches"):
        plan_deletion(nothing, history)


def test_everything_to_forget_leaves_nothing_to_keep(tmp_path: Path, history: History) -> None:
    done = plan(history, resolved(history, lambda row: True), out=tmp_path)
    assert done.rows("retain") == done.rows("neighbors_direct") == done.rows("holdout") == []
    said = " ".join(done.facts["warnings"])
    assert "only 0 kept documents" in said
    assert "holdout has 0" in said


def test_an_entity_stands_where_it_is_said_to(tmp_path: Path, history: History) -> None:
    name = "Magda Lindqvist"
    found = resolved(
        history, lambda r: name in r["text"], reason="entity", level="entity", value=name
    )
    done = plan(history, found, out=tmp_path)
    for row in done.rows("forget"):
        assert row["entity"] == name
        assert [row["text"][a:b] for a, b in row["span_offsets"]] == [name]
    assert {p["subject"] for p in done.rows("probes")} == {name}
    assert done.budget["main"] is None


def test_spans() -> None:
    text = "ANNA  Bell and Anna Bells; anna\nbell"
    assert [text[a:b] for a, b in spans_of(text, "Anna Bell", "entity")] == [
        "ANNA  Bell", "anna\nbell",
    ]  # fmt: skip
    text = "Write to ann@example.org soon."
    assert [text[a:b] for a, b in spans_of(text, None, "personal")] == ["ann@example.org"]
    assert spans_of(text, None, "near") == []


def test_key_paths() -> None:
    assert key_path("bucket/file.jsonl#12") == ("bucket", "file.jsonl", "12")
    assert key_path("/a//b") == ("a", "b")
    assert key_path("") == ()


def test_pairs_and_conversations_become_questions(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Who wrote it?"},
        {"role": "assistant", "content": "Ada Stone"},
    ]
    rows = [{"chat": turns, "source": "s/a#1"}, {"chat": turns[:1], "source": "s/b#1"}]
    for n in range(9):
        other = [{**t, "content": f"{t['content']} {n}"} for t in turns]
        rows.append({"chat": other, "source": f"s/c#{n}"})
    history = make_run(tmp_path, rows, content={"messages": "chat", "columns": [], "holdout": 0.0})
    done = plan(history, resolved(history, lambda r: r["source"] in ("s/a#1", "s/b#1")))
    told = {row["source"]: row for row in done.rows("forget")}
    assert told["s/a#1"]["question"] == "Hello\nHi\nWho wrote it?"
    assert told["s/a#1"]["answer"] == "Ada Stone"
    assert told["s/b#1"]["text"] == "Hello"
    views = read_json(done.path / "views.json")
    assert views["tofu/forget.json"]["rows"] == 2


def command(*words: str) -> Any:
    return CliRunner().invoke(app, ["forget", "plan", *words])


def test_the_command_plans_every_request(tmp_path: Path) -> None:
    history = make_run(tmp_path / "out")
    file = tmp_path / "requests.jsonl"
    lines = [
        {"id": "one", "keys": [{"level": "key", "value": "clinic-0/patient-0"}]},
        {"id": "two", "keys": [{"level": "entity", "value": "Magda Lindqvist"}]},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--request", str(file), "--run", str(tmp_path / "out")]
    result = command(*words, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])["plans"]
    assert [one["id"] for one in told] == ["one", "two"]
    assert told[0]["documents"] == 5
    assert "one: 5 documents in 5 rows (5 key)" in result.stdout
    assert DeletionPlan.open(history.deletions / "two").facts["documents"] >= 5
    before = tree(history.deletions)
    assert command(*words, "--out", str(tmp_path / "other")).exit_code == 0
    assert command(*words).exit_code == 0
    assert tree(history.deletions) == before
    assert (tmp_path / "other" / "deletions" / "one" / "plan.json").exists()


def test_a_file_of_requests_may_grow(tmp_path: Path) -> None:
    history = make_run(tmp_path / "out")
    file = tmp_path / "requests.jsonl"
    run = ["--request", str(file), "--run", str(tmp_path / "out")]
    key = '{"id": "%s", "keys": [{"level": "key", "value": "clinic-%d/patient-%d"}]}\n'
    file.write_text(key % ("one", 0, 0))
    assert command(*run).exit_code == 0
    request = history.deletions / "one" / "request.json"
    write_json(request, {**read_json(request), "status": "applied"})
    before = tree(history.deletions / "one")
    again = command(*run)
    assert again.exit_code == 2
    assert "applied already" in " ".join(again.output.split())
    file.write_text(key % ("one", 0, 0) + key % ("two", 1, 2))
    grown = command(*run, "--json")
    assert grown.exit_code == 0
    assert [one["id"] for one in json.loads(grown.stdout.splitlines()[-1])["plans"]] == [
        "one", "two",
    ]  # fmt: skip
    assert tree(history.deletions / "one") == before
    file.write_text(key % ("one", 3, 3) + key % ("two", 1, 2))
    assert "contradicts an earlier request" in " ".join(command(*run).output.split())


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "out")
    file = tmp_path / "requests.jsonl"
    run = ["--request", str(file), "--run", str(tmp_path / "out")]
    for line, said in (
        ('{"keys": [{"level": "key", "value": "clinic-9"}]}', "nothing matches"),
        ('{"keys": [', "not JSON"),
        ('{"keys": [{"level": "key", "value": "clinic-0"}], "scope": "soul"}', "no scope"),
    ):
        file.write_text(line + "\n")
        result = command(*run)
        assert result.exit_code == 2, result.output
        assert said in " ".join(result.output.split())
        assert "Traceback" not in result.output
    assert not list((tmp_path / "out" / "deletions").glob("*/plan.json"))
    file.write_text('{"keys": [{"level": "key", "value": "clinic-0"}]}\n')
    assert command("--request", str(file), "--run", str(tmp_path)).exit_code == 2


def test_a_training_that_repeats_its_plan_takes_as_many_tokens_again(
    history: History, documents: list[bytes]
) -> None:
    a, other = documents[0], b"x" * 16
    seen = trained(history, [[a, other], [other]], name="again")
    stage = seen.trainings[-1].path / "stage.json"
    plain = budget(seen, met(seen, pa.array([a], pa.binary(16))), 10, 0)["main"]
    stage.write_text(json.dumps({"fields": {"repeat": True}}))
    repeated = budget(seen, met(seen, pa.array([a], pa.binary(16))), 10, 0)["main"]
    assert repeated["retrain_tokens"] == plain["retrain_tokens"] + 10


def test_tokens_are_the_models_where_a_ledger_tells(
    history: History, documents: list[bytes]
) -> None:
    a, b = documents[:2]
    ids = pa.array([a, b], pa.binary(16))
    assert model_tokens([], {a: 3, b: 5}) == 8
    seen = trained(history, [[a], [a]], name="counts")  # ten tokens each time, two passes
    two = replace(seen.trainings[-1], facts=seen.trainings[-1].facts | {"epochs": 2.0})
    lines = [Met(two, seen.ledger(two).find(ids))]
    assert model_tokens(lines, {a: 5, b: 5}) == 20  # ten for each five of the reader's
