"""Exact copies: known numbers, the decision's columns, bad input, restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.corpus import DECISION, Corpus
from foresift.pipeline.errors import DataError
from foresift.pipeline.store import StepDir, shard_facts
from foresift.stages.dedup.exact import Exact
from tests.corpora import drop, make_corpus, run, tree
from tests.stages.dedup.real import SETS

SHARDS = [["a b", "A, b!", "c"], [], ["a b", "c", "d", "c"]]


def rows(corpus: Corpus, out: Path) -> list[dict[str, Any]]:
    """The decision about every row, in corpus order."""
    return [
        r for s in corpus.shards() for r in pq.read_table(StepDir(out).shard(s.name)).to_pylist()
    ]


def kept(corpus: Corpus, out: Path) -> list[bool]:
    return [row["kept"] for row in rows(corpus, out)]


def test_decision_columns_and_facts(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, SHARDS)
    facts = run(Exact(), corpus, tmp_path / "out")
    found = rows(corpus, tmp_path / "out")
    assert list(found[0]) == ["id", *DECISION, "cluster", "cluster_size"]
    assert [r["kept"] for r in found] == [True, True, True, False, False, True, False]
    assert [r["cluster_size"] for r in found] == [2, 1, 3, 2, 3, 1, 3]
    assert [r["cluster"] for r in found] == [r["id"] for r in found]
    assert {(r["rank"], r["weight"]) for r in found} == {(-1, 1.0)}
    best, copy, unique = "best of cluster", "exact copy", "unique"
    assert [r["reason"] for r in found] == [best, unique, best, copy, copy, unique, copy]
    assert (facts["rows"], facts["kept"], facts["dropped"]) == (7, 4, 3)
    assert (facts["clusters"], facts["largest_cluster"]) == (2, 3)
    assert facts["cluster_sizes"] == {"2": 1, "3": 1}
    assert facts["reasons"] == {best: 2, copy: 3, unique: 2}
    assert (facts["kept_tokens"], facts["pool_tokens"]) == (6, 10)
    for shard in corpus.shards():
        assert shard_facts(StepDir(tmp_path / "out").shard(shard.name))["ids"] == shard.ids


def test_normalised_copies_point_to_the_document_kept(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, SHARDS)
    run(Exact(normalise=True), corpus, tmp_path / "out")
    found = rows(corpus, tmp_path / "out")
    assert [r["kept"] for r in found] == [True, False, True, False, False, True, False]
    assert found[1]["reason"] == "normalised copy"
    assert found[1]["cluster"] == found[0]["id"]
    assert found[3]["reason"] == "exact copy"


@pytest.mark.parametrize("name", SETS)
def test_measured_numbers_of_copies(name: str, tmp_path: Path, shared_data: Path) -> None:
    read, exact, normalised = SETS[name]
    texts = read(shared_data)
    third = len(texts) // 3
    corpus = make_corpus(tmp_path, [texts[:third], texts[third : 2 * third], texts[2 * third :]])
    assert run(Exact(), corpus, tmp_path / "exact")["dropped"] == exact
    assert run(Exact(normalise=True), corpus, tmp_path / "norm")["dropped"] == normalised


def test_the_best_by_a_column_is_kept(tmp_path: Path) -> None:
    nll = [[2.0, 1.0, float("nan")], [], [1.0, None, 9.0, 3.0]]
    columns = {"loss.nll": [pa.array(x, pa.float64()) for x in nll]}
    corpus = make_corpus(tmp_path, SHARDS, columns=columns)
    run(Exact(keep="loss.nll"), corpus, tmp_path / "high")
    assert kept(corpus, tmp_path / "high") == [True, True, False, False, False, True, True]
    run(Exact(keep="loss.nll", prefer="lower"), corpus, tmp_path / "low")
    assert kept(corpus, tmp_path / "low") == [False, True, False, True, False, True, True]
    assert Exact(keep="loss.nll").needs == ("loss.nll",)
    assert Exact().needs == ()


def test_equal_and_missing_values_keep_the_first(tmp_path: Path) -> None:
    columns = {"x.flat": [[1, 1, None], pa.array([], pa.int64()), [1, None, 1, None]]}
    corpus = make_corpus(tmp_path, SHARDS, columns=columns)
    run(Exact(keep="x.flat"), corpus, tmp_path / "out")
    assert kept(corpus, tmp_path / "out") == [True, True, True, False, False, True, False]


def test_a_column_without_numbers_is_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, SHARDS)
    with pytest.raises(DataError, match=r"'source'.*not numbers"):
        run(Exact(keep="source"), corpus, tmp_path / "out")


def test_rows_dropped_before_and_the_holdout_take_no_part(tmp_path: Path) -> None:
    held = [[False] * 3, [], [False, True, False, False]]
    corpus = make_corpus(tmp_path, SHARDS, holdout=held)
    corpus = drop(corpus, tmp_path / "before", [[False, True, True], [], [True] * 4])
    for part in (Exact(), Exact(normalise=True)):
        out = tmp_path / part.fingerprint
        facts = run(part, corpus, out)
        assert facts["rows"] == 5
        found = rows(corpus, out)
        for gone in (0, 4):
            values = {k: v for k, v in found[gone].items() if k not in ("id", "kept")}
            assert not found[gone]["kept"]
            assert set(values.values()) == {None}
        assert found[2]["cluster_size"] == 2  # its copy in the holdout is not counted
    assert kept(corpus, tmp_path / Exact().fingerprint) == [
        False, True, True, True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("shards", [[], [[]], [["only one"]], [["", "", None]]])
def test_small_corpora(shards: list[list[str | None]], tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, shards)
    count = sum(map(len, shards))
    for part in (Exact(), Exact(normalise=True), Exact(keep="n_bytes")):
        facts = run(part, corpus, tmp_path / part.fingerprint)
        assert (facts["rows"], facts["kept"]) == (count, min(count, 1))


def test_nobody_alive(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, [["a", "a"]], holdout=[[True, True]])
    facts = run(Exact(normalise=True), corpus, tmp_path / "out")
    assert (facts["rows"], facts["clusters"], facts["cluster_sizes"]) == (0, 0, {})
    assert kept(corpus, tmp_path / "out") == [False, False]


def test_conversations_and_pairs_are_compared_by_content(tmp_path: Path) -> None:
    turn = [{"role": "user", "content": "Hello, you"}]
    chats = pa.table({"messages": [turn, [{"role": "user", "content": "hello YOU"}], turn]})
    pairs = pa.table({"prompt": ["q", "Q?", "q"], "response": ["a", "a!", "a"]})
    for number, table in enumerate((chats, pairs)):
        corpus = make_corpus(tmp_path / str(number), [table])
        run(Exact(), corpus, tmp_path / f"exact-{number}")
        assert kept(corpus, tmp_path / f"exact-{number}") == [True, True, False]
        run(Exact(normalise=True), corpus, tmp_path / f"norm-{number}")
        assert kept(corpus, tmp_path / f"norm-{number}") == [True, False, False]


def test_order_of_work_and_restarts_change_no_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corpus = make_corpus(tmp_path, [[f"t {x}!" for x in rng.integers(0, 30, 20)] for _ in range(5)])
    part = Exact(normalise=True, keep="n_bytes")
    run(part, corpus, tmp_path / "a")
    run(part, corpus, tmp_path / "b", shuffle=1)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    (tmp_path / "b" / "stage.json").unlink()
    (tmp_path / "b" / "part-00002.parquet").unlink()
    run(part, corpus, tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
