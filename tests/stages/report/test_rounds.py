"""Rounds against what lies on disk, against plain versions, and against known answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from foresift.pipeline.run import Run
from foresift.pipeline.store import StepDir, write_shard
from foresift.stages.report import page, preferences
from foresift.stages.report.contents import Contents
from foresift.stages.report.preferences import agreement, correlation, ranked
from foresift.stages.report.rounds import costs, rounds
from tests.runs import go, recipe
from tests.stages.report.conftest import LETTERS
from tests.stages.report.test_page import check

DATA = {"read": "tests.parts:Texts", "shards": 3, "rows": 30, "pretend_bytes": 1}
TRAIN = {"train": "causal_lm", "length": 64, "batch_tokens": 128, "threads": 1, "tokens": 256}
SELECT = {"select": "topk", "by": "letters.count", "budget": "20% rows"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three rounds of a tiny model that scores and is trained, beside a baseline."""
    select = {"select": "gumbel_topk", "by": "loss.nll", "budget": "15%", "temperature": 0.02}
    fields = recipe(
        data=DATA,
        datasets={"aim": {**DATA, "shards": 1, "seed": 9, "holdout": 0.4}},
        model={"init": "configs/models/tiny", "max_length": 64, "device": "cpu"},
        steps=[],
        rounds={"count": 3, "steps": [{"score": "loss"}, select, TRAIN]},
        evidence={"against": ["random"], "data": "aim"},
    )
    return go(fields, tmp_path_factory.mktemp("rounds"))


def plain(fields: dict[str, Any], out: Path) -> Run:
    """Rounds without a model."""
    return go(recipe(data={**DATA, "holdout": 0.0}, **fields), out)


def sidecar(run: Run, verb: str, round: int) -> pa.Table:
    """All rows of the selection's step of a verb in a round."""
    [step] = [
        s for s in run.manifest["steps"]
        if (s["verb"], s["round"], s["line"]) == (verb, round, "selected")
    ]  # fmt: skip
    return pa.concat_tables([pq.read_table(p) for p in StepDir(Path(step["path"])).shards()])


def overwrite(run: Run, verb: str, round: int, columns: dict[str, list[Any]]) -> None:
    """Put other values into the sidecars of a step; the ids stay."""
    [step] = [s for s in run.manifest["steps"] if (s["verb"], s["round"]) == (verb, round)]
    start = 0
    for path in StepDir(Path(step["path"])).shards():
        table = pq.read_table(path)
        for name, values in columns.items():
            here = pa.array(values[start : start + table.num_rows], table[name].type)
            table = table.set_column(table.column_names.index(name), name, here)
        start += table.num_rows
        write_shard(path, table, {})


def best(scores: np.ndarray, count: int) -> set[int]:
    """The plain version: sort, cut."""
    order = [i for i in np.argsort(-scores, kind="stable") if not np.isnan(scores[i])]
    return {int(i) for i in order[:count]}


def test_a_real_run_is_told_as_its_sidecars_have_it(trained: Run) -> None:
    found = rounds(Contents.open(trained.path))
    assert found is not None
    assert [r.number for r in found.rounds] == [1, 2, 3]
    assert [(p.column, p.refreshed) for p in found.preferences] == [("loss.nll", True)] * 3
    before = None
    for told, p in zip(found.rounds, found.preferences, strict=True):
        scores = sidecar(trained, "score", p.round)["nll"].to_pandas().to_numpy(np.float64)
        decision = sidecar(trained, "select", p.round)
        pool, chosen = decision["rank"].is_valid().to_numpy(), decision["kept"].to_numpy()
        assert (told.documents, told.chosen) == (pool.sum(), chosen.sum())
        for summary, rows in ((p.pool, pool), (p.chosen, chosen)):
            assert summary.count == rows.sum()
            assert summary.mean == pytest.approx(scores[rows].mean())
            assert summary.quantiles == pytest.approx(np.quantile(scores[rows], [0.1, 0.5, 0.9]))
        if before is None:
            assert p.change is None
        else:
            assert p.change is not None
            both = ~np.isnan(scores) & ~np.isnan(before)
            assert p.change.both == both.sum() == pool.sum()
            rho = spearmanr(scores[both], before[both]).statistic
            assert p.change.correlation == pytest.approx(rho)
            mine = set(np.flatnonzero(chosen).tolist())
            for told_by, column in ((p.change.agreement, before), (p.change.own, scores)):
                would = best(np.where(pool, column, np.nan), len(mine))
                assert (told_by.agreed, told_by.best) == (len(mine & would), len(would))
                assert told_by.jaccard == pytest.approx(len(mine & would) / len(mine | would))
                assert told_by.entered == len(mine - would)
                assert told_by.left == len(would - mine)
        before = scores


def test_flops_of_training_are_six_for_each_parameter_and_token(trained: Run) -> None:
    found = rounds(Contents.open(trained.path))
    assert found is not None
    steps = [s["facts"] for s in trained.manifest["steps"] if s["verb"] == "train"]
    each = {6.0 * f["parameters"] * f["tokens"] for f in steps}
    assert {r.costs.training.flops for r in found.rounds} == each
    assert [name for name, _ in found.lines] == ["selected", "random"]
    for _, line in found.lines:
        assert line.training.flops == 3 * next(iter(each))
    assert found.before.flops is None
    random = found.lines[1][1]
    assert (random.scoring.seconds, random.scoring.flops, random.ratio) == (None, None, 1.0)


def test_the_page_tells_it(trained: Run) -> None:
    html = page.render(Contents.open(trained.path))
    text = "".join(check(html).text)
    found = rounds(Contents.open(trained.path))
    assert found is not None
    for title in ("Entered and left", "FLOPs in all, by line", "Rose most in round 3"):
        assert title in text
    for p in found.changes:
        assert p.change is not None
        assert f"{p.change.correlation:.3f}".replace("-", "−") in text
        assert f"({p.change.both} documents)" in text
        for mover in (*p.change.risers, *p.change.fallers):
            assert mover.document.id in text
            assert mover.document.text.startswith("w")
            moved = f"from {page.percent(mover.before)} to {page.percent(mover.now)}"
            assert moved in text
    assert html.count("<h3>Round ") == 3
    assert page.flops(found.lines[0][1].training.flops) in text


def test_a_cached_run_says_so(trained: Run, tmp_path: Path) -> None:
    moved = tmp_path / "runs" / trained.path.name
    shutil.copytree(trained.path, moved)
    manifest = trained.manifest
    manifest["steps"] = [{**s, "cached": True} for s in manifest["steps"]]
    (moved / "manifest.json").write_text(json.dumps(manifest))
    found = rounds(Contents.open(moved))
    assert found is not None
    for each in found.rounds:
        assert (each.costs.scoring.cached, each.costs.scoring.seconds) == (True, None)
        assert each.costs.training.flops
    assert '<span class="soft">cached</span>' in page.render(Contents.open(moved))


def test_known_correlation_and_overlap(tmp_path: Path) -> None:
    run = plain({"steps": [], "rounds": {"count": 2, "steps": [LETTERS, SELECT]}}, tmp_path)
    n, gone = 90, 18
    alive = list(range(gone, n))
    overwrite(run, "score", 1, {"count": list(range(n))})
    # round 1 chose the first 18, so they have no score and no rank in round 2
    reverse = [None if i < gone else 1000 - i for i in range(n)]
    overwrite(run, "score", 2, {"count": reverse})
    rank = [None if i < gone else i for i in range(n)]
    # round 2 chose the ten lowest by round 1 and the five highest
    mine = {*alive[:10], *alive[-5:]}
    overwrite(run, "select", 2, {"rank": rank, "kept": [i in mine for i in range(n)]})
    found = rounds(Contents.open(run.path))
    assert found is not None
    first, second = found.preferences
    assert (first.change, first.refreshed) == (None, True)
    assert (second.pool.count, second.chosen.count) == (72, 15)
    change = second.change
    assert change is not None
    assert (change.both, change.correlation) == (72, pytest.approx(-1.0))
    assert (change.agreement.agreed, change.agreement.entered, change.agreement.left) == (5, 10, 10)
    assert change.agreement.jaccard == 5 / 25
    assert (change.own.agreed, change.own.jaccard) == (10, 10 / 20)
    ids = [i.hex()[:12] for i in sidecar(run, "score", 2)["id"].to_pylist()]
    assert [m.document.id for m in change.risers] == [ids[i] for i in alive[:3]]
    assert [m.document.id for m in change.fallers] == [ids[i] for i in alive[:-4:-1]]
    assert (change.risers[0].before, change.risers[0].now) == (0.0, 1.0)
    assert "−1.000" in page.render(Contents.open(run.path))


def test_lowest_turns_the_ranking_round(tmp_path: Path) -> None:
    select = {**SELECT, "lowest": True}
    run = plain({"steps": [], "rounds": {"count": 2, "steps": [LETTERS, select]}}, tmp_path)
    found = rounds(Contents.open(run.path))
    assert found is not None
    change = found.preferences[1].change
    assert change is not None
    assert (change.correlation, change.own.jaccard) == (pytest.approx(1.0), 1.0)
    assert change.agreement == change.own
    assert change.risers == change.fallers == []


def test_a_score_from_before_the_rounds_is_not_refreshed(tmp_path: Path) -> None:
    run = plain({"steps": [LETTERS], "rounds": {"count": 2, "steps": [SELECT]}}, tmp_path)
    found = rounds(Contents.open(run.path))
    assert found is not None
    assert [(p.refreshed, p.change) for p in found.preferences] == [(False, None)] * 2
    assert [p.pool.count for p in found.preferences] == [90, 72]
    html = page.render(Contents.open(run.path))
    assert html.count("not refreshed") == 2
    assert "Entered and left" not in html


def test_one_round_has_nothing_to_compare(tmp_path: Path) -> None:
    run = plain({"steps": [], "rounds": {"count": 1, "steps": [LETTERS, SELECT]}}, tmp_path)
    html = page.render(Contents.open(run.path))
    text = "".join(check(html).text)
    assert "The scores that each round ranked by" in text
    assert "FLOPs in all, by line" in text
    assert "Round 1 · letters.count" in text
    assert "Entered and left" not in text


def test_no_rounds_no_section(nasty: Run) -> None:
    assert rounds(Contents.open(nasty.path)) is None
    assert 'id="rounds"' not in page.render(Contents.open(nasty.path))


def test_rounds_that_choose_at_random_rank_by_nothing(tmp_path: Path) -> None:
    before = {**SELECT, "as": "random", "budget": "90% rows"}  # of the same name, not of a round
    select = {"select": "random", "budget": "20% rows"}
    run = plain({"steps": [LETTERS, before], "rounds": {"count": 2, "steps": [select]}}, tmp_path)
    found = rounds(Contents.open(run.path))
    assert found is not None
    assert found.preferences == []
    assert [(r.number, r.documents) for r in found.rounds] == [(1, 81), (2, 64)]
    check(page.render(Contents.open(run.path)))


def test_columns_of_the_corpus_and_parts_that_are_gone(tmp_path: Path) -> None:
    select = {**SELECT, "by": "n_tokens"}
    run = plain({"steps": [], "rounds": {"count": 2, "steps": [select]}}, tmp_path)
    found = rounds(Contents.open(run.path))
    assert found is not None
    assert [(p.column, p.refreshed) for p in found.preferences] == [("n_tokens", False)] * 2
    path = run.path / "recipe.yaml"
    path.write_text(path.read_text().replace("topk", "gone.module:Part"))
    found = rounds(Contents.open(run.path))
    assert found is not None
    assert (len(found.rounds), found.preferences) == (2, [])


def test_scores_without_a_value_or_all_the_same(tmp_path: Path) -> None:
    wrong = {"score": "tests.parts:Wrong", "as": "wrong"}
    for column, count in (("wrong.nan", 0), ("wrong.same", 72)):
        select = {**SELECT, "by": column}
        steps = {"steps": [], "rounds": {"count": 2, "steps": [wrong, select]}}
        run = plain(steps, tmp_path / column)
        found = rounds(Contents.open(run.path))
        assert found is not None
        second = found.preferences[1]
        assert second.chart == ""
        assert second.change is not None
        assert second.change.correlation is None
        assert second.change.both == count
        assert second.change.agreement.agreed == second.change.agreement.chosen
        check(page.render(Contents.open(run.path)))


def step(verb: str, **fields: Any) -> dict[str, Any]:
    base = {"verb": verb, "line": "selected", "repeat": 0, "round": 1, "cached": False}
    return {**base, "seconds": 0.0, "facts": {}, **fields}


def test_what_scores_share_is_counted_once_a_group() -> None:
    def told(group: str, shared: float, own: float, **more: Any) -> dict[str, Any]:
        flops = {"shared": shared, "own": own, **more}
        return {"facts": {"group": group, "flops": flops}}

    steps = [
        step("score", seconds=5.0, **told("a", 100.0, 0.0)),
        step("score", seconds=0.0, fit_seconds=2.0, **told("a", 120.0, 30.0, fit=7.0)),
        step("score", seconds=1.0, **told("b", 50.0, 1.0)),
        step("score", seconds=1.0),
        step("score", round=2, **told("a", 1000.0, 0.0)),
        step("train", seconds=9.0, facts={"flops": {"train": 600.0}}),
        step("evaluate", seconds=3.0, facts={"flops": {"evaluate": 1e9}}),
    ]
    found = costs(steps)
    assert found.probing.flops == 7.0
    assert found.scoring.flops == 120.0 + 50.0 + 1000.0 + 31.0
    assert [k.seconds for k in found.kinds] == [2.0, 5.0, 9.0]
    assert found.flops == 7.0 + 1201.0 + 600.0
    assert found.ratio == pytest.approx(1808 / 600)


def test_a_line_that_ran_no_model_costs_nothing_known() -> None:
    found = costs([step("score", seconds=1.0), step("select", seconds=1.0)])
    assert (found.flops, found.ratio, found.scoring.seconds) == (None, None, 1.0)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=40))
def test_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.asarray(values, dtype=np.float64) for values in zip(*pairs, strict=True))
    found = correlation(ranked(a), ranked(b))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(a, b).statistic)
        assert found == pytest.approx(correlation(ranked(np.exp(a)), ranked(b**3)))


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1, 2, 3, np.nan]), st.booleans()), max_size=30),
    st.randoms(),
)
def test_agreement_is_the_best_case_of_every_way_to_break_ties(
    rows: list[tuple[float, bool]], random: Any
) -> None:
    scores, chosen = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], dtype=bool)
    found = agreement(scores, chosen)
    there = [i for i in range(len(rows)) if not np.isnan(scores[i])]
    # among equals the plain version takes the chosen ones first
    would = sorted(there, key=lambda i: (-scores[i], not chosen[i]))[: chosen.sum()]
    assert (found.agreed, found.best) == (int(chosen[would].sum()), len(would))
    mixed = random.sample(range(len(rows)), len(rows))
    assert agreement(scores[mixed], chosen[mixed]) == found


def test_bins_span_all_rounds() -> None:
    narrow, wide = np.linspace(0.25, 1, 1001), np.append(np.linspace(-3, 2, 1001), np.nan)
    edges = preferences._edges([narrow, wide])
    assert edges is not None
    assert len(edges) == preferences.BINS + 1
    assert edges[[0, -1]] == pytest.approx(np.nanquantile(wide, [0.005, 0.995]))
    whole = preferences._edges([np.array([0.0, 3.0]), np.array([5.0])])
    assert whole is not None
    assert whole.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    rare = preferences._edges([np.append(np.zeros(999), 0.5)])
    assert rare is not None
    assert rare[[0, -1]].tolist() == [0.0, 0.5]
    assert preferences._edges([np.zeros(9), np.full(3, np.nan)]) is None


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0.0, "0"), (6e9, "6 GFLOP"), (1.234e15, "1.23 PFLOP")]
)
def test_flops(value: float | None, shown: str) -> None:
    assert page.flops(value) == shown


def test_a_choice_by_labels_has_no_preference_to_show(tmp_path: Path) -> None:
    """A mixture goes by sources, which are not numbers."""
    fields = {
        "count": 2,
        "steps": [
            {"select": "mixture", "by": "source", "depth": 1, "shares": "temperature",
             "budget": "20%"},
            {"order": "shuffle"},
        ],
    }  # fmt: skip
    done = go({**recipe(rounds=fields), "steps": []}, tmp_path)
    told = rounds(Contents.open(done.path))
    assert told is not None
    assert [r.number for r in told.rounds] == [1, 2]
    assert not told.preferences
