"""Scores taken while reading are the scores of a pass of their own, and spare that pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.corpus import Shard
from foresift.pipeline.errors import DataError
from tests.inputs import LENGTH, TOPK, recipe, texts, write
from tests.parts import Letters
from tests.runs import files, go

LETTERS = {"score": "tests.parts:Letters", "as": "letters"}


def corpus(tmp_path: Path, kind: str) -> dict[str, Any]:
    """A reader of several shards with a holdout, and bad rows where it copies."""
    rows = texts(4000)
    if kind == "jsonl":
        rows[7:7] = [""]
        for n in range(2):
            write(tmp_path / f"{n}.jsonl", rows[n::2] * 3)
        return {"read": "jsonl", "paths": [str(tmp_path)], "shard_mb": 1, "holdout": 0.1}
    table = pa.table({"text": pa.array(rows * 20, pa.large_string())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=9000)
    place = {"in_place": kind == "in place", "shard_mb": 4, "holdout": 0.1}
    return {"read": "parquet", "paths": [str(tmp_path / "a.parquet")], **place}


@pytest.mark.parametrize("kind", ["jsonl", "copied", "in place"])
def test_the_bytes_are_those_of_a_pass_of_its_own(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    data = corpus(tmp_path / "in", kind)
    at_once = recipe(data=data, steps=[LENGTH, LETTERS, TOPK])
    go(recipe(data=data, steps=[]), tmp_path / "after")
    go(at_once, tmp_path / "after")
    go(at_once, tmp_path / "beside")
    assert len(list((tmp_path / "beside").glob("steps/length-*/part-*.parquet"))) > 1
    assert files(tmp_path / "beside") == files(tmp_path / "after")


def test_text_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the text was read again")

    monkeypatch.setattr(Shard, "stream", refuse)
    path = write(tmp_path / "a.jsonl", texts(50))
    done = go(recipe(path, steps=[LENGTH, LETTERS, TOPK]), tmp_path / "out")
    assert done.manifest["accounts"]["kept"] == 25


def test_a_lost_sidecar_is_made_by_the_score_step(tmp_path: Path) -> None:
    fields = recipe(write(tmp_path / "a.jsonl", texts(50)), steps=[LENGTH])
    go(fields, tmp_path / "out")
    before = files(tmp_path / "out")
    for file in (tmp_path / "out").glob("steps/length-*/*"):
        file.unlink()
    go(fields, tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_what_follows_a_decision_is_scored_after_it(tmp_path: Path) -> None:
    rows = [*texts(20), *texts(20)]
    steps = [{"dedup": "exact"}, LENGTH]
    done = go(recipe(write(tmp_path / "a.jsonl", rows), steps=steps), tmp_path / "out")
    assert done.manifest["steps"][2]["facts"]["alive"] == 20


def test_an_error_of_a_score_names_the_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise DataError("cannot be scored")

    monkeypatch.setattr(Letters, "score", refuse)
    fields = recipe(write(tmp_path / "a.jsonl", texts(5)), steps=[LENGTH, LETTERS])
    with pytest.raises(DataError, match=r"steps\[1\]: cannot be scored"):
        go(fields, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("stage.json"))
