"""The checkpoints of a training's directory, in the order of their steps."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from foresift.pipeline.checkpoints import Checkpoint, checkpoints, folder_name, intermediate
from foresift.pipeline.errors import StoreError
from foresift.pipeline.store import write_shard


def steps_file(path: Path, steps: list[int | None]) -> None:
    write_shard(path, pa.table({"step": pa.array(steps, pa.int32())}))


def test_ascending_with_the_final_one_last(tmp_path: Path) -> None:
    names = ["step-000100", "step-000020", "step-1000000", ".step-000030.host-1.tmp", "notes"]
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000007").touch()  # a file is no checkpoint
    assert [c.step for c in checkpoints(tmp_path)] == [20, 100, 1_000_000]
    (tmp_path / "checkpoint").mkdir()
    steps_file(tmp_path / "curve.parquet", [1, 2, 3, 1_000_020])
    found = checkpoints(tmp_path)
    assert found[-1] == Checkpoint(1_000_020, tmp_path / "checkpoint")
    assert found[:-1] == intermediate(tmp_path)
    assert found[0].path.name == folder_name(20)
    assert found[2].path.name == folder_name(1_000_000)


def test_the_ledger_says_the_last_step_where_there_is_no_curve(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    assert checkpoints(tmp_path)[0].step is None
    steps_file(tmp_path / "ledger.parquet", [1, 4, 9])
    assert checkpoints(tmp_path)[0].step == 9
    steps_file(tmp_path / "ledger.parquet", [1, None])  # a command that did not say
    assert checkpoints(tmp_path)[0].step is None
    (tmp_path / "ledger.parquet").write_bytes(b"nothing")
    with pytest.raises(StoreError, match=r"ledger\.parquet: cannot be read"):
        checkpoints(tmp_path)


def test_of_nothing_there_is_none(tmp_path: Path) -> None:
    assert checkpoints(tmp_path) == []
