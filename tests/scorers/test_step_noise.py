"""Losses by step: known jumps, tokens under characters, and NoRa's two kinds of noise."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from foresift.pipeline.errors import RecipeError
from foresift.pipeline.estimate import costs
from foresift.pipeline.findings import FOUND, findings
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.forward import score_table, score_window
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.scoring import stored
from foresift.pipeline.tables import MESSAGES, content_ids
from foresift.scorers import step_noise
from foresift.scorers._steps import Trace, steps, traces
from foresift.scorers.ifd import Ifd
from foresift.scorers.loss import Loss
from foresift.scorers.step_noise import StepNoise, jumps, overlaps, step_means
from foresift.scorers.uncertainty import Uncertainty
from tests.runs import go
from tests.scorers import tiny

DEFAULT = StepNoise()


def scored(table: pa.Table, spec: ModelSpec, part: StepNoise = DEFAULT) -> dict[str, pa.Array]:
    """The columns of some rows, from the shared pass."""
    rows = table.add_column(0, "id", content_ids(table))
    found = score_table(rows, spec, [part])[0]
    return {n: stored(found[n], c.dtype) for n, c in part.columns.items()}


def test_a_jump_is_the_distance_to_the_median_in_units_of_spread() -> None:
    found = jumps(np.array([1.0, 2.0, 3.0, 4.0, 9.0]))
    np.testing.assert_allclose(found, np.array([-2, -1, 0, 1, 6]) / 1.4826)
    flat = jumps(np.array([1.0, 1.0, 1.0, 1.5]), floor=0.1)
    np.testing.assert_allclose(flat, [0, 0, 0, 5.0])
    assert np.isnan(jumps(np.array([1.0, 5.0]))).all()
    np.testing.assert_allclose(jumps(np.array([1, np.nan, 1, 2]), floor=0.5), [0, np.nan, 0, 2])


def test_a_jump_against_what_came_before_knows_nothing_of_what_follows() -> None:
    means = np.array([5.0, 1.0, 2.0, 9.0, 1.0])
    found = jumps(means, "before", 0.1)
    assert np.isnan(found[:2]).all()
    np.testing.assert_allclose(found[2], (2 - 3) / (1.4826 * 2))
    np.testing.assert_allclose(found[3], (9 - 2) / (1.4826 * 1))
    np.testing.assert_allclose(jumps(means[:4], "before", 0.1), found[:4])


def test_a_token_belongs_to_the_step_that_its_last_character_is_in() -> None:
    spans = [(0, 4), (5, 9)]
    where = [(0, 0, 4), (1, 4, 7), (2, 7, 9)]  # the second begins with the space between
    np.testing.assert_allclose(step_means(spans, where, np.array([1.0, 2.0, 4.0])), [1.0, 3.0])
    np.testing.assert_allclose(step_means(spans, where[:1], np.array([1.0])), [1.0, np.nan])


def test_words_that_nothing_takes_up() -> None:
    text = "We have 1 + 8 = 9. Norse myths know realms. 9 mod 9 = 0. And."
    found = overlaps(Trace(text, 0, "what is 1 + 8?"), steps(text))
    np.testing.assert_allclose(found, [1, 0, 1 / 3, 1])


def test_losses_by_step_are_the_models_own(tmp_path: Path) -> None:
    spec = tiny.llama(tmp_path)
    text = "Aa é.\nBb b.\nCc"
    found = scored(pa.table({"text": [text, "", "a"]}), spec)
    loaded = load(spec)
    ids = [loaded.tokenizer.eos_token_id, *loaded.tokenizer(text)["input_ids"]]
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([ids]).to(loaded.device)).logits[0].cpu()
    nll = -logits.double().log_softmax(-1)[range(len(ids) - 1), ids[1:]].numpy()
    lines = text.split("\n")
    ends = np.cumsum([len(f"{line}\n".encode()) for line in lines])
    expected = [part.mean() for part in np.split(nll, ends[:-1])]
    np.testing.assert_allclose(found["nll"][0].as_py(), expected, rtol=1e-4)
    np.testing.assert_allclose(found["worst"][0].as_py(), max(expected), rtol=1e-4)
    assert found["nll"][1].as_py() == []
    assert found["step"].to_pylist()[1:] == [-1, -1]


def test_a_jump_is_a_finding_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "3 + 5 is 8. Whales sing at night. 8 + 1 is 9. 3 + 8 is 5. So it is 9."
    given = np.array([1.0, 9.0, 1.1, 8.0, 1.2])
    monkeypatch.setattr(step_noise, "step_means", lambda spans, *_: given[: len(spans)])
    table = pa.table({"prompt": ["3 + 5 + 1?"], "response": [answer]})
    found = scored(table, tiny.llama(tmp_path))
    one, two = next(iter(findings(found["findings"])))
    content = "3 + 5 + 1?\n" + answer
    assert (one.reason, content[one.start : one.stop]) == ("irrelevant", "Whales sing at night.")
    assert (two.reason, content[two.start : two.stop]) == ("inaccurate", "3 + 8 is 5.")
    assert found["step"][0].as_py() == 1
    assert found["noise"][0].as_py() == pytest.approx(2 / 5)
    assert found["unrelated"][0].as_py() == 1


def test_conversations_are_read_to_their_last_answer(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "u"}, {"role": "assistant", "content": "x.\ny.\nz."},
        {"role": "user", "content": "v"}, {"role": "assistant", "content": "a.\nb."},
    ]  # fmt: skip
    table = pa.table({"messages": [turns, turns[:2], turns[:1]]})
    found = scored(table, tiny.llama(tmp_path))
    lengths = found["nll"].value_lengths().to_pylist()
    assert lengths == [2, 3, 0]
    assert np.isfinite(found["nll"][1].as_py()).all()


ANSWERS = [
    "3 + 5 is 8. Wale s\u00fcngen. 8 + 1 is 9. So it is 9.",
    "First line\n\n  second \U0001f40b line\nthird\nfourth one, and more of it\nfifth",
    "one. two. three.", "alone", "", "a b c. a b d. a b e. zz " + "q " * 40,
]  # fmt: skip


def content(kind: str) -> pa.Table:
    if kind == "text":
        return pa.table({"text": ANSWERS})
    if kind == "pair":
        return pa.table({"prompt": [f"why {k}?" for k in range(len(ANSWERS))], "response": ANSWERS})
    turns = [
        [("user", "u"), ("assistant", "Sure. Yes. Go on."), ("user", f"{k}"), ("assistant", a)]
        for k, a in enumerate(ANSWERS)
    ]
    chats = [[{"role": r, "content": c} for r, c in chat] for chat in turns]
    return pa.table({"messages": pa.array(chats, MESSAGES)})


def plain_losses(table: pa.Table, row: int, spec: ModelSpec, loaded: Loaded) -> list[float]:
    """Mean NLL of each step by the definition: one document, full logits, a token is a byte."""
    one = table.slice(row, 1)
    answer = traces(one)[0].text
    encoded = encode(one, loaded.tokenizer, spec)
    ids = encoded.ids.tolist()
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([ids])).logits[0].double()
    nll = -logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].numpy()
    counted = np.flatnonzero(encoded.counts)
    breaks = np.flatnonzero(np.diff(counted) > 1)
    first = int(counted[breaks[-1] + 1] if len(breaks) else counted[0])
    sums: list[list[float]] = [[] for _ in steps(answer)]
    ends = np.cumsum([len(c.encode()) for c in answer])
    for byte in range(min(len(answer.encode()), len(ids) - first)):
        character = int(np.searchsorted(ends, byte, side="right"))
        step = sum(start <= character for start, _ in steps(answer)) - 1
        if step >= 0:
            sums[step].append(float(nll[first + byte - 1]))
    return [float(np.mean(s)) if s else math.nan for s in sums]


@pytest.mark.parametrize("kind", ["text", "pair", "messages"])
def test_the_shared_pass_gives_what_the_plain_computation_gives(kind: str, tmp_path: Path) -> None:
    spec, table = replace(tiny.llama(tmp_path), max_length=100), content(kind)
    part, loaded = StepNoise(floor=0.1, threshold=0.5), load(spec)
    found = scored(table, spec, part)
    told = list(findings(found["findings"]))
    for row, trace in enumerate(traces(table)):
        means = np.array(plain_losses(table, row, spec, loaded))
        np.testing.assert_allclose(found["nll"][row].as_py(), means, rtol=1e-4)
        expected = jumps(means, floor=0.1)
        over = np.flatnonzero(expected > 0.5)
        assert [f.start - trace.start for f in told[row]] == [steps(trace.text)[t][0] for t in over]
        np.testing.assert_allclose([f.value for f in told[row]], expected[over], rtol=1e-2)
    assert sum(map(len, told)) > 3


def test_neither_batches_nor_company_change_a_number(tmp_path: Path) -> None:
    spec, table = tiny.llama(tmp_path), content("pair")
    whole = scored(table, spec)
    for row in range(table.num_rows):
        alone = scored(table.slice(row, 1), replace(spec, batch_tokens=1))
        np.testing.assert_allclose(alone["nll"][0].as_py(), whole["nll"][row].as_py(), rtol=1e-4)
    rows = table.add_column(0, "id", content_ids(table))
    beside = score_table(rows, spec, [Uncertainty(), StepNoise(), Ifd()])[1]
    assert stored(beside["findings"], FOUND.dtype).equals(whole["findings"])
    assert scored(table.slice(0, 0), spec)["nll"].to_pylist() == []


def test_content_is_for_scorers_that_ask_for_it(tmp_path: Path) -> None:
    spec, table = tiny.llama(tmp_path), content("pair")
    rows = table.add_column(0, "id", content_ids(table))
    seen = score_window(rows, spec, [Loss(), Ifd()])[1].tokens
    assert (seen.table.column_names, seen.encoded, seen.tokenizer) == (["id"], None, None)
    seen = score_window(rows, spec, [Loss(), StepNoise()])[1].tokens
    assert seen.table.column_names == ["id", "prompt", "response"]
    assert seen.encoded is not None


def recipe(folder: Path, scores: list[str]) -> dict[str, Any]:
    spec, pool = tiny.llama(folder), folder / "pool.jsonl"
    lines = [json.dumps({"text": f"{k} {a}."}) + "\n" for k, a in enumerate(ANSWERS)]
    pool.write_text("".join(lines))
    model = {"init": spec.init, "tokenizer": "bytes", "device": "cpu", "max_length": 48}
    return {
        "name": "shared", "report": False, "steps": [{"score": scores}],
        "data": {"read": "jsonl", "paths": [str(pool)], "holdout": 0},
        "model": model | {"batch_tokens": 96},
    }  # fmt: skip


def test_it_shares_the_forward_of_its_step(tmp_path: Path) -> None:
    """Batches through the model and the planner's costs are those of `loss` alone."""
    batches: dict[str, list[Any]] = {}
    flops: dict[str, float] = {}
    told: dict[str, list[Any]] = {}
    go(recipe(tmp_path, ["loss"]), tmp_path / "first")  # a model's output layer is tried once
    for name in ("loss", "step_noise", "loss step_noise", "step_noise loss"):
        fields, out, shapes = recipe(tmp_path, name.split()), tmp_path / name, []

        def look(module: Any, given: Any, shapes: list[Any] = shapes) -> None:
            if isinstance(module, torch.nn.Embedding):  # the way into the model
                shapes.append(tuple(given[0].shape))

        resolved = Recipe.parse(fields, "recipe").plan(out)
        flops[name] = sum(c.flops for c in costs(resolved).values())
        hook = register_module_forward_pre_hook(look)
        try:
            done = go(fields, out)
        finally:
            hook.remove()
        batches[name] = shapes
        facts = [s["facts"]["flops"] for s in done.manifest["steps"] if s["verb"] == "score"]
        assert [set(f) for f in facts] == [{"shared"}] * len(name.split())
        told |= {name: [p.read_bytes() for p in sorted(out.glob("steps/step_noise*/*.parquet"))]}
    assert len(batches["loss"]) > 1
    assert flops["loss"] > 0
    for name, shapes in batches.items():
        assert (shapes, flops[name]) == (batches["loss"], flops["loss"]), name
    assert told["step_noise"] == told["loss step_noise"] == told["step_noise loss"] != []


@pytest.mark.parametrize("fields", [{"floor": 0}, {"threshold": -1}, {"related": 2}])
def test_wrong_fields_are_located_errors(fields: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="positive"):
        StepNoise.parse(fields, "score")
