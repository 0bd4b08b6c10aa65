"""The ledger: what counts after interruptions, what a sealed file holds, and how it is searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline import ledger
from foresift.pipeline.errors import DataError, StoreError
from foresift.pipeline.ledger import FILE, SCHEMA, Ledger, Log, among, document_id, rows_table
from foresift.pipeline.tables import ID, id_words


def name(n: int) -> bytes:
    return xxhash.xxh3_128_digest(str(n).encode())


def rows(steps: Any, attempt: int = 0) -> list[Any]:
    """One exposure a step; the tokens tell the attempt."""
    return [(name(step), 1, step % 3, step, 10 + attempt) for step in steps]


def told(path: Path) -> list[tuple[int, int]]:
    """(step, attempt) of what counts."""
    table = Ledger.open(path).table()
    return list(zip(table["step"].to_pylist(), (t - 10 for t in table["tokens"].to_pylist()),
                    strict=True))  # fmt: skip


def attempts(folder: Path, *runs: tuple[int, int]) -> Log:
    """Attempts that go on after a step and are killed after another."""
    for number, (after, killed) in enumerate(runs):
        log = Log(folder, after)
        for step in range(after + 1, killed + 1):
            log.add(rows([step], number))
            if step % 2 == 0:
                log.flush()
    return log


def test_an_attempt_makes_void_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    log = attempts(folder, (0, 7), (4, 9), (2, 3))
    assert told(folder) == [(1, 0), (2, 0)]  # what attempt 2 did not flush died with it
    log.add(rows([4], 2))
    log.flush()
    assert told(tmp_path) == [(1, 0), (2, 0), (3, 2), (4, 2)]


def test_a_new_attempt_counts_from_its_first_moment(tmp_path: Path) -> None:
    attempts(tmp_path, (0, 8))
    Log(tmp_path, 4)
    assert told(tmp_path) == [(1, 0), (2, 0), (3, 0), (4, 0)]


@given(runs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=15)
def test_what_counts_is_each_step_of_its_last_attempt(
    runs: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, true = tmp_path_factory.mktemp("log"), dict[int, int]()
    for number, (at, more) in enumerate(runs):
        after = min(at, max(true, default=0))  # a checkpoint is of a step that was taken
        log = Log(folder, after)
        log.add(rows(range(after + 1, after + more + 1), number))
        log.flush()
        kept = {step: n for step, n in true.items() if step <= after}
        true = kept | dict.fromkeys(range(after + 1, after + more + 1), number)
    assert told(folder) == sorted(true.items())
    sealed = folder.with_suffix(".parquet")
    log.seal(sealed)
    assert told(sealed) == sorted(true.items())
    assert not folder.exists()


def test_more_than_a_thousand_attempts(tmp_path: Path) -> None:
    for number in (8, 999):
        (tmp_path / f"{number:03d}-00000.parquet").write_bytes(b"")
    log = Log(tmp_path)
    assert log.attempt == 1000
    for stale in (8, 999):
        (tmp_path / f"{stale:03d}-00000.parquet").unlink()
    log.add(rows([1], 3))
    log.flush()
    assert told(tmp_path) == [(1, 3)]


def test_sealed_bytes_do_not_depend_on_the_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "GROUP", 5)
    sealed = []
    for number, (killed, after) in enumerate([(23, 23), (11, 3), (20, 0)]):
        folder = tmp_path / str(number)
        Log(folder).add([])
        log = attempts(folder, (0, killed))
        log.flush()
        log = Log(folder, after)
        log.add(rows(range(after + 1, 24)))
        log.seal(tmp_path / f"{number}.parquet")
        assert not folder.exists()
        sealed.append((tmp_path / f"{number}.parquet").read_bytes())
    assert sealed[0] == sealed[1] == sealed[2]
    with pq.ParquetFile(tmp_path / "0.parquet") as file:
        groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    assert groups == [5, 5, 5, 5, 3]


def test_discarding_leaves_what_others_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    attempts(folder, (0, 4))
    log = Log(folder, 2)
    log.discard()
    assert told(folder) == [(step, 0) for step in range(1, 5)]
    Log(tmp_path / "other").discard()
    assert not (tmp_path / "other").exists()


def test_the_log_is_read_until_the_step_is_declared_done(tmp_path: Path) -> None:
    Log(tmp_path / "ledger").flush()
    pq.write_table(rows_table(rows([1, 2])), tmp_path / FILE)
    assert told(tmp_path) == []  # done again: the file is of an earlier time
    (tmp_path / "stage.json").write_text("{}")
    assert told(tmp_path) == [(1, 0), (2, 0)]
    assert told(tmp_path / FILE) == [(1, 0), (2, 0)]


def many(n: int, documents: int) -> pa.Table:
    """Exposures of few documents, so that each has some."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, documents, n)
    return rows_table([(name(int(d)), 1, int(d) % 7, k // 10 + 1, 3) for k, d in enumerate(drawn)])


def test_finding_is_a_scan_that_is_faster(tmp_path: Path) -> None:
    table = many(4000, 900)
    path = tmp_path / FILE
    pq.write_table(table, path, row_group_size=700)
    log = Log(tmp_path / "log")
    for start in range(0, 4000, 333):
        log.add([tuple(r.values()) for r in table.slice(start, 333).to_pylist()])
        log.flush()
    for wanted in ([], [0], [5, 5, 10**6], list(range(0, 900, 9)), list(range(900))):
        ids = pa.array([name(n) for n in wanted], ID)
        plain = table.filter(pa.array([i in set(ids.to_pylist()) for i in table["id"].to_pylist()]))
        assert Ledger.open(path).find(ids).equals(plain.combine_chunks())
        assert Ledger.open(tmp_path / "log").find(ids).equals(plain)
    assert Ledger.open(path).find(pa.chunked_array([], ID)).num_rows == 0


def test_finding_leaves_out_what_is_void(tmp_path: Path) -> None:
    attempts(tmp_path, (0, 8), (4, 6))
    ids = pa.array([name(5), name(2), name(7)], ID)
    found = Ledger.open(tmp_path).find(ids)
    assert (found["step"].to_pylist(), found["tokens"].to_pylist()) == ([2, 5], [10, 11])


WORD = st.sampled_from([0, 1, 2, 255, 1 << 32, 1 << 63, (1 << 64) - 1]) | st.integers(0, 2**64 - 1)
IDS = st.lists(st.tuples(WORD, WORD).map(lambda w: b"".join(x.to_bytes(8, "little") for x in w)))


@given(ids=IDS, wanted=IDS, both=st.integers(0, 3))
@settings(deadline=None, max_examples=100)
def test_among_is_membership(ids: list[bytes], wanted: list[bytes], both: int) -> None:
    ids = ids + wanted[:both]
    words = id_words(pa.array(wanted, ID))
    for block in (1 << 15, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ledger, "BLOCK", block)
            here = among(pa.array(ids, ID), words)
        assert here.tolist() == [i in set(wanted) for i in ids]


def test_ids_of_names() -> None:
    assert document_id("0123456789abcdef" * 2) == bytes.fromhex("0123456789abcdef" * 2)
    for other in ("row-17", "0123456789ABCDEF" * 2, "0123456789abcdef", "", "é" * 32):
        assert document_id(other) == xxhash.xxh3_128_digest(other.encode())


def test_no_ledger_and_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no ledger here"):
        Ledger.open(tmp_path)
    pq.write_table(pa.table({"id": pa.array([], ID)}), tmp_path / FILE)
    with pytest.raises(StoreError, match="a ledger has the column round"):
        Ledger.open(tmp_path).table()
    with pytest.raises(StoreError, match="a ledger has the column round"):
        Ledger.open(tmp_path).find(pa.array([name(1)], ID))
    (tmp_path / FILE).write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="no ledger can be read here"):
        Ledger.open(tmp_path).table()
    assert SCHEMA.names == ["id", "round", "shard", "step", "tokens"]
