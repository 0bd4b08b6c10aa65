"""Real corpora through a whole recipe: the same bytes from every engine, every row accounted for.

Eleven domains of the Pile (parquet), 55,185 instruction pairs of T0 (parquet) and 7,473 problems of
GSM8K (compressed JSON lines) are read, deduplicated, scored, selected to a fifth by tokens, ordered
and exported: in this process, in two processes, and on Ray with two actors.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.engines.local import LocalEngine
from foresift.pipeline.nouns import Resources
from foresift.pipeline.run import Run
from foresift.pipeline.store import StepDir
from tests.runs import ROOT, files, go

pytestmark = pytest.mark.slow

PILE = {"read": "parquet", "paths": ["pretrain/pile-domains"], "text": "original", "shard_mb": 4}
PAIRS = {
    "read": "parquet", "paths": ["instruct/t0-mix"], "shard_mb": 8,
    "prompt": "prompt", "response": "completion", "columns": ["template"],
}  # fmt: skip
MATHS = {
    "read": "jsonl", "paths": ["reasoning/gsm8k/train.jsonl.gz", "reasoning/gsm8k/test.jsonl.gz"],
    "prompt": "question", "response": "answer", "shard_mb": 1,
}  # fmt: skip
MODEL = {"init": "configs/models/tiny", "device": "cpu", "max_length": 256}
#: data set -> reader, exporter, steps between scores and selection, utility, rows in its files
CORPORA: dict[str, tuple[dict[str, Any], str, list[dict[str, Any]], str, int]] = {
    "pile": (PILE, "parquet", [], "letters.share", 7692),
    "t0": (PAIRS, "jsonl", [], "length.words", 55185),
    "gsm8k": (
        MATHS, "parquet",
        [{"select": "random", "budget": "600 rows"}, {"score": "loss"}], "loss.utility", 8792,
    ),
}  # fmt: skip


class Spread(LocalEngine):
    """A pool of processes that takes small work too."""

    def map(self, task: Any, items: Any, resources: Resources) -> Iterator[tuple[int, Any]]:
        return super().map(task, items, dataclasses.replace(resources, small=False))


def recipe(name: str, root: Path) -> dict[str, Any]:
    reader, exporter, scored, by, _ = CORPORA[name]
    steps = [
        {"dedup": "exact"},
        {"dedup": "minhash"},
        {"score": "length"},
        {"score": "tests.parts:Letters", "as": "letters", "letter": "e"},
        *scored,
        {"select": "topk", "by": by, "budget": "20%"},
        {"order": "shuffle"},
        {"export": exporter},
    ]
    paths = [str(root / path) for path in reader["paths"]]
    data = reader | {"paths": paths}
    return {"name": name, "data": data, "steps": steps, "model": MODEL, "report": False}


@pytest.fixture(scope="module", params=list(CORPORA))
def alone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared_data: Path
) -> tuple[str, dict[str, Any], Run]:
    """Each recipe carried out in this process."""
    fields = recipe(request.param, shared_data)
    return request.param, fields, go(fields, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def ray_engine() -> Iterator[Any]:
    from foresift.pipeline.engines.ray import RayEngine

    os.environ["PYTHONPATH"] = str(ROOT)
    engine = RayEngine(2)
    yield engine
    engine.close()


def _out(done: Run) -> Path:
    return Path(done.manifest["out"])


def test_two_processes_write_the_same_bytes(
    tmp_path: Path, alone: tuple[str, dict[str, Any], Run]
) -> None:
    engine = Spread(2)
    go(alone[1], tmp_path, engine)
    engine.close()
    assert files(tmp_path) == files(_out(alone[2]))


@pytest.mark.ray
def test_ray_writes_the_same_bytes(
    tmp_path: Path, alone: tuple[str, dict[str, Any], Run], ray_engine: Any
) -> None:
    go(alone[1], tmp_path, ray_engine)
    assert files(tmp_path) == files(_out(alone[2]))


def test_the_accounts_add_up(alone: tuple[str, dict[str, Any], Run]) -> None:
    name, _, done = alone
    accounts = done.manifest["accounts"]
    plan = pq.read_table(done.plan)
    assert accounts["rows_in"] == CORPORA[name][4]
    assert accounts["rows"] == plan.num_rows == accounts["rows_in"] - accounts["rejected"]
    assert accounts["kept"] + accounts["dropped"] == accounts["rows"]
    assert sum(accounts["dropped_by_reason"].values()) == accounts["dropped"]
    assert plan["reason"].null_count == 0
    assert accounts["kept_tokens"] == pc.sum(plan.filter(plan["kept"])["n_tokens"]).as_py()
    pool = plan.num_rows
    for step in done.manifest["steps"]:
        facts = step["facts"]
        if step["verb"] in ("dedup", "select"):
            assert facts["kept"] + facts["dropped"] == facts["rows"], step["label"]
            assert facts["rows"] <= pool
            pool = facts["kept"]
    assert pool == accounts["kept"]


def test_a_fifth_of_the_tokens_is_selected(alone: tuple[str, dict[str, Any], Run]) -> None:
    done = alone[2]
    facts = next(s["facts"] for s in done.manifest["steps"] if s["name"] == "topk")
    plan = pq.read_table(done.plan)
    longest = pc.max(plan["n_tokens"]).as_py()
    assert 0 <= facts["kept_tokens"] - 0.2 * facts["pool_tokens"] < longest


def test_what_is_exported_is_what_the_plan_keeps_in_its_order(
    alone: tuple[str, dict[str, Any], Run],
) -> None:
    _, _, done = alone
    plan = pq.read_table(done.plan)
    kept = plan.filter(plan["kept"]).sort_by("position")
    out = Path(done.manifest["steps"][-1]["path"])
    found = _exported(out)
    assert found == [i.hex() for i in kept["id"].to_pylist()]


def _exported(out: Path) -> list[str]:
    raw = b"".join(gzip.decompress(f.read_bytes()) for f in sorted(out.glob("*.jsonl.gz")))
    ids = [json.loads(line)["id"] for line in raw.split(b"\n") if line]
    for file in sorted(out.glob("*.parquet")):
        ids += [
            i.hex() if isinstance(i, bytes) else i for i in pq.read_table(file)["id"].to_pylist()
        ]
    return ids


def test_copies_are_removed_and_nothing_is_scored_that_was_dropped(
    alone: tuple[str, dict[str, Any], Run],
) -> None:
    _, _, done = alone
    steps = {s["name"]: s for s in done.manifest["steps"]}
    kept = steps["minhash"]["facts"]["kept"]
    assert steps["length"]["facts"]["alive"] == kept
    assert sum(steps["length"]["facts"]["nan"].values()) == 0
    plan = pq.read_table(done.plan, columns=["id", "kept"])
    ids = plan.filter(plan["kept"])["id"]
    assert len(pc.unique(ids)) == len(ids)
    assert len(StepDir(Path(steps["minhash"]["path"])).shards()) > 1
