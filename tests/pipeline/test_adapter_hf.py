"""A Trainer trains on what the method chooses, counts its tokens, and resumes bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import foresift
from foresift.pipeline.adapters.hf import STATE_FILE, attach
from foresift.pipeline.errors import DataError
from foresift.pipeline.stream import Stream
from tests.pipeline.streams import Hardest, Highest, collate, model, rows

DATA = datasets.Dataset.from_list([{**row, "note": "not for the model"} for row in rows(40)])


class Recorder(TrainerCallback):
    """Stops a run at a step, as a crash would after the checkpoint."""

    def __init__(self, stop: int) -> None:
        self.stop = stop

    def on_step_end(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        control.should_training_stop = state.global_step >= self.stop


class Recording(Trainer):
    """Keeps what was trained on and how many tokens were said to count."""

    def training_step(self, net: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self.seen.append((inputs["input_ids"].tolist(), int(num_items_in_batch)))
        self.counted.append(int((inputs["labels"][:, 1:] != -100).sum()))
        return super().training_step(net, inputs, num_items_in_batch)


def trainer(folder: Path, net: Any = None, data: Any = DATA, **fields: Any) -> Any:
    given: dict[str, Any] = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 8,
        "learning_rate": 1e-2, "report_to": [], "save_strategy": "no", "logging_steps": 100,
        "disable_tqdm": True, "use_cpu": True, "seed": 3, "dataloader_pin_memory": False, **fields,
    }  # fmt: skip
    args = TrainingArguments(output_dir=str(folder), **given)
    net = model(attention_dropout=0.3) if net is None else net
    made = Recording(net, args, train_dataset=data, data_collator=collate)
    made.seen, made.counted = [], []
    return made


def test_it_trains_on_what_the_stream_chooses(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=1)
    attached = attach(made, Highest(), of=12)
    fields: Any = {"keep": 4, "of": 12, "collate": collate, "seed": 3}
    alone = Stream(rows(40), Highest(), model(attention_dropout=0.3), **fields)
    expected = [batch["input_ids"].tolist() for batch in alone.take(2)]
    made.train()
    assert [batch for batch, _ in made.seen] == expected
    assert {count for _, count in made.seen} == {sum(made.counted)}
    assert attached.report()["candidates_seen"] == 12
    assert attached.report()["agreement"] == alone.report()["agreement"]


@pytest.mark.parametrize("method", [Highest(), Highest(memory=0.02)])
def test_an_epoch_is_one_pass_over_the_candidates(tmp_path: Path, method: Highest) -> None:
    made = trainer(tmp_path, max_steps=-1, num_train_epochs=2)
    attached = attach(made, method, of=12, keep=4)
    made.train()
    assert made.state.global_step == attached.report()["steps"] == 2 * (40 // 12)
    assert made.state.epoch == 2
    assert attached.report()["rows_trained_on"] == 24
    assert len(made.seen) == 12


@pytest.mark.parametrize(
    ("stop", "skip", "mode"), [(1, False, "eval"), (5, True, "train"), (6, False, "train")]
)
def test_a_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, stop: int, skip: bool, mode: Any
) -> None:
    def made(folder: str, **fields: Any) -> Any:
        found = trainer(tmp_path / folder, save_strategy="steps", save_steps=1, **fields)
        attach(found, Highest(memory=0.02), of=12, mode=mode, tokens=Hardest())
        return found

    whole = made("whole")
    whole.train()
    first = made("broken")
    first.add_callback(Recorder(stop))
    first.train()
    assert first.state.global_step == stop
    second = made("broken", ignore_data_skip=skip)
    second.train(resume_from_checkpoint=True)
    assert first.seen + second.seen == whole.seen
    assert second.state.global_step == 8
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, second.model.state_dict()[name]), name
    checkpoint = tmp_path / "broken" / f"checkpoint-{stop}"
    assert (checkpoint / STATE_FILE).is_file()
    (checkpoint / STATE_FILE).unlink()
    with pytest.raises(DataError, match=f"{checkpoint}: no {STATE_FILE} here"):
        made("broken").train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    attach(made, Highest(), of=12).trainer.train()
    other = trainer(tmp_path)
    attach(other, Highest(memory=0.5), of=12)
    with pytest.raises(DataError, match="the state belongs to plan"):
        other.train(resume_from_checkpoint=True)
    shutil.rmtree(tmp_path)


def test_candidates_are_scored_in_the_mixed_precision_of_the_training(tmp_path: Path) -> None:
    made = trainer(tmp_path, bf16=True, max_steps=2)
    attached = attach(made, Highest(), of=12)
    made.train()
    fields: Any = {"keep": 4, "of": 12, "collate": collate, "seed": 3}
    net = model(attention_dropout=0.3)
    mixed = Stream(rows(40), Highest(), net, autocast=torch.bfloat16, **fields)
    assert [b for b, _ in made.seen][:2] == [b["input_ids"].tolist() for b in mixed.take(2)]
    live = attached.stream.live
    assert (live.autocast, live.reason) == (torch.bfloat16, "")
    assert "_original_forward" in vars(live.model)  # the training itself is cast by accelerate
    assert all(p.dtype == torch.float32 for p in made.model.parameters())


def test_detached_it_is_the_trainer_that_it_was(tmp_path: Path) -> None:
    plain, made = (trainer(tmp_path, max_steps=2) for _ in range(2))
    attach(made, Highest(), of=12).detach()
    for found in (plain, made):
        found.train_dataset = found.train_dataset.select_columns(["input_ids"])
        torch.manual_seed(0)
        found.train()
    assert made.seen == plain.seen


def test_a_data_set_that_is_a_list_needs_no_columns_removed(tmp_path: Path) -> None:
    made = trainer(tmp_path, data=rows(40), max_steps=1)
    attach(made, Highest(), of=12)
    made.train()
    hub = trainer(tmp_path, max_steps=1)
    foresift.attach(hub, Highest(), of=12)
    hub.train()
    assert made.seen == hub.seen


class _OwnLoader(Trainer):
    def get_train_dataloader(self) -> Any:
        return super().get_train_dataloader()


def test_what_cannot_work_is_refused_with_the_reason(tmp_path: Path) -> None:
    def refused(message: str, made: Any, **fields: Any) -> None:
        with pytest.raises(DataError, match=message):
            attach(made, Highest(), **{"of": 12, **fields})

    refused("IterableDataset", trainer(tmp_path, data=DATA.to_iterable_dataset()))
    refused(
        r"4 rows a step \(2 x 2 accumulated x 1 processes\), keep is 3", trainer(tmp_path), keep=3
    )
    refused("of: must be at least the 4 rows of a step, got 2", trainer(tmp_path), of=2)
    refused("no column 'key'", trainer(tmp_path), ids="key")
    refused("more than the 40 rows", trainer(tmp_path), of=41)
    refused("auto_find_batch_size", trainer(tmp_path, auto_find_batch_size=True))
    refused("split_batches", trainer(tmp_path, accelerator_config={"split_batches": True}))
    refused("no train_dataset", trainer(tmp_path, data=None))
    packed = trainer(tmp_path)
    packed.args.packing = True
    refused("packing=False", packed)
    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    refused(
        "_OwnLoader has its own get_train_dataloader", _OwnLoader(model(), args, train_dataset=DATA)
    )
    twice = trainer(tmp_path)
    attach(twice, Highest(), of=12)
    refused("attached already", twice)


def test_steps_of_trainer_and_stream_must_agree(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=2)
    attached = attach(made, Highest(), of=12)
    made.train()
    made.state.global_step = 5
    with pytest.raises(DataError, match="the Trainer is at step 5, the stream at step 2"):
        attached.get_batch_samples(iter(()), 2, "cpu")
