"""Redaction replaces exactly the spans of findings, logs each without its value, and says so."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.engines.local import LocalEngine
from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.findings import FINDINGS, Finding, Findings
from foresift.pipeline.nouns import Inputs, Job, Rng, StepDir
from foresift.pipeline.parts import find
from foresift.pipeline.planner import make_plan
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import run
from foresift.pipeline.tables import content_ids, content_texts
from foresift.scorers.pii import Pii
from foresift.stages.exporters._redacting import Redacting, merged
from tests.corpora import Serial, make_corpus, tree
from tests.runs import ROOT

KEY = "0123456789abcdef"
Found = Sequence[Sequence[tuple[str, int, int]]]


def column(found: Found) -> pa.Array:
    made = Findings(len(found))
    for row, here in enumerate(found):
        for reason, start, stop in here:
            made.add(row, reason, start, stop, 0.9)
    return made.array()


def corpus_of(path: Path, shards: list[Any], found: list[Found]) -> Corpus:
    return make_corpus(path, shards, columns={"pii.findings": [column(f) for f in found]})


def export(
    part: str, corpus: Corpus, out: Path, plan: StepDir | None = None, **fields: Any
) -> dict[str, Any]:
    step = StepDir(out)
    step.open()
    stage: Any = find("export", part).parse({"redact": ["pii.findings"], **fields}, "steps.0")
    return dict(stage.run(Inputs(corpus, plan), step, Job(Serial(), Rng(0))))


def rows_of(part: str, out: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    if part == "hf":
        rows: list[dict[str, Any]] = datasets.load_from_disk(str(out)).to_list()
        return rows
    if part == "parquet":
        tables = [pq.read_table(out / name) for name in facts["files"]]
        found: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
        return found
    text = "".join(gzip.decompress((out / n).read_bytes()).decode() for n in facts["files"])
    return [json.loads(line) for line in text.split("\n") if line]


def log_of(out: Path) -> list[dict[str, Any]]:
    files = sorted((out / "redactions").iterdir())
    rows: list[dict[str, Any]] = pa.concat_tables([pq.read_table(f) for f in files]).to_pylist()
    return rows


TEXTS = ["mail bob@example.org é now", "nothing", "a1234b", "x"]
FOUND = [[("email", 5, 20)], [], [("phone", 1, 5), ("card", 3, 5)], []]


@pytest.mark.parametrize("part", ["jsonl", "parquet", "hf"])
def test_texts(tmp_path: Path, part: str) -> None:
    corpus = corpus_of(tmp_path, [TEXTS], [FOUND])
    facts = export(part, corpus, tmp_path / "out")
    rows = rows_of(part, tmp_path / "out", facts)
    assert [r["text"] for r in rows] == ["mail <EMAIL> é now", "nothing", "a<PHONE>b", "x"]
    assert [r["redacted"] for r in rows] == [True, False, True, False]
    ids = [key.hex() for key in content_ids(pa.table({"text": TEXTS})).to_pylist()]
    assert [r["id"] for r in rows] == ids
    log = log_of(tmp_path / "out")
    assert [(r["id"].hex(), r["reason"], r["start"], r["stop"], r["replacement"]) for r in log] == [
        (ids[0], "email", 5, 20, "<EMAIL>"), (ids[2], "phone", 1, 5, "<PHONE>"),
    ]  # fmt: skip
    assert facts["redacted_rows"] == 2
    assert facts["redactions"] == {"email": 1, "phone": 1}
    assert facts["not_replaceable"] == {}
    values = [b"bob@example", b"1234"]
    logs = b"".join(raw for name, raw in tree(tmp_path / "out" / "redactions").items())
    assert not any(value in logs or value in json.dumps(facts).encode() for value in values)
    export(part, corpus, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_a_plan_and_several_files(tmp_path: Path) -> None:
    texts = [[f"{k} {n} bob@example.org " + "x" * 300_000 for n in range(5)] for k in range(2)]
    found = [[[("email", 4, 19)] if n % 2 else [] for n in range(5)] for _ in range(2)]
    corpus = corpus_of(tmp_path, texts, found)
    order = np.random.default_rng(0).permutation(10)
    ids = [key for shard in corpus.shards() for key in shard.load(["id"])["id"].to_pylist()]
    plan = pa.table({
        "id": pa.array([ids[r] for r in order], pa.binary(16)),
        "shard": pa.array(order // 5, pa.int32()), "row": pa.array(order % 5, pa.int64()),
        "weight": pa.array(np.ones(10), pa.float32()), "position": pa.array(np.arange(10)),
        "round": pa.array(np.zeros(10), pa.int32()),
    })  # fmt: skip
    (tmp_path / "plan").mkdir()
    pq.write_table(plan, tmp_path / "plan" / "plan.parquet")
    out = tmp_path / "out"
    facts = export("parquet", corpus, out, StepDir(tmp_path / "plan"), shard_mb=1)
    assert len(facts["files"]) > 1
    rows = rows_of("parquet", out, facts)
    want = [f"{r // 5} {r % 5} " + ("<EMAIL>" if r % 5 % 2 else "bob@example.org") for r in order]
    assert [r["text"].split(" x")[0] for r in rows] == want
    assert [r["id"].hex() for r in log_of(out)] == [ids[r].hex() for r in order if r % 5 % 2]
    assert facts["redactions"] == {"email": 4}
    files = sorted(f.name for f in (out / "redactions").iterdir())
    assert files == [Path(name).stem + ".parquet" for name in facts["files"]]


def test_turns_and_halves_are_mapped_back(tmp_path: Path) -> None:
    chats = [
        [{"role": "user", "content": "I am é bob"}, {"role": "assistant", "content": ""},
         {"role": "user", "content": "call 1234"}],
        [{"role": "user", "content": "over"}, {"role": "assistant", "content": "there"}],
    ]  # fmt: skip
    table = pa.table({"messages": chats})
    assert content_texts(table) == ["I am é bob\n\ncall 1234", "over\nthere"]
    corpus = corpus_of(
        tmp_path / "c", [table], [[[("name", 7, 10), ("phone", 17, 21)], [("place", 2, 7)]]]
    )
    facts = export("jsonl", corpus, tmp_path / "out")
    rows = rows_of("jsonl", tmp_path / "out", facts)
    assert [[(m["role"], m["content"]) for m in r["messages"]] for r in rows] == [
        [("user", "I am é <NAME>"), ("assistant", ""), ("user", "call <PHONE>")],
        [("user", "ov<PLACE>"), ("assistant", "<PLACE>ere")],
    ]
    places = [(r["start"], r["stop"]) for r in log_of(tmp_path / "out")]
    assert places == [(7, 10), (17, 21), (2, 4), (5, 7)]
    pairs = pa.table({"prompt": ["mail bob", None], "response": ["bob it is", "bob"]})
    corpus = corpus_of(
        tmp_path / "p", [pairs], [[[("name", 5, 8), ("name", 9, 12)], [("name", 1, 4)]]]
    )
    facts = export("parquet", corpus, tmp_path / "out2")
    rows = rows_of("parquet", tmp_path / "out2", facts)
    assert [(r["prompt"], r["response"]) for r in rows] == [
        ("mail <NAME>", "<NAME> it is"), (None, "<NAME>"),
    ]  # fmt: skip


def test_pseudonyms_are_the_same_for_the_same_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDACT_KEY", KEY)
    texts = ["bob@example.org", "or Bob@Example.org", "eve@example.org"]
    corpus = corpus_of(
        tmp_path, [texts], [[[("email", 0, 15)], [("email", 3, 18)], [("email", 0, 15)]]]
    )
    fields = {"replacement": "pseudonym", "key_env": "REDACT_KEY"}
    facts = export("jsonl", corpus, tmp_path / "out", **fields)
    bob, other, eve = (r["text"] for r in rows_of("jsonl", tmp_path / "out", facts))
    assert bob.startswith("<EMAIL:")
    assert len(bob) == len("<EMAIL:>") + 10
    assert other == f"or {bob}"
    assert eve != bob
    monkeypatch.setenv("REDACT_KEY", KEY[::-1])
    facts = export("jsonl", corpus, tmp_path / "other", **fields)
    assert rows_of("jsonl", tmp_path / "other", facts)[0]["text"] != bob
    monkeypatch.delenv("REDACT_KEY")
    with pytest.raises(DataError, match="no key of 16 bytes"):
        export("jsonl", corpus, tmp_path / "none", **fields)


def test_several_columns_and_whole_documents(tmp_path: Path) -> None:
    columns = {
        "pii.findings": [column([[("email", 0, 4)], [("odd", -1, -1)]])],
        "secrets.findings": [column([[("jwt", 3, 9)], []])],
        "none.findings": [pa.array([None, None], FINDINGS)],
    }
    corpus = make_corpus(tmp_path, [["0123456789", "whole"]], columns=columns)
    facts = export("jsonl", corpus, tmp_path / "out", redact=list(columns))
    rows = rows_of("jsonl", tmp_path / "out", facts)
    assert [(r["text"], r["redacted"]) for r in rows] == [("<JWT>9", True), ("whole", False)]
    assert facts["redactions"] == {"jwt": 1}
    assert facts["not_replaceable"] == {"odd": 1}


def test_what_is_redacted_holds_nothing_more(tmp_path: Path) -> None:
    texts = [
        "Tel. +49 30 901820, bob@example.org",
        "IBAN GB82 WEST 1234 5698 7654 32 \u200f(עברית)",
        "",
    ]
    found = Pii().score(pa.table({"text": texts}))["findings"]
    corpus = make_corpus(tmp_path, [texts], columns={"pii.findings": [found]})
    facts = export("parquet", corpus, tmp_path / "out")
    shown = pa.table({"text": [r["text"] for r in rows_of("parquet", tmp_path / "out", facts)]})
    assert shown["text"].to_pylist()[0] == "Tel. <PHONE>, <EMAIL>"
    assert Pii().score(shown)["spans"].tolist() == [0, 0, 0]


def test_the_recipe_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    mail = "Write to bob@example.org or call +49 30 901820."
    rows = [f"{mail} Nr {n}" for n in range(3)] + ["plain words"] + [mail * 4]
    source = tmp_path / "in.jsonl"
    lines = [json.dumps({"text": t, "source": "a", "kind": "k"}) for t in rows]
    source.write_text("\n".join(lines) + "\n")
    more = ["report=false", f"data.paths=['{source}']", "data.holdout=0"]
    recipe = Recipe.read(ROOT / "configs" / "redact.yaml", more)
    done = run(make_plan(recipe, tmp_path / "out"), LocalEngine(1), lambda *_: None)
    step = done.manifest["steps"][-1]
    made = rows_of("jsonl", Path(step["path"]), step["facts"])
    hidden = [f"Write to <EMAIL> or call <PHONE>. Nr {n}" for n in range(3)]
    assert [r["text"] for r in made] == [*hidden, "plain words"]
    assert step["facts"]["redactions"] == {"email": 3, "phone": 3}


def test_other_columns_are_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, [["a"]], columns={"pii.findings": [[1.0]]})
    with pytest.raises(DataError, match="a column of findings is needed"):
        export("jsonl", corpus, tmp_path / "out")
    corpus = corpus_of(tmp_path / "far", [["short"]], [[[("email", 2, 9)]]])
    with pytest.raises(DataError, match="beyond the content"):
        export("jsonl", corpus, tmp_path / "out2")
    assert not list((tmp_path / "out2").glob("part-*"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"redact": ["a.b", "a.b"]}, "twice"),
        ({"columns": ["redacted"]}, "is there already"),
        ({"replacement": "pseudonym"}, "need key_env"),
        ({"key_env": "KEY"}, "need key_env"),
    ],
)
def test_fields_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        find("export", "jsonl").parse(fields, "steps.0")


SPANS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 30), st.integers(0, 30)), max_size=8
)


def plainly(texts: list[str], spans: list[tuple[str, int, int]]) -> list[str]:
    """Marks every character, then writes each run of marked ones within a field as a dot."""
    whole = "\n".join(texts)
    marked = {c for _, start, stop in spans for c in range(start, min(stop, len(whole)))}
    out, at = [], 0
    for text in texts:
        shown = [("" if at + k in marked else c) or "\0" for k, c in enumerate(text)]
        out.append("".join(shown))
        at += len(text) + 1
    return out


@given(st.lists(st.text("xyé\n三", max_size=9), min_size=1, max_size=4), SPANS)
def test_exactly_the_marked_characters_go(texts: list[str], spans: list[Any]) -> None:
    total = len("\n".join(texts))
    spans = [(r, min(s, e), min(max(s, e), total)) for r, s, e in spans if min(s, e) <= total]
    table = pa.table({
        "id": pa.array([b"0" * 16], pa.binary(16)),
        "messages": [[{"role": "u", "content": t} for t in texts]],
        "f.findings": pa.chunked_array([column([spans])]),
    })  # fmt: skip
    redacting = Redacting(["f.findings"])
    made, log = redacting.table(table)
    got = [m["content"] for m in made["messages"][0].as_py()]
    marked = plainly(texts, spans)
    for text, want in zip(got, marked, strict=True):
        kept = [c for c in want if c != "\0"]
        bare = text.replace("<A>", "").replace("<B>", "").replace("<C>", "")
        assert bare == "".join(kept)
        assert ("<" in text) == ("\0" in want)
    gone = sum(want.count("\0") for want in marked)
    assert sum(r["stop"] - r["start"] for r in log.to_pylist()) == gone
    assert made["redacted"].to_pylist() == [gone > 0]


def test_overlaps_become_one_named_by_the_longest() -> None:
    made = [Finding("b", 2, 5), Finding("a", 2, 5), Finding("c", 4, 9), Finding("d", 9, 10),
            Finding("e", 3, 3), Finding("f")]  # fmt: skip
    assert [tuple(s) for s in merged(made)] == [("c", 2, 9), ("d", 9, 10)]
    assert [s.reason for s in merged(made[:2])] == ["a"]
    assert merged(made[::-1]) == merged(made)
