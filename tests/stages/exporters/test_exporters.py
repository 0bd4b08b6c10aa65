"""Exports hold the chosen rows in the right order and in the format's own words, every time."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.nouns import Inputs, Job, Rng, StepDir
from foresift.pipeline.parts import find
from foresift.pipeline.store import shard_facts, write_shard
from tests.corpora import Serial, drop, make_corpus, tree

TEXTS = [[f"shard {k} row {n} é\u2028" * (1 + n % 5) for n in range(50)] for k in range(4)]
FLAT = [text for shard in TEXTS for text in shard]
HELD = [[n == 7 for n in range(50)] for _ in range(4)]
Export = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """200 documents in four shards; row 7 of each is held out; one column beside them."""
    values = [np.arange(50) + 100.0 * k for k in range(4)]
    values[0][3] = np.nan
    return make_corpus(tmp_path, TEXTS, holdout=HELD, columns={"loss.nll": values})


@pytest.fixture
def export(tmp_path: Path) -> Export:
    count = iter(range(100))

    def run(
        part: str, corpus: Corpus, plan: StepDir | None = None, *, shuffle: int | None = None,
        out: Path | None = None, **fields: Any,
    ) -> tuple[Path, dict[str, Any]]:  # fmt: skip
        step = StepDir(out or tmp_path / "out" / str(next(count)))
        step.open()
        stage: Any = find("export", part).parse(fields, "steps.0")
        facts = stage.run(Inputs(corpus, plan), step, Job(Serial(shuffle), Rng(0)))
        return step.path, facts

    return run


def lines(path: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name in facts["files"]:
        raw = (path / name).read_bytes()
        if name.endswith(".gz"):
            raw = gzip.decompress(raw)
        elif name.endswith(".zst"):
            raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
        rows += [json.loads(line) for line in raw.decode().split("\n") if line]
    return rows


def make_plan(corpus: Corpus, path: Path, rows: np.ndarray) -> StepDir:
    ids = np.concatenate([np.asarray(s.load(["id"])["id"]) for s in corpus.shards()])
    table = pa.table(
        {
            "id": pa.array(ids[rows].tolist(), pa.binary(16)),
            "shard": pa.array(rows // 50, pa.int32()),
            "row": pa.array(rows % 50, pa.int64()),
            "weight": pa.array(rows / 4, pa.float32()),
            "position": pa.array(np.arange(len(rows)), pa.int64()),
            "round": pa.array(rows % 2, pa.int32()),
        }
    )
    path.mkdir()
    pq.write_table(table, path / "plan.parquet")
    return StepDir(path)


ALIVE = [text for k in range(4) for n, text in enumerate(TEXTS[k]) if n != 7]


@pytest.mark.parametrize("compression", ["gz", "zst", "none"])
def test_json_lines_without_a_plan(corpus: Corpus, export: Export, compression: str) -> None:
    path, facts = export("jsonl", corpus, columns=["loss.nll"], compression=compression)
    rows = lines(path, facts)
    assert [row["text"] for row in rows] == ALIVE
    assert list(rows[0]) == ["id", "text", "source", "weight", "loss.nll"]
    assert len(rows[0]["id"]) == 32
    assert [row["loss.nll"] for row in rows[:5]] == [0.0, 1.0, 2.0, None, 4.0]
    assert {row["weight"] for row in rows} == {1.0}
    assert facts["rows"] == len(ALIVE)
    assert facts["n_tokens"] == sum(len(text.split()) for text in ALIVE)
    again, _ = export("jsonl", corpus, columns=["loss.nll"], compression=compression, shuffle=1)
    assert tree(again) == tree(path)


def test_decisions_and_their_weights(corpus: Corpus, export: Export, tmp_path: Path) -> None:
    kept = [[n % 10 == k for n in range(50)] for k in range(4)]
    narrowed = drop(corpus, tmp_path / "where", kept)
    chosen = tmp_path / "select"
    for k, shard in enumerate(narrowed.shards()):
        weights = pa.array(np.arange(50) + k, pa.float32())
        decision = {"kept": [k != 2] * 50, "weight": weights}
        write_shard(
            chosen / f"{shard.name}.parquet", pa.table({"id": shard.load(["id"])["id"], **decision})
        )
    path, facts = export("parquet", narrowed.with_mask(chosen))
    table = pa.concat_tables([pq.read_table(path / name) for name in facts["files"]])
    wanted = [(k, n) for k in (0, 1, 3) for n in range(50) if n % 10 == k and n != 7]
    assert table["text"].to_pylist() == [TEXTS[k][n] for k, n in wanted]
    assert table["weight"].to_pylist() == [n + k for k, n in wanted]


@pytest.mark.parametrize("part", ["jsonl", "parquet", "hf"])
def test_a_plan_gives_the_order(corpus: Corpus, export: Export, tmp_path: Path, part: str) -> None:
    order = np.random.default_rng(0).permutation(200)[:90]
    plan = make_plan(corpus, tmp_path / "plan", order)
    path, facts = export(part, corpus, plan, columns=["loss.nll", "n_tokens"])
    if part == "jsonl":
        rows = lines(path, facts)
    elif part == "parquet":
        rows = pq.read_table(path / facts["files"][0]).to_pylist()
    else:
        rows = datasets.load_from_disk(str(path)).to_list()
    assert [row["text"] for row in rows] == [FLAT[r] for r in order]
    assert [row["weight"] for row in rows] == [r / 4 for r in order]
    assert [row["round"] for row in rows] == [r % 2 for r in order]
    assert [row["n_tokens"] for row in rows] == [len(FLAT[r].split()) for r in order]
    assert list(rows[0]) == ["id", "text", "source", "weight", "round", "loss.nll", "n_tokens"]
    again, same = export(part, corpus, plan, columns=["loss.nll", "n_tokens"])
    assert same == facts
    assert tree(again) == tree(path)
    held = pq.read_table(path / "ids" / "part-00000.parquet")["id"].to_pylist()
    assert [value.hex() for value in held] == [row["id"] for row in rows]


@pytest.mark.parametrize("planned", [False, True])
def test_files_have_a_size(tmp_path: Path, export: Export, planned: bool) -> None:
    texts = [[f"{k} {n} " + "x" * 100_000 for n in range(8)] for k in range(5)]
    corpus = make_corpus(tmp_path, texts)
    plan = None
    if planned:
        base = [np.asarray(s.load(["id"])["id"]) for s in corpus.shards()]
        rows = np.random.default_rng(0).permutation(40)
        table = pa.table(
            {
                "id": pa.array(np.concatenate(base)[rows].tolist(), pa.binary(16)),
                "shard": pa.array(rows // 8, pa.int32()),
                "row": pa.array(rows % 8, pa.int64()),
                "weight": pa.array(np.ones(40), pa.float32()),
                "position": pa.array(np.arange(40), pa.int64()),
                "round": pa.array(np.zeros(40), pa.int32()),
            }
        )
        (tmp_path / "plan").mkdir()
        pq.write_table(table, tmp_path / "plan" / "plan.parquet")
        plan = StepDir(tmp_path / "plan")
    path, facts = export("parquet", corpus, plan, shard_mb=1)
    counts = [pq.read_metadata(path / name).num_rows for name in facts["files"]]
    assert counts == ([11, 10, 11, 8] if planned else [8] * 5)
    assert [shard_facts(p)["rows"] for p in sorted((path / "ids").iterdir())] == counts
    whole = pa.concat_tables([pq.read_table(path / name) for name in facts["files"]])
    flat = [text for shard in texts for text in shard]
    assert whole["text"].to_pylist() == ([flat[r] for r in rows] if planned else flat)


def test_the_data_set_loads_and_maps(corpus: Corpus, export: Export) -> None:
    path, _ = export("hf", corpus, columns=["loss.nll"])
    rows = datasets.load_from_disk(str(path))
    assert rows["text"][:] == ALIVE
    assert rows.features["weight"].dtype == "float32"
    assert rows.select([3, 1])["text"][:] == [ALIVE[3], ALIVE[1]]


def test_conversations_keep_their_shape(tmp_path: Path, export: Export) -> None:
    chats = [[{"role": "user", "content": f"c{n}"}] for n in range(5)]
    corpus = make_corpus(tmp_path, [pa.table({"messages": chats})])
    path, facts = export("jsonl", corpus)
    assert [row["messages"] for row in lines(path, facts)] == chats
    path, _ = export("hf", corpus)
    assert datasets.load_from_disk(str(path))["messages"][:] == chats
    pairs = make_corpus(tmp_path / "p", [pa.table({"prompt": ["a"], "response": ["b"]})])
    path, facts = export("jsonl", pairs)
    row = lines(path, facts)[0]
    assert (row["prompt"], row["response"]) == ("a", "b")


def test_the_holdout_can_be_exported(corpus: Corpus, export: Export) -> None:
    path, facts = export("jsonl", corpus.only_holdout())
    assert [row["text"] for row in lines(path, facts)] == [shard[7] for shard in TEXTS]


def test_only_missing_files_are_written_again(corpus: Corpus, export: Export) -> None:
    path, facts = export("jsonl", corpus)
    before = tree(path)
    (path / "ids" / "part-00000.parquet").unlink()
    (path / facts["files"][0]).write_bytes(b"half")
    export("jsonl", corpus, out=path)
    assert tree(path) == before


def test_nothing_chosen_is_an_error(corpus: Corpus, export: Export, tmp_path: Path) -> None:
    for shard in corpus.shards():
        decision = {"kept": [False] * 50, "weight": pa.array(np.ones(50), pa.float32())}
        table = pa.table({"id": shard.load(["id"])["id"], **decision})
        write_shard(tmp_path / "none" / f"{shard.name}.parquet", table)
    with pytest.raises(DataError, match="nothing was chosen"):
        export("parquet", corpus.with_mask(tmp_path / "none"))


@pytest.mark.parametrize("columns", [["text"], ["id"], ["a.b", "a.b"]])
def test_columns_that_are_there_already(columns: list[str]) -> None:
    with pytest.raises(RecipeError, match="is there already"):
        find("export", "jsonl").parse({"columns": columns}, "steps.0")


def test_values_that_json_has_no_word_for(tmp_path: Path, export: Export) -> None:
    values = {"x.bytes": [b"\x00\xff"], "x.deep": [{"a": [float("inf"), 1.5]}]}
    columns: dict[str, Any] = {name: [pa.array(value)] for name, value in values.items()}
    corpus = make_corpus(tmp_path, [["one"]], columns=columns)
    path, facts = export("jsonl", corpus, columns=list(columns))
    row = lines(path, facts)[0]
    assert (row["x.bytes"], row["x.deep"]) == ("00ff", {"a": [None, 1.5]})
