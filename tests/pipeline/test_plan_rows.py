"""Rows come out in plan order, whatever the window, and from files used in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import StoreError
from foresift.pipeline.plan_rows import rows_in_plan_order
from foresift.pipeline.store import StepDir, write_shard
from foresift.pipeline.tables import BASE, CONTENT, content_bytes, content_ids

TEXTS = [f"document {n} " * (1 + n % 7) for n in range(300)]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """300 documents in three shards; the second one lies in a file used in place."""
    base = tmp_path / "read"
    for k in range(3):
        table = pa.table({"text": TEXTS[100 * k : 100 * k + 100]})
        ids = content_ids(table)
        rest = {
            "id": ids,
            "source": pa.array([f"f#{100 * k + n}" for n in range(100)]),
            "holdout": np.zeros(100, dtype=bool),
            "n_bytes": content_bytes(table),
            "n_tokens": content_bytes(table) // 4,
        }
        facts = {}
        if k == 1:
            pq.write_table(
                pa.table({"body": table["text"].cast(pa.large_string()), "text": ["no"] * 100}),
                tmp_path / "own.parquet",
                row_group_size=10,
            )
            place = {"path": str(tmp_path / "own.parquet"), "rename": [["body", "text"]]}
            facts = {"content": {**place, "row_groups": None}}
        columns = rest if k == 1 else {"text": table["text"], **rest}
        schema = pa.schema([(n, ({**CONTENT, **BASE})[n]) for n in columns])
        write_shard(base / f"part-{k:05d}.parquet", pa.table(columns).cast(schema), facts)
    return Corpus(base)


def write_plan(corpus: Corpus, rows: np.ndarray, path: Path, twist: bool = False) -> StepDir:
    path.mkdir()
    ids = np.concatenate([np.asarray(s.load(["id"])["id"]) for s in corpus.shards()])
    n = len(rows)
    table = pa.table(
        {
            "id": pa.array(ids[rows[::-1] if twist else rows].tolist(), pa.binary(16)),
            "shard": pa.array(rows // 100, pa.int32()),
            "row": pa.array(rows % 100, pa.int64()),
            "weight": pa.array(rows / 10, pa.float32()),
            "position": pa.array(np.arange(n), pa.int64()),
            "round": pa.array(np.zeros(n), pa.int32()),
        }
    )
    pq.write_table(table, path / "plan.parquet")
    return StepDir(path)


@pytest.mark.parametrize("window_bytes", [64 << 20, 700, 1])
@pytest.mark.parametrize("window_rows", [1000, 7])
def test_order_does_not_depend_on_windows(
    corpus: Corpus, tmp_path: Path, window_bytes: int, window_rows: int
) -> None:
    rows = np.random.default_rng(0).permutation(300)[:120]
    rows = np.concatenate([rows, rows[:5]])  # a row may come twice
    plan = write_plan(corpus, rows, tmp_path / "plan")
    tables = list(
        rows_in_plan_order(corpus, plan, ["source"], window_rows, window_bytes=window_bytes)
    )
    got = pa.concat_tables(tables)
    assert got.column_names == [
        *("id", "text", "source", "weight", "position", "round", "shard", "row")
    ]
    assert got["text"].to_pylist() == [TEXTS[r] for r in rows]
    assert got["source"].to_pylist() == [f"f#{r}" for r in rows]
    assert got["position"].to_pylist() == list(range(len(rows)))
    assert got["weight"].to_numpy() == pytest.approx(rows / 10)
    assert max(t.num_rows for t in tables) <= window_rows


def test_starts_in_the_middle(corpus: Corpus, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).permutation(300)
    plan = write_plan(corpus, rows, tmp_path / "plan")
    got = pa.concat_tables(rows_in_plan_order(corpus, plan, window_rows=11, start=250))
    assert got["text"].to_pylist() == [TEXTS[r] for r in rows[250:]]


def test_skips_row_groups_without_a_wanted_row(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(corpus, np.array([150, 159, 172]), tmp_path / "plan")
    read: list[list[int]] = []
    original = pq.ParquetFile.iter_batches

    def spy(self: pq.ParquetFile, *args: object, **kw: object) -> object:
        read.append(kw["row_groups"])  # type: ignore[arg-type]
        return original(self, *args, **kw)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    got = pa.concat_tables(rows_in_plan_order(corpus, plan))
    assert got["text"].to_pylist() == [TEXTS[150], TEXTS[159], TEXTS[172]]
    assert read == [[5], [7]]


def test_an_empty_plan_gives_nothing(corpus: Corpus, tmp_path: Path) -> None:
    plan = write_plan(corpus, np.array([], dtype=np.int64), tmp_path / "plan")
    assert list(rows_in_plan_order(corpus, plan)) == []


def test_a_plan_of_other_documents_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    plan = write_plan(corpus, np.array([1, 2, 250]), tmp_path / "plan", twist=True)
    with pytest.raises(StoreError, match="other documents"):
        list(rows_in_plan_order(corpus, plan))


def test_no_plan_is_a_located_error(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"plan\.parquet"):
        list(rows_in_plan_order(corpus, StepDir(tmp_path / "nowhere")))
