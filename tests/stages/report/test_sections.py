"""Scores, sources, examples, rejects and clusters against what was put in."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.run import Run
from foresift.stages.report import page, scores
from foresift.stages.report.clusters import bins, clusters
from foresift.stages.report.contents import Contents
from foresift.stages.report.examples import examples
from foresift.stages.report.mask import MASK
from foresift.stages.report.rejects import rejects
from foresift.stages.report.scores import distributions
from foresift.stages.report.sources import TOP as SOURCES
from foresift.stages.report.sources import sources, top
from tests.runs import go
from tests.stages.report.conftest import LETTERS, TOP, recipe, write_lines


def columns(contents: Contents) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """The plan and the score columns as a whole, read another way."""
    plan = pq.read_table(contents.path / "plan.parquet")
    shards = contents.shards
    names = [c.name for c in contents.scored]
    table = pa.concat_tables([shard.load(names) for shard in shards])
    return plan, {n: table[n].cast(pa.float64()).to_numpy() for n in names}


def test_means_medians_and_counts_are_those_of_the_columns(contents: Contents) -> None:
    plan, values = columns(contents)
    kept, holdout = plan["kept"].to_numpy(), plan["reason"].to_numpy() == "holdout"
    found = {d.column.name: d for d in distributions(contents)}
    for name in ("n_tokens", "letters.count", "letters.share", "wrong.some"):
        there = ~holdout & np.isfinite(values[name])
        for group, rows in ((found[name].pool, there), (found[name].chosen, there & kept)):
            assert group.count == rows.sum()
            assert group.mean == pytest.approx(values[name][rows].mean())
            assert group.median == pytest.approx(np.median(values[name][rows]))
            assert group.shares.sum() == pytest.approx(1)
            expected = np.clip(values[name][rows], found[name].edges[0], found[name].edges[-1])
            assert group.bins.tolist() == np.histogram(expected, found[name].edges)[0].tolist()


def test_nan_and_constants_are_told(contents: Contents) -> None:
    found = {d.column.name: d for d in distributions(contents)}
    alive = found["wrong.same"].pool.count
    assert (found["wrong.nan"].pool.count, found["wrong.nan"].missing) == (0, alive)
    assert found["wrong.nan"].chart == ""
    assert (found["wrong.same"].constant, found["wrong.same"].low) == (True, 1.0)
    assert found["wrong.same"].chart == ""
    some = found["wrong.some"]
    assert 0 < some.missing < alive
    assert some.missing + some.pool.count == alive
    assert (found["n_tokens"].missing, found["letters.count"].missing) == (0, 0)
    assert found["letters.share"].column.unit == "fraction of letters"
    assert found["letters.share"].column.better == "higher"


def test_a_sample_gives_the_same_picture(
    contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = {d.column.name: d for d in distributions(contents)}
    monkeypatch.setattr(scores, "SAMPLE", 100)
    drawn = {d.column.name: d for d in distributions(contents)}
    assert drawn["letters.count"].pool.mean == exact["letters.count"].pool.mean
    assert drawn["letters.count"].pool.count == exact["letters.count"].pool.count
    near = abs(drawn["letters.count"].pool.median - exact["letters.count"].pool.median)
    assert near < 10


@pytest.mark.parametrize(
    "values",
    [
        [0.0], [1e299, -1e299], [5e-324, 0.0], [1.0, 2.0], [True, False], list(range(100)),
        [10.0**k for k in range(-10, 10)], [0.1] * 999 + [7.0], [1e-300, 1e290], [-1.0, 1e9],
    ],
)  # fmt: skip
def test_bins_of_any_values_hold_them_all(contents: Contents, values: list[float]) -> None:
    each = scores.Distribution(contents.scored[0])
    array = np.asarray(values, dtype=np.float64)
    everything, nothing = np.ones(len(array), dtype=bool), np.zeros(len(array), dtype=bool)
    scores._look(each, array, nothing, everything)
    each.edges = scores._edges(each)
    scores._count(each, array, nothing)
    assert each.constant == (len(set(values)) == 1)
    if not each.constant:
        assert each.edges is not None
        assert (np.diff(each.edges) > 0).all()
        assert each.pool.bins.sum() == len(values)
        assert "<svg" in each.chart


def test_sources_are_those_of_the_plan(contents: Contents) -> None:
    plan = pq.read_table(contents.path / "plan.parquet")
    rows = [r for r in plan.to_pylist() if r["reason"] != "holdout"]
    found = sources(contents)
    assert {s.name for s in found.rows} == {"<i>bad<", "good", "copies"}
    for each in found.rows:
        mine = [r for r in rows if r["source"].split("/")[0] == each.name.split("/")[0]]
        chosen = [r for r in mine if r["kept"]]
        assert (each.documents, each.chosen_documents) == (len(mine), len(chosen))
        assert each.tokens == sum(r["n_tokens"] for r in mine)
        assert each.chosen_tokens == sum(r["n_tokens"] for r in chosen)
    assert found.total.documents == len(rows)


def test_the_first_component_of_a_key_path() -> None:
    paths = pa.chunked_array([["a/b/c#1", "file.jsonl#7", "plain", "", None, "/rooted", "é/x"]])
    names = ["a", "file.jsonl", "plain", "(no source)", "(no source)", "(no source)", "é"]
    assert top(paths).to_pylist() == names


def test_ten_thousand_sources_are_summed_up(tmp_path: Path) -> None:
    rows = [{"text": f"document {n}", "at": f"source{n}/x"} for n in range(10_000)]
    data = write_lines(tmp_path / "d.jsonl", rows)
    run = go(recipe(data, [LETTERS, TOP], source="at", holdout=0), tmp_path / "out")
    found = sources(Contents.open(run.path))
    assert (found.count, len(found.rows)) == (10_000, SOURCES + 1)
    assert found.rows[-1].name == f"({10_000 - SOURCES:,} others)"
    assert found.total.documents == 10_000
    assert found.total.chosen_documents == 3_000


def test_examples_are_first_and_last_of_the_order(contents: Contents) -> None:
    plan = pq.read_table(contents.path / "plan.parquet").to_pylist()
    chosen = sorted((r for r in plan if r["kept"]), key=lambda r: r["position"])
    found = examples(contents)
    assert [e.id for e in found.first] == [r["id"].hex()[:12] for r in chosen[:5]]
    assert [e.id for e in found.last] == [r["id"].hex()[:12] for r in chosen[-5:]]


def test_examples_left_for_the_reason_that_is_given(contents: Contents) -> None:
    plan = pq.read_table(contents.path / "plan.parquet").to_pylist()
    reasons = {(r["id"].hex()[:12], r["reason"]) for r in plan if not r["kept"]}
    found = examples(contents).left
    assert set(found) == {reason for _, reason in reasons} - {"holdout"}
    for reason, documents in found.items():
        assert 1 <= len(documents) <= 5
        assert {(d.id, reason) for d in documents} <= reasons
        assert all(d.text for d in documents)


def test_examples_do_not_depend_on_how_the_corpus_was_cut(tmp_path: Path) -> None:
    rows = [{"text": f"document {n} " + "w " * (n % 30), "at": f"s/{n}"} for n in range(300)]
    one = write_lines(tmp_path / "one" / "d.jsonl", rows)
    for part in range(3):
        write_lines(tmp_path / "three" / f"d{part}.jsonl", rows[100 * part : 100 * part + 100])
    shown = []
    for name, data in (("one", one), ("three", tmp_path / "three")):
        run = go(recipe(data, [LETTERS, TOP], source="at"), tmp_path / f"out-{name}")
        found = examples(Contents.open(run.path))
        shown.append({r: [dataclasses.astuple(e) for e in each] for r, each in found.left.items()})
    assert shown[0] == shown[1]


def test_rejects_are_counted_by_reason(contents: Contents) -> None:
    found = rejects(contents)
    assert found.count == contents.manifest["accounts"]["rejected"] == 3
    assert len(found.reasons) == 3
    assert any("malformed JSON" in reason and "column" not in reason for reason, _ in found.reasons)
    broken = next(r for r in found.first if "malformed" in r.reason)
    assert broken.line == "217"
    assert "carol" not in broken.excerpt
    assert MASK in broken.excerpt


def test_clusters_are_those_of_the_corpus(contents: Contents) -> None:
    [found] = clusters(contents)
    assert (found.clusters, found.dropped) == (2, 7)
    assert [(b.label, b.clusters, b.documents) for b in found.bins if b.clusters] == [
        ("2", 1, 2), ("6–10", 1, 7),
    ]  # fmt: skip
    assert [(c.size, c.text) for c in found.largest] == [
        (7, "the same text again w"), (2, "twice w"),
    ]  # fmt: skip


def test_cluster_bins_hold_every_size() -> None:
    sizes = {2: 10, 3: 4, 5: 1, 64: 2, 5000: 1}
    found = bins(sizes)
    assert sum(b.clusters for b in found) == 18
    assert sum(b.documents for b in found) == sum(s * n for s, n in sizes.items())
    assert found[-1].label == "1,001 and more"
    assert [b.label for b in bins({2: 1})] == ["2"]


def test_scores_of_another_data_set_are_left_out(tmp_path: Path) -> None:
    ours = write_lines(tmp_path / "d.jsonl", [{"text": f"document {n}"} for n in range(30)])
    other = write_lines(tmp_path / "e.jsonl", [{"text": f"other {n}"} for n in range(20)])
    fields = recipe(ours, [LETTERS, {**LETTERS, "as": "theirs", "data": "other"}])
    fields["datasets"] = {"other": {**fields["data"], "paths": [str(other)]}}
    run = go(fields, tmp_path / "out")
    names = [c.name for c in Contents.open(run.path).scored]
    assert names == ["n_tokens", "letters.count", "letters.share"]


def test_a_run_that_was_moved_is_still_read(nasty: Run, tmp_path: Path) -> None:
    out = tmp_path / "moved"
    shutil.copytree(nasty.path.parents[1], out)
    moved = Contents.open(out / "runs" / nasty.path.name)
    moved.manifest["steps"][0]["path"] = "/nowhere/" + Path(moved.manifest["steps"][0]["path"]).name
    assert moved.base.parent == out / "steps"
    assert moved.rows == 216


def test_what_a_method_leaves_empty_is_not_called_nan(tmp_path: Path) -> None:
    rows = [{"text": "word " * (1 + n)} for n in range(40)]
    data = write_lines(tmp_path / "d.jsonl", rows)
    steps = [{"score": "tests.stages.report.parts:Gaps", "as": "gaps"}]
    run = go(recipe(data, steps, holdout=0), tmp_path / "out")
    found = {d.column.name: d for d in distributions(Contents.open(run.path))}["gaps.some"]
    assert (found.pool.count, found.nan, found.empty, found.missing) == (20, 10, 10, 20)
    html = page.render(Contents.open(run.path))
    assert "10 NaN" in html
    assert "10 without a value" in html
