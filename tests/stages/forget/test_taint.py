"""Which trainings and which of their checkpoints saw what was forgotten."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.ledger import SCHEMA as LEDGER
from foresift.pipeline.store import write_json
from foresift.stages.forget import taint


def training(folder: Path, rows: list[tuple[bytes, int | None]]) -> Path:
    folder.mkdir(parents=True)
    table = [(id_, 0, 0, at, 5) for id_, at in rows]
    columns = list(zip(*table, strict=True)) if table else [()] * 5
    arrays = [pa.array(c, f.type) for c, f in zip(columns, LEDGER, strict=True)]
    pq.write_table(pa.table(arrays, schema=LEDGER), folder / "ledger.parquet")
    for at in (2, 4):
        (folder / "checkpoints" / f"step-{at:06d}").mkdir(parents=True)
    (folder / "checkpoint").mkdir()
    return folder


def test_a_training_is_tainted_from_the_first_step_that_saw_a_document(tmp_path: Path) -> None:
    a, b = b"a" * 16, b"b" * 16
    forgotten = pa.table({"id": pa.array([a], pa.binary(16)), "request": ["r1"]})
    paths = {
        "late": training(tmp_path / "late", [(b, 1), (b, 2), (a, 3), (a, 4), (b, 6)]),
        "never": training(tmp_path / "never", [(b, 1)]),
        "unknown": training(tmp_path / "unknown", [(a, None), (b, None)]),
        "child": training(tmp_path / "child", [(b, 1), (b, 5)]),
        "grandchild": training(tmp_path / "grandchild", [(b, 1)]),
    }
    (tmp_path / "bare" / "checkpoint").mkdir(parents=True)
    paths["bare"] = tmp_path / "bare"
    found = taint.taints(paths, forgotten, {"child": "late", "grandchild": "child"})
    assert set(found) == {"late", "unknown", "child", "grandchild", "bare"}
    late = found["late"]
    assert (late["first_step"], late["documents"], late["exposures"]) == (3, 1, 2)
    assert [c["name"] for c in late["checkpoints"]] == ["step-000004", "checkpoint"]
    assert found["unknown"]["first_step"] is None
    assert len(found["unknown"]["checkpoints"]) == 3
    assert (found["child"]["first_step"], found["child"]["inherited"]) == (1, "late")
    assert found["grandchild"]["requests"] == ["r1"]
    assert "no ledger" in found["bare"]["why"]


def test_where_a_training_started_is_told_or_taken_from_its_line(tmp_path: Path) -> None:
    def told(name: str, **more: object) -> dict[str, object]:
        place = {"path": str(tmp_path / "steps" / name), "verb": "train", "line": "selected"}
        return {**place, "repeat": 0, **more}

    started = str(tmp_path / "steps" / "one" / "checkpoint")
    runs = []
    for number, steps in enumerate(
        (
            [told("one", model="gpt2"), told("two", model=started), told("three", model="gpt2")],
            [told("four"), told("five"), told("other", line="random")],
        )
    ):
        runs.append(tmp_path / "runs" / str(number))
        write_json(runs[-1] / "manifest.json", {"steps": steps})
    assert taint.parents_of(runs) == {"two": "one", "five": "four"}
