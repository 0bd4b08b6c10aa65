"""D4 as a recipe: deduplicate, cluster what is left anew, keep the farthest from each centroid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.choice import Budget
from foresift.pipeline.engines.local import LocalEngine
from foresift.pipeline.nouns import Rng
from foresift.pipeline.planner import make_plan
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import run
from foresift.scorers.clusters import Clusters
from foresift.scorers.semantic_duplicate import SemanticDuplicate
from foresift.stages.selectors.cluster_quota import ClusterQuota
from foresift.stages.selectors.topk import TopK
from tests.runs import ROOT
from tests.scorers.fitting import groups, score, vectors

R_DEDUP, R_PROTO = "75% rows", "33.3333% rows"
PROTOTYPES = ClusterQuota(
    clusters="clusters.cluster", by="clusters.distance", quota="proportional"
)  # fmt: skip


def with_scores(table: pa.Table, part: Any, name: str, out: Path) -> pa.Table:
    out.mkdir()
    part.fit([table], out)
    for column, values in part.score(table, out).items():
        table = table.append_column(f"{name}.{column}", pa.array(values))
    return table


def d4(table: pa.Table, out: Path) -> tuple[pa.Table, pa.Table]:
    """What stays after each of the two steps."""
    table = with_scores(table, SemanticDuplicate(), "semantic_duplicate", out / "a")
    first = TopK(by="semantic_duplicate.utility")
    choice = first.select(table, Budget.parse(R_DEDUP), Rng(0))
    left = table.filter(pa.array(choice.kept))
    clustered = with_scores(left, Clusters(), "clusters", out / "b")
    choice = PROTOTYPES.select(clustered, Budget.parse(R_PROTO), Rng(0))
    return clustered, clustered.filter(pa.array(choice.kept))


def test_the_recipe_has_the_shares_of_the_paper() -> None:
    steps = Recipe.read(ROOT / "configs" / "d4.yaml").steps
    assert [s["budget"] for s in steps if "select" in s] == [R_DEDUP, R_PROTO]
    dedup, prototypes = (Budget.parse(budget).amount for budget in (R_DEDUP, R_PROTO))
    assert prototypes == pytest.approx(0.25 / 0.75, abs=1e-6)
    assert dedup * prototypes == pytest.approx(0.25, abs=1e-6)


def test_a_thousand_documents_become_exactly_250(tmp_path: Path) -> None:
    rows, _ = groups(40, 25, width=24, spread=0.6)
    left, kept = d4(vectors(rows), tmp_path)
    assert (left.num_rows, kept.num_rows) == (750, 250)
    # in each cluster of the second clustering those farthest from its centroid
    cluster, distance = (np.asarray(left[f"clusters.{n}"]) for n in ("cluster", "distance"))
    chosen = np.isin(np.asarray(left["id"]), np.asarray(kept["id"]))
    for number in np.unique(cluster):
        mine = cluster == number
        share = chosen[mine].sum() / mine.sum()
        assert abs(share - 1 / 3) * mine.sum() < 1 + 1e-9
        if 0 < chosen[mine].sum() < mine.sum():
            assert distance[mine & chosen].min() >= distance[mine & ~chosen].max()


def test_the_farthest_of_three_stays() -> None:
    table = pa.table({
        "id": vectors(np.eye(3))["id"],
        "clusters.cluster": [4, 4, 4],
        "clusters.distance": [0.1, 0.3, 0.2],
    })  # fmt: skip
    choice = PROTOTYPES.select(table, Budget.parse("33.3333% rows"), Rng(0))
    assert choice.kept.tolist() == [False, True, False]


def test_clusters_that_duplicates_made_are_gone_after_clustering_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    template = rng.standard_normal(24) + 0.01 * rng.standard_normal((250, 24))
    table = vectors(np.concatenate([template, rng.standard_normal((750, 24))]))
    before, _ = score(Clusters(), table, tmp_path / "before")
    assert np.median(before["distance"][:250]) < 1e-3 < np.median(before["distance"][250:])
    left, kept = d4(table, tmp_path)
    copies = set(table["id"].to_pylist()[:250])
    assert sum(i in copies for i in left["id"].to_pylist()) < 25
    assert np.median(np.asarray(left["clusters.distance"])) > 1e-3
    assert kept.num_rows == 250


def test_the_recipe_runs_on_the_example_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    shorter = ["data.paths=[examples/corpus/docs-0.jsonl.gz]", "model.max_length=16"]
    recipe = Recipe.read(ROOT / "configs" / "d4.yaml", ["report=false", *shorter])
    done = run(make_plan(recipe, tmp_path), LocalEngine(1), lambda *_: None)
    steps = {s["name"]: s for s in done.manifest["steps"]}
    pool = steps["distinct"]["facts"]["limit"] / 0.75
    clusters = pq.read_table(sorted(Path(steps["clusters"]["path"]).glob("part-*.parquet")))
    scored = len(clusters) - clusters["cluster"].null_count
    assert scored == np.ceil(0.75 * pool)
    assert abs(done.manifest["accounts"]["kept"] - 0.25 * pool) <= 1
    assert steps["semantic_duplicate"]["facts"]["recall"] == 1.0  # so few lie in one cell
