"""A full disk is one located error; nothing half-written is read, and the rerun goes on."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.inputs import (
    LENGTH,
    TOPK,
    process,
    recipe,
    refused,
    texts,
    write,
)
from tests.runs import files, go, stages


def _limit(megabytes: float) -> Callable[[], None]:
    """No file may grow beyond this size, as if the disk ended there."""
    size = int(megabytes * (1 << 20))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_is_one_located_error_and_the_rerun_continues(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = write(tmp_path / "a.jsonl", texts(2000))
    noise = write(tmp_path / "b.jsonl", [rng.bytes(9000).hex() for _ in range(100)])
    fields = recipe(small, noise, data={"shard_mb": 1})
    whole = go(fields, tmp_path / "whole")
    result = process(tmp_path, fields, _limit(0.5))
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("StoreError data: File too large; what is finished stays")
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("part-*.parquet")}
    assert {p.stem for p in done} == {"part-00000"}
    assert not list((tmp_path / "out").rglob(".*.tmp")), "what was half-written takes up the disk"
    assert not list((tmp_path / "out").rglob("stage.json"))
    again = go(fields, tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in done} == done, "a finished shard was redone"
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert again.manifest["accounts"] == whole.manifest["accounts"]


VERBS = ["read", "dedup", "score", "select", "order", "export"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_fills_up_at_any_step_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    fields = recipe(
        write(tmp_path / "a.jsonl", texts(200)),
        steps=[{"dedup": "exact"}, LENGTH, TOPK, {"order": "shuffle"}, {"export": "parquet"}],
    )
    go(fields, tmp_path / "whole")
    number = VERBS.index(verb)
    with monkeypatch.context() as patch:
        _fill_the_disk(patch, number)
        said = refused(tmp_path, fields)
    where = "data" if verb == "read" else f"steps[{number - 1}]"
    assert said.splitlines()[-1].startswith(f"StoreError {where}: No space left on device")
    assert len(stages(tmp_path / "out")) == number
    assert not list((tmp_path / "out").glob("runs/*/manifest.json"))
    go(fields, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def _fill_the_disk(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Renaming into place fails from the step after this many on."""
    from foresift.pipeline import store

    replace, seen = os.replace, set()

    def refuse(partial: Path, path: Path) -> None:
        if path.parent.parent.name == "steps":
            seen.add(path.parent)
            if len(seen) > steps:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(partial, path)

    patch.setattr(store.os, "replace", refuse)
