"""Processes are killed at random points; the rerun ends with the same bytes and redoes no shard."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from foresift.pipeline.store import shard_facts
from tests.runs import files, go, recipe, start

SHARDS, PAUSE = 8, 0.03


def slow(**fields: object) -> dict[str, object]:
    reader = {"read": "tests.parts:Texts", "shards": SHARDS, "rows": 25}
    steps = [
        {"score": "tests.parts:Letters", "as": "letters", "seconds": PAUSE, **fields},
        {"dedup": "exact"},
        {"select": "topk", "by": "letters.count", "budget": "20%"},
        {"order": "shuffle"},
        {"export": "jsonl"},
    ]
    return recipe(data=reader, steps=steps)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    go(slow(), out)
    return files(out)


def finished(out: Path) -> dict[Path, int]:
    """Complete shards and when they were written; an incomplete one would fail to open."""
    shards = list((out / "steps").rglob("part-*.parquet"))
    for shard in shards:
        assert shard_facts(shard)["rows"] > 0
    return {s: s.stat().st_mtime_ns for s in shards}


def check_rerun(out: Path, undisturbed: dict[str, bytes]) -> None:
    before = finished(out)
    done = {p: p.stat().st_mtime_ns for p in (out / "steps").rglob("stage.json")}
    go(slow(), out)
    assert files(out) == undisturbed
    assert {p: p.stat().st_mtime_ns for p in before} == before, "a finished shard was redone"
    assert {p: p.stat().st_mtime_ns for p in done} == done, "a finished step was redone"


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(20))
def test_killed_driver(tmp_path: Path, undisturbed: dict[str, bytes], trial: int) -> None:
    options = ["--workers", "1" if trial % 2 else "2", "--engine", "local"]
    process = start(slow(), tmp_path, *options)
    deadline = time.monotonic() + 30
    point = random.Random(trial).uniform(0.0, 1.1) * SHARDS * PAUSE
    while not list(tmp_path.rglob("part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(point)
    kill = os.killpg if trial % 4 < 2 else os.kill  # workers may outlive their driver
    kill(process.pid, signal.SIGKILL)
    process.wait()
    check_rerun(tmp_path, undisturbed)
    if kill is os.killpg:
        assert not list((tmp_path / "steps").rglob("*.tmp")), "half-written files were left behind"


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(20))
def test_killed_worker(tmp_path: Path, undisturbed: dict[str, bytes], trial: int) -> None:
    process = start(slow(), tmp_path, "--workers", "2", "--engine", "local")
    score = time.monotonic() + 30
    while not list(tmp_path.rglob("letters*/part-*.parquet")) and time.monotonic() < score:
        if list(tmp_path.rglob("parts-*/part-*.parquet")):
            break
        time.sleep(0.005)
    time.sleep(random.Random(trial).uniform(0.0, 1.0) * SHARDS * PAUSE)
    victims = [
        p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())
    ]
    if victims:
        random.Random(trial).choice(victims).kill()
    assert process.wait(timeout=60) == 0, (tmp_path / "output.txt").read_text()
    assert files(tmp_path) == undisturbed


def test_a_worker_that_dies_costs_its_item_only(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    from foresift.pipeline.engines.local import LocalEngine

    lethal = tmp_path / "lethal"
    lethal.mkdir()
    for n in range(2):
        (lethal / str(n)).touch()
    engine = LocalEngine(2)
    try:
        go(slow(lethal=str(lethal)), tmp_path / "out", engine)
    finally:
        engine.close()
    assert not list(lethal.iterdir()), "the workers did not die as they were told"
    assert files(tmp_path / "out") == undisturbed
