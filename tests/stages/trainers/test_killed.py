"""SIGKILL at random points of a training: no exposure is lost, none invented, the bytes stay."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foresift.pipeline.checkpoints import checkpoints, intermediate
from foresift.pipeline.errors import DataError
from foresift.pipeline.ledger import Ledger
from tests.corpora import make_corpus, tree
from tests.stages.trainers.conftest import SHAPES, plan_of, texts

KILLS = 20
#: seconds within which a process is killed, from a point on
SPAN = {"ready": 0.3, "train": 0.1, "publish": 0.06}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """200 documents in two shards, a model, and a process that forks trainings on them."""
    found = texts(200)
    data = make_corpus(tmp_path, [found[:120], found[120:]])
    rows = [(0, r) for r in range(120)] + [(1, r) for r in range(80)]
    random.Random(0).shuffle(rows)
    plan_of(data, rows, tmp_path / "plan")
    model = tmp_path / "model.json"
    model.write_text(
        json.dumps({"model_type": "gpt2", **SHAPES["gpt2"], "resid_pdrop": 0.1, "n_layer": 1})
    )
    words = [str(p) for p in (data.base, tmp_path / "plan", model, tmp_path / "whole")]
    command = [sys.executable, "-m", "tests.stages.trainers.forked", *words]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    yield process
    process.communicate(timeout=60)


def say(server: subprocess.Popen[str], out: Path) -> int:
    """Begin, or go on with, the training in a directory; the process that does it."""
    assert server.stdin is not None
    server.stdin.write(f"{out}\n")
    server.stdin.flush()
    return ended(server)


def ended(server: subprocess.Popen[str]) -> int:
    assert server.stdout is not None
    return int(server.stdout.readline())


def rows_of(out: Path) -> Counter[tuple[Any, ...]]:
    try:
        return Counter(tuple(row.values()) for row in Ledger.open(out).table().to_pylist())
    except DataError:
        return Counter()


def until(rows: Counter[tuple[Any, ...]], step: int) -> Counter[tuple[Any, ...]]:
    return Counter({row: n for row, n in rows.items() if row[3] <= step})


def strike(out: Path, child: int, draw: random.Random) -> str:
    """Kill a process at a random point: while it gets ready, trains, or publishes."""
    when = draw.choices(["ready", "train", "publish"], [2, 6, 2])[0]
    mark = {"ready": "*", "train": "ledger/*", "publish": ".train.*/checkpoint"}[when]
    more = {"ready": 0, "train": draw.randint(1, 4), "publish": 1}[when]  # files, one a checkpoint
    before, deadline = len(list(out.glob(mark))), time.monotonic() + 30
    while len(list(out.glob(mark))) < before + more:
        if time.monotonic() > deadline or (out / "stage.json").exists():
            break
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, SPAN[when]))
    with contextlib.suppress(ProcessLookupError):  # it was faster
        os.kill(child, signal.SIGKILL)
    return when


@pytest.mark.slow
def test_twenty_kills(server: subprocess.Popen[str], tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out-0"
    assert ended(server) == 0
    truth, draw, struck = rows_of(whole), random.Random(7), Counter[str]()
    went_on = 0
    while struck.total() < KILLS:
        before = len(intermediate(out))
        when = strike(out, say(server, out), draw)
        code = ended(server)
        if code == 0:
            assert tree(out) == tree(whole)
            out = tmp_path / f"out-{struck.total()}"
            continue
        assert code == -signal.SIGKILL
        struck[when] += 1
        found = rows_of(out)
        assert not found - truth, "an exposure that never was"
        for checkpoint in checkpoints(out):
            step = checkpoint.step or 0
            assert until(found, step) == until(truth, step), "a checkpoint saw more than is told"
        went_on += before < len(intermediate(out))
    assert went_on >= KILLS // 5, f"killed too early: {struck}"
    say(server, out)
    assert ended(server) == 0
    assert rows_of(out) == truth
    assert tree(out) == tree(whole)
