"""Every recipe that ships plans as it stands from the repository root; the small ones are run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from foresift.pipeline.engines.local import LocalEngine
from foresift.pipeline.planner import make_plan
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import Run, run
from tests.runs import ROOT

CONFIGS = sorted(p.name for p in (ROOT / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def go(name: str, out: Path, *overrides: str) -> Run:
    recipe = Recipe.read(ROOT / "configs" / name, ["report=false", *overrides])
    return run(make_plan(recipe, out), LocalEngine(1), lambda *_: None)


def exported(done: Run) -> list[dict[str, Any]]:
    """The rows of the last step, an export as .jsonl.gz."""
    files = sorted(Path(done.manifest["steps"][-1]["path"]).glob("*.jsonl.gz"))
    return [json.loads(line) for f in files for line in gzip.open(f, "rt", encoding="utf-8")]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_plans_as_it_stands(name: str, tmp_path: Path) -> None:
    plan = make_plan(Recipe.read(ROOT / "configs" / name), tmp_path)
    assert plan.steps[0].verb == "read"
    assert not any(s.done for s in plan.steps)
    assert not list(tmp_path.iterdir())
    assert plan.recipe.name == Path(name).stem


def test_clean_leaves_half_of_what_is_no_copy_and_long_enough(tmp_path: Path) -> None:
    done = go("clean.yaml", tmp_path)
    facts = {s["name"]: s["facts"] for s in done.manifest["steps"]}
    assert facts["exact"]["dropped"] > 0
    assert facts["minhash"]["dropped"] > 0
    half = facts["random"]["limit"]
    assert half == facts["random"]["pool_tokens"] / 2
    assert half <= facts["random"]["kept_tokens"] < half + 2000
    rows = exported(done)
    assert len(rows) == done.manifest["accounts"]["kept"]
    assert min(r["length.words"] for r in rows) >= 20
    assert {r["kind"] for r in rows} == {"class", "function"}
    assert {r["source"].partition("/")[0] for r in rows} > {"asyncio", "email", "json"}


def test_instruct_keeps_the_hardest_fifth_and_sorts_it(tmp_path: Path) -> None:
    done = go("instruct.yaml", tmp_path)
    steps = {s["name"]: s for s in done.manifest["steps"]}
    rows = exported(done)
    assert len(rows) == done.manifest["accounts"]["kept"] > 10
    assert all(r["prompt"].startswith("Describe this function.") for r in rows)
    scores = pq.read_table(Path(steps["ifd"]["path"]) / "part-00000.parquet")["utility"].to_pylist()
    worst = min(r["ifd.ifd"] for r in rows)
    ranked = [s for s in scores if s is not None and s == s]
    assert sum(s > worst for s in ranked) == len(rows) - 1
    entropy = pq.read_table(Path(steps["uncertainty"]["path"]) / "part-00000.parquet")
    by_id = dict(zip((i.hex() for i in entropy["id"].to_pylist()), entropy["entropy"].to_pylist(),
                     strict=True))  # fmt: skip
    assert [by_id[r["id"]] for r in rows] == sorted(by_id[r["id"]] for r in rows)


@pytest.mark.slow
def test_own_files_trains_three_arms_on_equal_tokens(tmp_path: Path) -> None:
    done = go(
        "own-files.yaml", tmp_path,
        "rounds.count=1", "rounds.steps.2.tokens=4k", "steps.2.tokens=4k", "model.max_length=64",
    )  # fmt: skip
    arms = {e["line"]: e for e in done.manifest["evaluations"]}
    assert set(arms) == {"selected", "random", "length_matched_random"}
    assert len({e["documents"] for e in arms.values()}) == 1
    trained = [s["facts"]["tokens"] for s in done.manifest["steps"] if s["verb"] == "train"]
    assert trained == [3584, 3584, 3584, 3584]


def test_influence_asks_every_round_and_trains_three_arms_on_equal_tokens(tmp_path: Path) -> None:
    done = go(
        "influence.yaml", tmp_path, "steps.2.tokens=8k", "rounds.steps.2.tokens=4k",
        "model.max_length=64", "rounds.steps.0.influence.probes=48",
    )  # fmt: skip
    asked = [s for s in done.manifest["steps"] if s["name"] == "influence"]
    assert [s["round"] for s in asked] == [1, 2]
    assert {s["facts"]["method"] for s in asked} == {"ridge"}
    assert asked[0]["facts"]["reference_loss"] != asked[1]["facts"]["reference_loss"]
    assert all(s["facts"]["flops"]["fit"] > 0 for s in asked)
    arms = {(e["line"], e["round"]): e["trained_tokens"] for e in done.manifest["evaluations"]}
    assert len(arms) == 6
    assert len({tokens for (_, number), tokens in arms.items() if number == 2}) == 1


def test_forget_caps_copies_and_trains_on_the_risky_last(tmp_path: Path) -> None:
    done = go(
        "forget.yaml", tmp_path, "steps.5.budget=1%", "steps.6.intervals=2",
        "steps.7.batch_tokens=256", "steps.7.length=64", "steps.7.threads=1",
    )  # fmt: skip
    facts = {s["name"]: s["facts"] for s in done.manifest["steps"]}
    decided = facts["forget_risk"]["decisions"]
    assert decided["cap"]["copies"]["documents"] > 10
    capped = sum(g["documents"] for g in decided["cap"].values())
    dropped = sum(g["documents"] for g in decided.get("drop", {}).values())
    assert facts["where"]["dropped"] == capped + dropped
    assert facts["forget_risk"]["removed"] > 0
    rows = exported(done)
    risks = sorted(r["forget_risk.risk"] for r in rows)
    assert rows[-1]["forget_risk.risk"] >= risks[len(risks) // 3]
    assert rows[0]["forget_risk.risk"] <= risks[2 * len(risks) // 3]
    assert facts["causal_lm"]["documents"] == len(rows)
    assert len(facts["causal_lm"]["checkpoints"]) > 1
