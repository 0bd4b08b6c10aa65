"""Which reader reads what lies at a path, from the first rows alone."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from foresift.pipeline import any_columns
from foresift.pipeline.any_data import Wish, look
from foresift.pipeline.errors import DataError


def lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"text": "a", "url": "u", "lang": "en"}, {"text": "text", "source": "url",
                                                   "columns": ["lang"]}),
        ({"content": "a", "title": "a longer one"}, {"text": "content"}),
        ({"id": "7", "story": "once upon a time", "n": 3}, {"text": "story"}),
        ({"prompt": "a", "response": "b", "text": "ab"}, {"prompt": "prompt",
                                                          "response": "response"}),
        ({"instruction": "a", "input": "", "output": "b"}, {"prompt": "instruction",
                                                            "response": "output"}),
        ({"messages": [{"role": "user", "content": "a", "x": 1}], "text": "a"},
         {"messages": "messages"}),
        ({"chosen": "a", "rejected": "a longer one"}, {"text": "chosen"}),
    ],
)  # fmt: skip
def test_columns_are_found(row: dict[str, Any], fields: dict[str, Any], tmp_path: Path) -> None:
    path = str(lines(tmp_path / "a.jsonl", row))
    assert look([path]).fields == {"read": "jsonl", "paths": [path], **fields}


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"instruction": "a", "input": "", "output": "b"})
    assert look([str(path)]).said == [
        "1 file of jsonl; prompts are 'instruction', responses 'output'; not read: input"
    ]


def test_the_user_s_column_goes_first(tmp_path: Path) -> None:
    path = str(lines(tmp_path / "a.jsonl", {"text": "a", "note": "b", "answer": "c"}))
    assert look([path], Wish(text="note")).fields["text"] == "note"
    pair = look([path], Wish(text="note, answer"))
    assert (pair.fields["prompt"], pair.fields["response"], pair.content) == (
        "note", "answer", "pairs",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"no column 'nota'.*note"):
        look([path], Wish(text="nota"))


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json", "jsonl.gz", "jsonl.zst", "dat"])
def test_json_lines_by_name_or_by_bytes(ending: str, tmp_path: Path) -> None:
    raw = b'{"body": "one"}\n{"body": "two"}\n'
    packed = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}
    path = tmp_path / f"a.{ending}"
    path.write_bytes(packed.get(ending.rpartition(".")[2], bytes)(raw))
    fields = look([str(path)]).fields
    assert (fields["read"], fields["text"]) == ("jsonl", "body")


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_an_archive_that_is_cut_off_is_read_as_far_as_it_goes(ending: str, tmp_path: Path) -> None:
    raw = b"".join(
        json.dumps({"body": hashlib.sha256(b"%d" % n).hexdigest()}).encode() + b"\n"
        for n in range(9000)
    )
    packed = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}[ending](raw)
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    assert look([str(path)]).fields["text"] == "body"


def test_one_array_is_looked_into_without_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"body": f"document {n}"} for n in range(100)], indent=1))
    monkeypatch.setattr(any_columns, "HEAD", 300)
    assert look([str(path)]).fields["text"] == "body"


def test_one_long_line_tells_its_first_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines(tmp_path / "a.jsonl", {"id": 1, "body": "word " * 1000, "more": "x"})
    monkeypatch.setattr(any_columns, "HEAD", 300)
    assert look([str(path)]).fields["text"] == "body"


def test_parquet_tells_its_columns(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "hello"}
    pq.write_table(pa.table({"messages": [[turn]], "raw": [b"\xff"]}), tmp_path / "a.parquet")
    assert look([str(tmp_path)]).fields["messages"] == "messages"
    pq.write_table(pa.table({"body": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no rows"):
        look([str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "split"), [("a\n\nb\n", "paragraph"), ("a\nb\n", "line"), ("one", "file")]
)
def test_a_file_of_text_is_cut_at_blank_lines_else_at_lines(
    text: str, split: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert look([str(tmp_path / "a.txt")]).fields["split"] == split
    (tmp_path / "b.md").write_text("x")
    assert look([str(tmp_path)]).fields["split"] == "file"
    assert look([str(tmp_path)], Wish(split="line")).fields["split"] == "line"


def test_a_folder_is_read_by_its_largest_kind_that_holds_documents(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"n": 1, "m": list(range(500))}))
    (tmp_path / "a.md").write_text("words " * 20)
    (tmp_path / "b.png").write_bytes(b"\0")
    found = look([str(tmp_path)])
    assert found.fields["read"] == "text"
    assert found.said[1] == "2 other files are passed over: 1 .json, 1 .png"
    lines(tmp_path / "c.jsonl", *({"text": "words " * 20} for _ in range(20)))
    named = look([str(tmp_path / "c.jsonl"), str(tmp_path / "a.md")])
    assert named.fields["read"] == "jsonl"
    assert named.fields["paths"] == [str(tmp_path / "c.jsonl")]


def test_a_saved_data_set_is_read_by_split(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"question": ["a"], "answer": ["b"]})
    datasets.DatasetDict({"test": rows, "validation": rows}).save_to_disk(tmp_path / "two")
    rows.save_to_disk(tmp_path / "one")
    found = look([str(tmp_path / "two")])
    assert {k: found.fields[k] for k in ("read", "split", "prompt")} == {
        "read": "hf", "split": "test", "prompt": "question",
    }  # fmt: skip
    assert any("test, validation" in said for said in found.said)
    assert "split" not in look([str(tmp_path / "one")]).fields


@pytest.mark.parametrize(
    ("name", "raw", "told"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.png", b"\x89PNG\0\0", "binary"),
        ("a.txt", b"\0\1\2" * 50, "binary"),
        ("a.bin", bytes(range(128, 256)) * 9, "binary"),
        ("a.pdf", b"%PDF\0", "extract their text"),
        ("a.csv", b"a,b\n1,2\n", "to_parquet"),
        ("a.jsonl", b"no json\n", "no JSON object"),
        ("a.jsonl", b'{"n": 1}\n', "no column of strings"),
        ("a.jsonl", b'{"conversations": [{"from": "human", "value": "a"}]}', "role and content"),
        ("a.parquet", b"PAR1 no", "not a parquet file"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
    ],
)
def test_what_cannot_be_read_says_why(name: str, raw: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=told) as caught:
        look([str(tmp_path / name)])
    assert name in str(caught.value)


def test_a_folder_with_nothing_readable_says_what_is_there(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.csv"):
        (tmp_path / name).write_bytes(b"\0")
    with pytest.raises(DataError, match=r"2 \.png, 1 \.csv .*to_parquet"):
        look([str(tmp_path)])
    with pytest.raises(DataError, match="matches no file"):
        look([str(tmp_path / "none*")])
    with pytest.raises(DataError, match="paragraph"):
        look([str(tmp_path)], Wish(split="paragraphs"))
