"""Data sets saved by `datasets`: rows in order, splits by name, fingerprints as inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.errors import DataError
from foresift.pipeline.parts import find

Reader = Callable[..., Any]
ROWS = {"text": [f"row {n} " * 5 for n in range(200)], "score": list(range(200))}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets.Dataset.from_dict(ROWS).save_to_disk(tmp_path / "plain")
    return tmp_path / "plain"


def test_reads_a_saved_data_set(read: Reader, saved: Path) -> None:
    got = read("hf", paths=[str(saved)], columns=["score"])
    table = got.table()
    assert table["text"].to_pylist() == ROWS["text"]
    assert table["source"].to_pylist()[:2] == ["plain#1", "plain#2"]
    assert pq.read_table(got.corpus.shards()[0].base)["score"].to_pylist() == ROWS["score"]


def test_conversations_and_selected_rows(read: Reader, tmp_path: Path) -> None:
    chats = [
        [{"role": "user", "content": f"c{n}"}, {"role": "bot", "content": "x"}] for n in range(9)
    ]
    rows = datasets.Dataset.from_dict({"chat": chats}).select([7, 2, 5])
    rows.save_to_disk(tmp_path / "chats")
    table = read("hf", paths=[str(tmp_path / "chats")], messages="chat").table()
    assert table["messages"].to_pylist() == [chats[7], chats[2], chats[5]]


def test_bad_rows_and_columns(read: Reader, saved: Path, tmp_path: Path) -> None:
    texts = ["a", None, " ", *ROWS["text"]]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "bad")
    got = read("hf", paths=[str(tmp_path / "bad")])
    assert [(r["file"], r["line"]) for r in got.rejects()] == [("bad", 2), ("bad", 3)]
    with pytest.raises(DataError, match="no column 'txt'; did you mean 'text'"):
        read("hf", paths=[str(saved)], text="txt")
    with pytest.raises(DataError, match="not strings"):
        read("hf", paths=[str(saved)], text="score")


def test_splits(read: Reader, tmp_path: Path) -> None:
    half = datasets.Dataset.from_dict({"text": ["one", "two"]})
    other = datasets.Dataset.from_dict({"text": ["three"]})
    datasets.DatasetDict({"train": half, "test": other}).save_to_disk(tmp_path / "both")
    path = str(tmp_path / "both")
    assert read("hf", paths=[path]).table()["text"].to_pylist() == ["one", "two"]
    assert read("hf", paths=[path], split="test").table()["text"].to_pylist() == ["three"]
    with pytest.raises(DataError, match="no split 'tset'; did you mean 'test'"):
        read("hf", paths=[path], split="tset")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no such data set"):
        read("hf", paths=[str(tmp_path / "nothing")])


def test_inputs_are_fingerprints(saved: Path) -> None:
    reader = find("read", "hf").parse({"paths": [str(saved)]}, "data")
    ((path, print_),) = reader.inputs()  # type: ignore[attr-defined]
    assert path == str(saved)
    assert print_ == datasets.load_from_disk(saved)._fingerprint
