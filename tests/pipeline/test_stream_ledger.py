"""What an online training was trained on, step by step, is in its ledger; resumed or not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from foresift.pipeline.adapters.epochs import attach_epochs
from foresift.pipeline.adapters.hf import attach
from foresift.pipeline.adapters.lightning import data_module
from foresift.pipeline.epoch_stream import EpochStream
from foresift.pipeline.errors import DataError
from foresift.pipeline.ledger import Ledger, document_id
from foresift.pipeline.stream import Stream
from foresift.pipeline.tables import ID
from foresift.stages.samplers.dynamic_random import DynamicRandom
from tests.pipeline.streams import Highest, collate, model, rows
from tests.pipeline.test_stream import side_by_side

DATA = rows(40)
NAMES = {tuple(row["input_ids"]): row["id"] for row in DATA}
FIELDS: dict[str, Any] = {"keep": 4, "of": 12, "collate": collate, "seed": 3}
Steps = list[tuple[int, bytes]]


def trained(batches: Iterable[Any], first: int = 1) -> Steps:
    """(step, document) of the rows of some batches, one a step."""
    found = []
    for step, batch in enumerate(batches, first):
        lines = batch["input_ids"] if isinstance(batch, dict) else batch
        tokens = [tuple(t for t in torch.as_tensor(line).tolist() if t) for line in lines]
        found += [(step, document_id(NAMES[t])) for t in tokens]
    return sorted(found)


def told(folder: Path) -> Steps:
    table = Ledger.open(folder).table()
    assert table["tokens"].null_count == table["round"].null_count == table.num_rows
    return sorted(zip(table["step"].to_pylist(), table["id"].to_pylist(), strict=True))


def test_a_bare_loop_and_a_trace(tmp_path: Path) -> None:
    stream = Stream(DATA, Highest(), model(), steps=5, ledger=tmp_path / "ledger", **FIELDS)
    seen = list(stream)
    assert told(tmp_path) == trained(seen)  # the end of the iteration writes
    step, document = told(tmp_path)[-1]
    found = Ledger.open(tmp_path).find(pa.array([document], ID))
    assert found["step"].to_pylist()[-1] == step == 5


def test_the_loss_of_the_shared_forward_is_told_too(tmp_path: Path) -> None:
    fields = {**FIELDS, "mode": "train", "ledger": tmp_path}
    stream = Stream(DATA, Highest(), model(), **fields)
    stream.loss().backward()
    stream.state_dict()
    alone = Stream(DATA, Highest(), model(), **{**FIELDS, "mode": "train"})
    assert told(tmp_path) == trained([next(alone)])


def test_what_was_taken_after_the_state_is_void(tmp_path: Path) -> None:
    first = Stream(DATA, Highest(memory=0.3), model(), ledger=tmp_path, **FIELDS)
    seen = [next(first) for _ in range(3)]
    state = first.state_dict()
    assert told(tmp_path) == trained(seen)
    more = [next(first) for _ in range(2)]
    assert told(tmp_path) == trained(seen)  # not yet on disk, and in no checkpoint
    first.state_dict()
    assert told(tmp_path) == trained(seen + more)
    again = Stream(DATA, Highest(memory=0.3), model(1), ledger=tmp_path, **FIELDS)
    again.load_state_dict(state)
    other = [next(again) for _ in range(4)]
    again.flush()
    assert trained(more, 4) != trained(other, 4)[:8]  # another model chose otherwise
    assert told(tmp_path) == sorted(trained(seen) + trained(other, 4))


def test_the_first_process_tells_of_all(tmp_path: Path) -> None:
    nets = [model() for _ in range(2)]

    def batches(rank: int, gather: Any) -> Any:
        more = {"rank": rank, "world": 2, "gather": gather, "ledger": tmp_path / str(rank)}
        yield from Stream(DATA, Highest(), nets[rank], steps=3, **FIELDS, **more)

    parts = side_by_side(2, batches)
    both = [[*a["input_ids"], *b["input_ids"]] for a, b in zip(*parts, strict=True)]
    assert told(tmp_path / "0") == trained(both)
    assert not (tmp_path / "1").exists()


@pytest.mark.parametrize("world", [1, 2])
def test_epochs(tmp_path: Path, world: int) -> None:
    def steps(rank: int, gather: Any) -> Any:
        ranks = {} if world == 1 else {"rank": rank, "world": world, "gather": gather}
        stream = EpochStream(
            DATA, DynamicRandom(prune=0.4), batch=4, epochs=3, collate=collate, seed=1,
            ledger=tmp_path, **ranks,
        )  # fmt: skip
        for visit in stream:
            yield visit.batch
            stream.observe(visit.positions, np.ones(len(visit.positions)))

    parts = side_by_side(world, steps)
    together = [
        [line for b in step for line in b["input_ids"]] for step in zip(*parts, strict=True)
    ]
    assert told(tmp_path) == trained(together)
    assert len(together) > 12


def test_epochs_go_on(tmp_path: Path) -> None:
    def begin() -> EpochStream:
        plan = DynamicRandom(prune=0.4)
        fields: Any = {"batch": 4, "epochs": 3, "collate": collate}
        return EpochStream(DATA, plan, ledger=tmp_path, **fields)

    first = begin()
    seen = [next(first).batch for _ in range(2)]
    state = first.state_dict()
    next(first)
    first.flush()
    again = begin()
    again.load_state_dict(state)
    seen += [next(again).batch for _ in range(2)]
    again.flush()
    assert told(tmp_path) == trained(seen)


class Crash(TrainerCallback):
    """The process dies after a step; notes what the ledger says while weights are written."""

    def __init__(self, at: int, folder: Path) -> None:
        self.at, self.folder, self.told = at, folder, list[int]()

    def on_save(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        self.told.append(told(self.folder)[-1][0] - state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **fields: Any) -> None:
        if state.global_step == self.at:
            raise KeyboardInterrupt


class Recording(Trainer):
    """Keeps what was trained on."""

    def training_step(self, net: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self.seen.append(inputs["input_ids"])
        return super().training_step(net, inputs, num_items_in_batch)


def trainer(folder: Path, crash: Crash | None = None) -> Any:
    args = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, num_train_epochs=2,
        learning_rate=1e-2, report_to=[], save_strategy="steps", save_steps=2, disable_tqdm=True,
        use_cpu=True, seed=3, dataloader_pin_memory=False,
    )  # fmt: skip
    made = Recording(model(), args, train_dataset=datasets.Dataset.from_list(DATA),
                     data_collator=collate)  # fmt: skip
    made.seen = []
    if crash is not None:
        # before the adapter's, so that only what it did before the weights were written counts
        made.add_callback(crash)
    return made


@pytest.mark.parametrize("kind", ["stream", "epochs"])
def test_in_a_trainer(tmp_path: Path, kind: str) -> None:
    def follow(made: Any) -> Any:
        if kind == "stream":
            return attach(made, Highest(memory=0.3), of=12, ledger=tmp_path / "ledger")
        return attach_epochs(made, DynamicRandom(prune=0.4), ledger=tmp_path / "ledger")

    crash = Crash(5, tmp_path)
    first = trainer(tmp_path, crash)
    follow(first)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert crash.told == [0, 0]
    assert told(tmp_path) == trained(first.seen[:4])
    again = trainer(tmp_path)
    follow(again)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert told(tmp_path) == sorted(trained(first.seen[:4]) + trained(again.seen, 5))
    assert len(again.seen) == again.state.global_step - 4 > 0


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_in_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="needs the lightning package")
    from tests.pipeline.test_adapter_lightning import Module
    from tests.pipeline.test_adapter_lightning import trainer as fitting

    module = Module()
    chosen = data_module(DATA, Highest(), ledger=tmp_path / "ledger", **FIELDS)
    made = fitting(tmp_path, max_steps=4)
    made.fit(module, datamodule=chosen)
    assert told(tmp_path) == trained(module.seen)
    assert len(list((tmp_path / "ledger").iterdir())) <= 2, "written at each step"
    assert lightning is not None


def test_a_row_without_a_name_stays_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the rows have no column 'key'"):
        next(Stream(DATA, Highest(), model(), ids="key", ledger=tmp_path, **FIELDS))
    assert not list(tmp_path.iterdir())
