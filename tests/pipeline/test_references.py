"""References as written in a recipe, their rows, and that none of them lies in the pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.nouns import Reference
from foresift.pipeline.references import AimSpec, aim_specs, check_apart, load, tables
from foresift.pipeline.tables import content_ids
from tests.corpora import drop, make_corpus

KNOWN = ["news", "sums"]


def spec(path: str, reader: str, weight: float = 1.0) -> AimSpec:
    return AimSpec(path, {"read": reader, "paths": [path]}, weight)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("news", [AimSpec("news", None, 1.0)]),
        ({"data": "sums", "weight": 2}, [AimSpec("sums", None, 2.0)]),
        (["news", {"data": "sums", "weight": 0.5}],
         [AimSpec("news", None, 1.0), AimSpec("sums", None, 0.5)]),
        ("a/aim.jsonl", [spec("a/aim.jsonl", "jsonl")]),
        ("aim.json", [spec("aim.json", "jsonl")]),
        ("aim.jsonl.gz", [spec("aim.jsonl.gz", "jsonl")]),
        ("aim.jsonl.zst", [spec("aim.jsonl.zst", "jsonl")]),
        ("aim.parquet", [spec("aim.parquet", "parquet")]),
        ("aim.txt", [spec("aim.txt", "text")]),
        ("notes/*.md", [spec("notes/*.md", "text")]),
        ({"data": "aim.txt", "weight": 3}, [spec("aim.txt", "text", 3.0)]),
        ("news.txt", [spec("news.txt", "text")]),
    ],
)  # fmt: skip
def test_names_and_files(given: Any, expected: list[AimSpec]) -> None:
    assert aim_specs(given, KNOWN, "steps.0") == expected


def test_a_reader_keeps_its_fields_and_gives_up_its_weight() -> None:
    fields = {"read": "jsonl", "paths": ["qa.jsonl"], "prompt": "q", "response": "a", "weight": 2}
    before = dict(fields)
    (found,) = aim_specs(fields, KNOWN, "steps.0")
    assert found.name == "qa.jsonl"
    assert found.weight == 2.0
    assert found.reader == {k: v for k, v in before.items() if k != "weight"}
    assert fields == before, "the recipe was changed"
    (package,) = aim_specs({"read": "their.module:Reader"}, KNOWN, "steps.0")
    assert package.name == "their.module:Reader"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nws", r"no data set 'nws'; did you mean 'news'\? \(known: news, sums\), and no file of"),
        ("aim.csv", r"no data set 'aim.csv' .*name its reader: \{read: ..., paths: \['aim.csv'\]"),
        (["news", "news"], r"a reference is named twice: \['news', 'news'\]"),
        ({"data": "news", "weight": 0}, "the weight of a reference is positive, got 0"),
        ({"data": "news", "weight": -1.5}, "the weight of a reference is positive, got -1.5"),
        ({"data": "news", "weight": float("nan")}, "is positive, got nan"),
        ({"data": "news", "weight": float("inf")}, "is positive, got inf"),
        ({"data": "news", "weight": "2"}, "is positive, got '2'"),
        ({"data": "news", "weight": True}, "is positive, got True"),
        ({"read": "jsonl", "paths": ["a"], "weight": 0}, "is positive, got 0"),
        ({"data": "news", "wieght": 2}, "a reference is a name, a file, or a mapping with `data`"),
        ({"weight": 2}, "a reference is a name, a file, or a mapping"),
        ({"data": 7}, "a reference is a name, a file, or a mapping"),
        ([], "needs a `reference`"),
        ("", "needs a `reference`"),
        (None, "needs a `reference`"),
        (["news", ""], "needs a `reference`"),
        ({}, "needs a `reference`"),
    ],
)
def test_what_is_no_reference_is_refused(given: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=rf"^steps\.0: .*{message}"):
        aim_specs(given, KNOWN, "steps.0")


# -- rows --------------------------------------------------------------------------------------


def test_the_alive_rows_are_loaded_with_their_ids(tmp_path: Path) -> None:
    held = [[False, True, False], [False, False]]
    corpus = make_corpus(tmp_path / "aim", [["a", "b", "c"], ["d", "e"]], holdout=held)
    corpus = drop(corpus, tmp_path / "where", [[True, True, False], [True, True]])
    found = load(Reference("aim", corpus))
    assert found["text"].to_pylist() == ["a", "d", "e"]
    assert found["id"].to_pylist() == content_ids(pa.table({"text": ["a", "d", "e"]})).to_pylist()
    assert sum(t.num_rows for t in tables(corpus)) == 3


def test_prompts_and_responses_come_along(tmp_path: Path) -> None:
    content = pa.table({"prompt": ["p", "q"], "response": ["r", "s"]})
    found = load(Reference("aim", make_corpus(tmp_path, [content])))
    assert found.column_names == ["id", "prompt", "response"]


@pytest.mark.parametrize(
    ("rows", "least", "message"),
    [
        (0, 2, r"aim: the reference has 0 documents that are not held out; at least 2"),
        (1, 2, r"aim: the reference has 1 document that are not held out; at least 2"),
        (2, 3, r"aim: the reference has 2 documents that are not held out; at least 3"),
    ],
)
def test_too_few_documents_are_refused(rows: int, least: int, message: str, tmp_path: Path) -> None:
    corpus = make_corpus(
        tmp_path, [["a", "b", "c"]], holdout=[[k >= rows for k in range(3)]]
    )  # fmt: skip
    with pytest.raises(DataError, match=message):
        load(Reference("aim", corpus), least)
    if rows:
        assert load(Reference("aim", corpus), rows).num_rows == rows


# -- apart from the pool -----------------------------------------------------------------------


def look(pool: Corpus, *aims: Corpus) -> tuple[Corpus, tuple[Reference, ...]]:
    return pool, tuple(Reference(f"aim {k}", a) for k, a in enumerate(aims))


def key(text: str) -> str:
    found = content_ids(pa.table({"text": [text]}))[0].as_py()
    return str(found.hex())


def test_references_apart_from_the_pool_pass(tmp_path: Path) -> None:
    pool = make_corpus(tmp_path / "pool", [["a", "b"], ["c"]])
    check_apart(*look(pool, make_corpus(tmp_path / "aim", [["d", "e"]])))
    check_apart(*look(pool))


@pytest.mark.parametrize("held", [False, True])
def test_shared_documents_are_listed_with_their_places(held: bool, tmp_path: Path) -> None:
    pool = make_corpus(tmp_path / "pool", [["a", "b", "c"], ["d", "e"]])
    clean = make_corpus(tmp_path / "clean", [["x", "y"]])
    aim = make_corpus(tmp_path / "aim", [["f", "e", "b"]], holdout=[[False, held, held]])
    with pytest.raises(DataError) as caught:
        check_apart(*look(pool, clean, aim))
    told = str(caught.value)
    assert told.startswith("aim 1: 2 of its documents lie in the pool as well: ")
    assert f"{key('b')} (made/0#1), {key('e')} (made/1#1); take them out" in told
    assert key("f") not in told


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    texts = [f"text {k}" for k in range(8)]
    pool, aim = (make_corpus(tmp_path / n, [texts]) for n in ("pool", "aim"))
    with pytest.raises(DataError, match=r"8 of its documents .* and 3 more; take them out"):
        check_apart(*look(pool, aim))


def test_documents_that_left_the_pool_are_no_longer_in_it(tmp_path: Path) -> None:
    aim = make_corpus(tmp_path / "aim", [["b", "x"]])
    held = make_corpus(tmp_path / "held", [["a", "b"]], holdout=[[False, True]])
    check_apart(*look(held, aim))
    dropped = drop(make_corpus(tmp_path / "pool", [["a", "b"]]), tmp_path / "w", [[True, False]])
    check_apart(*look(dropped, aim))
    with pytest.raises(DataError, match="aim 0: 1 of its documents"):
        check_apart(*look(make_corpus(tmp_path / "whole", [["a", "b"]]), aim))


def test_copies_are_found_whatever_their_place(tmp_path: Path) -> None:
    pool = make_corpus(tmp_path / "pool", [["b", "a", "b"]])
    aim = make_corpus(tmp_path / "aim", [["b", "c"]])
    with pytest.raises(DataError, match=r"2 of its documents .*\(made/0#0\).*\(made/0#2\)"):
        check_apart(*look(pool, aim))
