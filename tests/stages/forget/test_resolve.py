"""What a request means: keys, copies of every kind, all rows alike, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline import personal
from foresift.pipeline.errors import DataError
from foresift.pipeline.tables import hex_id
from foresift.stages.forget import copies
from foresift.stages.forget._find_index import Index, Sought
from foresift.stages.forget._find_keys import Entity, fold, text_id
from foresift.stages.forget._find_words import Text, alike, common, inside, spans
from foresift.stages.forget.copies import Measure, Unit
from foresift.stages.forget.resolved import FOUND
from tests.corpora import Serial
from tests.runs import ROOT
from tests.stages.forget.deletions import plan_folder
from tests.stages.forget.finding import STORY, ask, edited, made, store, told, write

OTHERS = [(f"other/{n}", made(60, 5000 + n)) for n in range(20)]


# -- measures of likeness ----------------------------------------------------------------------


def longest(a: list[int], b: list[int]) -> int:
    """The longest common subsequence by the table of its definition."""
    row = [0] * (len(b) + 1)
    for x in a:
        last = row
        row = [0]
        for j, y in enumerate(b):
            row.append(last[j] + 1 if x == y else max(last[j + 1], row[j]))
    return row[-1]


@given(st.lists(st.integers(0, 4), max_size=80), st.lists(st.integers(0, 4), max_size=80))
@settings(max_examples=60, deadline=None)
def test_common_subsequence_is_that_of_the_table(a: list[int], b: list[int]) -> None:
    one, two = np.array(a, dtype=np.uint64), np.array(b, dtype=np.uint64)
    assert common(one, two) == common(two, one) == longest(a, b)
    assert 0 <= alike(one, two) <= 1


def test_one_word_of_ten_costs_a_tenth_however_long_the_text() -> None:
    for size in (10, 100):
        text = made(size)
        other = edited(text, 0.1)
        a, b = (Text.of(t.encode()).words for t in (text, other))
        assert alike(a, b) == pytest.approx(0.9)


def test_case_punctuation_and_space_are_no_difference_and_numbers_are() -> None:
    a = Text.of(b"It costs 12 dollars, he said.").words
    assert alike(a, Text.of("IT  COSTS\n12 dollars; he \u2014 said".encode()).words) == 1
    assert alike(a, Text.of(b"It costs 13 dollars, he said.").words) == pytest.approx(5 / 6)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_stretches_are_those_found_by_trying_all(
    a: list[int], size: int, data: st.DataObject
) -> None:
    b = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=30))
    one, two = (Text.of(" ".join(f"w{x}" for x in t).encode()) for t in (a, b))
    runs = {tuple(b[j : j + size]) for j in range(len(b) - size + 1)}
    want = np.zeros(len(a), dtype=bool)
    for i in range(len(a) - size + 1):
        if tuple(a[i : i + size]) in runs:
            want[i : i + size] = True
    got = np.zeros(len(a), dtype=bool)
    for start, stop in spans(one, two, size):
        got[start:stop] = True
    assert got.tolist() == want.tolist()


def test_a_passage_is_found_in_the_stretch_that_holds_it() -> None:
    passage, page = made(40, 1), made(400, 2)
    text = f"{page} {edited(passage, 0.1)} {page}"
    assert inside(Text.of(passage.encode()), Text.of(text.encode()), 3) == pytest.approx(0.9)
    assert inside(Text.of(passage.encode()), Text.of(page.encode()), 3) < 0.6


def test_the_index_misses_no_near_copy_that_comparing_all_pairs_finds() -> None:
    sought = [made(size, size) for size in (9, 20, 60, 300)]
    texts = [
        edited(text, share, seed) for text in sought for share in (0.02, 0.05, 0.1, 0.15)
        for seed in range(5)
    ] + [made(60, 1000 + n) for n in range(20)]  # fmt: skip
    index = Index.of([Sought(text_id(t), 0, t.encode()) for t in sought], 8, 50)
    group = [Unit(n, t.encode(), False) for n, t in enumerate(texts)]
    best = {h.row: h.similarity for h in copies._hits(index, 0.8, group) if h.reason == "near"}
    want = {}
    for n, text in enumerate(texts):
        all_pairs = [alike(Text.of(s.encode()).words, Text.of(text.encode()).words) for s in sought]
        if max(all_pairs) >= 0.8:
            want[n] = max(all_pairs)
    assert len(want) > 60
    assert best == pytest.approx(want)


# -- keys --------------------------------------------------------------------------------------


def test_a_key_is_the_head_of_a_path_at_the_end_of_a_component(tmp_path: Path) -> None:
    rows = [(s, made(20, n)) for n, s in enumerate(["clinic/p1", "clinic/p1/a", "clinic/p1#3"])]
    rows += [("clinic/p12/b", made(20, 8)), ("other/clinic/p1", made(20, 9)), *OTHERS]
    history = store(tmp_path, rows)
    for value in ("clinic/p1", "clinic/p1/"):
        found = told(ask(history, ("key", value)))
        assert found == dict.fromkeys(["clinic/p1", "clinic/p1/a", "clinic/p1#3"], "key")
    assert set(told(ask(history, ("key", "clinic")))) == {s for s, _ in rows[:4]}


def test_a_document_is_all_rows_of_its_id(tmp_path: Path) -> None:
    history = store(tmp_path, [("a", STORY), ("b", STORY), *OTHERS])
    found = ask(history, ("document", hex_id(text_id(STORY))))
    assert told(found) == {"a": "document", "b": "document"}
    assert found.rows.schema == FOUND
    assert found.ids.to_pylist() == [text_id(STORY)]


def test_a_text_is_found_in_turns_and_halves_where_it_equals_one(tmp_path: Path) -> None:
    pairs = [
        ("asked", {"prompt": STORY, "response": made(9, 3)}),
        ("shouted", {"prompt": made(9, 4), "response": STORY.upper()}),
        ("none", {"prompt": made(30, 5), "response": made(30, 6)}),
        ("third", {"prompt": made(30, 7), "response": made(30, 8)}),
        ("both", {"prompt": "Is it so?", "response": "Yes, it is."}),
    ]
    history = store(tmp_path / "pairs", pairs, data={"prompt": "prompt", "response": "response"})
    assert told(ask(history, ("text", STORY))) == {"asked": "text", "shouted": "exact"}
    assert told(ask(history, ("text", "Is it so?"))) == {"both": "text"}
    turns = [
        ("chat", {"messages": [
            {"role": "user", "content": "Tell me"}, {"role": "assistant", "content": STORY},
        ]}),
        ("quiet", {"messages": [{"role": "user", "content": made(30)}]}),
        ("calm", {"messages": [{"role": "user", "content": made(30, 1)}]}),
    ]  # fmt: skip
    history = store(tmp_path / "chats", turns, data={"messages": "messages"})
    assert told(ask(history, ("text", STORY))) == {"chat": "text"}


def test_a_document_is_no_copy_of_a_short_turn(tmp_path: Path) -> None:
    aim = write(tmp_path / "aim.jsonl", [("plain", "Yes, it is.")])
    pairs = [(f"p/{n}", {"prompt": made(9, n), "response": "Yes, it is."}) for n in range(4)]
    history = store(
        tmp_path, pairs, data={"prompt": "prompt", "response": "response"},
        datasets={"aim": {"read": "jsonl", "paths": [str(aim)], "source": "source"}},
    )  # fmt: skip
    assert len(history.bases) == 2
    assert told(ask(history, ("key", "plain"))) == {"plain": "key"}
    assert len(ask(history, ("text", "Yes, it is."), allow_all=True).rows) == 5


@pytest.mark.parametrize(
    ("name", "text", "stands"),
    [
        ("Müller", "Frau MÜLLER ist krank", True),
        ("Müller", "Frau Mu\u0308ller ist krank", True),
        ("STRASSE", "an der Straße", True),
        ("Ann Lee", "said ann\n  lee.", True),
        ("Ann", "Annabel said", False),
        ("Ann", "x_Ann", False),
        ("李明", "昨天李明来了", True),
        ("C++", "in C++, not C", True),
    ],
)
def test_an_entity_is_bounded_by_words_in_any_case(name: str, text: str, stands: bool) -> None:
    assert Entity(name).stands_in(fold(text)) is stands


def test_entities_are_found_with_their_copies(tmp_path: Path) -> None:
    text = f"{STORY} Signed, Ada Poe."
    rows = [("a", text), ("b", text.replace("Ada Poe", "A P")), ("c", "adapoe"), *OTHERS]
    found = told(ask(store(tmp_path, rows), ("entity", "ada poe")))
    assert found == {"a": "entity", "b": "near"}


def test_licences_and_personal_values_are_looked_up_in_their_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PII_KEY", "sixteen bytes or more")
    rows = [
        ("mit", "Permission is hereby granted, free of charge, to any person obtaining a copy."),
        ("spdx", "# SPDX-License-Identifier: MIT OR Apache-2.0\nprint(1)"),
        ("mail", "Write to ada@poe.example.org about it, please."),
        *OTHERS,
    ]
    steps = [{"score": "licence"}, {"score": "pii", "key_env": "PII_KEY"}]
    history = store(tmp_path, rows, steps=steps)
    assert told(ask(history, ("licence", "mit"))) == {"mit": "licence", "spdx": "licence"}
    value = personal.keyed("email", "ADA@poe.example.org", b"sixteen bytes or more")
    assert told(ask(history, ("personal", value.hex()))) == {"mail": "personal"}
    with pytest.raises(DataError, match=r"32 hex digits.*not the value itself"):
        ask(history, ("personal", "ada@poe.example.org"))


def test_a_level_without_its_score_says_which_step_to_add(tmp_path: Path) -> None:
    history = store(tmp_path, OTHERS)
    for level, step in (("licence", "licence"), ("personal", "pii")):
        with pytest.raises(DataError, match=f"add the step `score: {step}`"):
            ask(history, (level, "MIT"))


def test_many_keys_name_what_each_names_alone(tmp_path: Path) -> None:
    rows = [(f"clinic/p{n}#{m}", made(30, 40 * n + m)) for n in range(12) for m in range(2)]
    rows += [("note", "Ada Poe was here"), *OTHERS]
    history = store(tmp_path, rows)
    keys = [("entity", "Ada Poe"), *(("key", f"clinic/p{n}/") for n in range(10))]
    keys += [("document", hex_id(text_id(rows[22][1]))), ("key", "clinic/p3")]
    found = ask(history, *keys, allow_all=True)
    want = {f"clinic/p{n}#{m}": "key" for n in range(10) for m in range(2)}
    assert told(found) == want | {"note": "entity", "clinic/p11#0": "document"}
    assert not found.unmatched
    assert set(found.rows["key"].to_pylist()) == set(range(12))


# -- copies ------------------------------------------------------------------------------------


def test_copies_of_every_kind_are_found_and_paraphrases_are_not(tmp_path: Path) -> None:
    long = made(200, 77)
    rows = [
        ("seed/1", STORY), ("seed/2", long),
        ("exact", STORY), ("shouted", STORY.upper() + "!"), ("spaced", STORY.replace(" ", "\n ")),
        ("near", edited(STORY, 0.1)), ("cut", " ".join(STORY.split(" ")[4:])),
        ("page", f"{made(90, 5)} {STORY} {made(90, 6)}"),
        ("edited page", f"{made(90, 7)} {edited(STORY, 0.1)} {made(90, 8)}"),
        ("chunk", f"{made(150, 9)} {' '.join(long.split()[60:115])}"),
        ("too little", f"{made(150, 10)} {' '.join(long.split()[60:105])}"),
        ("paraphrase", "Close to a stream a fast fox leapt across a sleepy hound; kids threw a"
                       " ball and the grown-ups discussed how sunny it had been lately"),
        *OTHERS,
    ]  # fmt: skip
    found = ask(store(tmp_path, rows), ("key", "seed"))
    assert told(found) == {
        "seed/1": "key", "seed/2": "key", "exact": "exact", "shouted": "exact", "spaced": "exact",
        "near": "near", "cut": "near", "page": "substring", "edited page": "substring",
        "chunk": "substring",
    }  # fmt: skip
    by = {r["source"]: r for r in found.rows.to_pylist()}
    assert by["near"]["of"] == text_id(STORY)
    assert by["near"]["similarity"] == pytest.approx(0.91, abs=0.02)
    assert by["chunk"]["similarity"] == pytest.approx(55 / 200)
    assert told(ask(store(tmp_path, rows), ("key", "seed"), expand=False)) == {
        "seed/1": "key", "seed/2": "key",
    }  # fmt: skip


def test_held_out_and_dropped_rows_and_other_data_sets_count(tmp_path: Path) -> None:
    aim = write(tmp_path / "aim.jsonl", [("aim/1", STORY), ("aim/2", made(40, 50))])
    rows = [("a", STORY), ("b", STORY), ("c", STORY.upper()), *OTHERS]
    history = store(
        tmp_path, rows, data={"holdout": 0.5},
        steps=[{"dedup": "exact", "normalise": True}, {"score": "length"},
               {"select": "topk", "by": "length.chars", "budget": "2 rows"}],
        datasets={"aim": {"read": "jsonl", "paths": [str(aim)], "source": "source"}},
    )  # fmt: skip
    found = ask(history, ("text", STORY))
    assert told(found) == {"a": "text", "b": "text", "c": "exact", "aim/1": "text"}
    assert found.rows["base"].to_pylist() == [0, 0, 0, 1]
    kept = pq.read_table(history.run.plan).filter(pc.field("kept"))
    assert not set(kept["source"].to_pylist()) & {"a", "b", "c"}
    others = ask(history, ("key", "other"), allow_all=True)
    assert len(others.rows) == 20
    holdout = [np.asarray(s.load(["holdout"])["holdout"]).sum() for s in history.bases[0].shards()]
    assert 0 < sum(holdout) < 23


def test_neither_order_nor_shards_nor_passes_change_what_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [made(150, 300 + n) for n in range(3)]
    rows = [(f"seed/{n}", t) for n, t in enumerate(long)]
    rows += [(f"near/{n}", edited(t, 0.08)) for n, t in enumerate(long)]
    rows += [(f"page/{n}", f"{made(80, n)} {t[:600]} {made(80, n)}") for n, t in enumerate(long)]
    rows += [("again/0", rows[3][1]), *OTHERS]
    first = ask(store(tmp_path / "a", rows), ("key", "seed"))
    order = np.random.default_rng(0).permutation(len(rows))
    other = store(tmp_path / "b", [rows[i] for i in order])
    monkeypatch.setattr(copies, "WORDS", 1)
    monkeypatch.setattr(copies, "GROUP_BYTES", 1000)
    second = ask(other, ("key", "seed"), engine=Serial(3))

    def content(found):  # type: ignore[no-untyped-def]
        names = ("source", "id", "reason", "similarity", "of")
        return sorted(tuple(r[n] for n in names) for r in found.rows.to_pylist())

    assert content(first) == content(second)
    assert told(first)["again/0"] == told(first)["near/0"] == "near"


def test_what_many_documents_share_is_boilerplate_and_they_are_suspects(tmp_path: Path) -> None:
    notice = made(60, 900)
    rows = [("seed", f"{made(200, 1)} {notice}")]
    rows += [(f"page/{n}", f"{made(150, 10 + n)} {notice}") for n in range(11)]
    rows += [("copied", f"{' '.join(made(200, 1).split()[:60])} {made(150, 30)} {notice}")]
    found = ask(store(tmp_path, rows), ("key", "seed"))
    assert told(found) == {"seed": "key", "copied": "substring"}
    assert set(found.suspects["source"].to_pylist()) == {f"page/{n}" for n in range(11)}
    assert any("11 rows share only passages" in line for line in found.warnings)
    wide = ask(store(tmp_path, rows), ("key", "seed"), measure=Measure(common=50), allow_all=True)
    assert len(wide.rows) == 13


def test_semantic_copies_are_suspects_only(tmp_path: Path) -> None:
    words = STORY.split(" ")
    rows = [("seed", STORY), ("mixed", " ".join(words[::-1])), *OTHERS]
    score = {"score": "tests.stages.forget.finding:Direction", "as": "embedding"}
    found = ask(store(tmp_path, rows, steps=[score]), ("key", "seed"))
    assert told(found) == {"seed": "key"}
    assert found.suspects["source"].to_pylist() == ["mixed"]
    assert found.suspects["reason"].to_pylist() == ["semantic"]
    assert found.suspects["of"].to_pylist() == [text_id(STORY)]


# -- what it refuses ---------------------------------------------------------------------------


def test_a_request_that_matches_nothing_names_what_is_near(tmp_path: Path) -> None:
    history = store(tmp_path, [("clinic/p1/a", STORY), *OTHERS])
    with pytest.raises(DataError, match=r"r-1.*nothing matches.*'clinc/p1'; nearest: 'clinic/p1'"):
        ask(history, ("key", "clinc/p1"))
    with pytest.raises(DataError, match=f"no document {'0' * 32} was read"):
        ask(history, ("document", "0" * 32))
    with pytest.raises(DataError, match="nothing matches: entity 'Nobody' matches nothing"):
        ask(history, ("entity", "Nobody"))
    with pytest.raises(DataError, match=r"'p/0'; nearest.*'p/2'; nearest[^;]*; 997 more keys"):
        ask(history, *(("key", f"p/{n}") for n in range(1000)))


def test_a_key_that_matches_nothing_among_others_is_told(tmp_path: Path) -> None:
    history = store(tmp_path, [("a", STORY), *OTHERS])
    found = ask(history, ("document", "0" * 32), ("text", STORY), ("text", made(9, 999)))
    assert list(found.unmatched) == [0, 2]
    assert found.warnings[0] == f"no document {'0' * 32} was read"
    assert told(found) == {"a": "text"}


def test_a_text_that_only_its_near_copies_hold_is_matched(tmp_path: Path) -> None:
    history = store(tmp_path, [("a", edited(STORY, 0.05)), *OTHERS])
    found = ask(history, ("text", STORY))
    assert told(found) == {"a": "near"}
    assert not found.unmatched
    assert found.rows["of"].to_pylist() == [text_id(STORY)]


def test_a_request_that_matches_everything_is_refused_unless_allowed(tmp_path: Path) -> None:
    history = store(tmp_path, [(f"all/{n}", t) for n, (_, t) in enumerate(OTHERS)])
    with pytest.raises(DataError, match=r"means 20 of 20 rows, more than 50%"):
        ask(history, ("key", "all"))
    assert len(ask(history, ("key", "all"), allow_all=True).rows) == 20


def test_the_same_name_for_other_keys_contradicts(tmp_path: Path) -> None:
    history = store(tmp_path, [("a", STORY), ("b", made(30)), *OTHERS])
    folder = plan_folder(history.out, "r-1", [])
    earlier = {"id": "r-1", "keys": [{"level": "key", "value": "a"}], "status": "planned"}
    (folder / "request.json").write_text(json.dumps(earlier))
    assert told(ask(history, ("key", "a"))) == {"a": "key"}
    with pytest.raises(DataError, match=r"contradicts.*asks for key 'a'.*this one for key 'b'"):
        ask(history, ("key", "b"))
    assert told(ask(history, ("key", "b"), name="r-2")) == {"b": "key"}


def test_on_real_data_exact_copies_are_found_and_nearly_all_near_ones(shared_data: Path) -> None:
    if not (shared_data / "unlearning").is_dir():
        pytest.skip("needs ../shared/data/unlearning")
    command = [sys.executable, "benchmarks/forget_requests.py", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    goals = json.loads(done.stdout.splitlines()[-1])["goals"]
    assert all(goal["met"] for goal in goals if "worst" not in goal["name"]), goals
    assert next(g for g in goals if g["name"] == "exact copies found")["measured"] == 1
