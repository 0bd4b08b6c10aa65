"""Gopher, C4 and FineWeb: by hand, against a plain version, in any batch, and on bad input."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresift.pipeline.engines.local import LocalEngine
from foresift.pipeline.findings import Finding, findings
from foresift.pipeline.planner import make_plan
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import run
from foresift.scorers.heuristics import Heuristics
from tests.runs import ROOT
from tests.scorers import plain_heuristics as plain

DECISIONS = ("gopher_quality", "gopher_repetition", "c4", "fineweb")
SENTENCE = "The committee met on Tuesday to talk about the plans that people have with the city. "


def score(texts: list[str | None], **fields: Any) -> dict[str, list[Any]]:
    batch = pa.table({"text": pa.array(texts, pa.string())})
    found = Heuristics(**fields).score(batch)
    assert list(found) == list(Heuristics.columns)
    given = {
        name: pa.array(values, Heuristics.columns[name].dtype) for name, values in found.items()
    }
    assert {len(v) for v in given.values()} == {len(texts)}
    return {name: values.to_pylist() for name, values in given.items()}


def found_in(text: str, **fields: Any) -> list[Finding]:
    batch = pa.table({"text": [text]})
    return next(iter(findings(Heuristics(**fields).score(batch)["findings"])))


def reasons(text: str, **fields: Any) -> set[str]:
    return {f.reason for f in found_in(text, **fields)}


def prose(words: int) -> str:
    """Different words, stop words among them."""
    return " ".join(
        ["the", "of", *(f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(words))]
    )


# -- by hand -----------------------------------------------------------------------------------


def test_a_row_of_five_words_four_times() -> None:
    found = score(["a b c d e " * 3 + "a b c d e"])
    assert found["duplicated_5_grams"] == pytest.approx([15 / 39])
    assert found["top_2_gram"] == pytest.approx([12 / 39])
    assert {"duplicated_5_n_grams", "top_2_gram"} <= reasons("a b c d e " * 3 + "a b c d e")


def test_of_equally_frequent_rows_the_first_counts() -> None:
    assert score(["aaaa b x c dd y aaaa b z c dd"])["top_2_gram"] == pytest.approx([12 / 29])
    assert score(["c dd y aaaa b x c dd z aaaa b"])["top_2_gram"] == pytest.approx([8 / 29])
    assert score(["aaa bb cccc"])["top_2_gram"] == pytest.approx([6 / 11])  # none occurs twice
    assert score(["alone"])["top_2_gram"] == [0]


def test_a_scan_goes_on_behind_a_repeated_row() -> None:
    # 1 2 3 4 5 | 1 2 3 4 5 | 1 2 3 4 5: the two later rows count, the rows across do not
    assert score(["p q r s t p q r s t p q r s t"])["duplicated_5_grams"] == pytest.approx(
        [10 / 29]
    )


def test_49_words_are_too_few_and_50_are_not() -> None:
    assert "gopher_short_doc" in reasons(prose(47))
    assert "gopher_short_doc" not in reasons(prose(48))
    assert score([prose(47), prose(48)])["spoken_words"] == [49, 50]
    assert "gopher_long_doc" in reasons(prose(48), max_doc_words=49)


def test_stop_words_are_compared_as_they_are_written() -> None:
    assert score(["The sum of", "the sum of", "of of of"])["stop_words"] == [1, 2, 1]
    assert score(["Le chat"], stop_words=("Le", "chat"))["stop_words"] == [2]


def test_marks_are_words_but_not_spoken_ones() -> None:
    found = score(['He said: "no" (twice) - # ...'])
    assert found["words"] == [12]  # He said : " no " ( twice ) - # ...
    assert found["spoken_words"] == [4]
    assert found["mean_word_length"] == pytest.approx([13 / 4])
    assert found["hash_ratio"] == pytest.approx([1 / 12])
    assert found["ellipsis_ratio"] == pytest.approx([1 / 12])
    assert found["alphabetic_words"] == pytest.approx([4 / 12])


def test_bullets_and_ellipses_of_lines() -> None:
    found = score(["- one\n  • two…\nthree ...\r\n\nfour....\x0b-five"])
    assert found["bullet_lines"] == pytest.approx([3 / 6])
    assert found["ellipsis_lines"] == pytest.approx([3 / 6])


def test_lines_and_paragraphs_that_are_copies() -> None:
    found = score(["ab\nab\n\n\ncd\n\nab\nab\n"])
    assert found["duplicate_lines"] == pytest.approx([3 / 6])  # a last, empty one
    assert found["duplicate_line_characters"] == pytest.approx([6 / 18])
    assert found["duplicate_paragraphs"] == pytest.approx([1 / 3])
    assert found["duplicate_paragraph_characters"] == pytest.approx([5 / 18])
    assert found["duplicate_characters"] == pytest.approx([6 / 10])


def test_c4_drops_lines_for_the_first_reason_that_holds() -> None:
    lines = [
        "x" * 1001 + " is too long.",
        "No mark at its end",
        "It goes on...",
        "Too short.",
        "Please switch on JavaScript to read this.",
        "This site uses cookies for no reason at all.",
        'He said: "One. Two! Three?" And then: "Four."',
        "It has a source.[12]",
    ]
    found = score(["\n".join(lines)])
    assert found["lines_long_word"] == [1]
    assert found["lines_no_terminal"] == [2]
    assert found["lines_few_words"] == [1]
    assert found["lines_javascript"] == [1]
    assert found["lines_policy"] == [1]
    assert found["lines_removed"] == [6]
    assert found["sentences"] == [4 + 1]
    assert found["c4"] == [True]
    kept = score(["\n".join(lines)], filter_no_terminal_punct=False)
    assert kept["lines_no_terminal"] == [0]
    assert kept["sentences"] == [7]


def test_what_drops_a_document_is_found_where_it_stands() -> None:
    text = "Straße { no mark\nÄ first line of it.\nThe Lorem Ipsum is { here."
    found = {f.reason: f for f in found_in(text)}
    assert text[found["lorem_ipsum"].start : found["lorem_ipsum"].stop] == "Lorem Ipsum"
    assert found["curly_bracket"][1:3] == (text.rindex("{"), text.rindex("{") + 1)
    assert not {"lorem_ipsum", "curly_bracket"} & reasons(
        text, filter_lorem_ipsum=False, filter_curly_bracket=False
    )
    assert score([text])["c4"] == [False]


def test_fineweb_numbers() -> None:
    found = score(["Short one.\n\nA line that has rather more than thirty characters 。\nend. \n"])
    assert found["terminal_lines"] == pytest.approx([2 / 3])
    assert found["short_lines"] == pytest.approx([2 / 3])
    assert found["newline_ratio"] == pytest.approx([4 / 15])


def test_a_text_that_passes_everything_and_its_findings() -> None:
    text = (
        "We wrote to the mayor about the bridge that crosses our river near the old market.\n"
        "She replied within a week and promised to have engineers look at every cracked pillar.\n"
        "Nobody believed it, because promises of this kind had been made twice before.\n"
        "In spring, however, trucks full of steel arrived with forty workers from the coast.\n"
        "By autumn children could walk to school again instead of taking a crowded ferry.\n"
        "Our letter hangs framed in her office, people say, next to a photograph of the work."
    )
    found = score([text])
    assert [found[d] for d in (*DECISIONS, "ok")] == [[True]] * 5
    assert found_in(text) == []
    assert score([text + "\n{ and one more line."])["ok"] == [False]


def test_a_finding_carries_the_number_that_decided() -> None:
    found = {f.reason: f.value for f in found_in("One two three.")}
    assert found["gopher_short_doc"] == 3
    assert found["too_few_sentences"] == 1
    assert found["short_line_ratio"] == 1


def test_rules_can_be_turned_off() -> None:
    text = "word " * 10
    off = reasons(
        text, min_doc_words=0, min_stop_words=0, min_num_sentences=-1, line_punct_thr=0,
        short_line_thr=1, top_n_grams=(9, 9, 9), dup_n_grams=(9,) * 6,
    )  # fmt: skip
    assert off == set()


def test_words_of_white_space() -> None:
    found = score(["don't, (stop)"], words="whitespace")
    assert found["words"] == [2]
    assert score(["don't, (stop)"])["words"] == [6]


@pytest.mark.parametrize(
    "fields",
    [{"top_n_grams": (0.1, 0.2)}, {"dup_n_grams": (0.1,)}, {"stop_words": ("two words",)},
     {"stop_words": ("",)}],
)  # fmt: skip
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"takes|stop_words"):
        Heuristics(**fields)


# -- against the plain version -----------------------------------------------------------------

SNIPPETS = [
    "the", "of", "and", "The", "that", "cat", "Cats", "1", "12", "3.5", "5km", "don't", "U.S.",
    "e.g.", "e-mail", "a@b.org", "http://x.org/y?z", "(see", "below)", '"quoted"', "“curly”",
    "it’s", "...", "…", "--", "-", "•", "#", "#tag", "*", "{", "}", "[1]", "[edit]",
    "[citation needed]", "lorem ipsum", "JavaScript", "use cookies", "privacy policy", "x" * 1001,
    "Straße", "नमस्ते", "漢字。", "سلام", "😀", "\u200b", "end.", "what?", "no!", "ab.Cd", ":-)",
]  # fmt: skip
GAPS = [" ", " ", " ", "\n", "\n\n", "  ", "\t", "\r\n", "\r", "\x0b", "\u2028", "\xa0", "\x85", ""]


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Lines that resemble one another, of snippets that the rules look at."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    pool = rng.sample(SNIPPETS, rng.randint(1, 12))
    lines = []
    for _ in range(draw(st.integers(0, 14))):
        if lines and rng.random() < 0.3:
            lines.append(rng.choice(lines))
            continue
        parts = [rng.choice(pool) for _ in range(rng.randint(0, 12))]
        lines.append(
            "".join(p + rng.choice(GAPS[:3] if rng.random() < 0.8 else GAPS) for p in parts)
        )
    return rng.choice(["\n", "\n", ". ", "\n\n"]).join(lines)


def check(texts: list[str]) -> None:
    found = score(texts)
    for row, text in enumerate(texts):
        numbers, out = plain.c4(text)
        for rules in (plain.quality(text), plain.repetition(text), plain.fineweb(text), numbers):
            for name, value in rules.items():
                mine = found[name][row]
                assert mine == pytest.approx(value, nan_ok=True, rel=1e-6), (name, text)
        assert out == bool({"lorem_ipsum", "curly_bracket"} & _names(found, row))
        for name, kept in plain.decisions(text).items():
            assert found[name][row] == kept, (name, text)
        assert found["ok"][row] == all(found[d][row] for d in DECISIONS)


def _names(found: dict[str, list[Any]], row: int) -> set[str]:
    return {f["reason"] for f in found["findings"][row]}


@settings(max_examples=120, deadline=None)
@given(st.lists(documents(), min_size=1, max_size=4))
def test_the_same_as_the_plain_version(texts: list[str]) -> None:
    check(texts)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_the_same_on_any_text(texts: list[str]) -> None:
    check([t.encode(errors="replace").decode() for t in texts])


def test_rows_of_few_words_repeat_in_every_way() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abc", k=rng.randint(5, 200))) for _ in range(60)]
    texts += [" ".join(rng.choices(["a b c d e f", "x"], k=40)) for _ in range(20)]
    check(texts)


def test_rows_stand_alone() -> None:
    rng = random.Random(1)
    texts = [SENTENCE * rng.randint(0, 5) + rng.choice(SNIPPETS) for _ in range(40)]
    together, alone = score(texts), [score([t]) for t in texts]
    for name, values in together.items():
        assert _same(values, [one[name][0] for one in alone]), name
    backwards = score(texts[::-1])
    assert all(_same(backwards[name][::-1], values) for name, values in together.items())


def _same(a: list[Any], b: list[Any]) -> bool:
    return bool(pa.array(a).equals(pa.array(b))) or np.array_equal(
        np.array(a, dtype=float), np.array(b, dtype=float), equal_nan=True
    )


def test_many_blocks_are_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [SENTENCE * i + SNIPPETS[i % len(SNIPPETS)] + "\n" * (i % 3) for i in range(60)]
    whole = score(texts)
    monkeypatch.setattr("foresift.scorers._heuristics_text.BLOCK", 700)
    parts = score(texts)
    assert all(_same(parts[name], values) for name, values in whole.items())


def test_the_recipe_drops_what_breaks_a_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recipe = Recipe.read(ROOT / "configs" / "heuristics.yaml", ["report=false"])
    done = run(make_plan(recipe, tmp_path), LocalEngine(1), lambda *_: None)
    accounts = done.manifest["accounts"]
    assert 100 < accounts["kept"] < accounts["rows"] - 100
    files = sorted(Path(done.manifest["steps"][-1]["path"]).glob("*.jsonl.gz"))
    rows = [json.loads(x) for f in files for x in gzip.decompress(f.read_bytes()).splitlines()]
    assert len(rows) == accounts["kept"]
    assert min(r["heuristics.words"] for r in rows) >= 30


# -- bad input ---------------------------------------------------------------------------------


def test_bad_documents_have_numbers_and_decisions() -> None:
    noise = random.Random(2).randbytes(20_000).decode("latin-1")
    texts = ["", None, "word", " ", "\n\n", "\x00" * 50, noise, "مرحبا بالعالم. " * 30, "﷽" * 999]
    found = score(texts)
    assert found["ok"] == [False] * len(texts)
    assert found["words"][:4] == [0, 0, 1, 0]
    assert _names(found, 0) >= {"empty", "gopher_short_doc", "too_few_sentences"}
    check([t or "" for t in texts[:6]] + texts[7:8])


def test_no_rows_at_all() -> None:
    assert score([])["ok"] == []


def test_one_long_line_and_one_long_word() -> None:
    texts = [SENTENCE * 20_000, "x" * 2_000_000, "-" * 300_000, "* " * 100_000]
    found = score(texts)
    assert found["words"] == [16 * 20_000 + 20_000, 1, 1, 100_000]
    assert found["gopher_quality"] == [False] * 4
    assert found["lines_long_word"] == [0, 1, 1, 0]


def test_conversations_and_pairs_are_read_as_one_text() -> None:
    chat = pa.table(
        {"messages": [[{"role": "user", "content": "A {"}, {"role": "a", "content": "b"}]]}
    )
    assert Heuristics().score(chat)["words"].tolist() == [3]
    pair = pa.table({"prompt": ["One two"], "response": ["three"]})
    assert Heuristics().score(pair)["words"].tolist() == [3]
