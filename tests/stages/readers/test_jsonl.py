"""JSON lines: good rows come back as they were, bad rows are listed, workers do not matter."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.parts import find
from foresift.stages.readers import _files, jsonl
from foresift.stages.readers._units import Rejects
from tests.corpora import Serial

Reader = Callable[..., Any]
ROWS = [{"text": f"document {n} " + "é\u2028x" * (n % 5), "n": n} for n in range(50)]


def lines(rows: list[Any], **kw: Any) -> bytes:
    return b"".join(json.dumps(row, **kw).encode() + b"\n" for row in rows)


def put(path: Path, raw: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    elif path.suffix == ".zst":
        raw = zstandard.ZstdCompressor().compress(raw)
    path.write_bytes(raw)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.ndjson"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_reads_lines(read: Reader, tmp_path: Path, name: str, ascii_only: bool) -> None:
    path = put(tmp_path / "in" / name, lines(ROWS, ensure_ascii=ascii_only))
    table = read("jsonl", paths=[path]).table()
    assert table["text"].to_pylist() == [row["text"] for row in ROWS]
    assert table["source"].to_pylist() == [f"{name}#{n + 1}" for n in range(50)]
    sizes = [len(row["text"].encode()) for row in ROWS]
    assert table["n_bytes"].to_pylist() == sizes
    assert table["n_tokens"].to_pylist() == [(s + 3) // 4 for s in sizes]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.json.zst"])
def test_reads_one_array(read: Reader, tmp_path: Path, name: str) -> None:
    raw = b"\xef\xbb\xbf \n" + json.dumps([*ROWS, 3], indent=1).encode()
    got = read("jsonl", paths=[put(tmp_path / "in" / name, raw)], max_rejects=0.5)
    assert got.table()["text"].to_pylist() == [row["text"] for row in ROWS]
    assert [(r["line"], r["reason"]) for r in got.rejects()] == [(51, "not an object but a number")]


def test_pairs_chats_sources_and_columns(read: Reader, tmp_path: Path) -> None:
    rows = [
        {"q": f"q{n}", "a": f"a{n}", "key": f"web/{n}", "score": n, "meta": {"x": [n]}}
        for n in range(5)
    ]
    got = read(
        "jsonl", paths=[put(tmp_path / "in/a.jsonl", lines(rows))], prompt="q", response="a",
        source="key", columns=["score", "meta"], types={"score": "float64"},
    )  # fmt: skip
    table = got.table()
    assert table["prompt"].to_pylist() == ["q0", "q1", "q2", "q3", "q4"]
    assert table["response"].to_pylist() == ["a0", "a1", "a2", "a3", "a4"]
    assert table["source"].to_pylist() == [f"web/{n}" for n in range(5)]
    assert got.facts["columns"] == ["prompt", "response", "score", "meta"]
    assert got.facts["sources"]["web"]["rows"] == 5
    shard = got.corpus.shards()[0]
    extra = pq.read_table(shard.base, columns=["score", "meta"])
    assert extra.to_pydict() == {
        "score": [0.0, 1.0, 2.0, 3.0, 4.0],
        "meta": [f'{{"x": [{n}]}}' for n in range(5)],
    }
    chats = [{"m": [{"role": "user", "content": f"hi {n}", "x": 1}]} for n in range(3)]
    table = read("jsonl", paths=[put(tmp_path / "c.jsonl", lines(chats))], messages="m").table()
    assert table["messages"].to_pylist() == [
        [{"role": "user", "content": f"hi {n}"}] for n in range(3)
    ]


BAD = [
    (b'{"text": "half', "malformed JSON"),
    (b"[1]", "not an object but a list"),
    (b'{"text": "\xff\xfe"}', "not UTF-8 (byte 11"),
    (b'{"test": "x"}', "no field 'text'; did you mean 'test'?"),
    (b'{"text": null}', "text is null"),
    (b'{"text": 12}', "text is a number"),
    (b'{"text": ["a"]}', "text is a list"),
    (b'{"text": ""}', "text is empty"),
    (b'{"text": " \\n\\t\xc2\xa0"}', "text is empty"),
    (b'{"text": "\\ud800"}', "half a surrogate pair"),
    (b'{"text": "a"} {"text": "b"}', "malformed JSON"),
    (b"[" * 100_000, "JSON"),
]


@pytest.mark.parametrize(("raw", "reason"), BAD)
def test_a_bad_row_is_listed_with_line_and_reason(
    read: Reader, tmp_path: Path, raw: bytes, reason: str
) -> None:
    path = put(tmp_path / "in/a.jsonl", lines(ROWS[:2]) + b"\n  \n" + raw + b"\n" + lines(ROWS[2:]))
    got = read("jsonl", paths=[path], max_rejects=0.5)
    (reject,) = got.rejects()
    assert (reject["file"], reject["line"]) == ("a.jsonl", 5)
    assert reason in reject["reason"]
    assert len(reject["excerpt"]) <= 200
    assert got.table()["text"].to_pylist() == [row["text"] for row in ROWS]
    assert got.table()["source"].to_pylist()[2] == "a.jsonl#6"
    assert got.facts["rejected"] == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "empty"), (None, "null"), ("x", "not a list"), ([None], "role and content"),
        ([{"role": "user"}], "role and content"), ([{"content": "x"}], "role and content"),
        ([{"role": "user", "content": 3}], "role and content"),
        ([{"role": "user", "content": " "}], "no text"),
    ],
)  # fmt: skip
def test_a_bad_conversation_is_listed(
    read: Reader, tmp_path: Path, value: Any, reason: str
) -> None:
    good = {"messages": [{"role": "user", "content": "hello"}]}
    path = put(tmp_path / "in/a.jsonl", lines([good, {"messages": value}, good]))
    got = read("jsonl", paths=[path], messages="messages", max_rejects=0.5)
    (reject,) = got.rejects()
    assert reject["line"] == 2
    assert reason in reject["reason"]
    assert got.facts["rows"] == 2


def test_a_column_of_another_type_is_a_bad_row(read: Reader, tmp_path: Path) -> None:
    rows = [{"text": "a", "s": 1}, {"text": "b", "s": "x"}, {"text": "c"}, {"text": "d", "s": 2.5}]
    path = put(tmp_path / "in/a.jsonl", lines(rows))
    got = read("jsonl", paths=[path], columns=["s"], types={"s": "int64"}, max_rejects=0.6)
    assert [r["line"] for r in got.rejects()] == [2, 4]
    assert got.table()["text"].to_pylist() == ["a", "c"]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_cut_off_file_keeps_what_can_be_read(read: Reader, tmp_path: Path, suffix: str) -> None:
    rng = random.Random(0)
    rows = [{"text": "".join(rng.choices("abcdefgh ", k=300))} for _ in range(3000)]
    path = Path(put(tmp_path / f"in/a.jsonl.{suffix}", lines(rows)))
    path.write_bytes(path.read_bytes()[:-70_000])
    got = read("jsonl", paths=[str(path)])
    (reject,) = got.rejects()
    kept = got.facts["rows"]
    assert 0 < kept < 3000
    assert got.table()["text"].to_pylist() == [row["text"] for row in rows[:kept]]
    assert reject["line"] == kept + 1
    assert "cut off" in reject["reason"]


def test_a_file_that_is_no_gzip_is_one_reject(read: Reader, tmp_path: Path) -> None:
    good = put(tmp_path / "in/a.jsonl", lines(ROWS))
    (tmp_path / "in/b.jsonl.gz").write_bytes(lines(ROWS))
    got = read("jsonl", paths=[good, str(tmp_path / "in/b.jsonl.gz")], max_rejects=0.1)
    (reject,) = got.rejects()
    assert (reject["file"], reject["line"]) == ("b.jsonl.gz", 1)
    assert "cannot be decompressed" in reject["reason"]


def test_several_members_make_one_file(read: Reader, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS[:20])) + gzip.compress(lines(ROWS[20:])) + b"\0" * 99)
    frames = [zstandard.ZstdCompressor().compress(lines(r)) for r in (ROWS[:20], ROWS[20:])]
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(frames))
    got = read("jsonl", paths=[str(path), str(tmp_path / "b.jsonl.zst")])
    assert got.table()["text"].to_pylist() == 2 * [row["text"] for row in ROWS]


def test_too_many_rejects_fail_after_they_are_written(read: Reader, tmp_path: Path) -> None:
    path = put(tmp_path / "in/a.jsonl", lines([*ROWS[:5], {"text": ""}, *ROWS[5:]]))
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"1 of 51 rows \(2\.0%\).*a\.jsonl:6: text is empty"):
        read("jsonl", paths=[path], out=out)
    assert json.loads((out / "rejects.jsonl").read_text())["line"] == 6
    assert read("jsonl", paths=[path], max_rejects=0.02).facts["rejected"] == 1


def test_no_file_no_rows_no_document(read: Reader, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\*.jsonl: matches no file"):
        read("jsonl", paths=[str(tmp_path / "nothing*.jsonl")])
    with pytest.raises(DataError, match="matches no file"):
        read("jsonl", paths=[str(tmp_path / "missing.jsonl")])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.csv").touch()
    with pytest.raises(DataError, match="with a suffix in"):
        read("jsonl", paths=[str(tmp_path / "folder")])
    with pytest.raises(DataError, match="holds no document"):
        read("jsonl", paths=[put(tmp_path / "empty.jsonl", b"\n\n")])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"paths": []}, "at least one"),
        ({"prompt": "q"}, "prompt and response"),
        ({"text": "a", "messages": "b"}, "give text, or messages"),
        ({"columns": ["n_tokens"]}, "name of foresift's own"),
        ({"columns": ["a", "a"]}, "comes twice"),
        ({"columns": ["a"], "types": {"b": "int64"}}, "not in columns"),
        ({"columns": ["a"], "types": {"a": "int"}}, "did you mean 'int32'|'int64'"),
        ({"holdout": 1.5}, "holdout"),
        ({"shard_mb": 0}, "shard_mb"),
        ({"txt": "a"}, "no field 'txt'; did you mean 'text'"),
    ],
)
def test_wrong_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        find("read", "jsonl").parse({"paths": ["x"], **fields}, "data")


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards, blocks and steps of some kilobytes, so that small files are cut."""
    monkeypatch.setattr(_files, "STEP", 1 << 10)
    monkeypatch.setattr(jsonl, "STEP", 1 << 10)
    monkeypatch.setattr(jsonl, "BATCH_BYTES", 1 << 11)
    monkeypatch.setattr(jsonl.Jsonl, "_step", 4 << 10)


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("seed", range(5))
def test_byte_ranges_lose_and_repeat_nothing(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows = []
    for n in range(300):
        size = rng.choice([0, 3, 50, 400]) if rng.random() < 0.99 else 9000
        rows.append(json.dumps({"text": f"{n} " + "x" * size}))
        rows += [""] * (rng.random() < 0.05) + ["{bad"] * (rng.random() < 0.05)
    end = rng.choice(["", "\n"])
    path = put(tmp_path / "a.jsonl", ("\n".join(rows) + end).encode())
    reader = find("read", "jsonl").parse({"paths": [path]}, "data")
    pieces = list(reader.pieces(reader.files()))  # type: ignore[attr-defined]
    assert len(pieces) > 5
    rejects = Rejects(tmp_path / "rejects")
    got = []
    for piece in pieces:
        for batch in reader._lines(piece, rejects):  # type: ignore[attr-defined]
            got += list(zip(batch.lines.tolist(), batch.table["text"].to_pylist(), strict=True))
    good = [(n, json.loads(r)["text"]) for n, r in enumerate(rows, 1) if r[:2] == '{"']
    assert got == good
    assert [r["line"] for r in rejects._waiting] == [
        n for n, r in enumerate(rows, 1) if r == "{bad"
    ]


def test_large_files_are_cut_and_workers_do_not_matter(read: Reader, tmp_path: Path) -> None:
    rows = [{"text": f"{n} " + "abcdefg " * 100} for n in range(4000)]
    big = put(tmp_path / "in/big.jsonl", lines(rows) + b'{"text": ""}\n')
    small = [put(tmp_path / f"in/s{n}.jsonl.gz", lines(ROWS)) for n in range(3)]
    one = read("jsonl", paths=[big, *small], shard_mb=1, columns=["n"])
    two = read(
        "jsonl", paths=[*small[::-1], big], shard_mb=1, columns=["n"], engine=Serial(shuffle=1)
    )
    assert len(one.corpus.shards()) == 4
    assert one.bytes() == two.bytes()
    assert one.facts == two.facts
    assert [(r["file"], r["line"]) for r in one.rejects()] == [("big.jsonl", 4001)]
    assert set(one.bytes()) == {*(f"part-{n:05d}.parquet" for n in range(4)), "rejects.jsonl"}


def test_a_rerun_after_a_kill_ends_with_the_same_bytes(read: Reader, tmp_path: Path) -> None:
    rows = [{"text": f"{n} " + "abcdefg " * 100} for n in range(4000)]
    for n in (100, 2000, 3500):
        rows[n] = {"text": ""}
    path = put(tmp_path / "in/big.jsonl", lines(rows))
    whole = read("jsonl", paths=[path], shard_mb=1).bytes()

    class Dies(Serial):
        def map(self, task: Any, items: Any, resources: Any) -> Any:
            yield from super().map(task, items[:2], resources)
            raise KeyboardInterrupt

    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        read("jsonl", paths=[path], shard_mb=1, out=out, engine=Dies())
    assert (out / "part-00000.rejects.jsonl").exists()
    assert read("jsonl", paths=[path], shard_mb=1, out=out).bytes() == whole
    # after the merge: a shard is lost, and with it its share of the merged rejects
    (out / "part-00001.parquet").unlink()
    assert read("jsonl", paths=[path], shard_mb=1, out=out).bytes() == whole


def test_a_50_mb_document(read: Reader, tmp_path: Path) -> None:
    huge = "word " * 10_000_000
    path = put(tmp_path / "in/a.jsonl", lines([ROWS[0], {"text": huge}, ROWS[1]]))
    table = read("jsonl", paths=[path]).table()
    assert table["n_bytes"].to_pylist()[1] == 50_000_000
    assert table["text"][1].as_py() == huge
    assert table["text"][2].as_py() == ROWS[1]["text"]


def test_names_follow_the_fixed_part_of_the_path(read: Reader, tmp_path: Path) -> None:
    for place in ("a/x.jsonl", "b/x.jsonl", "b/deep/y.jsonl", "b/.hidden/z.jsonl"):
        put(tmp_path / "in" / place, lines([{"text": place}]))
    root = tmp_path / "in"

    def names(*paths: str) -> list[str]:
        return read("jsonl", paths=[str(root / p) for p in paths]).table()["source"].to_pylist()

    assert names("") == ["a/x.jsonl#1", "b/deep/y.jsonl#1", "b/x.jsonl#1"]
    assert names("b") == ["deep/y.jsonl#1", "x.jsonl#1"]
    assert names("b/**/*.jsonl") == ["deep/y.jsonl#1", "x.jsonl#1"]
    assert names("*/x.jsonl") == ["a/x.jsonl#1", "b/x.jsonl#1"]
    assert names("b/x.jsonl") == ["x.jsonl#1"]
    assert names("a/x.jsonl", "b/x.jsonl", "a") == ["a/x.jsonl#1", "b/x.jsonl#1"]


def test_remote_files_are_read_the_same(read: Reader, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    raw = lines(ROWS)
    fs.pipe({"/remote-test/a.jsonl": raw, "/remote-test/sub/b.jsonl.gz": gzip.compress(raw)})
    put(tmp_path / "in/a.jsonl", raw)
    put(tmp_path / "in/sub/b.jsonl.gz", raw)
    here = read("jsonl", paths=[str(tmp_path / "in")])
    for paths in (["memory://remote-test"], ["memory://remote-test/**/*.jsonl*"]):
        there = read("jsonl", paths=paths)
        assert there.bytes() == here.bytes()
    reader = find("read", "jsonl").parse({"paths": ["memory://remote-test"]}, "data")
    before = reader.inputs()  # type: ignore[attr-defined]
    assert [path for path, _ in before] == [
        *("memory:///remote-test/a.jsonl", "memory:///remote-test/sub/b.jsonl.gz")
    ]
    with pytest.raises(DataError, match="matches no file"):
        read("jsonl", paths=["memory://remote-test/none*"])
    fs.rm("/remote-test", recursive=True)


def test_inputs_follow_the_content(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", lines(ROWS))
    reader = find("read", "jsonl").parse({"paths": [path]}, "data")
    first = reader.inputs()  # type: ignore[attr-defined]
    assert first == reader.inputs()  # type: ignore[attr-defined]
    put(tmp_path / "a.jsonl", lines(ROWS[::-1]))
    assert reader.inputs() != first  # type: ignore[attr-defined]
    put(tmp_path / "a.jsonl", lines(ROWS))
    assert reader.inputs() == first  # type: ignore[attr-defined]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.fixed_dictionaries({"text": st.text(), "x": VALUES}), min_size=1), st.booleans())
def test_the_fast_road_and_the_slow_road_agree(rows: list[Any], ascii_only: bool) -> None:
    reader = jsonl.Jsonl(paths=["x"], columns=["x"])
    block = lines(rows, ensure_ascii=ascii_only)
    table = reader._fast(block)
    if table is not None:
        slow = reader._batch(
            "f", [], [reader._row(json.loads(line)) for line in block.splitlines()]
        )
        assert table.to_pydict() == slow.table.to_pydict()
    elif all(isinstance(row["x"], (str, type(None))) for row in rows):
        pytest.fail("a block of good rows must take the fast road")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40), max_size=8)
)
def test_any_string_comes_back(read: Reader, tmp_path: Path, texts: list[str]) -> None:
    path = put(tmp_path / "in/a.jsonl", lines([{"text": t} for t in ["first", *texts]]))
    got = read("jsonl", paths=[path], max_rejects=1.0)
    assert got.table()["text"].to_pylist() == ["first", *(t for t in texts if t.strip())]
    assert got.facts["rejected"] == sum(not t.strip() for t in texts)
