"""Costs before a run: shared forwards, what budgets leave, references, training, the ratio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foresift.pipeline.cli import app
from foresift.pipeline.estimate import Cost, costs, count_parameters, scaled, selection_ratio
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.parts import find
from foresift.pipeline.plan import Plan
from foresift.pipeline.recipe import Recipe
from tests.runs import go

CONFIG = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
POOL, AIM = 4000, 400  # tokens: bytes / 4
INFLUENCE = {"reference": "aim", "method": "direct"}
TRAIN = {"train": "causal_lm", "tokens": "1k"}
SELECT = {"select": "random", "budget": "25%"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "llama.json").write_text(json.dumps(CONFIG))
    for name, tokens in (("pool", POOL), ("aim", AIM)):
        line = json.dumps({"text": name + "x" * (4 * tokens - 13 - len(name))})
        (tmp_path / f"{name}.jsonl").write_text(line + "\n")
        assert (tmp_path / f"{name}.jsonl").stat().st_size == 4 * tokens
    return tmp_path


def recipe(folder: Path, *steps: Any, **fields: Any) -> dict[str, Any]:
    def data(name: str) -> dict[str, Any]:
        return {"read": "jsonl", "paths": [str(folder / f"{name}.jsonl")]}

    base = {
        "name": "costs", "data": data("pool"), "datasets": {"aim": data("aim")},
        "model": {"init": str(folder / "llama.json"), "tokenizer": "bytes"}, "steps": list(steps),
    }  # fmt: skip
    return base | fields


def plan(folder: Path, *steps: Any, **fields: Any) -> Plan:
    return Recipe.parse(recipe(folder, *steps, **fields), "recipe").plan(folder / "out")


def flops(resolved: Plan) -> dict[str, list[float]]:
    """Name of a step -> its operations over those of one token, for each time that it runs."""
    parameters = count_parameters(resolved.recipe.model_specs()["init"])
    found: dict[str, list[float]] = {}
    told = costs(resolved)
    for step in resolved.steps:
        found.setdefault(step.name, []).append(told[step.path].flops / parameters)
    return found


def test_parameters_are_counted_without_weights(folder: Path) -> None:
    layer = 4 * 8 * 8 + 3 * 8 * 8 + 2 * 8
    spec = ModelSpec(init=str(folder / "llama.json"), tokenizer="bytes")
    # embedding and output have a row for each of 32,000 tokens, as the configuration's default says
    assert count_parameters(spec) == 2 * 32_000 * 8 + layer + 8


def test_reading_and_choosing_cost_no_operations(folder: Path) -> None:
    resolved = plan(folder, {"score": "length"}, SELECT)
    told = {s.name: costs(resolved)[s.path] for s in resolved.steps if s.inputs.corpus or s.round}
    assert told == {"length": Cost(bytes=4 * POOL), "random": Cost(columns=True)}
    assert [str(c) for c in told.values()] == ["16 kB", "columns"]
    reads = [costs(resolved)[s.path] for s in resolved.steps if s.verb == "read"]
    assert reads == [Cost(bytes=4 * POOL), Cost(bytes=4 * AIM)]


def test_scores_of_one_step_share_a_forward(folder: Path) -> None:
    found = flops(plan(folder, {"score": ["loss", "uncertainty", "gradient_norm"]}))
    assert [found[n] for n in ("loss", "uncertainty", "gradient_norm")] == [[2 * POOL], [0], [0]]
    apart = flops(plan(folder, {"score": "loss"}, {"score": "uncertainty"}))
    assert apart["uncertainty"] == [2 * POOL]


def fit(aimed: int = AIM, pool: int = POOL, **fields: Any) -> float:
    """What asking costs, in operations of one token, as the scorer itself says."""
    part = find("score", "influence").parse({"reference": "aim", **fields}, "score")
    found: float = part.estimate(1, pool, aimed)[0]  # type: ignore[attr-defined]
    assert found > 0
    return found


def test_direct_influence_asks_and_passes_twice_once_where_a_forward_is_shared(
    folder: Path,
) -> None:
    asked = fit(method="direct")
    alone = flops(plan(folder, {"score": "influence", **INFLUENCE}))
    assert alone["influence"] == [asked + 2 * 2 * POOL]
    step = {"score": ["loss", "influence"], "influence": INFLUENCE}
    behind = flops(plan(folder, step))
    assert (behind["loss"], behind["influence"]) == ([2 * POOL], [asked + 2 * POOL])
    before = flops(plan(folder, {**step, "score": ["influence", "loss"]}))
    assert (before["loss"], before["influence"]) == ([0], [asked + 4 * POOL])


def test_ridge_passes_over_nothing_but_its_probes(folder: Path) -> None:
    asked = fit(probes="25%")
    assert asked - fit(probes="5%") == pytest.approx(4 * 0.2 * POOL * 64 / 300)
    ridge = {"reference": "aim", "probes": "25%"}
    step = {"score": ["influence", "loss"], "influence": ridge}
    found = flops(plan(folder, step))
    assert (found["influence"], found["loss"]) == ([asked], [2 * POOL])
    hidden = flops(plan(folder, {**step, "influence": {**ridge, "hidden": True}}))
    assert (hidden["influence"], hidden["loss"]) == ([asked + 2 * POOL], [0])


def test_every_reference_counts_and_so_do_budgets_before_the_probes(folder: Path) -> None:
    both = ["aim", str(folder / "aim.jsonl")]
    found = flops(plan(folder, {"score": "influence", **INFLUENCE, "reference": both}))
    assert found["influence"] == [fit(2 * AIM, method="direct") + 4 * POOL]
    exact = {"reference": "aim", "labels": "exact"}
    less = flops(plan(folder, SELECT, {"score": "influence", **exact}))
    assert less["influence"] == [pytest.approx(fit(AIM, POOL // 4, **exact))]
    assert fit(AIM, POOL // 4, **exact) < fit(**exact)


@pytest.mark.parametrize(
    ("budget", "left"),
    [("25%", POOL / 4), ("100 tokens", 100), ("1M tokens", POOL), ("10 rows", POOL)],
)
def test_budgets_bound_what_comes_after(budget: str, left: float, folder: Path) -> None:
    found = flops(plan(folder, {"select": "random", "budget": budget}, {"score": "loss"}))
    assert found["loss"] == [2 * left]


def test_budgets_bound_one_after_another(folder: Path) -> None:
    second = {"select": "random", "budget": "100 tokens"}
    steps = [SELECT, {"score": "loss"}, second, {"score": "uncertainty"}]
    found = flops(plan(folder, *steps))
    assert (found["loss"], found["uncertainty"]) == ([2 * POOL / 4], [2 * 100])


def test_training_costs_its_tokens_or_what_is_left(folder: Path) -> None:
    assert flops(plan(folder, SELECT, TRAIN))["causal_lm"] == [6 * 1000]
    assert flops(plan(folder, SELECT, {"train": "causal_lm"}))["causal_lm"] == [6 * POOL / 4]


def rounds(folder: Path, consume: bool = True) -> Plan:
    steps = [{"score": "loss"}, SELECT, TRAIN]
    return plan(folder, rounds={"count": 3, "consume": consume, "steps": steps})


def test_a_pool_that_is_consumed_shrinks_by_what_was_taken(folder: Path) -> None:
    found = flops(rounds(folder))
    assert found["loss"] == pytest.approx([2 * POOL * share for share in (1, 0.75, 0.75**2)])
    assert found["causal_lm"] == [6 * 1000] * 3
    assert flops(rounds(folder, consume=False))["loss"] == [2 * POOL] * 3


def test_the_ratio_is_that_of_the_rounds_alone(folder: Path) -> None:
    resolved = rounds(folder)
    parameters = count_parameters(resolved.recipe.model_specs()["init"])
    found = selection_ratio(resolved)
    assert found is not None
    scoring, training = (x / parameters for x in found)
    assert scoring == pytest.approx(2 * POOL * (1 + 0.75 + 0.75**2))
    assert training == 6 * 3000
    assert selection_ratio(plan(folder, {"score": "loss"}, SELECT, TRAIN)) is None
    only = {"count": 2, "steps": [SELECT, TRAIN]}
    assert selection_ratio(plan(folder, rounds=only)) is None


def test_baselines_beside_the_selection_are_not_its_cost(folder: Path) -> None:
    steps = [{"score": "loss"}, SELECT, TRAIN]
    evidence = {"against": ["random"], "repeats": 2}
    beside = plan(folder, rounds={"count": 3, "steps": steps}, evidence=evidence)
    assert selection_ratio(beside) == selection_ratio(rounds(folder))


def test_plan_prints_the_ratio(folder: Path) -> None:
    import yaml

    path = folder / "recipe.yaml"
    repeated = {"count": 3, "steps": [{"score": "loss"}, SELECT, TRAIN]}
    path.write_text(yaml.safe_dump(recipe(folder, rounds=repeated)))
    told = CliRunner().invoke(app, ["plan", str(path), "--out", str(folder / "out")])
    assert told.exit_code == 0, told.output
    line = " ".join(told.output.split())
    expected = 2 * POOL * (1 + 0.75 + 0.75**2) / (6 * 3000)
    assert f"selecting costs {expected:.2g} of the training" in line
    assert "GFLOP to score" in line
    path.write_text(yaml.safe_dump(recipe(folder, {"score": "loss"})))
    told = CliRunner().invoke(app, ["plan", str(path), "--out", str(folder / "out")])
    assert "selecting costs" not in told.output


def test_what_was_read_is_counted_as_it_was_read(folder: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{k} " + "word " * 20}) for k in range(40)]
    (folder / "pool.jsonl").write_text("\n".join(lines) + "\n")
    fields = recipe(folder, {"score": "length"}, report=False)
    fields["data"]["holdout"] = 0.0
    done = go({k: v for k, v in fields.items() if k != "datasets"}, folder / "out")
    fields["steps"] = [{"score": "loss"}]
    resolved = Recipe.parse(fields, "recipe").plan(folder / "out")
    facts = json.loads((Path(done.manifest["steps"][0]["path"]) / "stage.json").read_text())[
        "facts"
    ]
    assert flops(resolved)["loss"] == [2 * facts["n_tokens"]]
    assert 0 < facts["n_tokens"] < (folder / "pool.jsonl").stat().st_size // 4


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "? "), (999, "999 "), (1000, "1 k"), (1.5e9, "1.5 G"), (2e15, "2 P"), (1e19, "10 E")],
)  # fmt: skip
def test_large_numbers_have_letters(value: float, text: str) -> None:
    assert scaled(value) == text
