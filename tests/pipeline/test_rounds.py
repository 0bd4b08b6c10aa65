"""Rounds made whole: candidates, influence, a drawn choice, training; and drivers killed within.

Labels are exact ones, which come in chunks of four documents, so that there is a middle to be
killed in. Each driver that is killed is a process of its own, as a user starts it.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from foresift.pipeline.run import Run
from foresift.pipeline.store import shard_facts
from tests.inputs import texts, write
from tests.runs import files, go, start

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "initializer_range": 0.1, "tie_word_embeddings": True,
}  # fmt: skip
TRAIN = {
    "train": "causal_lm", "tokens": 4096, "repeat": True, "length": 64, "batch_tokens": 256,
    "threads": 1,
}  # fmt: skip
ROUNDS, PROBES, CHUNKS = 3, 40, 10


def recipe(folder: Path) -> dict[str, Any]:
    """Three rounds over 400 documents; each draws half of what is left and keeps 30 of them."""
    config, aim = folder / "llama.json", write(folder / "aim.jsonl", texts(12, seed=5))
    config.write_text(json.dumps(LLAMA))
    influence = {
        "score": "influence", "reference": str(aim), "labels": "exact", "probes": PROBES,
        "floor": -1.0, "learning_rate": 1e-4,
    }  # fmt: skip
    chosen = {"by": "influence.utility", "temperature": 0.001, "budget": "30 rows"}
    return {
        "name": "rounds",
        "data": {"read": "tests.parts:Texts", "shards": 8, "rows": 50},
        "model": {"init": str(config), "tokenizer": "bytes", "device": "cpu", "max_length": 64},
        "rounds": {
            "count": ROUNDS,
            "steps": [
                {"select": "random", "budget": "50% rows"},
                influence,
                {"select": "gumbel_topk", **chosen},
                TRAIN,
            ],
        },
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Run, dict[str, bytes]]:
    """The recipe, its undisturbed run, and what that left in the step directories."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("rounds")
    fields = recipe(folder)
    return fields, go(fields, folder / "out"), files(folder / "out")


Whole = tuple[dict[str, Any], Run, dict[str, bytes]]


def steps(run: Run, name: str) -> list[dict[str, Any]]:
    """The steps of a part, one a round."""
    found = [s for s in run.manifest["steps"] if s["name"] == name]
    assert [s["round"] for s in found] == list(range(1, ROUNDS + 1))
    return found


def test_no_document_is_selected_twice(whole: Whole) -> None:
    _, run, _ = whole
    plan = pq.read_table(run.plan)
    assert [s["facts"]["kept"] for s in steps(run, "gumbel_topk")] == [30] * ROUNDS
    chosen = []
    for step in steps(run, "shuffle"):
        order = pq.read_table(Path(step["path"]) / "plan.parquet")
        assert set(order["round"].to_pylist()) == {step["round"]}
        chosen += order["id"].to_pylist()
    assert len(chosen) == len(set(chosen)) == 30 * ROUNDS
    kept = plan.filter(plan["kept"])
    assert sorted(kept["id"].to_pylist()) == sorted(chosen)
    assert not set(kept["round"].to_pylist()) - {1, 2, 3}


def test_labels_of_earlier_rounds_go_on_teaching(whole: Whole, tmp_path: Path) -> None:
    fields, run, _ = whole
    asked = steps(run, "influence")
    models = [s["facts"]["model"] for s in asked]
    assert [m["remembered"] for m in models] == [0, PROBES, 2 * PROBES]
    assert [m["labels"] for m in models] == [PROBES, 2 * PROBES, 3 * PROBES]
    known = pq.read_table(Path(asked[2]["path"]) / "fitted" / "known.parquet")
    drawn = [pq.read_table(Path(s["path"]) / "fitted/probes.parquet")["id"] for s in asked]
    assert known["id"].to_pylist() == [i for ids in reversed(drawn) for i in ids.to_pylist()]
    labels = np.array(known["label"].to_pylist()).reshape(ROUNDS, PROBES)
    np.testing.assert_allclose(labels.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(labels.std(1), 1, rtol=1e-9)
    forgetful = copy.deepcopy(fields)
    forgetful["rounds"]["count"] = 2
    forgetful["rounds"]["steps"][1]["remember"] = False
    again = go(forgetful, tmp_path / "out")
    alone = [s["facts"]["model"] for s in again.manifest["steps"] if s["name"] == "influence"]
    assert [m["remembered"] for m in alone] == [0, 0]
    assert alone[0]["spearman"] == models[0]["spearman"]
    assert alone[1]["spearman"] != models[1]["spearman"]


def test_a_round_is_scored_by_the_model_of_the_one_before(whole: Whole) -> None:
    _, run, _ = whole
    facts = [s["facts"] for s in steps(run, "influence")]
    assert [f["preconditioned"] for f in facts] == [False, True, True]
    losses = [f["reference_loss"][0] for f in facts]
    assert losses[0] > losses[1] > losses[2]
    pools = [s["facts"]["kept"] for s in steps(run, "random")]
    assert [f["alive"] for f in facts] == pools
    assert pools[0] > pools[1] > pools[2]
    drawn = [pq.read_table(Path(s["path"]) / "fitted/probes.parquet")["id"].to_pylist()
             for s in steps(run, "influence")]  # fmt: skip
    assert [len(set(ids)) for ids in drawn] == [PROBES] * ROUNDS
    assert set(drawn[0]) != set(drawn[1])
    assert [labelled(Path(s["path"])) for s in steps(run, "influence")] == [CHUNKS] * ROUNDS


def test_the_report_tells_of_the_rounds(whole: Whole) -> None:
    _, run, _ = whole
    page = (run.path / "report" / "index.html").read_text()
    section = page.partition('<section id="rounds">')[2].partition("</section>")[0]
    assert "Probing" in section
    assert "influence.utility" in section


def test_a_rerun_does_nothing(whole: Whole) -> None:
    fields, run, left = whole
    out = run.path.parents[1]
    again = go(fields, out)
    assert all(s["cached"] for s in again.manifest["steps"])
    assert files(out) == left
    assert again.plan.read_bytes() == run.plan.read_bytes()


# -- killed drivers ----------------------------------------------------------------------------

Seen = Callable[[Path], bool]


def _second(out: Path, part: str) -> Path | None:
    """The directory of a part in the second round, once it is there."""
    found = sorted((out / "steps").glob(f"{part}-*"), key=lambda p: p.stat().st_ctime_ns)
    done = [p for p in found if (p / "stage.json").exists()]
    open_ = [p for p in found if p not in done]
    return open_[0] if len(done) == 1 and open_ else None


def labelled(step: Path) -> int:
    """Chunks of labels that are there."""
    return len(list(step.glob("fitted/labels/part-*.parquet")))


def in_labels(out: Path) -> bool:
    step = _second(out, "influence")
    return step is not None and 3 <= labelled(step) < CHUNKS


def in_scoring(out: Path) -> bool:
    step = _second(out, "influence")
    return step is not None and bool(list(step.glob("part-*.parquet")))


def in_training(out: Path) -> bool:
    step = _second(out, "causal_lm")
    return step is not None and bool(list(step.glob("ledger/*.parquet")))


def finished(out: Path) -> dict[Path, int]:
    """Complete tables, chunks of labels among them, and when they were written."""
    found = [
        p for p in (out / "steps").rglob("part-*.parquet")
        if not any(part.endswith(".tmp") for part in p.parts)
    ]  # fmt: skip
    for path in found:
        assert shard_facts(path)["rows"] > 0
    return {p: p.stat().st_mtime_ns for p in found}


def kill_when(fields: dict[str, Any], out: Path, seen: Seen) -> None:
    """Start a driver and kill it, and all it started, once something is seen in its directory."""
    process = start(fields, out, "--workers", "1", "--engine", "local")
    deadline = time.monotonic() + 60
    while not seen(out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((out / "runs").glob("*/manifest.json")), "the driver was not killed in time"


@pytest.mark.slow
def test_drivers_killed_within_a_round_leave_the_same_bytes(tmp_path: Path, whole: Whole) -> None:
    fields, run, left = whole
    for seen in (in_labels, in_scoring, in_training):
        before = finished(tmp_path)
        kill_when(fields, tmp_path, seen)
        assert seen(tmp_path), (tmp_path / "output.txt").read_text()
        now = finished(tmp_path)
        assert {p: now[p] for p in before} == before, "a finished shard or chunk was redone"
    before = finished(tmp_path)
    stages = {p: p.stat().st_mtime_ns for p in (tmp_path / "steps").rglob("stage.json")}
    again = go(fields, tmp_path)
    assert files(tmp_path) == left
    assert again.plan.read_bytes() == run.plan.read_bytes()
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert {p: p.stat().st_mtime_ns for p in stages} == stages, "a finished step was redone"
    assert sum(s["cached"] for s in again.manifest["steps"]) == len(stages)
    assert not list((tmp_path / "steps").rglob("*.tmp")), "half-written files were left behind"
