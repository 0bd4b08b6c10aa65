"""Findings: counts against the texts, intervals, places, masks, and what was measured of a few."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.run import Run
from foresift.stages.report import found as section
from foresift.stages.report import sample as sampling
from foresift.stages.report.contents import Contents
from foresift.stages.report.found import found
from foresift.stages.report.highlight import CONTEXT, PIECE, marked
from foresift.stages.report.mask import MASK, mask
from foresift.stages.report.noise import noise, rate
from foresift.stages.report.overview import overview
from tests.runs import go
from tests.stages.report.conftest import LETTERS, TOP, recipe, write_lines

WORDS = {"score": "tests.stages.report.detectors:Words", "as": "words"}
RATED = {"score": "tests.stages.report.detectors:Rated", "as": "rated"}
CLEAN = {"score": "tests.stages.report.detectors:Words", "as": "clean", "word": "never"}


def texts() -> list[str]:
    rng = np.random.default_rng(0)
    words = ["good", "word", "bad", "und", "w", "write to bob@example.org,"]
    made = [f"a{n} " + " ".join(rng.choice(words, rng.integers(2, 20))) for n in range(300)]
    return [*made, "bad copy w w", "bad copy w w", "worse <b>&</b> w", "wwww 1", "wwww 1"]


def run_over(rows: list[str], out: Path, steps: list[Any], **reader: Any) -> Run:
    return go(
        recipe(write_lines(out / "d.jsonl", [{"text": t} for t in rows]), steps, **reader),
        out / "o",
    )


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    out = tmp_path_factory.mktemp("found")
    run = run_over(texts(), out, [LETTERS, WORDS, CLEAN, RATED, TOP], holdout=0)
    return Contents.open(run.path)


def test_counts_are_those_of_the_texts(contents: Contents) -> None:
    told = found(contents)
    assert told is not None
    words, clean = told.detectors
    hits = [re.findall(r"\b(bad|worse)\b", t) for t in texts()]
    assert (words.documents, clean.documents) == (305, 305)
    by_name = {r.name: r for r in words.reasons}
    assert by_name["bad"].documents == sum("bad" in h for h in hits)
    assert by_name["bad"].findings == sum(h.count("bad") for h in hits)
    assert (by_name["worse"].documents, by_name["no_vowel"].documents) == (1, 2)
    assert words.any == sum(bool(h) for h in hits) + 2
    assert [r.documents for r in words.reasons] == sorted(r.documents for r in words.reasons)[::-1]
    share = by_name["bad"].share
    assert share is not None
    assert share.value == by_name["bad"].documents / 305
    assert share.low < share.value < share.high
    assert clean.any == 3
    assert {r.name for r in clean.reasons} == {"worse", "no_vowel"}


def test_examples_show_the_place_and_no_document_twice(contents: Contents) -> None:
    told = found(contents)
    assert told is not None
    for reason in told.detectors[0].reasons:
        assert len({e.id for e in reason.examples}) == len(reason.examples)
        for e in reason.examples:
            assert e.text.inside == ("" if reason.name == "no_vowel" else reason.name)
            assert "bob" not in e.text.before + e.text.after
    [worse] = [r for r in told.detectors[0].reasons if r.name == "worse"]
    assert [(e.text.before, e.text.after) for e in worse.examples] == [("", " <b>&</b> w")]
    [no] = [r for r in told.detectors[0].reasons if r.name == "no_vowel"]
    assert [e.text.after for e in no.examples] == ["wwww 1"]
    assert np.isnan(no.examples[0].value)


def test_how_the_corpus_is_cut_does_not_matter(tmp_path: Path) -> None:
    rows = [text + " lorem" * 2000 for text in texts()]
    runs = [
        run_over(rows, tmp_path / str(size), [WORDS, CLEAN], holdout=0, shard_mb=size)
        for size in (1, 100)
    ]
    contents, other = (Contents.open(run.path) for run in runs)
    assert len(contents.shards) > len(other.shards) == 1
    ours, theirs = found(contents), found(other)
    assert ours is not None
    assert theirs is not None
    for a, b in zip(ours.detectors, theirs.detectors, strict=True):
        assert [(r.name, r.documents, r.share) for r in a.reasons] == [
            (r.name, r.documents, r.share) for r in b.reasons
        ]
        assert [[(e.id, e.text) for e in r.examples] for r in a.reasons] == [
            [(e.id, e.text) for e in r.examples] for r in b.reasons
        ]


def test_many_reasons_are_summed_up(contents: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section, "MOST", 1)
    told = found(contents)
    assert told is not None
    names = [r.name for r in told.detectors[0].reasons]
    assert len(names) == 2
    assert section.OTHER in names
    monkeypatch.setattr(section, "LISTED", 1)
    again = found(contents)
    assert again is not None
    assert (len(again.detectors[0].reasons), again.detectors[0].further) == (1, 1)


def test_text_that_cannot_be_read_is_said(
    contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("the file is gone")

    monkeypatch.setattr(section, "read_texts", broken)
    told = found(contents)
    assert told is not None
    assert told.trouble == "the file is gone"
    assert told.detectors[0].reasons[0].examples[0].text.inside == ""


def test_nothing_where_no_detector_ran(tmp_path: Path) -> None:
    contents = Contents.open(run_over(["one w", "two w"], tmp_path, [LETTERS], holdout=0).path)
    assert found(contents) is None
    assert noise(contents) is None


@given(st.text("ab 1@.x-\n", max_size=400), st.integers(0, 400), st.integers(0, 400))
def test_a_mark_changes_nothing_but_where_it_stands(text: str, a: int, b: int) -> None:
    start, stop = min(a, b), max(a, b)
    shown = marked(text, start, stop)
    if start < len(text) <= CONTEXT and stop - start <= PIECE:
        whole = shown.before + shown.inside + shown.after
        assert "".join(whole.split()) == "".join(mask(text).split())


def test_nothing_is_shown_that_a_mask_of_the_whole_would_hide() -> None:
    text = "w " * 400 + "card 4111 1111 1111 1111 is bad " + "w " * 400
    where = text.index("1111 1111 is")
    for start, stop in (
        (where, where + 4),
        (where - 7, where + 2),
        (text.index("is bad"), len(text)),
    ):
        shown = marked(text, start, stop)
        assert "1111" not in shown.before + shown.inside + shown.after
        assert MASK in shown.before + shown.inside
    assert marked(text, where, where + 4).inside == MASK


def test_long_pieces_and_long_texts_are_cut() -> None:
    shown = marked("a" * 5_000_000, 1_000_000, 4_000_000)
    assert len(shown.before) <= CONTEXT + 2
    assert len(shown.inside) <= PIECE + 2
    assert shown.inside.endswith(" …")
    assert shown.before.startswith("… ")
    short = marked("one two three", 4, 7)
    assert (short.before, short.inside, short.after) == ("one ", "two", " three")
    beyond = marked("one", 10, 12)
    assert (beyond.before, beyond.inside, beyond.after) == ("", "", "one")


def test_noise_is_the_mean_of_its_column(contents: Contents) -> None:
    told = noise(contents)
    assert told is not None
    by_name = {e.detector: e for e in told.estimates}
    assert list(by_name) == ["words", "clean", "rated"]
    values = [len(re.findall(r"\b(bad|worse)\b", t)) / len(t.split()) for t in texts()]
    words = by_name["words"]
    assert words.documents == told.documents == 305
    assert words.pool is not None
    assert words.pool.value == pytest.approx(np.mean(values), rel=1e-6)
    half = 1.96 * np.std(values) / np.sqrt(305)
    assert words.pool.high - words.pool.low == pytest.approx(2 * half, rel=0.25)
    assert words.kept is not None
    assert words.change is not None
    assert words.change.value == pytest.approx(words.kept.value - words.pool.value)
    assert words.change.low < words.change.value < words.change.high
    assert words.told is None
    assert (words.judged, words.flagged) == (305, found(contents).detectors[0].any)


def test_a_rate_that_a_step_tells_is_shown(contents: Contents) -> None:
    told = noise(contents)
    assert told is not None
    rated = told.estimates[-1]
    assert (rated.pool, rated.kept, rated.flagged_share) == (None, None, None)
    assert (rated.told.value, rated.told.low, rated.told.high) == (0.25, 0.2, 0.3)
    assert rate({"noise_rate": 0.5, "noise_rate_interval": [0.4, 0.6]}).high == 0.6
    assert rate({"noise_rate": 0.5}).low is None
    assert rate({"noise_rate": None}) is None
    assert rate({}) is None


def test_the_overview_says_what_the_data_is(contents: Contents) -> None:
    told = overview(contents)
    assert (told.documents, told.holdout, told.sampled) == (305, 0, 305)
    assert told.bytes == sum(len(t.encode()) for t in texts())
    assert [(k.name, k.share) for k in told.kinds] == [("plain text", 1.0)]
    assert told.copies == pytest.approx(2 / 305)
    pool, kept = told.lengths[2:]
    sizes = [len(t.encode()) for t in texts()]
    assert (pool.unit, pool.group, pool.documents) == ("bytes", "pool", 305)
    assert pool.quantiles == pytest.approx(
        np.quantile(sizes, [0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1])
    )
    assert kept.documents == contents.manifest["accounts"]["kept"]
    assert [c.column for c in told.labels] == ["words.language", "clean.language"]
    [german] = [v for v in told.languages[0].values if v.name == "de"]
    assert german.documents == sum("und" in t.split() for t in texts())
    assert sum(v.documents for v in told.languages[0].values) == 305
    assert sum(v.share for v in told.languages[0].values) == pytest.approx(1)


def test_the_holdout_is_in_the_sizes_alone(tmp_path: Path) -> None:
    rows = [f"document {n} w" for n in range(200)]
    contents = Contents.open(run_over(rows, tmp_path, [WORDS], holdout=0.5).path)
    told = overview(contents)
    assert told.documents == 200
    assert 60 < told.holdout < 140
    assert told.sampled == told.labels[0].documents == 200 - told.holdout


@pytest.mark.parametrize("content", [{"messages": "m"}, {"prompt": "p", "response": "r"}])
def test_kinds_of_content(tmp_path: Path, content: dict[str, str]) -> None:
    turns = [{"role": "user", "content": "a w"}, {"role": "assistant", "content": "b bad"}]
    rows = [{"m": turns, "p": f"a {n}", "r": "bad b"} for n in range(3)]
    run = go(
        recipe(write_lines(tmp_path / "d.jsonl", rows), [WORDS], holdout=0, **content),
        tmp_path / "o",
    )
    contents = Contents.open(run.path)
    names = {"messages": "conversations", "prompt": "pairs of prompt and response"}
    assert overview(contents).kinds[0].name == names[next(iter(content))]
    told = found(contents)
    assert told is not None
    assert told.detectors[0].reasons[0].examples[0].text.inside == "bad"


def test_no_rows_and_one_row(tmp_path: Path) -> None:
    where = {"select": "where", "keep": "letters.count > 1000"}
    contents = Contents.open(
        run_over(["only w"], tmp_path, [LETTERS, where, WORDS], holdout=0).path
    )
    told = found(contents)
    assert told is not None
    assert (told.detectors[0].documents, told.detectors[0].any_share) == (0, None)
    estimates = noise(contents)
    assert estimates is not None
    assert (estimates.estimates[0].documents, estimates.estimates[0].pool) == (0, None)
    assert overview(contents).lengths[0].quantiles == [2.0] * 9


def test_of_a_few_measured_documents_all_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "SAMPLED", 100)
    rows = [f"document {n} w" + " bad" * (n % 3) for n in range(1000)]
    some = {"select": "random", "budget": "90 rows"}
    contents = Contents.open(run_over(rows, tmp_path, [LETTERS, some, WORDS], holdout=0).path)
    sample = contents.sample
    assert sample.share == 0.1
    assert 60 < sample.everything().rows < 140
    told = noise(contents)
    assert told is not None
    plain = Contents.open(run_over(rows, tmp_path / "p", [some, WORDS], holdout=0).path)
    assert noise(plain).estimates[0].documents == 90
    assert overview(plain).sampled == plain.sample.everything().rows < 140
