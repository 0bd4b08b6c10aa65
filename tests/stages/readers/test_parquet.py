"""Parquet: in place and rewritten say the same; damaged and unsuitable files are located."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.errors import DataError
from foresift.pipeline.tables import MESSAGES
from tests.corpora import Serial

Reader = Callable[..., Any]
TEXTS = [f"document {n} " * (1 + n % 9) for n in range(400)]


def put(path: Path, texts: Any = None, kind: Any = None, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = pa.array(TEXTS if texts is None else texts, kind or pa.string())
    pq.write_table(pa.table({"body": body, **columns}), path, row_group_size=40)
    return str(path)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_in_place_says_what_rewriting_says(read: Reader, tmp_path: Path, kind: Any) -> None:
    score = pa.array(np.arange(400) / 7)
    path = put(tmp_path / "a.parquet", kind=kind, score=score, text=["decoy"] * 400)
    here = read("parquet", paths=[path], text="body", columns=["score"])
    copied = read("parquet", paths=[path], text="body", columns=["score"], in_place=False)
    assert (here.facts["in_place"], copied.facts["in_place"]) == (1, 0)
    assert here.table().equals(copied.table())
    assert here.table()["text"].to_pylist() == TEXTS
    assert here.table()["source"].to_pylist()[:2] == ["a.parquet#1", "a.parquet#2"]
    shards = [r.corpus.shards()[0] for r in (here, copied)]
    assert shards[0].ids == shards[1].ids
    assert pq.read_schema(shards[0].base).names == [
        *("id", "source", "holdout", "n_bytes", "n_tokens", "score")
    ]
    assert pq.read_table(shards[0].base)["score"].equals(pa.chunked_array([score]))
    assert {k: v for k, v in here.facts.items() if k != "in_place"} == {
        k: v for k, v in copied.facts.items() if k != "in_place"
    }


def test_row_groups_are_shards(read: Reader, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefghij"), 2000)) for _ in range(1500)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, use_dictionary=False)
    here = read("parquet", paths=[str(path)], shard_mb=1)
    copied = read("parquet", paths=[str(path)], shard_mb=1, in_place=False, engine=Serial(3))
    shards = here.corpus.shards()
    assert [s.row_groups for s in shards] == [(0, 5), (5, 10), (10, 15)]
    assert here.table().equals(copied.table())
    assert here.table()["text"].to_pylist() == texts
    assert here.table()["source"].to_pylist() == [f"a.parquet#{n + 1}" for n in range(1500)]


def test_a_bad_row_makes_its_unit_a_copy(read: Reader, tmp_path: Path) -> None:
    texts = [None, "", " \u2003\n", *TEXTS[3:]]
    got = read("parquet", paths=[put(tmp_path / "a.parquet", texts)], text="body")
    assert got.facts["in_place"] == 0
    assert got.table()["text"].to_pylist() == TEXTS[3:]
    assert got.table()["source"].to_pylist()[0] == "a.parquet#4"
    assert [(r["line"], r["reason"]) for r in got.rejects()] == [
        (1, "text is null"), (2, "text is empty"), (3, "text is empty"),
    ]  # fmt: skip


def test_bytes_that_are_no_utf8_are_rejected(read: Reader, tmp_path: Path) -> None:
    raw = [b"good", b"bad \xff\xfe", "é".encode(), *(t.encode() for t in TEXTS)]
    as_string = pa.array(raw, pa.binary()).view(pa.string())
    for column in (pa.array(raw, pa.binary()), as_string):
        path = put(tmp_path / "a.parquet", column, column.type)
        got = read("parquet", paths=[path], text="body")
        (reject,) = got.rejects()
        assert (reject["line"], reject["reason"]) == (2, "text is not UTF-8")
        assert got.table()["text"].to_pylist() == ["good", "é", *TEXTS]


def test_dictionaries_are_strings(read: Reader, tmp_path: Path) -> None:
    column = pa.array(["a", "b", "a"]).dictionary_encode()
    got = read("parquet", paths=[put(tmp_path / "a.parquet", column, column.type)], text="body")
    assert got.table()["text"].to_pylist() == ["a", "b", "a"]


CHATS: list[Any] = [[{"role": "user", "content": f"c{n}"}] * (1 + n % 3) for n in range(300)]


@pytest.mark.parametrize("more", [False, True])
def test_conversations(read: Reader, tmp_path: Path, more: bool) -> None:
    bad = [None, [], [None], [{"role": None, "content": "x"}], [{"role": "u", "content": " "}]]
    turn = [pa.field("content", pa.large_string()), pa.field("name", pa.int8())]
    wide = pa.list_(pa.struct([*turn, pa.field("role", pa.string())]))
    kind = wide if more else MESSAGES
    path = put(tmp_path / "a.parquet", CHATS, kind)
    got = read("parquet", paths=[path], messages="body")
    assert got.facts["in_place"] == int(not more)
    assert got.table()["messages"].to_pylist() == CHATS
    path = put(tmp_path / "b.parquet", bad[:2] + CHATS[:150] + bad[2:] + CHATS[150:], kind)
    got = read("parquet", paths=[path], messages="body", max_rejects=0.1)
    assert [r["line"] for r in got.rejects()] == [1, 2, 153, 154, 155]
    assert got.table()["messages"].to_pylist() == CHATS
    assert got.table()["n_bytes"].to_pylist() == [sum(len(t["content"]) for t in c) for c in CHATS]


def test_small_files_are_read_together(read: Reader, tmp_path: Path) -> None:
    for n in range(5):
        put(tmp_path / f"in/{n}.parquet", [f"{n} {t}" for t in TEXTS])
    got = read("parquet", paths=[str(tmp_path / "in")], text="body")
    assert len(got.corpus.shards()) == 1
    assert set(got.facts["sources"]) == {f"{n}.parquet" for n in range(5)}
    assert got.facts["rows"] == 2000


def test_unsuitable_files_are_located(read: Reader, tmp_path: Path) -> None:
    good = put(tmp_path / "in/a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: no column 'bodi'; did you mean 'body'"):
        read("parquet", paths=[good], text="bodi")
    with pytest.raises(DataError, match="no column 'score'"):
        read("parquet", paths=[good], text="body", columns=["score"])
    with pytest.raises(DataError, match="column 'body' holds int64, not strings"):
        read("parquet", paths=[put(tmp_path / "b.parquet", [1, 2], pa.int64())], text="body")
    with pytest.raises(DataError, match="not a list of"):
        read("parquet", paths=[good], messages="body")
    (tmp_path / "in/c.parquet").write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(DataError, match=r"c\.parquet: not a parquet file"):
        read("parquet", paths=[str(tmp_path / "in")], text="body")


def test_a_damaged_page_is_located(read: Reader, tmp_path: Path) -> None:
    path = Path(put(tmp_path / "a.parquet"))
    raw = bytearray(path.read_bytes())
    raw[4:200] = b"\xff" * 196
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=r"a\.parquet: a damaged parquet file"):
        read("parquet", paths=[str(path)], text="body")


def test_columns_take_the_type_of_the_first_file(read: Reader, tmp_path: Path) -> None:
    one = put(tmp_path / "in/a.parquet", score=pa.array(np.arange(400), pa.int64()))
    put(tmp_path / "in/b.parquet", score=pa.array(np.arange(400), pa.int32()))
    fields = {"text": "body", "columns": ["score"]}
    got = read("parquet", paths=[str(tmp_path / "in")], **fields)
    assert pq.read_schema(got.corpus.shards()[0].base).field("score").type == pa.int64()
    put(tmp_path / "in/b.parquet", score=["x"] * 400)
    with pytest.raises(DataError, match=r"b\.parquet: column 'score' cannot be used"):
        read("parquet", paths=[one, str(tmp_path / "in/b.parquet")], **fields)


def test_remote_files_are_copied(read: Reader, tmp_path: Path) -> None:
    raw = Path(put(tmp_path / "in/a.parquet")).read_bytes()
    fs = fsspec.filesystem("memory")
    fs.pipe("/remote-parquet/a.parquet", raw)
    got = read("parquet", paths=["memory://remote-parquet"], text="body")
    assert got.facts["in_place"] == 0
    here = read("parquet", paths=[str(tmp_path / "in")], text="body", in_place=False)
    assert got.bytes() == here.bytes()
    fs.rm("/remote-parquet", recursive=True)


def test_a_changed_file_is_noticed_while_reading(read: Reader, tmp_path: Path) -> None:
    path = put(tmp_path / "a.parquet")
    got = read("parquet", paths=[path], text="body")
    put(tmp_path / "a.parquet", TEXTS[:100])
    with pytest.raises(OSError, match="run again"):
        got.table()
