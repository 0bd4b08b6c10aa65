"""Baselines are trained beside the selection: the same tokens, start and measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from foresift.pipeline.show import arms, summary
from tests.runs import go, recipe

TRAIN = {"train": "causal_lm", "length": 64, "batch_tokens": 128, "threads": 1, "tokens": 256}


def fields(repeats: int = 1) -> dict[str, Any]:
    return recipe(
        data={"read": "tests.parts:Texts", "shards": 2, "rows": 60, "pretend_bytes": 1},
        datasets={"aim": {"read": "tests.parts:Texts", "shards": 1, "seed": 9, "holdout": 0.4}},
        model={"init": "configs/models/tiny", "max_length": 64},
        steps=[
            TRAIN,  # a warm-up that all lines share
            {**TRAIN, "as": "aimed", "from": "latest", "data": "aim", "tokens": 512},
            {"score": "loss", "as": "irreducible", "model": "aimed"},
        ],
        rounds={
            "count": 2,
            "steps": [
                {"score": "excess_loss", "against": "irreducible.nll"},
                {"select": "topk", "by": "excess_loss.utility", "budget": "15%"},
                TRAIN,
            ],
        },
        evidence={"data": "aim", "repeats": repeats},
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return go(fields(), tmp_path_factory.mktemp("evidence"))


def test_every_arm_is_measured_after_every_round_at_equal_tokens(done: Any) -> None:
    table = arms(done.manifest)
    places = {(a["arm"], a["round"]) for a in table}
    names = ("selected", "random", "length_matched_random")
    assert places == {(n, r) for n in names for r in (1, 2)}
    for each in table:  # the warm-up counts, the model of the aim does not
        assert each["tokens"] == 256 * (1 + each["round"])
        assert 0 < each["loss"] < 20


def test_the_last_round_is_the_summary(done: Any) -> None:
    told = summary(done)
    last = {a["arm"]: a["loss"] for a in arms(done.manifest) if a["round"] == 2}
    assert told["losses"] == last
    assert len(set(last.values())) == 3, "arms must not share a model"


def test_arms_have_pools_of_their_own(done: Any) -> None:
    chosen: dict[tuple[str, int], set[tuple[int, int]]] = {}
    for step in done.manifest["steps"]:
        if step["verb"] == "order" and step["round"]:
            plan = pq.read_table(Path(step["path"]) / "plan.parquet")
            rows = zip(plan["shard"].to_pylist(), plan["row"].to_pylist(), strict=True)
            chosen[step["line"], step["round"]] = set(rows)
    for line in ("selected", "random", "length_matched_random"):
        assert chosen[line, 1]
        assert chosen[line, 2]
        assert chosen[line, 1].isdisjoint(chosen[line, 2])
    assert chosen["random", 1] != chosen["selected", 1]


def test_the_ledger_tells_what_was_trained_when(done: Any) -> None:
    trained = [
        s for s in done.manifest["steps"]
        if s["verb"] == "train" and s["line"] == "selected" and s["round"] == 2
    ]  # fmt: skip
    ledger = pq.read_table(Path(trained[0]["path"]) / "ledger.parquet").to_pandas()
    assert set(ledger["round"]) == {2}
    assert ledger["tokens"].sum() == trained[0]["facts"]["tokens"]
    plan = pq.read_table(done.plan).to_pandas()
    kept = {i.hex() for i in plan[plan["round"] == 2]["id"]}
    assert {i.hex() for i in ledger["id"]} <= kept


def test_repeats_draw_anew_and_start_from_other_weights(tmp_path: Path) -> None:
    again = go(fields(repeats=2), tmp_path)
    table = arms(again.manifest)
    assert {a["repeat"] for a in table} == {0, 1}
    last = {(a["arm"], a["repeat"]): a["loss"] for a in table if a["round"] == 2}
    for arm in ("selected", "random"):
        assert last[arm, 0] != last[arm, 1]
