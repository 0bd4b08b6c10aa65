"""The refined data set: who is rewritten, who stays, what is added; the accounts close."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Inputs, Job, Rng, StepDir
from foresift.pipeline.store import write_shard
from foresift.scorers.middo import Middo
from foresift.stages.exporters._refining import MARK
from foresift.stages.exporters.refined import Refined
from tests.corpora import Serial, drop, make_corpus, tree
from tests.endpoint_server import Reply, served
from tests.scorers.planted import CLEAN, planted

FLAGS = ("hard", "low", "sparse")


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def corpus(folder: Path, shards: list[list[tuple[str, str]]], **flags: list[list[Any]]) -> Corpus:
    """Pairs with flags; rows that are not named are not flagged."""
    tables = [
        pa.table({"prompt": [p for p, _ in s], "response": [r for _, r in s]}) for s in shards
    ]
    none = [[False] * len(s) for s in shards]
    columns = {f"middo.{n}": [pa.array(v, pa.bool_()) for v in flags.get(n, none)] for n in FLAGS}
    near = flags.get("neighbours", [[[]] * len(s) for s in shards])
    columns["middo.neighbours"] = [pa.array(v, pa.list_(pa.string())) for v in near]
    return make_corpus(folder, tables, columns=columns)


def refine(part: Refined, given: Corpus, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(facts, rows)"""
    step = StepDir(out)
    step.open()
    facts = part.run(Inputs(corpus=given), step, Job(engine=Serial(), rng=Rng(0)))
    return facts, rows_of(out, facts)


def rows_of(out: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name in facts["files"]:
        if name.endswith(".parquet"):
            found += pq.read_table(out / name).to_pylist()
        else:
            text = gzip.decompress((out / name).read_bytes()).decode()
            found += [json.loads(line) for line in text.split("\n")[:-1]]
    return found


def ids(given: Corpus) -> list[str]:
    return [k.hex() for k in given.table([])[0]["id"].to_pylist()]


SIX = [[("p0", "r0"), ("p1", "r1"), ("p2", "r2")], [("p3", "r3"), ("p4", "r4"), ("p5", "r5")]]


def six(folder: Path) -> Corpus:
    """p1 is hard, p2 low, p3 both, p4 sparse with two neighbours, p5 sparse and hard."""
    bare = ids(corpus(folder / "bare", SIX))
    return corpus(
        folder,
        SIX,
        hard=[[False, True, False], [True, None, True]],
        low=[[False, None, True], [True, False, False]],
        sparse=[[False, False, False], [False, True, True]],
        neighbours=[[[]] * 3, [[], [bare[0], bare[2]], []]],
    )


def test_each_action(tmp_path: Path) -> None:
    given = six(tmp_path)
    facts, rows = refine(Refined(refiner="stub"), given, tmp_path / "out")
    names = ids(given)
    assert [(r["origin"], r["action"]) for r in rows] == [
        (names[0], "kept"),
        (names[1], "simplified"),
        (names[2], "improved"),
        (names[3], "simplified"),
        (names[4], "kept"),
        (names[4], "added"),
        (names[5], "simplified"),
        (names[5], "added"),
    ]
    assert [r["id"] for r in rows if r["action"] != "added"] == names
    assert not {r["id"] for r in rows if r["action"] == "added"} & set(names)
    assert [r["prompt"] for r in rows] == [
        "p0", "[stub simplify] p1", "[stub improve] p2", "[stub simplify] p3",
        "p4", "[stub add (after 2 neighbours)] p4", "[stub simplify] p5",
        "[stub add (after 0 neighbours)] p5",
    ]  # fmt: skip
    assert rows[5]["hints"] == [names[0], names[2]]
    expected = {"rows_in": 6, "kept": 2, "simplified": 3, "improved": 1, "added": 2, "rows": 8}
    assert {k: facts[k] for k in expected} == expected
    assert facts["failed"] == {}
    held = pq.read_table(tmp_path / "out" / "ids" / "part-00000.parquet")["id"].to_pylist()
    assert [k.hex() for k in held] == [r["origin"] for r in rows]


@pytest.mark.parametrize(
    ("both", "actions"),
    [
        ("simplified", ["simplified"]),
        ("improved", ["improved"]),
        ("twice", ["simplified", "improved"]),
    ],
)
def test_a_row_that_is_hard_and_low_is_replaced_once_unless_as_released(
    both: Any, actions: list[str], tmp_path: Path
) -> None:
    given = six(tmp_path)
    facts, rows = refine(Refined(refiner="stub", both=both), given, tmp_path / "out")
    assert [r["action"] for r in rows if r["origin"] == ids(given)[3]] == actions
    assert facts["rows"] == facts["rows_in"] + 2 + (both == "twice")  # 2 are sparse, 1 both


def test_rows_that_are_alike_survive_and_keep_their_order(tmp_path: Path) -> None:
    alike = [[("a", "r"), ("a\nwith input", "r"), ("a", "r")], [("b", "r"), ("a", "r")]]
    facts, rows = refine(Refined(refiner="stub"), corpus(tmp_path, alike), tmp_path / "out")
    assert [(r["prompt"], r["response"]) for r in rows] == [p for shard in alike for p in shard]
    assert facts["rows"] == 5


def counted(rows: list[dict[str, Any]]) -> list[Any]:
    SEEN.extend(row["id"] for row in rows)
    return [{"prompt": row["prompt"].upper(), "response": row["response"]} for row in rows]


SEEN: list[str] = []


def test_copies_are_refined_once_and_alike(tmp_path: Path) -> None:
    SEEN.clear()
    given = corpus(tmp_path, [[("a", "r"), ("b", "r"), ("a", "r")]], hard=[[True, False, True]])
    part = Refined(refiner="tests.stages.exporters.test_refined:counted")
    facts, rows = refine(part, given, tmp_path / "out")
    assert [r["prompt"] for r in rows] == ["A", "b", "A"]
    assert len(SEEN) == 1
    assert facts["simplified"] == 2


def some(rows: list[dict[str, Any]]) -> list[Any]:
    bad: dict[str, Any] = {
        "p1": None,
        "p2": {"prompt": "x"},
        "p4": {"prompt": " ", "response": "r"},
    }
    good = {"prompt": "new", "response": "new"}
    return [bad.get(row["prompt"], good) for row in rows]


def test_what_fails_keeps_the_original_and_is_counted(tmp_path: Path) -> None:
    part = Refined(refiner="tests.stages.exporters.test_refined:some", max_failed=0.9)
    facts, rows = refine(part, six(tmp_path), tmp_path / "out")
    assert [(r["prompt"], r["action"]) for r in rows] == [
        ("p0", "kept"), ("p1", "kept"), ("p2", "kept"), ("new", "simplified"), ("p4", "kept"),
        ("new", "simplified"), ("new", "added"),
    ]  # fmt: skip
    assert facts["failed"] == {
        "empty prompt or response": 1, "no prompt and response": 1, "nothing given": 1,
    }  # fmt: skip
    assert facts["rows"] == 7


def test_too_many_failures_stop_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    given = six(tmp_path)
    part = Refined(refiner="tests.stages.exporters.test_refined:some", max_failed=0.2)
    with pytest.raises(DataError, match=r"some: 2 of 6 rows could not be refined"):
        refine(part, given, tmp_path / "out")
    assert not list((tmp_path / "out").glob("part-*"))
    SEEN.clear()
    part = Refined(refiner="tests.stages.exporters.test_refined:counted")
    refine(part, given, tmp_path / "out")
    assert len(SEEN) == 3


def endpoint(url: str, **fields: Any) -> Refined:
    base = {"refiner": "endpoint", "url": url, "model": "m", "wait": 0.001, "retries": 1}
    return Refined(**{**base, **fields})


def test_an_endpoint_is_asked_for_the_prompt_and_then_for_its_answer(tmp_path: Path) -> None:
    def reply(prompt: str, number: int) -> Reply:
        if MARK in prompt:
            return f"1. Plan. {MARK} is due.\n\n{MARK}\n: easier than p{number}\n"
        return f" answer to {prompt} "

    given = six(tmp_path)
    with served(reply) as server:
        facts, rows = refine(endpoint(server.url), given, tmp_path / "out")
        again, _ = refine(endpoint(server.url), given, tmp_path / "out")
    assert again == facts
    assert len(server.requests) == 2 * 6
    for row in rows:
        if row["action"] != "kept":
            assert row["prompt"].startswith("easier than p")
            assert row["response"] == f"answer to {row['prompt']}"
    asked = [p for p in server.prompts if MARK in p]
    hinted = next(p for p in asked if "<instruction>\np4\n" in p)
    assert "<instruction>\np0\n" in hinted
    assert "<instruction>\np2\n" in hinted
    assert "r4" not in hinted


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda p, n: "I would rather not", "no final instruction"),
        (lambda p, n: f"plan\n{MARK}\n  ", "no final instruction"),
        (lambda p, n: (500, b"", {}), "HTTP 500"),
        (lambda p, n: (200, b"nope", {}), "malformed answer"),
        (lambda p, n: f"{MARK}\nnew" if MARK in p else (503, b"", {}), "HTTP 503"),
    ],
)
def test_replies_that_are_of_no_use(
    reply: Callable[[str, int], Reply], reason: str, tmp_path: Path
) -> None:
    given = six(tmp_path)
    with served(reply) as server:
        facts, rows = refine(endpoint(server.url, max_failed=1), given, tmp_path / "out")
        with pytest.raises(DataError, match=reason):
            refine(endpoint(server.url), given, tmp_path / "other")
    assert facts["failed"] == {reason: 6}
    assert [r["prompt"] for r in rows] == [p for shard in SIX for p, _ in shard]


def test_a_killed_run_goes_on_to_the_same_files(tmp_path: Path) -> None:
    given, state = six(tmp_path), {"left": 7}

    def reply(prompt: str, number: int) -> Reply:
        state["left"] -= 1
        if state["left"] < 0:
            return (403, b"paid up", {})
        return f"{MARK}\n{prompt[-40:]}" if MARK in prompt else f"re: {prompt}"

    with served(reply) as server:
        part = endpoint(server.url, workers=1)
        with pytest.raises(DataError, match="403: paid up"):
            refine(part, given, tmp_path / "out")
        before = len(server.requests)
        state["left"] = 100
        refine(part, given, tmp_path / "out")
        assert len(server.requests) - before == 2 * 3  # three of six were whole
        refine(part, given, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_planted_defects_are_gone_after_one_loop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = planted()
    given = data.corpus(tmp_path)
    part = Middo(before="m.before", after="m.after", embedding="m.vector")
    table = given.table(list(part.needs))[0]
    (tmp_path / "fitted").mkdir()
    told = part.fit([table], tmp_path / "fitted")
    found = part.score(table, tmp_path / "fitted")
    names = ("hard", "low", "sparse", "neighbours")
    flags = {n: [pa.array(found[n], part.columns[n].dtype)] for n in names}
    pairs = list(zip(*(data.table[n].to_pylist() for n in ("prompt", "response")), strict=True))
    flagged = corpus(tmp_path / "flagged", [pairs], **flags)
    assert sum(r in CLEAN for _, r in pairs) == 20
    with caplog.at_level(logging.INFO, "foresift"):
        facts, rows = refine(
            Refined(refiner="tests.scorers.planted:restore"), flagged, tmp_path / "out"
        )
    assert not any(r["response"] in CLEAN for r in rows)
    assert facts["rows"] == told["size"]["ours"] == len(rows)
    added = [r for r in rows if r["action"] == "added"]
    assert len(added) == told["flagged"]["sparse"]
    assert all(len(r["hints"]) == 2 for r in added)
    assert caplog.messages[-1].startswith(f"refined: 400 rows in; {facts['kept']} kept, 20 simp")


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), *[st.booleans()] * 3), min_size=1, max_size=12),
    both=st.sampled_from(["simplified", "improved", "twice"]),
)
def test_accounts_close(
    rows: list[tuple[int, bool, bool, bool]], both: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("m")
    flags_of = {n: flags for n, *flags in rows}  # copies are flagged alike
    whose = [flags_of[n] for n, *_ in rows]
    flags = {name: [[f[k] for f in whose]] for k, name in enumerate(FLAGS)}
    given = corpus(folder, [[(f"p{n}", "r") for n, *_ in rows]], **flags)
    facts, out = refine(Refined(refiner="stub", both=both), given, folder / "out")
    twice = sum(h and lo for h, lo, _ in whose) if both == "twice" else 0
    assert len(out) == facts["rows"] == len(rows) + sum(s for *_, s in whose) + twice
    touched = sum(h or lo for h, lo, _ in whose)
    assert facts["kept"] == len(rows) - touched
    assert facts["simplified"] + facts["improved"] == touched + twice
    origins = [r["origin"] for r in out]
    assert list(dict.fromkeys(origins)) == list(dict.fromkeys(ids(given)))


def test_dropped_rows_are_neither_written_nor_hinted_at(tmp_path: Path) -> None:
    given = drop(six(tmp_path), tmp_path / "drop", [[False, True, True], [True, True, False]])
    # a decision has weights as well
    for shard in sorted((tmp_path / "drop").glob("part-*.parquet")):
        table = pq.read_table(shard)
        weights = pa.array(np.full(table.num_rows, 0.5, dtype=np.float32))
        write_shard(shard, table.append_column("weight", weights).replace_schema_metadata(None))
    facts, rows = refine(Refined(refiner="stub"), given, tmp_path / "out")
    assert facts["rows_in"] == 4
    assert {r["weight"] for r in rows} == {0.5}
    assert "[stub add (after 1 neighbours)] p4" in [r["prompt"] for r in rows]


def test_files_are_cut_and_parquet_holds_the_same(tmp_path: Path) -> None:
    big = [[(f"p{k}.{i} " + "x" * 60_000, "r") for i in range(20)] for k in range(3)]
    given = corpus(tmp_path, big, hard=[[i % 2 == 0 for i in range(20)]] * 3)
    facts, rows = refine(Refined(refiner="stub", shard_mb=1), given, tmp_path / "a")
    other, same = refine(Refined(refiner="stub", format="parquet"), given, tmp_path / "b")
    assert facts["files"] == [f"part-{k:05d}.jsonl.gz" for k in range(3)]
    assert other["files"] == ["part-00000.parquet"]
    assert rows == same
    assert len(rows) == 60
    assert facts["tokens_in"] == 60 * 3  # words, as this corpus counts
    fresh = sum(-(-len(r["prompt"] + r["response"]) // 4) for r in rows if r["action"] != "kept")
    assert facts["tokens_out"] == facts["n_tokens"] == 30 * 3 + fresh


def test_rows_come_in_the_order_of_a_plan(tmp_path: Path) -> None:
    given = six(tmp_path)
    table, places = given.table([])
    order = np.array([4, 1, 5, 0])
    plan = pa.table(
        {
            "id": table["id"].combine_chunks().take(pa.array(order)),
            "shard": pa.array(places[order, 0], pa.int32()),
            "row": pa.array(places[order, 1], pa.int64()),
            "weight": pa.array([0.1, 0.2, 0.3, 0.4], pa.float32()),
            "position": pa.array(np.arange(4), pa.int64()),
            "round": pa.array(np.zeros(4), pa.int32()),
        }
    )
    (tmp_path / "plan").mkdir()
    pq.write_table(plan, tmp_path / "plan" / "plan.parquet")
    out = StepDir(tmp_path / "out")
    out.open()
    inputs = Inputs(corpus=given, plan=StepDir(tmp_path / "plan"))
    facts = Refined(refiner="stub").run(inputs, out, Job(engine=Serial(), rng=Rng(0)))
    rows = rows_of(out.path, facts)
    names = ids(given)
    assert [r["origin"] for r in rows] == [names[i] for i in (4, 4, 1, 5, 5, 0)]
    assert [round(r["weight"], 3) for r in rows] == [0.1, 0.1, 0.2, 0.3, 0.3, 0.4]


def test_text_is_not_refined(tmp_path: Path) -> None:
    flags = {f"middo.{n}": [[True]] for n in FLAGS}
    given = make_corpus(tmp_path, [["a text"]], columns=flags)
    with pytest.raises(DataError, match="only pairs"):
        refine(Refined(refiner="stub", neighbours=""), given, tmp_path / "out")


def test_columns_that_are_no_flags_are_refused(tmp_path: Path) -> None:
    given = make_corpus(tmp_path, [["a"]], columns={"middo.hard": [[1.5]]})
    part = Refined(refiner="stub", low="", sparse="")
    with pytest.raises(DataError, match=r"middo\.hard: flags are true or false"):
        refine(part, given, tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "refiner"),
        ({"refiner": "endpoint", "url": "ftp://x", "model": "m"}, "needs a url"),
        ({"refiner": "stub", "hard": "", "low": "", "sparse": ""}, "at least one"),
        ({"refiner": "stub", "max_failed": -1}, "max_failed"),
        ({"refiner": "stub", "both": "thrice"}, "both"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Refined.parse(fields, "export refined")


def test_axes_left_out_are_not_needed() -> None:
    assert Refined(refiner="stub", sparse="", low="").needs == ("middo.hard",)
