"""The documents that the page embeds: drawn by id, the ends of every score, masked, bounded."""

from __future__ import annotations

import dataclasses
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.run import Run
from foresift.stages.report import documents as module
from foresift.stages.report import taken
from foresift.stages.report.contents import Contents
from foresift.stages.report.documents import Document, Documents, documents
from foresift.stages.report.mask import MASK
from foresift.stages.report.sample import draws
from foresift.stages.report.taken import Least
from tests.runs import go
from tests.stages.report.conftest import LETTERS, TOP, recipe, write_lines

PARTS = "tests.stages.report.parts"
MARKS = {"score": f"{PARTS}:Marks", "as": "marks"}
PLACED = {"score": f"{PARTS}:Placed", "as": "placed"}


def shown(contents: Contents) -> Documents:
    found = documents(contents)
    assert found is not None
    return found


def many(
    out: Path, rows: int = 300, steps: Any = (LETTERS, MARKS, TOP), holdout: float = 0.1
) -> Contents:
    """A run over numbered documents of many lengths."""
    texts = [f"document number {n} " + "w " * (n % 37) for n in range(rows)]
    data = write_lines(out / "d.jsonl", [{"text": t, "at": f"s{len(t) % 3}/x"} for t in texts])
    return Contents.open(
        go(recipe(data, list(steps), source="at", holdout=holdout), out / "out").path
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    return many(tmp_path_factory.mktemp("small"))


def plan(contents: Contents) -> list[dict[str, Any]]:
    """The plan without the holdout, each with its draw."""
    table = pq.read_table(contents.path / "plan.parquet")
    rows = table.append_column("draw", [draws(table["id"])]).to_pylist()
    return [r for r in rows if r["reason"] != "holdout"]


def test_a_small_set_is_there_as_a_whole(small: Contents) -> None:
    rows, found = plan(small), shown(small)
    assert found.population == found.drawn == len(found.docs) == len(rows)
    assert [d.id for d in found.docs] == [
        r["id"].hex()[:12] for r in sorted(rows, key=lambda r: (r["draw"], r["shard"], r["row"]))
    ]
    by_id = {r["id"].hex()[:12]: r for r in rows}
    for d in found.docs:
        row = by_id[d.id]
        assert d.status == ("kept" if row["kept"] else "left")
        assert d.reason == ("" if row["kept"] else row["reason"])
        assert (d.n_tokens, d.source) == (row["n_tokens"], row["source"])
        assert d.top == row["source"].split("/")[0]
        assert d.scores["letters.count"] == d.excerpt.count("w")
        assert d.findings == (["marks: single <w>"] if " w" in d.excerpt else [])


def test_the_sample_is_the_least_draws_and_the_ends_are_true(
    small: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taken, "SAMPLED", 40)
    found = shown(small)
    rows = sorted(plan(small), key=lambda r: r["draw"])
    assert (found.drawn, found.population) == (40, len(rows))
    assert [d.id for d in found.docs[:40]] == [r["id"].hex()[:12] for r in rows[:40]]
    assert all(d.drawn for d in found.docs[:40])
    assert not any(d.drawn for d in found.docs[40:])
    whole = shown_all(small, monkeypatch)
    for name in ("n_tokens", "letters.count", "letters.share"):
        every = sorted(d.scores[name] for d in whole.docs if d.scores[name] is not None)
        mine = sorted(d.scores[name] for d in found.docs if d.scores[name] is not None)
        assert mine[: taken.ENDS] == every[: taken.ENDS]
        assert mine[-taken.ENDS :] == every[-taken.ENDS :]
    for kind in ("over budget", "marks: single <w>"):
        of = [d.id for d in whole.docs if kind in (d.reason, *d.findings)]
        assert set(of[: taken.EACH]) <= {d.id for d in found.docs}


def shown_all(contents: Contents, monkeypatch: pytest.MonkeyPatch) -> Documents:
    monkeypatch.setattr(taken, "SAMPLED", 2_000)
    return shown(contents)


def test_neither_shards_nor_order_matter(tmp_path: Path) -> None:
    rows = [{"text": f"document {n} " + "w " * (n % 30), "at": f"s/{n}"} for n in range(200)]
    whole = write_lines(tmp_path / "one" / "d.jsonl", rows)
    for part in range(4):
        write_lines(tmp_path / "four" / f"d{part}.jsonl", rows[::-1][50 * part : 50 * part + 50])
    found = []
    for name, data in (("one", whole), ("four", tmp_path / "four")):
        run = go(recipe(data, [LETTERS, MARKS, TOP], source="at"), tmp_path / f"out-{name}")
        found.append([dataclasses.asdict(d) for d in shown(Contents.open(run.path)).docs])
    assert found[0] == found[1]


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1, 2, np.nan]), st.floats(0, 1)), max_size=40),
    st.integers(1, 8),
    st.integers(1, 7),
)
def test_least_is_the_head_of_the_sorted_list(rows: Any, count: int, cut: int) -> None:
    least = Least(count)
    keys, drawn = (np.array([r[k] for r in rows], dtype=np.float64) for k in (0, 1))
    for start in range(0, len(rows), cut):
        part = slice(start, start + cut)
        least.offer(0, keys[part], drawn[part], np.arange(len(rows))[part])
    there = [(k, d, i) for i, (k, d) in enumerate(rows) if not np.isnan(k)]
    assert least.places == {(0, i) for _, _, i in sorted(there)[:count]}


def test_the_map_goes_by_vectors_and_clusters_where_there_are_any(tmp_path: Path) -> None:
    found = shown(many(tmp_path, 120, [PLACED, LETTERS, TOP]))
    assert (found.near, found.grouped) == ("placed.vector", "placed.cluster")
    assert "placed.cluster" not in found.docs[0].scores
    sizes = np.bincount([d.cluster for d in found.docs])
    assert sizes.tolist() == [g.size for g in found.groups]
    assert sizes.tolist() == sorted(sizes, reverse=True)
    assert found.placed == len(found.docs)
    same = {}
    for d in found.docs:  # texts of one length have one vector, and so one place
        assert same.setdefault(len(d.excerpt), (d.x, d.y)) == (d.x, d.y)


def test_vectors_that_too_few_have_are_passed_over(tmp_path: Path) -> None:
    steps = [{**PLACED, "most": 40}, LETTERS, TOP]
    found = shown(many(tmp_path, 120, steps))
    assert (found.near, found.grouped) == ("words", "placed.cluster")


def test_words_place_documents_without_vectors(small: Contents) -> None:
    found = shown(small)
    assert (found.near, found.grouped) == ("words", "k-means")
    assert found.placed == len(found.docs)
    assert all(0 <= d.x <= 1 and 0 <= d.y <= 1 for d in found.docs if d.x is not None and d.y)
    assert sum(g.size for g in found.groups) == len(found.docs)


def test_nasty_text_is_masked_and_cannot_end_the_element(nasty: Run) -> None:
    found = shown(Contents.open(nasty.path))
    island = str(found.island)
    for secret in ("bob@example", "555-2671", "10.20.30.40", "4111111111111111"):
        assert secret not in island
    assert MASK in island
    assert not set("<>&\u2028\u2029\u0000\u202e") & set(island)
    data = json.loads(island)
    assert "<script>alert('one')</script> w w" in data["text"]
    assert data["id"] == [d.id for d in found.docs]
    assert len({len(v) for v in [data[k] for k in ("id", "text", "source", "kept", "x")]}) == 1
    for told, d in zip(data["reason"], found.docs, strict=True):
        assert (data["reasons"][told] if told >= 0 else "") == d.reason


@given(st.text(string.printable + "<>&\u2028\u2029é漢\U0001f600", max_size=60))
def test_any_text_comes_back_from_the_island(text: str) -> None:
    base = Document(
        id="0" * 12, source=text, top=text, n_tokens=1, excerpt=text, status="left", reason=text,
        findings=[text], scores={}, drawn=True,
    )  # fmt: skip
    made = Documents([base], 1, [], "words", "k-means", [], 0)
    assert not set("<>&\u2028\u2029") & set(made.island)
    data = json.loads(str(made.island))
    assert data["text"] == data["source"] == data["tops"] == data["findings"] == [text]


def test_scores_beyond_the_bound_are_left_out_and_said(
    small: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCORES", 2)
    found = shown(small)
    assert list(found.docs[0].scores) == ["n_tokens", "letters.count"]
    assert found.left_out == 1


def test_what_is_embedded_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long words in another script, at more documents than are drawn: still under 2.5 kB each."""
    monkeypatch.setattr(taken, "SAMPLED", 400)
    texts = [f"{n} " + "漢字仮名交じり文" * 200 for n in range(520)]
    data = write_lines(tmp_path / "d.jsonl", [{"text": t, "at": "x" * 5_000} for t in texts])
    run = go(recipe(data, [LETTERS, MARKS, TOP], source="at"), tmp_path / "out")
    found = shown(Contents.open(run.path))
    assert found.drawn == 400
    assert len(found.docs) < 450
    assert max(len(d.source) for d in found.docs) == module.SOURCE
    assert len(str(found.island).encode()) < 2_500 * len(found.docs)


@pytest.mark.parametrize("n", [1, 2, 31])
def test_a_few_documents(tmp_path: Path, n: int) -> None:
    found = shown(many(tmp_path, n, [LETTERS], holdout=0))
    assert len(found.docs) == found.population == n
    assert found.placed == n
    assert len(found.groups) == (2 if n > 30 else 1)


def test_nothing_but_a_holdout_has_no_documents(small: Contents, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "d.jsonl", [{"text": f"held {n}"} for n in range(3)])
    run = go(recipe(data, [], holdout=0.999999), tmp_path / "out")
    assert documents(Contents.open(run.path)) is None


def test_text_that_cannot_be_read_is_said(small: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("the file is gone")

    monkeypatch.setattr("foresift.stages.report.examples.rows_in_plan_order", broken)
    found = shown(small)
    assert found.trouble == "the file is gone"
    assert {d.excerpt for d in found.docs} == {""}
    assert found.placed == 0
