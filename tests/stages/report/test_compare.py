"""Two data sets side by side: distances, overlaps, and what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from foresift.stages.report import page
from foresift.stages.report import sample as sampling
from foresift.stages.report.compare import Comparison, compare, furthest
from foresift.stages.report.contents import Contents
from tests.runs import go
from tests.stages.report.conftest import LETTERS, TOP, recipe, write_lines

WORDS = {"score": "tests.stages.report.detectors:Words", "as": "words"}
some = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40)


def contents(rows: list[str], out: Path, steps: list[Any]) -> Contents:
    data = write_lines(out / "d.jsonl", [{"text": t} for t in rows])
    return Contents.open(go(recipe(data, steps, holdout=0), out / "o").path)


def texts(start: int, stop: int, word: str = "w") -> list[str]:
    return [f"a{n} {word}" + " w" * (n % 17) + " bad" * (n % 3 == 0) for n in range(start, stop)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Contents, Contents]:
    out = tmp_path_factory.mktemp("compare")
    mine = contents(texts(0, 300), out / "a", [LETTERS, WORDS, TOP])
    other = {**LETTERS, "letter": "a"}
    return mine, contents(
        texts(200, 400) + texts(200, 250), out / "b", [other, WORDS, {"score": "surface"}, TOP]
    )


@pytest.fixture(scope="module")
def compared(two: tuple[Contents, Contents]) -> Comparison:
    return compare(*two)


@given(some, some)
def test_a_distance_is_the_largest_gap_of_cumulative_shares(
    ours: list[float], theirs: list[float]
) -> None:
    a, b = np.array(ours), np.array(theirs)
    found, at = furthest(a, b)
    gaps = {v: abs((a <= v).mean() - (b <= v).mean()) for v in (*ours, *theirs)}
    assert found == pytest.approx(max(gaps.values()))
    assert gaps[at] == pytest.approx(found)
    assert furthest(b, a) == (found, at)


def test_a_distance_is_that_of_scipy() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 200))
    assert furthest(a, b + 0.3)[0] == pytest.approx(stats.ks_2samp(a, b + 0.3).statistic)


def test_contents_in_both_are_counted_once(compared: Comparison) -> None:
    pool = compared.overlaps[0]
    assert (pool.ours, pool.theirs, pool.both, pool.exact) == (300, 200, 100, True)
    assert pool.of_ours.value == pytest.approx(1 / 3)
    assert pool.of_ours.low is None
    assert pool.of_theirs.value == 0.5
    assert pool.jaccard == pytest.approx(100 / 400)
    assert (compared.ours.documents, compared.theirs.documents) == (300, 250)
    assert compared.ours.kept == 90


def test_other_settings_are_said(compared: Comparison) -> None:
    by_name = {(s.name, s.group): s for s in compared.scores}
    assert by_name["letters.count", "pool"].differs == ["letter"]
    assert by_name["words.noise", "pool"].differs == []
    assert by_name["n_tokens", "kept"].differs == []
    assert compared.only_ours == []
    assert all(name.startswith("surface.") for name in compared.only_theirs)
    distances = [max(s.distance for s in compared.scores[i : i + 2]) for i in range(0, 8, 2)]
    assert distances == sorted(distances, reverse=True)


def test_rates_of_reasons_have_intervals_of_their_difference(compared: Comparison) -> None:
    by_name = {(r.detector, r.reason): r for r in compared.rates}
    bad = by_name["words", "bad"]
    assert bad.ours.value == pytest.approx(100 / 300)
    theirs = sum("bad" in t for t in texts(200, 400) + texts(200, 250)) / 250
    assert bad.theirs.value == pytest.approx(theirs)
    assert bad.difference.value == pytest.approx(theirs - 1 / 3)
    assert bad.difference.low < 0 < bad.difference.high
    assert any(detector == "dropped" for detector, _ in by_name)


def test_a_set_with_itself_is_no_further_apart_than_nothing(two: tuple[Contents, Contents]) -> None:
    found = compare(two[0], two[0])
    assert {s.distance for s in found.scores} <= {0.0}
    assert not any(s.told or s.differs for s in found.scores)
    assert all(o.jaccard == 1 for o in found.overlaps)
    assert all(r.difference.value == 0 for r in found.rates)


def test_samples_hold_the_same_documents_of_both(
    two: tuple[Contents, Contents], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "SAMPLED", 150)
    fresh = [Contents.open(each.path) for each in two]
    pool = compare(*fresh).overlaps[0]
    assert not pool.exact
    assert 110 < pool.ours < 190
    assert pool.of_ours.low < 1 / 3 < pool.of_ours.high
    assert pool.of_theirs.low < 0.5 < pool.of_theirs.high


def test_the_page_shows_the_comparison(two: tuple[Contents, Contents]) -> None:
    shown = page.sections(*two)["compare"]
    assert isinstance(shown, Comparison)
    module = page._environment().get_template("sections.html").module
    html = str(module.compare(shown))
    assert "differs in letter" in html
    assert two[1].path.name.replace("<b>", "&lt;b&gt;") in html


def test_an_empty_set_can_be_compared(tmp_path: Path, two: tuple[Contents, Contents]) -> None:
    where = {"select": "where", "keep": "letters.count > 1000"}
    nothing = contents(["only w"], tmp_path, [LETTERS, where, WORDS])
    for a, b in ((nothing, two[0]), (two[0], nothing)):
        found = compare(a, b)
        kept = [s for s in found.scores if s.group == "kept"]
        assert {s.distance for s in kept} == {None}
        assert {o.both for o in found.overlaps} == {0}
        page._environment().get_template("sections.html").module.compare(found)
