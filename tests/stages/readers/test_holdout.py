"""The holdout: by content alone, about the share asked for, copies on one side; and real data."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from foresift.pipeline.errors import ModelError
from foresift.pipeline.parts import find

Reader = Callable[..., Any]
TEXTS = [f"text number {n // 2}" for n in range(40_000)]  # each comes twice


def put(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return str(path)


def held(got: Any) -> dict[str, set[bool]]:
    table, sides = got.table(), {}
    for text, side in zip(table["text"].to_pylist(), table["holdout"].to_pylist(), strict=True):
        sides.setdefault(text, set()).add(side)
    return sides


def test_the_holdout_depends_on_content_alone(read: Reader, tmp_path: Path) -> None:
    one = held(read("jsonl", paths=[put(tmp_path / "a.jsonl", TEXTS)]))
    shuffled = [TEXTS[i] for i in np.random.default_rng(0).permutation(len(TEXTS))]
    parts = [put(tmp_path / f"b{k}.jsonl", shuffled[k::3]) for k in range(3)]
    two = held(read("jsonl", paths=parts, shard_mb=1))
    assert one == two
    assert all(len(sides) == 1 for sides in one.values())
    share = np.mean([True in sides for sides in one.values()])
    assert abs(share - 0.005) < 4 * np.sqrt(0.005 / 20_000)


def test_share_and_seed(read: Reader, tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", TEXTS)
    none = read("jsonl", paths=[path], holdout=0.0)
    assert none.facts["holdout"] == 0
    fifth, other = (
        {t for t, sides in held(read("jsonl", paths=[path], holdout=0.2, holdout_seed=s)).items()
         if True in sides}
        for s in (0, 1)
    )  # fmt: skip
    assert abs(len(fifth) - 4000) < 4 * np.sqrt(20_000 * 0.2 * 0.8)
    assert abs(len(fifth & other) - 800) < 4 * np.sqrt(800)
    small = {t for t, sides in held(read("jsonl", paths=[path])).items() if True in sides}
    assert small < fifth  # a smaller holdout is part of a larger one


def test_tokens(read: Reader, tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", ["é", "abcde"])
    counts = {
        name: read("jsonl", paths=[path], tokenizer=name).table()["n_tokens"].to_pylist()
        for name in ("", "bytes")
    }
    assert counts == {"": [1, 2], "bytes": [2, 5]}
    words = Tokenizer(WordLevel({"abcde": 0, "é": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    name = str(tmp_path / "tokenizer.json")
    path = put(tmp_path / "b.jsonl", ["é abcde other", "abcde"])
    got = read("jsonl", paths=[path], tokenizer=name)
    assert got.table()["n_tokens"].to_pylist() == [3, 1]
    assert got.facts["tokens"] == name
    with pytest.raises(ModelError, match=r"nothing\.json"):
        read("jsonl", paths=[path], tokenizer=str(tmp_path / "nothing.json"))


@pytest.mark.parametrize("part", ["jsonl", "parquet", "text", "hf"])
def test_readers_are_small_and_stable(part: str) -> None:
    kind = find("read", part)
    reader = kind.parse({"paths": ["a/*"]}, "data")
    again = pickle.loads(pickle.dumps(reader))
    assert len(pickle.dumps(reader)) < 2000
    assert again == reader
    assert again.fingerprint == reader.fingerprint
    assert reader.fingerprint != kind.parse({"paths": ["b/*"]}, "data").fingerprint


def test_real_parquet(read: Reader, shared_data: Path) -> None:
    paths = [str(shared_data / "pretrain" / "pile-domains")]
    here = read("parquet", paths=paths, text="original", shard_mb=1)
    copied = read("parquet", paths=paths, text="original", shard_mb=1, in_place=False)
    assert here.facts["in_place"] > 5
    assert here.facts["rows"] == copied.facts["rows"] == 7692
    assert here.table().equals(copied.table())


def test_real_pairs(read: Reader, shared_data: Path) -> None:
    path = shared_data / "instruct" / "t0-mix" / "t0_55k.parquet"
    got = read("parquet", paths=[str(path)], prompt="prompt", response="completion")
    assert got.facts["rows_in"] == 55_185
    assert got.facts["in_place"] == 1
    first = got.table().slice(0, 3)
    raw = pq.read_table(path, columns=["prompt", "completion"]).slice(0, 3)
    assert first["response"].to_pylist() == raw["completion"].to_pylist()
    assert first["prompt"].to_pylist() == raw["prompt"].to_pylist()


def test_real_json_lines(read: Reader, shared_data: Path) -> None:
    train = shared_data / "reasoning" / "gsm8k" / "train.jsonl.gz"
    got = read("jsonl", paths=[str(train)], prompt="question", response="answer")
    assert (got.facts["rows"], got.facts["rejected"]) == (7473, 0)
    news = shared_data / "pretrain" / "bbc-news"
    got = read("jsonl", paths=[str(news)], source="doc_id", columns=["label"])
    assert got.facts["rows"] == 2225
    assert list(got.facts["sources"]) == ["bbc"]
    sides = held(got)
    assert len(sides) < 2225  # there are exact copies
    assert all(len(side) == 1 for side in sides.values())
