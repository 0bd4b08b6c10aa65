"""A Trainer visits what an epoch plan says, gives it losses for weights, and resumes exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy

import foresift
from foresift.pipeline.adapters._pace import Pace
from foresift.pipeline.adapters._row_losses import row_sums
from foresift.pipeline.adapters.epochs import STATE_FILE, attach_epochs
from foresift.pipeline.document_losses import document_losses
from foresift.pipeline.epoch_stream import EpochStream
from foresift.pipeline.errors import DataError
from foresift.pipeline.online import EpochPlan, Epochs, Floats, Rows
from foresift.stages.samplers.dynamic_random import DynamicRandom
from foresift.stages.samplers.infobatch import InfoBatch
from foresift.stages.samplers.seta import SeTa
from tests.pipeline.streams import collate, model, rows

DATA = datasets.Dataset.from_list([{**row, "note": "not for the model"} for row in rows(26)])
FULL = 26 // 4  # steps of an epoch over all rows
PLANS = [InfoBatch(prune=0.5), SeTa(groups=4, window=0.5), DynamicRandom(prune=0.4)]


@dataclass(frozen=True, kw_only=True)
class Sized(EpochPlan):
    """Epochs of given numbers of rows, which differ from what was forecast, with given weights."""

    rows: tuple[int, ...]
    """Rows that each epoch visits."""
    planned: tuple[int, ...] = ()
    """Rows that were forecast; those that it visits, if there are none."""
    weights: tuple[float, ...] = (1.0,)
    """Weights of rows, again and again."""

    def open(self, n: int, epochs: int, seed: int) -> Epochs:
        return _Sized(self, n)


class _Sized(Epochs):
    def __init__(self, part: Sized, n: int) -> None:
        self.part, self.n, self.told = part, n, np.full(n, np.nan)

    def epoch(self, number: int) -> tuple[Rows, Any]:
        visited = np.random.default_rng(number).permutation(self.n)[: self.part.rows[number]]
        return visited, np.resize(np.float32(self.part.weights), len(visited))

    def update(self, positions: Rows, losses: Floats) -> None:
        self.told[positions] = losses

    def forecast(self) -> list[float]:
        return [float(rows) for rows in self.part.planned or self.part.rows]

    def state_dict(self) -> dict[str, Any]:
        return {"told": self.told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.told = np.asarray(state["told"])


class Recording(Trainer):
    """Keeps the rows that were trained on and the learning rate of each step."""

    def training_step(self, net: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        kept = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        self.seen += [tuple(ids[mask == 1].tolist()) for ids, mask in kept]
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return super().training_step(net, inputs, num_items_in_batch)


class Stopping(TrainerCallback):
    """Stops a run at a step, as a crash would after the checkpoint; counts epochs."""

    def __init__(self, stop: int = 10**9) -> None:
        self.stop, self.epochs = stop, list[tuple[int, float]]()

    def on_step_end(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        control.should_training_stop |= state.global_step >= self.stop

    def on_epoch_end(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        self.epochs.append((state.global_step, state.epoch))


def trainer(
    folder: Path, net: Any = None, data: Any = DATA, kind: Any = Recording, **more: Any
) -> Any:
    given: dict[str, Any] = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 4,
        "learning_rate": 1e-2, "report_to": [], "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "use_cpu": True, "seed": 3, "dataloader_pin_memory": False, **more,
    }  # fmt: skip
    args = TrainingArguments(output_dir=str(folder), **given)
    net = model(attention_dropout=0.3) if net is None else net
    made = kind(net, args, train_dataset=data, data_collator=collate)
    made.seen, made.rates, made.counting = [], [], Stopping()
    made.add_callback(made.counting)
    return made


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def by_hand(plan: Any, rate: float) -> tuple[Any, list[tuple[int, ...]], EpochStream]:
    """The definition in a bare loop: sum of weight x token losses over the step's tokens."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    stream = EpochStream(rows(26), plan, batch=4, epochs=4, collate=collate, seed=3)
    seen = []
    for batch, weights, positions in stream:
        labels = batch["labels"]
        counts = (labels[:, 1:] != -100).sum(1)
        losses = document_losses(net(batch["input_ids"], batch["attention_mask"]).logits, labels)
        (weights * counts * losses).sum().div(counts.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        stream.observe(positions, losses)
        seen += [tuple(rows(26)[row]["input_ids"]) for row in positions]
    return net, seen, stream


@pytest.mark.parametrize(
    "plan", [*PLANS, Sized(rows=(26, 9, 0, 13), weights=(0.5, 0.0, 2.0, 1.0, 3.25))]
)
def test_it_trains_as_the_definition_says(tmp_path: Path, plan: EpochPlan) -> None:
    more: Any = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    made = trainer(tmp_path, model(), max_grad_norm=0.0, **more)
    attached = attach_epochs(made, plan)
    made.train()
    net, seen, stream = by_hand(plan, 0.1)
    assert made.seen == seen
    assert made.state.global_step == stream.done == attached.report()["steps"]
    for ours, theirs in zip(made.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    told, expected = (s.state_dict()["epochs"] for s in (attached.stream, stream))
    for name in {"latest", "told"} & told.keys():
        np.testing.assert_allclose(told[name], expected[name], rtol=1e-4)


def test_equal_weights_are_the_trainer_itself_to_the_bit(tmp_path: Path) -> None:
    plan = Sized(rows=(24, 12))
    made = trainer(tmp_path, model(), num_train_epochs=2)
    assert attach_epochs(made, plan).forecast() == (9, (6, 3), 12)
    made.train()
    visited = [row for epoch in range(2) for row in plan.open(26, 2, 3).epoch(epoch)[0]]
    more: Any = {"num_train_epochs": 1, "train_sampling_strategy": "sequential"}
    plain = trainer(tmp_path, model(), DATA.select(visited).select_columns(["input_ids"]), **more)
    plain.train()
    assert (made.seen, made.rates) == (plain.seen, plain.rates)
    assert same(made.model, plain.model)
    ours, theirs = ([log["loss"] for log in t.state.log_history[:9]] for t in (made, plain))
    assert ours == theirs


def test_the_losses_are_those_of_documents() -> None:
    batch = collate([{"input_ids": row["input_ids"]} for row in rows(5)])
    batch["labels"][2] = -100
    out = model()(batch["input_ids"], batch["attention_mask"])
    expected = document_losses(out.logits, batch["labels"])
    sums, counts = row_sums([out], batch["labels"], [False, True, True, False, False])
    torch.testing.assert_close(sums / counts, expected, equal_nan=True)
    assert counts[2] == 0
    grads = [torch.autograd.grad(s, out.logits, retain_graph=True)[0] for s in
             (sums.sum(), (expected * counts)[1].sum())]  # fmt: skip
    torch.testing.assert_close(*grads)  # row 1 alone: row 2 has no token
    with pytest.raises(DataError, match="neither logits nor log_probs"):
        row_sums([object()], batch["labels"], [False] * 5)
    with pytest.raises(DataError, match="4 rows were collated to 5 lines"):
        row_sums([out], batch["labels"], [False] * 4)
    with pytest.raises(DataError, match="without labels or a forward"):
        row_sums([], None, [])


def test_a_plan_that_is_as_forecast_has_the_schedule_of_its_steps(tmp_path: Path) -> None:
    made = trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    attached = attach_epochs(made, DynamicRandom(prune=0.4))  # floor(15.6) rows: 3 steps of 4
    assert attached.forecast() == (12, (3, 3, 3, 3), 4 * FULL)
    assert attached.forecast().saved == 0.5
    made.train()
    assert made.rates == [1e-2 * ((12 - step) / 12) for step in range(12)]
    assert made.counting.epochs == [(3, 1), (6, 2), (9, 3), (12, 4)]
    assert (made.state.max_steps, made.state.epoch) == (12, 4)
    report = attached.report()
    assert (report["planned_steps"], report["steps_by_epoch"]) == (12, [3] * 4)
    assert report["saved"] == 0.5


@pytest.mark.parametrize(
    ("sizes", "places"),
    [
        ((16, 24, 4, 8), [0, 1, 2, 3, 4, 4 + 2 / 3, 5 + 1 / 3, 6, 6 + 2 / 3, 7 + 1 / 3, 8, 12, 14]),
        ((16, 16, 3, 16), [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15]),
        ((16, 16, 20, 0), [0, 1, 2, 3, 4, 5, 6, 7, 8, 8.8, 9.6, 10.4, 11.2]),
        ((0, 0, 24, 0), [8, 8 + 2 / 3, 9 + 1 / 3, 10, 10 + 2 / 3, 11 + 1 / 3]),
    ],
)  # fmt: skip
def test_each_epoch_has_its_stretch_of_the_schedule(
    tmp_path: Path, sizes: Any, places: list[float]
) -> None:
    more: Any = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    made = trainer(tmp_path, save_strategy="steps", save_steps=100, **more)
    attached = attach_epochs(made, Sized(rows=sizes, planned=(16, 16, 16, 16)))
    made.train()
    expected = [1e-2 * (1 - place / 16) for place in places]
    expected[0] = 1e-2  # of the scheduler's making, before the plan had begun
    np.testing.assert_allclose(made.rates, expected, rtol=1e-12)
    assert attached.report()["steps"] == sum(s // 4 for s in sizes) == made.state.max_steps
    assert attached.report()["saved"] == 1 - len(places) / (4 * FULL)
    if sizes[-1]:
        assert abs(made.lr_scheduler.get_last_lr()[0]) < 1e-9
    last = tmp_path / f"checkpoint-{len(places)}"
    assert (last / STATE_FILE).is_file()  # the end is saved, wherever it is


def test_a_plan_longer_than_forecast_by_epochs_of_no_step(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    attach_epochs(made, Sized(rows=(8, 8, 12, 8), planned=(8, 3, 3, 3)))
    made.train()
    assert made.state.global_step == 9
    assert made.rates[4:] == [0.0] * 14  # the schedule had come to its end


@pytest.mark.parametrize(("said", "done"), [(5, 5), (100, 12)])
def test_a_number_of_steps_that_was_said_is_kept(tmp_path: Path, said: int, done: int) -> None:
    made = trainer(tmp_path, max_steps=said, save_strategy="steps", save_steps=100)
    attach_epochs(made, DynamicRandom(prune=0.4))
    made.train()
    assert made.state.global_step == done
    np.testing.assert_allclose(made.rates[::2], [1e-2 * (1 - s / said) for s in range(done)])
    assert (tmp_path / f"checkpoint-{done}" / STATE_FILE).is_file()


def test_pace_meets_the_forecast_at_every_epoch() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        planned, found = (rng.integers(0, 9, size=5).tolist() for _ in range(2))
        pace = Pace(planned)
        for epoch, steps in enumerate(found):
            if steps or epoch == 4:
                pace.learn(epoch, steps)
            places = [pace.at(step) for step in range(pace.steps + 1)]
            assert places == sorted(places)
        for epoch in range(6):
            assert pace.at(sum(found[:epoch])) >= sum(planned[:epoch])
        assert pace.steps == sum(found)
        assert pace.at(pace.steps) == sum(planned)
        same = Pace(planned)
        for epoch, steps in enumerate(planned):
            same.learn(epoch, steps)
        assert [same.at(step) for step in range(30)] == list(range(30))


@pytest.mark.parametrize(
    ("plan", "stop", "skip"),
    [(PLANS[0], 6, False), (PLANS[0], 8, True), (PLANS[0], 9, False),
     (PLANS[1], 2, False), (PLANS[1], 10, True), (PLANS[2], 3, True)],
)  # fmt: skip
def test_a_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, plan: EpochPlan, stop: int, skip: bool
) -> None:
    def made(folder: str, **more: Any) -> Any:
        found = trainer(tmp_path / folder, save_strategy="steps", save_steps=stop, **more)
        attach_epochs(found, plan)
        return found

    whole = made("whole")
    whole.train()
    first = made("broken")
    first.counting.stop = stop
    first.train()
    assert first.state.global_step == stop
    second = made("broken", ignore_data_skip=skip)
    second.train(resume_from_checkpoint=str(tmp_path / "broken" / f"checkpoint-{stop}"))
    assert first.seen + second.seen == whole.seen
    assert first.rates + second.rates == whole.rates
    assert same(whole.model, second.model)
    assert second.state.max_steps == second.state.global_step == whole.state.global_step
    names = ("step", "epoch", "loss", "learning_rate")
    ours, theirs = (
        [[log.get(name) for name in names] for log in t.state.log_history if "loss" in log]
        for t in (second, whole)
    )
    assert ours == theirs
    ended = [end for end in whole.counting.epochs if end[0] > stop]
    assert [end for end in second.counting.epochs if end[0] > stop] == ended


def test_epochs_are_the_plan_s_for_what_is_done_once_an_epoch(tmp_path: Path) -> None:
    def made(folder: str) -> Any:
        found = trainer(tmp_path / folder, save_strategy="epoch")
        attach_epochs(found, Sized(rows=(26, 9, 16, 13), planned=(20, 20, 20, 20)))
        return found

    whole = made("here")
    whole.train()
    saved = [tmp_path / "here" / f"checkpoint-{step}" for step in (6, 8, 12, 15)]
    assert sorted((tmp_path / "here").glob("checkpoint-*")) == sorted(saved)
    for folder, seen in zip(saved, (6, 8, 12, 15), strict=True):
        again = made("there")
        again.train(resume_from_checkpoint=str(folder))
        assert again.seen == whole.seen[4 * seen :]
        assert same(again.model, whole.model)


def test_evaluation_tells_the_plan_nothing(tmp_path: Path) -> None:
    plain = trainer(tmp_path, model())
    one = attach_epochs(plain, InfoBatch())
    plain.train()
    made = trainer(tmp_path, model(), eval_on_start=True)
    made.args.eval_strategy, made.args.eval_steps = IntervalStrategy.STEPS, 1
    made.eval_dataset = DATA.select_columns(["input_ids"]).select(range(3))
    other = attach_epochs(made, InfoBatch())
    made.train()
    assert len([log for log in made.state.log_history if "eval_loss" in log]) == one.stream.done + 1
    told = [a.stream.state_dict()["epochs"]["latest"].tolist() for a in (one, other)]
    assert told[0] == told[1]
    assert same(plain.model, made.model)


def test_what_a_checkpoint_must_be(tmp_path: Path) -> None:
    made = trainer(tmp_path, save_strategy="steps", save_steps=2, num_train_epochs=1)
    attach_epochs(made, InfoBatch()).trainer.train()
    for more, plan in (({"num_train_epochs": 2}, InfoBatch()), ({}, InfoBatch(prune=0.25))):
        other = trainer(tmp_path, **{"num_train_epochs": 1, **more})
        attach_epochs(other, plan)
        with pytest.raises(DataError, match=r"the state belongs to plan .* must be those"):
            other.train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-4" / STATE_FILE).unlink()
    again = trainer(tmp_path, num_train_epochs=1)
    attach_epochs(again, InfoBatch())
    with pytest.raises(DataError, match=f"checkpoint-4: no {STATE_FILE} here: .*attach_epochs"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    again.state.global_step = 5
    with pytest.raises(DataError, match="the Trainer is at step 5, the plan at step 0"):
        again.get_batch_samples(iter(()), 2, "cpu")


def test_every_training_begins_the_plan_and_detached_it_is_as_before(tmp_path: Path) -> None:
    twice, once = (trainer(tmp_path, model(), rows(26), learning_rate=0.0) for _ in range(2))
    attached = foresift.attach_epochs(twice, SeTa(groups=3), seed=4)
    twice.train()
    seen, twice.seen = twice.seen, []
    twice.train()
    assert twice.seen == seen
    assert attached.seed == 4
    attached.detach()
    twice.seen = []
    for found in (twice, once):
        found.train_dataset = DATA.select_columns(["input_ids"])
        found.train()
    assert twice.seen == once.seen
