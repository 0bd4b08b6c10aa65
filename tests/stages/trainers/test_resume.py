"""A training that was interrupted ends as one that was not; one whose plan lost documents goes on
from the last checkpoint that has not seen them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from foresift.pipeline.checkpoints import checkpoints, intermediate
from foresift.pipeline.ledger import Ledger
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.nouns import Inputs, Job
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts, StepDir, read_json
from foresift.stages.trainers.causal_lm import CausalLM
from tests.corpora import Serial, make_corpus, tree
from tests.stages.trainers.conftest import SHAPES, plan_of

SMALL = {"length": 16, "batch_tokens": 64, "micro_tokens": 32, "threads": 1, "checkpoint_every": 2}
#: documents of exactly 16 tokens: four of them are a step
SQUARE = [f"{n:02d} twelve more" for n in range(48)]
Plan = Callable[..., Inputs]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """`plan(without=[30])`: 48 documents in 12 steps, or fewer; the model has dropout."""
    base = tmp_path_factory.mktemp("given")
    config = {"model_type": "gpt2", **SHAPES["gpt2"], "resid_pdrop": 0.2, "n_layer": 1}
    (base / "model.json").write_text(json.dumps(config))
    spec = ModelSpec(init=str(base / "model.json"), tokenizer="bytes", device="cpu")
    data = make_corpus(base, [SQUARE])

    def make(without: list[int] | None = None, weights: Any = None) -> Inputs:
        rows = [(0, r) for r in range(48) if r not in (without or [])]
        path = base / f"plan-{len(rows)}-{without}-{weights is None}"
        return Inputs(corpus=data, plan=plan_of(data, rows, path, weights), model=spec)

    return make


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Facts, Path]:
    """A training that nothing disturbed; read only."""
    out = tmp_path_factory.mktemp("whole")
    return train(plan(), out, Job(engine=Serial(), rng=Rng(0))), out


def train(inputs: Inputs, out: Path, job: Job, **fields: Any) -> Facts:
    StepDir(out).open()
    return CausalLM(**{**SMALL, **fields}).run(inputs, StepDir(out), job)


def stopping(job: Job, at: int) -> Job:
    """A job that is interrupted after so many steps."""

    def stop(done: int, total: int, label: str) -> None:
        if done == at:
            raise KeyboardInterrupt

    return replace(job, progress=stop)


def watched(job: Job) -> tuple[Job, list[int]]:
    """A job, and the steps that are taken in it."""
    seen: list[int] = []
    return replace(job, progress=lambda done, total, label: seen.append(done)), seen


def interrupt(inputs: Inputs, out: Path, job: Job, at: int, **fields: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(inputs, out, stopping(job, at), **fields)


def steps_of(out: Path) -> list[int | None]:
    return [c.step for c in checkpoints(out)]


def exposures(out: Path) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in Ledger.open(out).table().to_pylist()]


def test_interrupted_or_not_the_bytes_are_the_same(
    plan: Plan, whole: tuple[Facts, Path], tmp_path: Path, job: Job
) -> None:
    facts, undisturbed = whole
    expected = tree(undisturbed)
    assert facts["steps"] == 12
    assert facts["checkpoints"] == [2, 4, 6, 8, 10, 12] == steps_of(undisturbed)
    out = tmp_path / "out"
    for at, newest in ((1, None), (5, 4), (8, 8), (12, 10)):
        interrupt(plan(), out, job, at)
        assert steps_of(out)[-1:] == ([newest] if newest else [])
    ending, seen = watched(job)
    assert train(plan(), out, ending) == facts
    assert seen == [11, 12]
    assert tree(out) == expected
    assert all(str(tmp_path).encode() not in data for data in expected.values())


def test_without_checkpoints_the_same_weights(
    plan: Plan, whole: tuple[Facts, Path], tmp_path: Path, job: Job
) -> None:
    facts = train(plan(), tmp_path / "none", job, checkpoint_every=0)
    assert facts["checkpoints"] == [12] == steps_of(tmp_path / "none")
    kept = {k: v for k, v in tree(whole[1]).items() if not k.startswith("checkpoints/")}
    assert tree(tmp_path / "none") == kept


def test_what_a_checkpoint_says_of_itself(whole: tuple[Facts, Path]) -> None:
    _, out = whole
    for checkpoint in checkpoints(out):
        told = read_json(checkpoint.path / "training.json")
        step = checkpoint.step or 0
        assert (told["step"], told["tokens"], told["exposures"]) == (step, 64 * step, 4 * step)
        assert (told["planned_steps"], told["planned_tokens"]) == (12, 768)
    left = {p.name for p in intermediate(out)[0].path.iterdir()}
    final = {p.name for p in (out / "checkpoint").iterdir()}
    assert left == final | {"curve.parquet"}


def test_going_on_with_moments_is_also_interrupted(
    plan: Plan, whole: tuple[Facts, Path], tmp_path: Path, job: Job
) -> None:
    second = plan()
    assert second.model is not None
    second = replace(second, model=second.model.at(whole[1] / "checkpoint"))
    facts = train(second, tmp_path / "whole", job, continue_optimizer=True)
    assert facts["steps_before"] == 12
    interrupt(second, tmp_path / "out", job, 7, continue_optimizer=True)
    assert train(second, tmp_path / "out", job, continue_optimizer=True) == facts
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize(("gone", "clean"), [(30, 6), (0, 0), (47, 10)])
def test_replay_without_a_document_is_training_without_it(
    plan: Plan, tmp_path: Path, job: Job, gone: int, clean: int
) -> None:
    fields = {"schedule": "constant"}  # of a length that does not matter
    train(plan(), tmp_path / "tainted", job, **fields)
    oracle = train(plan([gone]), tmp_path / "oracle", job, **fields)
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "tainted" / "checkpoints", out / "checkpoints")
    going, seen = watched(job)
    facts = train(plan([gone]), out, going, **fields)
    assert seen == list(range(clean + 1, 13))
    assert exposures(out) == exposures(tmp_path / "oracle")
    assert len(exposures(out)) == 47
    for name in ("model", "optimizer"):
        file = f"checkpoint/{name}.safetensors"
        assert (out / file).read_bytes() == (tmp_path / "oracle" / file).read_bytes()
    assert steps_of(out) == [2, 4, 6, 8, 10, 12]
    assert facts["steps"] == oracle["steps"] == 12
    # the schedule is that of the training which began, if any of it is left
    assert (facts["short"], oracle["short"]) == (clean > 0, False)


def test_replay_keeps_the_schedule(
    plan: Plan, whole: tuple[Facts, Path], tmp_path: Path, job: Job
) -> None:
    shutil.copytree(whole[1], tmp_path / "out")
    before = pq.read_table(tmp_path / "out" / "curve.parquet")["learning_rate"].to_pylist()
    facts = train(plan(list(range(20, 29))), tmp_path / "out", job)
    after = pq.read_table(tmp_path / "out" / "curve.parquet")["learning_rate"].to_pylist()
    assert (facts["steps"], facts["steps_planned"], facts["short"]) == (10, 12, True)
    assert after == before[:10]
    assert facts["checkpoints"] == steps_of(tmp_path / "out") == [2, 4, 6, 8, 10]


def test_a_plan_that_ends_at_a_checkpoint_is_not_trained(
    plan: Plan, whole: tuple[Facts, Path], tmp_path: Path, job: Job
) -> None:
    shutil.copytree(whole[1], tmp_path / "out")
    going, seen = watched(job)
    facts = train(plan(list(range(32, 48))), tmp_path / "out", going)
    assert (facts["steps"], seen) == (8, [])
    assert facts["checkpoints"] == [2, 4, 6, 8]
    weights = [(c.path / "model.safetensors").read_bytes() for c in checkpoints(tmp_path / "out")]
    assert weights[-1] == weights[-2]
    assert len(exposures(tmp_path / "out")) == 32


def test_a_longer_plan_begins_anew(
    plan: Plan, whole: tuple[Facts, Path], tmp_path: Path, job: Job
) -> None:
    train(plan([47]), tmp_path / "out", job)
    shutil.rmtree(tmp_path / "out" / "checkpoint")
    going, seen = watched(job)
    train(plan([40, 41, 42, 43]), tmp_path / "out", going)  # no longer in steps: goes on
    assert seen[0] == 11
    train(plan(), tmp_path / "out", going)  # its schedule was made for fewer
    assert tree(tmp_path / "out") == tree(whole[1])


def test_other_weights_are_another_training(
    plan: Plan, whole: tuple[Facts, Path], tmp_path: Path, job: Job
) -> None:
    shutil.copytree(whole[1], tmp_path / "out")
    weights = np.where(np.arange(48) == 20, 2.0, 1.0)
    going, seen = watched(job)
    train(plan(weights=weights), tmp_path / "out", going)
    assert seen[0] == 5  # the document of another weight stands in step 6


def test_published_but_not_declared_is_not_trained_again(
    plan: Plan, tmp_path: Path, job: Job
) -> None:
    for every in (0, 5):
        out = tmp_path / str(every)
        facts = train(plan(), out, job, checkpoint_every=every)
        expected = tree(out)
        going, seen = watched(job)
        assert train(plan(), out, going, checkpoint_every=every) == facts
        (out / "ledger.parquet").unlink()  # made again from the plan
        assert train(plan(), out, going, checkpoint_every=every) == facts
        assert (tree(out), seen) == (expected, [])


@pytest.mark.parametrize("damage", ["facts", "curve", "empty", "step"])
def test_a_damaged_checkpoint_is_passed_over(
    plan: Plan, whole: tuple[Facts, Path], tmp_path: Path, job: Job, damage: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[1], out)
    shutil.rmtree(out / "checkpoint")
    newest = intermediate(out)[-1].path
    if damage == "facts":
        (newest / "training.json").write_text("{")
    elif damage == "curve":
        (newest / "curve.parquet").unlink()
    elif damage == "step":
        newest.rename(newest.with_name("step-000009"))
    else:
        shutil.rmtree(newest)
        newest.mkdir()
    going, seen = watched(job)
    train(plan(), out, going)
    assert seen[0] == 9
    assert tree(out) == tree(whole[1])


@pytest.mark.parametrize("at", [1, 9])
def test_two_processes_at_once_leave_what_one_leaves(
    plan: Plan, whole: tuple[Facts, Path], tmp_path: Path, job: Job, at: int
) -> None:
    out = tmp_path / "out"

    def other(done: int, total: int, label: str) -> None:
        if done == at:
            train(plan(), out, job)

    train(plan(), out, replace(job, progress=other))
    assert tree(out) == tree(whole[1])
    assert not (out / "ledger").exists()


def test_a_failure_before_the_first_checkpoint_leaves_nothing(
    plan: Plan, tmp_path: Path, job: Job
) -> None:
    interrupt(plan(), tmp_path / "out", job, 1)
    assert [p.name for p in (tmp_path / "out").iterdir()] == []
