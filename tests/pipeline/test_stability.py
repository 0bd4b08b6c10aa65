"""Metrics of the stability gap at known answers, and a guard that sees a fall and nothing else."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments

from foresift.pipeline.adapters.hf import GUARD_FILE, GuardCallback
from foresift.pipeline.errors import DataError
from foresift.pipeline.stability import StabilityGuard, min_acc, wc_acc, wf, wp
from foresift.pipeline.stream_state import read_state, write_state
from tests.pipeline.streams import collate, model, rows

SERIES = st.lists(st.floats(-5, 5), max_size=30)


def test_known_answers() -> None:
    assert wc_acc(0.9, [0.5, 0.7]) == pytest.approx(0.7)
    assert wf([0.8, 0.2, 0.7], 10) == pytest.approx(0.6)
    assert wp([0.8, 0.2, 0.7], 10) == pytest.approx(0.5)
    assert wf([0.8, 0.5, 0.2], 1) == pytest.approx(0.3)
    assert wf([0.8, 0.5, 0.2], 2) == pytest.approx(0.6)
    assert wf([0.1, 0.2, 0.3], 10) == 0
    assert wf([], 1) == wf([3.0], 1) == 0
    assert wf([0.8, 0.7], 1) < wf([0.8, 0.2, 0.7], 1)  # an evaluation less misses the collapse


def test_minima_are_since_a_task_was_learned_and_while_it_is_not() -> None:
    learning = [0, 0, 1, 1, 0, 2]
    accuracies = np.array([
        [0.1, 0.0, 0.0], [0.9, 0.1, 0.0], [0.5, 0.2, 0.0],
        [0.8, 0.9, 0.1], [0.3, 0.7, 0.1], [0.6, 0.8, 0.9],
    ])  # fmt: skip
    found = min_acc(accuracies, learning)
    np.testing.assert_array_equal(found, [0.5, 0.7, np.nan])
    assert wc_acc(accuracies[-1, 2], found[:2]) == pytest.approx((0.9 + 0.5 + 0.7) / 3)
    assert np.isnan(min_acc(np.zeros((0, 2)), [])).all()


@given(SERIES, st.integers(1, 12))
def test_the_largest_fall_is_that_of_all_pairs(series: list[float], window: int) -> None:
    falls = [
        series[i] - series[j]
        for i in range(len(series))
        for j in range(i + 1, min(i + window + 1, len(series)))
    ]
    assert wf(series, window) == max([0.0, *falls])
    assert wp(series, window) == wf(-np.array(series), window)
    assert wf(series, window) <= wf(series, window + 1)


@given(SERIES, st.integers(1, 5), st.floats(-3, 3))
def test_a_shift_of_the_whole_series_changes_nothing(
    series: list[float], window: int, shift: float
) -> None:
    moved = np.array(series) + shift
    assert wf(moved, window) == pytest.approx(wf(series, window), abs=1e-12)


PROBE = collate([{"input_ids": row["input_ids"]} for row in rows(4, seed=1)])
OTHER = collate([{"input_ids": row["input_ids"]} for row in rows(4, seed=2)])


def learn(net: Any, batch: Any, rate: float = 1e-2) -> None:
    net.train()
    net(**batch).loss.backward()
    with torch.no_grad():
        for weights in net.parameters():
            weights -= rate * weights.grad
            weights.grad = None


def test_it_measures_closely_after_a_switch_and_then_more_rarely() -> None:
    net = model()
    guard = StabilityGuard({"old": PROBE, "new": OTHER}, steps=3, every=4, bound=1e9)
    guard.switch(net, 0)
    for step in range(1, 14):
        learn(net, PROBE)
        guard.after_step(net, step)
        guard.after_step(net, step)  # told twice
    assert guard.steps == [0, 1, 2, 3, 4, 8, 12]
    guard.switch(net, 13)
    for step in range(14, 22):
        guard.after_step(net, step)
    assert guard.steps[7:] == [13, 14, 15, 16, 17, 21]
    net.eval()
    with torch.no_grad():
        assert guard.losses["new"][-1] == float(net(**OTHER).loss)
    since = guard.losses["old"][7:]
    assert guard.report()["old"] == {
        "before": since[0], "worst": max(since), "last": since[-1], "measurements": 6,
        "largest_rise": 0.0, "largest_fall": 0.0,
    }  # fmt: skip


def test_it_leaves_modes_random_state_and_weights_alone() -> None:
    net = model(attention_dropout=0.5)
    net.train()
    net.lm_head.eval()
    guard = StabilityGuard(PROBE)
    random, modes = torch.get_rng_state(), [m.training for m in net.modules()]
    guard.switch(net, 0)
    guard.after_step(net, 1)
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in net.modules()] == modes
    assert guard.losses["probe"][0] == guard.losses["probe"][1]  # dropout is off
    assert all(weights.grad is None for weights in net.parameters())


def test_it_warns_once_a_switch_of_a_fall_that_is_made_up_for() -> None:
    net, guard = model(), StabilityGuard({"old": PROBE, "new": OTHER}, bound=0.5, steps=10)
    kept = {name: weights.clone() for name, weights in net.state_dict().items()}
    guard.switch(net, 0)
    with torch.no_grad():
        net.lm_head.weight *= 40  # sure of what is wrong
    with pytest.warns(
        UserWarning, match=r"(old|new) is .* after step 1, .*switch at step 0"
    ) as caught:
        guard.after_step(net, 1)
    assert len(caught) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guard.after_step(net, 2)
        net.load_state_dict(kept)
        guard.after_step(net, 3)
    report = guard.report()["old"]
    assert report["last"] == report["before"]
    assert report["largest_rise"] == pytest.approx(report["worst"] - report["before"])
    assert report["largest_rise"] > 0.5
    guard.switch(net, 3)
    with torch.no_grad():
        net.lm_head.weight *= torch.nan
    with pytest.warns(UserWarning, match="(old|new) is nan"):
        guard.after_step(net, 4)
    assert guard.report()["old"]["largest_rise"] == 0


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_guard_goes_on_from_its_state(stop: int, tmp_path: Path) -> None:
    def begin() -> tuple[Any, StabilityGuard]:
        return model(), StabilityGuard(PROBE, steps=2, every=3, bound=1e9)

    def go(net: Any, guard: StabilityGuard, first: int, last: int) -> None:
        for step in range(first, last):
            if step in (0, 5):
                guard.switch(net, step)
            learn(net, OTHER)
            guard.after_step(net, step + 1)

    whole, first, second = begin(), begin(), begin()
    go(*whole, 0, 10)
    go(*first, 0, stop)
    write_state(first[1].state_dict(), tmp_path / "guard")
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(read_state(tmp_path / "guard"))
    go(*second, stop, 10)
    assert (second[1].steps, second[1].losses) == (whole[1].steps, whole[1].losses)
    assert second[1].report() == whole[1].report()
    with pytest.raises(DataError, match="the state belongs to guard"):
        StabilityGuard(OTHER, steps=2, every=3, bound=1e9).load_state_dict(first[1].state_dict())


def test_a_trainer_is_guarded_and_goes_on(tmp_path: Path) -> None:
    def trained(folder: str, steps: int, resume: bool, guarded: bool = True) -> Any:
        args = TrainingArguments(
            output_dir=str(tmp_path / folder), per_device_train_batch_size=4, max_steps=steps,
            report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, seed=1,
            save_steps=2, learning_rate=1e-2, lr_scheduler_type="constant",
        )  # fmt: skip
        data = [{"input_ids": row["input_ids"]} for row in rows(40)]
        net = model(attention_dropout=0.3)
        trainer = Trainer(net, args, train_dataset=data, data_collator=collate)
        guard = StabilityGuard(PROBE, steps=3, every=2, bound=1e9)
        if guarded:
            trainer.add_callback(GuardCallback(guard))
        trainer.train(resume_from_checkpoint=resume)
        return guard, trainer.model.state_dict()

    whole, weights = trained("whole", 6, False)
    assert whole.steps == [0, 1, 2, 3, 4, 6]
    trained("broken", 4, False)
    assert (tmp_path / "broken" / "checkpoint-4" / GUARD_FILE).is_file()
    again, _ = trained("broken", 6, True)
    assert (again.steps, again.losses) == (whole.steps, whole.losses)
    _, plain = trained("plain", 6, False, guarded=False)
    for name, values in plain.items():
        assert torch.equal(values, weights[name]), name


def test_bad_input() -> None:
    for fields, message in (
        ({"steps": -1}, "steps: must be at least 0"), ({"every": 0}, "every: must be at least 1"),
        ({"window": 0}, "window: must be"), ({"bound": 0}, "bound: must be above 0"),
        ({"bound": float("nan")}, "bound: must be above 0"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            StabilityGuard(PROBE, **fields)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="old: the batch has no input_ids and no labels"):
        StabilityGuard({"old": {"attention_mask": PROBE["attention_mask"]}})
    with pytest.raises(DataError, match="probe: the batch has no labels"):
        StabilityGuard({"input_ids": PROBE["input_ids"]})
    with pytest.raises(DataError, match="switch"):
        StabilityGuard(PROBE).after_step(model(), 1)
    with pytest.raises(DataError, match="NaN"):
        wf([0.1, float("nan")], 1)
    with pytest.raises(DataError, match="window"):
        wp([0.1], 0)
    with pytest.raises(DataError, match=r"\[evaluations, tasks\]"):
        min_acc([0.1, 0.2], [0, 1])
