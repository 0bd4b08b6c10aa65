"""The hard cut and the soft score against plain sets of n-grams; planted items; short ones."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import findings
from foresift.pipeline.nouns import Reference
from foresift.pipeline.tables import content_ids
from foresift.scorers._contamination import WORD, Postings, Words, occurs, runs
from foresift.scorers.contamination import Contamination
from tests.corpora import make_corpus
from tests.runs import go

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ITEM = (
    "Nora sells lemonade at nine stands and each stand needs four large jugs of water, so how many "
    "jugs must she carry on Monday morning before the market opens at seven?"
)


def filler(n: int, seed: int) -> str:
    return " ".join(f"w{seed}x{k}" for k in range(n))


def run(
    pool: Sequence[str | None], sets: dict[str, Any], out: Path, **fields: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    out.mkdir(parents=True, exist_ok=True)
    references = tuple(
        Reference(name, make_corpus(out / "of" / name, [rows])) for name, rows in sets.items()
    )
    part = Contamination(reference="x", **fields)
    table = pa.table({"text": pa.array(list(pool), pa.string())})
    table = table.append_column("id", content_ids(table))
    half = len(pool) // 2
    facts = part.fit([table.slice(0, half), table.slice(half)], references, out)
    return dict(part.score(table, out)), facts


def pairs(rows: Sequence[tuple[str, str]]) -> pa.Table:
    return pa.table({"prompt": [q for q, _ in rows], "response": [a for _, a in rows]})


def test_thirteen_words_in_a_row_hit_and_twelve_do_not(tmp_path: Path) -> None:
    words = ITEM.split()
    pool = [
        f"{filler(30, 1)} {' '.join(words[5:18])} {filler(30, 2)}",
        f"{filler(30, 3)} {' '.join(words[5:17])} {filler(30, 4)}",
        f"{filler(30, 5)} {' '.join(words[5:17])} another {' '.join(words[17:29])}",
    ]
    found, facts = run(pool, {"q": [ITEM]}, tmp_path)
    assert found["hit"].tolist() == [True, False, False]
    assert found["contaminated"].tolist() == [True, False, False]
    assert found["ngrams"].tolist() == [1, 0, 0]
    assert found["share"][0] == pytest.approx(1 / (len(words) - 12))
    assert found["set"] == ["q", None, None]
    assert found["item"][0] == "made/0#0"
    span = next(iter(findings(found["findings"])))
    assert [pool[0][f.start : f.stop] for f in span] == [" ".join(words[5:18])]
    assert (span[0].reason, span[0].value) == ("ngram_overlap", 13)
    assert facts["sets"] == {"q": {"items": 1, "left_out": 0, "found": 1}}


def test_case_punctuation_and_spaces_do_not_hide_an_item(tmp_path: Path) -> None:
    hidden = f"{filler(9, 1)}. " + ITEM.upper().replace(" ", "\n  ").replace(",", " -- ")
    found, _ = run([hidden, "She can't: it's Nora's."], {"q": [ITEM]}, tmp_path)
    assert found["score"].tolist() == [1.0, 0.0]
    assert found["share"][0] == 1.0
    assert [m.lower() for m in WORD.findall("Don't STOP_me, 東京 x2")] == [
        "don't", "stop", "me", "東", "京", "x2",
    ]  # fmt: skip
    same = Words.of(["Don’t", "dont"])
    assert same.ids[0] == same.ids[1]


def test_a_paraphrase_is_not_counted(tmp_path: Path) -> None:
    other = (
        "Lemonade is sold by Nora at nine different stands. Every stand must get four big jugs of "
        "water. What number of jugs does she have to bring before seven on Monday?"
    )
    found, _ = run([other, ITEM], {"q": [ITEM]}, tmp_path)
    assert found["contaminated"].tolist() == [False, True]
    assert found["score"][0] < 0.2


def test_a_changed_word_in_a_long_item_is_still_found_by_the_score(tmp_path: Path) -> None:
    long = [f"v{k}" for k in range(120)]
    holes = [w if k % 11 else "changed" for k, w in enumerate(long)]  # never 13 in a row
    few = [w if k % 60 else "changed" for k, w in enumerate(long)]
    found, _ = run(
        [" ".join(holes), " ".join(few)], {"q": [" ".join(long)]}, tmp_path, common=0, n=60
    )
    assert found["hit"].tolist() == [False, False]
    # 65 and 110 of 116 grams; those that the pool has weigh a little less
    assert 0.45 < found["score"][0] < 65 / 116
    assert 0.9 < found["score"][1] < 110 / 116
    assert found["contaminated"].tolist() == [False, True]
    spans = list(findings(found["findings"]))[1]
    assert {f.reason for f in spans} == {"soft_overlap"}
    assert len(spans) == 2


def test_short_items_take_their_answer_along_and_need_all_of_it(tmp_path: Path) -> None:
    asked = [("In which year did the tower open to visitors?", "in 1889"), ("Who?", "Eiffel")]
    pool = [
        "In 1889 many things happened, and Eiffel was there.",
        "Quiz: in which year did the tower open to visitors? In 1889!",
        "Quiz: in which year did the tower open to visitors? Nobody knows.",
    ]
    found, facts = run(pool, {"q": pairs(asked)}, tmp_path)
    assert found["contaminated"].tolist() == [False, True, False]
    assert found["hit"].tolist() == [False, False, False]
    assert found["score"][1] == 1.0
    assert 0.5 < found["score"][2] < 1
    assert np.isnan(found["share"][1])
    assert facts["sets"]["q"] == {"items": 1, "left_out": 1, "found": 0}


def test_the_answer_counts_where_the_question_stands(tmp_path: Path) -> None:
    sets = {"q": pairs([(ITEM, "36 jugs"), (ITEM, "40 jugs")])}
    pool = [
        f"{ITEM} The solution: 36 jugs.",
        f"36 jugs. {filler(30, 1)} {ITEM}",
        f"{ITEM} {filler(200, 2)} 36 jugs",
        "36 jugs",
    ]
    found, facts = run(pool, sets, tmp_path)
    assert found["answer"] == [True, False, False, None]
    assert facts["sets"]["q"]["items"] == 1


def test_common_phrases_are_no_hits_but_whole_items_are_found(tmp_path: Path) -> None:
    pool = [f"{filler(20, k)} {ITEM}" for k in range(11)] + [filler(50, 99)] * 3
    found, facts = run(pool, {"q": [ITEM]}, tmp_path)
    assert not found["hit"].any()
    assert found["contaminated"].tolist() == [True] * 11 + [False] * 3
    assert facts["common"] == len(ITEM.split()) - 12
    copies = [pool[0]] * 30 + [pool[1]]
    found, facts = run(copies, {"q": [ITEM]}, tmp_path / "copies")
    assert found["hit"].all()
    assert facts["common"] == 0


def test_what_items_share_weighs_little(tmp_path: Path) -> None:
    head = "Which of the following statements about the topic of the lecture is true:"
    items = [f"{head} {filler(8, k)}" for k in range(40)]
    found, _ = run([f"{head} {filler(60, 77)}", items[3]], {"q": items}, tmp_path, n=16)
    assert found["contaminated"].tolist() == [False, True]
    assert found["score"][0] < 0.4
    assert found["item"][1] == "made/0#3"


def test_items_held_out_of_the_reference_are_searched_for(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "of", [[ITEM, filler(40, 1)]], holdout=[[True, False]])
    table = pa.table({"text": [ITEM]})
    table = table.append_column("id", content_ids(table))
    part = Contamination(reference="x")
    part.fit([table], (Reference("q", corpus),), tmp_path)
    assert part.score(table, tmp_path)["hit"].tolist() == [True]


def plain(pool: Sequence[str], items: Sequence[str], n: int, gram: int) -> Any:
    """(hits, scores) from sets of tuples of words."""

    def grams(text: str, size: int) -> set[tuple[str, ...]]:
        words = [w.lower() for w in text.split()]
        return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}

    total = len(pool) + len(items)
    seen = Counter(g for t in dict.fromkeys(pool) for g in grams(t, gram))
    spread = Counter(g for t in items for g in grams(t, gram))
    weight = {g: math.log1p(total / (1 + seen[g] + spread[g])) for g in spread}
    hits = [any(grams(t, n) & grams(i, n) for i in items) for t in pool]
    scores = [
        max(
            sum(weight[g] for g in grams(t, gram) & grams(i, gram))
            / sum(weight[g] for g in grams(i, gram))
            for i in items
        )
        for t in pool
    ]
    return hits, scores


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_it_is_what_plain_sets_give(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def texts(count: int, least: int) -> list[str]:
        return [" ".join(rng.choice(list("abcdef"), rng.integers(least, 30))) for _ in range(count)]

    items = [t for t in dict.fromkeys(texts(6, 9)) if len(set(t.split())) >= 4]
    pool = texts(8, 0)
    if not items:
        return
    out = tmp_path_factory.mktemp("plain")
    found, _ = run(pool, {"q": items}, out, n=6, gram=3, common=0, shortest=6)
    hits, scores = plain(pool, items, 6, 3)
    assert found["hit"].tolist() == hits
    np.testing.assert_allclose(found["score"], scores, atol=1e-12)


def test_stretches_and_places() -> None:
    assert list(runs(np.array([7, 3, 4, 20]), 3)) == [(3, 10), (20, 23)]
    assert list(runs(np.array([], dtype=np.int64), 3)) == []
    words = Words.of(["a b c d e", "", "a b"])
    hashes, first, text = words.grams(2)
    assert (first.tolist(), text.tolist()) == ([0, 1, 2, 3, 5], [0, 0, 0, 0, 2])
    assert hashes[0] == hashes[4]
    assert len(set(hashes.tolist())) == 4
    assert occurs(words.ids[1:3], words.ids[:5])
    assert not occurs(words.ids[1:3], words.ids[:2])
    empty = Postings.of(Words.of([""]), 2, np.arange(1))
    assert empty.look_up(hashes).tolist() == [-1] * 5


def test_no_item_that_can_be_searched_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no evaluation item has 8 words"):
        run(["a"], {"q": ["too short", "the the the the the the the the the the"]}, tmp_path)


@pytest.mark.parametrize(
    "fields", [{"gram": 14}, {"threshold": 0}, {"common": -1}, {"shortest": 2}, {"gram": 0}]
)
def test_fields_without_meaning_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"gram|threshold|common"):
        Contamination(reference="x", **fields)


def test_every_planted_question_of_gsm8k_is_found(tmp_path: Path) -> None:
    file = DATA / "eval" / "decon" / "gsm8k_test-1.jsonl.gz"
    if not file.exists():
        pytest.skip("no data at ../shared/data")
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    rng, texts = np.random.default_rng(0), [r["question"] for r in rows]
    chosen = rng.permutation(len(texts))
    planted = [f"{filler(40, k)}\n{texts[i]}\n{filler(40, -k)}" for k, i in enumerate(chosen[:200])]
    clean = [texts[i] for i in chosen[200:400]]  # other questions: not in the set that is searched
    sets = {"gsm8k": [texts[i] for i in chosen[:200]]}
    found, facts = run([*planted, *clean], sets, tmp_path)
    assert found["contaminated"][:200].all()
    assert found["contaminated"][200:].sum() == 0
    assert facts["sets"]["gsm8k"]["left_out"] == 0


def test_a_pool_that_holds_an_item_as_a_document_is_what_it_is_for(tmp_path: Path) -> None:
    lines = {"pool": [ITEM, filler(60, 1), filler(60, 2)], "items": [ITEM]}
    for name, texts in lines.items():
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    done = go(
        {
            "name": "leaks", "report": False,
            "data": {"read": "jsonl", "paths": [f"{tmp_path}/pool.jsonl"], "holdout": 0},
            "steps": [
                {"score": "contamination", "reference": f"{tmp_path}/items.jsonl"},
                {"select": "where", "keep": "not contamination.contaminated"},
            ],
        },
        tmp_path / "out",
    )  # fmt: skip
    assert done.manifest["accounts"]["kept"] == 2
