"""Training follows the plan: its order, its weights, its budget, and the same bytes each time."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.model import ModelSpec, load
from foresift.pipeline.nouns import Inputs, Job
from foresift.pipeline.store import shard_facts
from foresift.stages.trainers import _checkpoint
from foresift.stages.trainers._documents import tables
from foresift.stages.trainers._loop import learning_rates
from tests.corpora import make_corpus, tree
from tests.stages.trainers.conftest import plan_of, train


def ledger(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "ledger.parquet").to_pylist()
    return rows


def place_of(inputs: Inputs) -> dict[bytes, tuple[int, int]]:
    """Document -> (shard, row) of its first copy: a ledger names documents by their ids."""
    assert inputs.corpus is not None
    found: dict[bytes, tuple[int, int]] = {}
    for number, shard in enumerate(inputs.corpus.shards()):
        for row, id_ in enumerate(shard.load(["id"])["id"].to_pylist()):
            found.setdefault(id_, (number, row))
    return found


def rows_of(inputs: Inputs, out: Path, tokens: int | None = None) -> list[int]:
    """The rows that were trained, in order (those of which so many tokens were, in one step)."""
    place = place_of(inputs)
    return [place[r["id"]][1] for r in ledger(out) if tokens in (None, r["tokens"])]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def lengths(inputs: Inputs) -> tuple[list[bytes], list[int]]:
    assert inputs.model is not None
    tokenizer = load(inputs.model).tokenizer
    found = [(t["id"].to_pylist(), encode(t, tokenizer, inputs.model)) for t in tables(inputs)]
    return [i for ids, _ in found for i in ids], [n for _, e in found for n in e.lengths.tolist()]


def test_one_pass_trains_every_token_once_in_plan_order(
    inputs: Inputs, tmp_path: Path, job: Job
) -> None:
    facts, out = train(inputs, tmp_path / "out", job)
    rows = ledger(out)
    ids, sizes = lengths(inputs)
    assert [key for key, _ in groupby(r["id"] for r in rows)] == ids
    spent = [sum(r["tokens"] for r in rows if r["id"] == i) for i in ids]
    assert spent == sizes
    assert [r["step"] for r in rows] == sorted(r["step"] for r in rows)
    per_step = np.bincount([r["step"] for r in rows], [r["tokens"] for r in rows])[1:]
    assert (per_step[:-1] == 64).all()
    assert len(per_step) == facts["steps"] == -(-sum(sizes) // 64)
    assert {r["round"] for r in rows} == {3}
    assert rows[0]["shard"] == 1
    assert place_of(inputs)[rows[0]["id"]] == (1, 14)
    assert facts["tokens"] == sum(sizes) == shard_total(out)
    assert facts["documents"] == facts["entries"] == 40
    assert facts["flops"] == {"train": 6.0 * facts["parameters"] * sum(sizes)}
    assert (facts["epochs"], facts["short"], facts["packing"]) == (1.0, False, "positions")


def shard_total(out: Path) -> int:
    return int(pq.read_table(out / "curve.parquet")["tokens"][-1].as_py())


@pytest.mark.parametrize(("tokens", "trained"), [(200, 192), ("0.4k", 384), (40, 40)])
def test_the_budget_is_whole_steps(
    inputs: Inputs, tmp_path: Path, job: Job, tokens: Any, trained: int
) -> None:
    facts, out = train(inputs, tmp_path / "out", job, tokens=tokens)
    assert facts["tokens"] == trained == sum(r["tokens"] for r in ledger(out))
    ids, _ = lengths(inputs)
    seen = [key for key, _ in groupby(r["id"] for r in ledger(out))]
    assert seen == ids[: facts["documents"]]
    assert facts["epochs"] < 1
    assert not facts["short"]


def test_the_same_inputs_give_the_same_bytes(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    one, first = train(inputs, tmp_path / "one", job, tokens=256)
    two, second = train(inputs, tmp_path / "two", job, tokens=256)
    assert one == two
    assert tree(first) == tree(second)
    assert all(str(tmp_path).encode() not in data for data in tree(first).values())


def test_what_is_left_behind(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    _, out = train(inputs, tmp_path / "out", job, tokens=128)
    left = set(tree(out))
    assert left == {
        "ledger.parquet", "curve.parquet", "checkpoint/config.json",
        "checkpoint/generation_config.json", "checkpoint/model.safetensors",
        "checkpoint/optimizer.safetensors", "checkpoint/tokenizer.json",
        "checkpoint/tokenizer_config.json", "checkpoint/training.json",
    }  # fmt: skip
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    assert shard_facts(out / "ledger.parquet")["rows"] == len(ledger(out))
    assert inputs.model is not None
    loaded = load.__wrapped__(inputs.model.at(out / "checkpoint"))
    assert len(loaded.tokenizer) == 257


def test_a_model_that_scorers_share_is_not_trained(
    inputs: Inputs, tmp_path: Path, job: Job
) -> None:
    assert inputs.model is not None
    shared = load(inputs.model).model.state_dict()
    before = {name: tensor.clone() for name, tensor in shared.items()}
    _, out = train(inputs, tmp_path / "out", job, tokens=128)
    assert same(before, dict(shared))
    assert not torch.equal(
        weights(out)["model.embed_tokens.weight"], before["model.embed_tokens.weight"]
    )


def test_training_learns(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    facts, out = train(inputs, tmp_path / "out", job, tokens=8000, repeat=True, learning_rate=5e-3)
    assert facts["loss_first"] > 4.5 > 3.0 > facts["loss_last"]
    assert facts["epochs"] > 4
    curve = pq.read_table(out / "curve.parquet")
    assert curve["step"].to_pylist() == list(range(1, facts["steps"] + 1))
    assert np.isfinite(np.asarray(curve["loss"])).all()


def test_repeating_begins_the_plan_again_in_the_same_order(
    inputs: Inputs, tmp_path: Path, job: Job, caplog: Any
) -> None:
    ids, sizes = lengths(inputs)
    with caplog.at_level(logging.WARNING, "foresift"):
        facts, out = train(inputs, tmp_path / "out", job, tokens=2 * sum(sizes), repeat=True)
    assert "it is repeated" in caplog.text
    seen = [key for key, _ in groupby(r["id"] for r in ledger(out))]
    assert seen == (ids + ids)[: len(seen)]
    assert facts["documents"] == len(seen) > 70
    assert facts["tokens"] == 2 * sum(sizes) // 64 * 64


def test_a_short_plan_stops_and_says_so(
    inputs: Inputs, tmp_path: Path, job: Job, caplog: Any
) -> None:
    _, sizes = lengths(inputs)
    with caplog.at_level(logging.WARNING, "foresift"):
        facts, out = train(inputs, tmp_path / "out", job, tokens="1M")
    assert f"the plan has {sum(sizes)} tokens, the budget is 1000000" in caplog.text
    assert facts["short"]
    assert facts["tokens"] == sum(sizes)
    rates = pq.read_table(out / "curve.parquet")["learning_rate"].to_pylist()
    assert rates[-1] < 0.01 * rates[0]  # the schedule fits the steps that there are


#: documents of exactly 16 tokens, so that a row is a document
SQUARE = [f"{n:02d} twelve more" for n in range(32)]


def test_going_on_is_as_if_it_had_never_stopped(model: Any, tmp_path: Path, job: Job) -> None:
    data = make_corpus(tmp_path, [SQUARE])
    fields: dict[str, Any] = {"schedule": "constant", "continue_optimizer": True}
    parts = [
        plan_of(data, [(0, r) for r in rows], tmp_path / f"plan{len(rows)}-{rows[0]}")
        for rows in (range(32), range(16), range(16, 32))
    ]
    whole, first, second = (Inputs(corpus=data, plan=plan, model=model()) for plan in parts)
    _, expected = train(whole, tmp_path / "whole", job, schedule="constant")
    _, half = train(first, tmp_path / "half", job, schedule="constant")
    second = replace(second, model=model().at(half / "checkpoint"))
    facts, out = train(second, tmp_path / "out", job, **fields)
    assert (facts["steps_before"], facts["steps"]) == (4, 4)
    assert same(weights(out), weights(expected))
    moments = "checkpoint/optimizer.safetensors"
    assert (out / moments).read_bytes() == (expected / moments).read_bytes()
    _, anew = train(second, tmp_path / "anew", job, schedule="constant")
    assert not same(weights(anew), weights(expected))


def test_no_moments_to_go_on_with_is_told(
    inputs: Inputs, tmp_path: Path, job: Job, caplog: Any
) -> None:
    with caplog.at_level(logging.WARNING, "foresift"):
        facts, _ = train(inputs, tmp_path / "out", job, tokens=64, continue_optimizer=True)
    assert "has no optimizer.safetensors" in caplog.text
    assert facts["steps_before"] == 0


def test_moments_of_another_model_are_refused(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    _, out = train(inputs, tmp_path / "out", job, tokens=64)
    assert inputs.model is not None
    net = load.__wrapped__(inputs.model).model
    path = tmp_path / "moments.safetensors"
    wrong = {f"{m}.model.norm.weight": torch.zeros(7) for m in _checkpoint.MOMENTS}
    save_file(wrong, path, metadata={"step": "1"})
    with pytest.raises(ModelError, match=r"moments of model.norm.weight have shape \(7,\)"):
        _checkpoint.restore_moments(path, net, torch.optim.AdamW(net.parameters()))
    assert out.exists()


def weighted(corpus: Corpus, spec: ModelSpec, rows: list[int], weight: list[float]) -> Inputs:
    path = corpus.base.parent / ("plan" + "-".join(map(str, rows + weight)))
    return Inputs(corpus=corpus, plan=plan_of(corpus, [(0, r) for r in rows], path, weight),
                  model=spec)  # fmt: skip


def test_a_weight_of_two_counts_as_two_copies(model: Any, tmp_path: Path, job: Job) -> None:
    data = make_corpus(tmp_path, [SQUARE])
    twice = weighted(data, model(), [3, 5], [2.0, 1.0])
    copies = weighted(data, model(), [3, 3, 5], [1.0, 1.0, 1.0])
    plain = weighted(data, model(), [3, 5], [1.0, 1.0])
    losses = [
        train(given, tmp_path / name, job)[0]["loss_first"]
        for name, given in (("twice", twice), ("copies", copies), ("plain", plain))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert abs(losses[0] - losses[2]) > 1e-4
    # AdamW's first step is the sign of the gradient, so compare the moments: they are linear in it
    got, want = (
        load_file(tmp_path / name / "checkpoint/optimizer.safetensors")
        for name in ("twice", "copies")
    )
    for name, tensor in want.items():
        assert torch.allclose(got[name], tensor, rtol=1e-3, atol=1e-7), name


def test_a_weight_of_zero_removes_the_document(model: Any, tmp_path: Path, job: Job) -> None:
    data = make_corpus(tmp_path, [SQUARE])
    zero = weighted(data, model(), [1, 3, 5], [1.0, 0.0, 1.0])
    without = weighted(data, model(), [1, 5], [1.0, 1.0])
    facts, out = train(zero, tmp_path / "zero", job)
    _, expected = train(without, tmp_path / "without", job)
    assert same(weights(out), weights(expected))
    assert facts["skipped"] == {"empty": 0, "zero_weight": 1}
    assert facts["documents"] + 1 == facts["entries"]
    assert rows_of(zero, out) == [1, 5]


@pytest.mark.parametrize("weight", [float("nan"), -1.0, float("inf")])
def test_a_weight_without_meaning_is_refused(
    weight: float, model: Any, tmp_path: Path, job: Job
) -> None:
    data = make_corpus(tmp_path, [SQUARE])
    with pytest.raises(DataError, match=r"plan\.parquet: document [0-9a-f]{32} has weight"):
        train(weighted(data, model(), [1, 3], [1.0, weight]), tmp_path / "out", job)
    assert list((tmp_path / "out").iterdir()) == []


def test_empty_null_and_long_documents(model: Any, tmp_path: Path, job: Job) -> None:
    data = make_corpus(tmp_path, [["", None, "x" * 500, "a\x00b", "\U0001f600"], []])
    inputs = Inputs(corpus=data, model=model())
    facts, out = train(inputs, tmp_path / "out", job, max_document=100)
    assert (facts["documents"], facts["cut"], facts["epochs"]) == (5, 1, 1.0)
    assert rows_of(inputs, out, tokens=2)[:2] == [0, 0]  # an empty text and a null are copies
    long = data.shards()[0].load(["id"])["id"][2].as_py()
    assert sum(r["tokens"] for r in ledger(out) if r["id"] == long) == 100


def test_the_process_is_left_as_it_was(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    def state() -> tuple[Any, ...]:
        draws = np.random.get_state()[1].tobytes(), torch.random.get_rng_state().numpy().tobytes()
        return random.getstate(), torch.get_num_threads(), draws

    before = state()
    train(inputs, tmp_path / "out", job, tokens=64, threads=torch.get_num_threads() + 1)
    assert state() == before


def test_progress_counts_the_steps(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    calls: list[tuple[int, int, str]] = []
    watched = replace(job, progress=lambda done, total, label: calls.append((done, total, label)))
    train(inputs, tmp_path / "out", watched, tokens=192)
    assert calls == [(1, 3, ""), (2, 3, ""), (3, 3, "")]


def test_a_killed_run_leaves_nothing_that_is_read(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    def killed(done: int, total: int, label: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(inputs, tmp_path / "out", replace(job, progress=killed))
    assert list((tmp_path / "out").iterdir()) == []
    _, again = train(inputs, tmp_path / "out", job)
    _, clean = train(inputs, tmp_path / "clean", job)
    assert tree(again) == tree(clean)
    _, over = train(inputs, tmp_path / "out", job)  # published, but not yet declared done
    assert tree(over) == tree(clean)


def test_schedules_known_answers() -> None:
    def factors(name: Any, warmup: float = 0.0) -> list[float]:
        factor = learning_rates(name, 10, warmup)
        return [round(factor(k), 4) for k in range(10)]

    assert factors("constant") == [1.0] * 10
    assert factors("linear") == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert factors("wsd") == [1.0] * 9 + [0.5]
    assert factors("cosine")[5] == 0.5
    assert factors("constant", 0.2) == [0.3333, 0.6667] + [1.0] * 8
    assert factors("linear", 1.0)[-1] == round(10 / 11, 4)


def test_micro_batches_change_rounding_only(inputs: Inputs, tmp_path: Path, job: Job) -> None:
    runs = [train(inputs, tmp_path / str(n), job, tokens=192, micro_tokens=n) for n in (16, 64)]
    one, two = (np.asarray(pq.read_table(out / "curve.parquet")["loss"]) for _, out in runs)
    assert np.allclose(one, two, rtol=1e-5)


def test_only_responses_are_learnt(model: Any, tmp_path: Path, job: Job) -> None:
    pairs = pa.table({"prompt": [f"ask{n}" for n in range(8)], "response": ["yes"] * 8})
    inputs = Inputs(corpus=make_corpus(tmp_path, [pairs]), model=model())
    facts, out = train(inputs, tmp_path / "out", job, tokens=64, batch_tokens=16)
    encoded = encode(pairs, load(model()).tokenizer, model())
    assert facts["documents"] * int(encoded.lengths[0]) >= facts["tokens"] == 64
    assert encoded.counts.sum() == 8 * 4
    assert set(rows_of(inputs, out)) == set(range(facts["documents"]))


def test_half_precision_keeps_full_precision_weights(
    inputs: Inputs, tmp_path: Path, job: Job
) -> None:
    full, _ = train(inputs, tmp_path / "full", job, tokens=64)
    half_inputs = replace(inputs, model=replace(inputs.model, dtype="bfloat16"))
    half, out = train(half_inputs, tmp_path / "half", job, tokens=64)
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.float32}
    assert half["loss_first"] != full["loss_first"]
    assert half["loss_first"] == pytest.approx(full["loss_first"], rel=1e-2)


def test_dropout_depends_on_the_seed(model: Any, tmp_path: Path, job: Job) -> None:
    spec = model("gpt2")
    config = json.loads(Path(spec.init).read_text())
    Path(spec.init).write_text(json.dumps({**config, "resid_pdrop": 0.2}))
    inputs = Inputs(corpus=make_corpus(tmp_path, [SQUARE]), model=spec)
    seeds = {"one": 0, "same": 0, "other": 1}
    one, same_seed, other = (
        weights(train(inputs, tmp_path / name, job, tokens=64, seed=seed)[1])
        for name, seed in seeds.items()
    )
    assert same(one, same_seed)
    assert not same(one, other)
