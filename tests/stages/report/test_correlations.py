"""Rank correlations against scipy's, and what is shown of them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from foresift.stages.report import correlations as section
from foresift.stages.report.contents import Contents
from foresift.stages.report.correlations import correlations, ranked, spearman
from foresift.stages.report.heatmap import lower_half, short
from tests.runs import go
from tests.stages.report.conftest import LETTERS, recipe, write_lines

value = st.sampled_from([np.nan, 0.0, 1.0, 2.0, -3.5, 1e9])


@given(st.lists(st.floats(-5, 5).map(lambda v: round(v, 1)), min_size=1, max_size=30))
def test_ranks_are_mean_ranks(values: list[float]) -> None:
    assert ranked(np.array(values)).tolist() == stats.rankdata(values).tolist()


@given(st.lists(st.tuples(value, value, value), min_size=1, max_size=30))
def test_correlations_are_those_of_scipy_over_what_both_have(rows: list[tuple[float, ...]]) -> None:
    columns = list(np.array(rows).T)
    rho, both = spearman(columns)
    for i, a in enumerate(columns):
        for k, b in enumerate(columns):
            there = ~np.isnan(a) & ~np.isnan(b)
            assert both[i, k] == there.sum()
            flat = there.sum() < 3 or len(set(a[there])) < 2 or len(set(b[there])) < 2
            expected = np.nan if flat else stats.spearmanr(a[there], b[there]).statistic
            assert rho[i, k] == pytest.approx(expected, nan_ok=True)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    out = tmp_path_factory.mktemp("correlations")
    rng = np.random.default_rng(0)
    rows = [{"text": "w" * int(rng.integers(1, 30)) + " x" * n + f" {n}"} for n in range(120)]
    words = {"score": "tests.stages.report.detectors:Words", "as": "words"}
    more = [LETTERS, {**LETTERS, "as": "other", "letter": "x"}, words, "surface"]
    steps = [s if isinstance(s, dict) else {"score": s} for s in more]
    return Contents.open(go(recipe(write_lines(out / "d.jsonl", rows), steps), out / "o").path)


def test_what_orders_alike_is_shown_once_and_constants_are_named(contents: Contents) -> None:
    found = correlations(contents)
    assert found is not None
    assert {"words.noise", "words.utility"} <= set(found.left_out)
    assert not set(found.left_out) & set(found.columns)
    names = [c.name for c in contents.scored]
    others = [o for a in found.alike for o in a.others]
    assert sorted([*found.columns, *found.left_out, *others]) == sorted(names)
    assert found.documents == contents.sample.rows
    assert abs(found.strongest[0].rho.value) == pytest.approx(max(
        abs(r) for i, row in enumerate(found.rho) for r in row[:i] if r is not None
    ), abs=1e-4)  # fmt: skip


def test_of_many_columns_those_with_a_partner_are_charted(
    contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = correlations(contents)
    monkeypatch.setattr(section, "CHARTED", 3)
    few = correlations(contents)
    assert whole is not None
    assert few is not None
    assert few.rho == whole.rho
    best = {n for p in whole.strongest[:1] for n in (p.a, p.b)}
    assert len(few.charted) == 3
    assert best <= {few.columns[i] for i in few.charted}
    assert few.chart != whole.chart


def test_neighbours_in_the_order_go_together() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 500))
    columns = [a, b, a + 0.1 * rng.normal(size=500), b + 0.1 * rng.normal(size=500), -a]
    rho, _ = spearman(columns)
    order = section._order(rho)
    groups = [0 if i in (0, 2, 4) else 1 for i in order]
    assert groups in ([0, 0, 0, 1, 1], [1, 1, 0, 0, 0])


def test_one_column_is_nothing_to_compare(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "d.jsonl", [{"text": "only one"}])
    assert correlations(Contents.open(go(recipe(data, [], holdout=0), tmp_path / "o").path)) is None


def test_a_chart_of_forty_columns_names_them_all() -> None:
    names = [f"step_{i}.column<{i}>" for i in range(40)]
    values = [[None if i == 7 else (i - k) / 40 for k in range(40)] for i in range(40)]
    root = ET.fromstring(lower_half(names, values, "a < b"))
    texts = [t.text or "" for t in root.iter("text")]
    assert [t.split("  ")[0] for t in texts if "step_" in t] == names
    assert {str(i + 1) for i in range(40)} <= set(texts)
    assert len(list(root.iter("rect"))) == 40 * 39 // 2
    titles = [t.text or "" for t in root.iter("title")]
    assert "step_9.column<9> × step_1.column<1>: +0.20" in titles
    assert "step_7.column<7> × step_1.column<1>: none" in titles


def test_long_names_are_cut_and_short_ones_are_not() -> None:
    assert short("letters.count") == "letters.count"
    assert short("neighbour_disagreement.utility") == "neighbour_disagreement.utility"
    assert short("neighbour_disagreement.probability") == "neigh_disag.probability"
    assert len(short("a" * 50 + "." + "b" * 50)) == 30
