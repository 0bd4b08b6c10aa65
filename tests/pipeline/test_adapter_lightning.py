"""In a Lightning Trainer each step is chosen with its own weights, and resumes bit for bit."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from foresift.pipeline.adapters import lightning as adapter
from foresift.pipeline.adapters.lightning import data_module
from foresift.pipeline.errors import DataError
from foresift.pipeline.stream import Stream
from tests.pipeline.streams import Hardest, Highest, collate, leave, model, rows

L = pytest.importorskip("lightning.pytorch", reason="needs the lightning package")
pytestmark = [  # Lightning's own, with torch 2.13
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
DATA = rows(40)
OPTIONS: dict[str, Any] = {"keep": 4, "of": 12, "collate": collate, "seed": 3}


class Module(L.LightningModule):  # type: ignore[misc]
    """Trains the tiny model; keeps what it was trained on."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.model = model(**fields)
        self.seen: list[Any] = []

    def training_step(self, batch: Any, index: int) -> Any:
        self.seen.append(batch["input_ids"].tolist())
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-2)


class Validating(Module):
    def validation_step(self, batch: Any, index: int) -> None:
        self.validated = getattr(self, "validated", 0) + 1


def trainer(folder: Path, **fields: Any) -> Any:
    given = {"max_steps": 8, "accelerator": "cpu", "devices": 1, "logger": False, **fields}
    if "callbacks" not in given:
        given["enable_checkpointing"] = False
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(default_root_dir=folder, **quiet, **given)


def every(folder: Path, **fields: Any) -> Any:
    """A checkpoint after each step (or as it is said)."""
    given = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}", **fields}
    return L.callbacks.ModelCheckpoint(folder, **given)


def same_weights(one: Any, other: Any) -> None:
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, other.state_dict()[name]), name


@pytest.mark.parametrize("cut", [1, 2])
def test_each_choice_is_made_with_the_weights_of_that_step(tmp_path: Path, cut: int) -> None:
    module = Module()
    chosen = data_module(DATA, Highest(memory=0.02), **OPTIONS)
    trainer(tmp_path, accumulate_grad_batches=cut).fit(module, datamodule=chosen)
    net, seen = model(), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    alone = Stream(DATA, Highest(memory=0.02), net, optimizer=optimizer, **OPTIONS)
    net.train()
    for _ in range(8):  # three epochs of candidates
        for batch in alone.take(cut):
            seen.append(batch["input_ids"].tolist())
            (net(**batch).loss / cut).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert module.seen == seen
    same_weights(net, module.model)
    assert chosen.report()["agreement"] == alone.report()["agreement"]
    assert chosen.report()["candidates_seen"] == 96


class _Unsized:
    """The same loader without its length."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def test_a_choice_ahead_of_its_step_is_refused(tmp_path: Path) -> None:
    chosen = data_module(DATA, Highest(), **OPTIONS)
    sized = chosen.train_dataloader
    chosen.train_dataloader = lambda: _Unsized(sized())  # Lightning asks such a one batch ahead
    with pytest.raises(DataError, match="the Trainer is at step 0, the stream at step 1"):
        trainer(tmp_path).fit(Module(), datamodule=chosen)


@pytest.mark.parametrize("cut", [1, 2])
def test_an_epoch_is_one_pass_over_the_candidates(tmp_path: Path, cut: int) -> None:
    module, chosen = Validating(), data_module(DATA, Highest(), validation=[1, 2, 3], **OPTIONS)
    made = trainer(
        tmp_path, max_steps=-1, max_epochs=2, accumulate_grad_batches=cut, num_sanity_val_steps=0
    )
    made.fit(module, datamodule=chosen)
    assert made.global_step == chosen.report()["steps"] == 2 * (40 // 12)
    assert len(module.seen) == 6 * cut
    assert module.validated == 6
    # a further fit of the same Trainer goes on; another Trainer begins
    made.fit_loop.max_epochs = 3
    made.fit(module, datamodule=chosen)
    assert made.global_step == chosen.report()["steps"] == 9
    other = Validating()
    trainer(tmp_path, max_steps=6, accumulate_grad_batches=cut).fit(other, datamodule=chosen)
    assert other.seen == module.seen[: 6 * cut]
    assert not hasattr(other, "validated") or other.validated


@pytest.mark.parametrize(
    ("stop", "cut", "mode"), [(1, 1, "eval"), (3, 2, "train"), (5, 2, "eval"), (6, 1, "train")]
)
def test_a_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, stop: int, cut: int, mode: Any
) -> None:
    def begin(folder: str) -> tuple[Any, Any, Any]:
        chosen = data_module(DATA, Highest(memory=0.02), mode=mode, tokens=Hardest(), **OPTIONS)
        made = trainer(tmp_path, accumulate_grad_batches=cut, callbacks=[every(tmp_path / folder)])
        return made, Module(), chosen

    whole, module, chosen = begin("whole")
    whole.fit(module, datamodule=chosen)
    resumed, again, other = begin("again")
    resumed.fit(again, datamodule=other, ckpt_path=str(tmp_path / f"whole/step={stop}.ckpt"))
    assert again.seen == module.seen[stop * cut :]
    assert resumed.global_step == 8
    same_weights(module, again)
    for key in ("candidates_seen", "rows_trained_on", "agreement"):
        assert other.report()[key] == chosen.report()[key]


def test_it_goes_on_from_the_end_of_an_epoch_too(tmp_path: Path) -> None:
    """Where Lightning does not read the state of a loader."""

    def fit(epochs: int, path: Path | None) -> Any:
        module, chosen = Module(), data_module(DATA, Highest(memory=0.02), **OPTIONS)
        saving = every(tmp_path, every_n_train_steps=0, every_n_epochs=1, filename="{epoch}")
        made = trainer(tmp_path, max_steps=-1, max_epochs=epochs, callbacks=[saving])
        made.fit(module, datamodule=chosen, ckpt_path=path)
        return module

    fit(1, None)
    again = fit(3, tmp_path / "epoch=0.ckpt")
    whole = fit(3, None)
    assert again.seen == whole.seen[3:]
    same_weights(whole, again)


class _Dies(Module):
    """Fails in a micro-batch, having saved what a signal or an exception would save."""

    def __init__(self, at: int, path: Path) -> None:
        super().__init__()
        self.at, self.path = at, path

    def training_step(self, batch: Any, index: int) -> Any:
        if len(self.seen) == self.at:
            self.trainer.save_checkpoint(self.path)
            raise RuntimeError("died")
        return super().training_step(batch, index)


@pytest.mark.parametrize(("cut", "at"), [(1, 4), (2, 4), (2, 5)])
def test_a_checkpoint_within_a_step_gives_the_same_rows_again(
    tmp_path: Path, cut: int, at: int
) -> None:
    def fit(module: Any, path: Path | None = None) -> Any:
        chosen = data_module(DATA, Highest(memory=0.02), **OPTIONS)
        made = trainer(tmp_path, max_steps=6, accumulate_grad_batches=cut)
        made.fit(module, datamodule=chosen, ckpt_path=path)
        return module

    whole = fit(Module())
    with pytest.raises(RuntimeError, match="died"):
        fit(_Dies(at, tmp_path / "died.ckpt"))
    again = fit(Module(), tmp_path / "died.ckpt")
    window = at // cut * cut + cut  # choices after it may differ where gradients were lost
    assert again.seen[: window - at] == whole.seen[at:window]
    assert len(again.seen) == len(whole.seen) - at
    if at % cut == 0:
        assert again.seen == whole.seen[at:]
        same_weights(whole, again)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_it_works_with_the_precisions_that_are_said_to(tmp_path: Path, precision: Any) -> None:
    module, chosen = Module(), data_module(DATA, Highest(), **OPTIONS)
    trainer(tmp_path, precision=precision, max_steps=3).fit(module, datamodule=chosen)
    assert chosen.report()["steps"] == 3
    assert chosen.report()["nan_rows"] == 0


def test_a_checkpoint_without_a_stream_and_one_of_another_are_refused(tmp_path: Path) -> None:
    first = trainer(tmp_path, max_steps=2)
    first.fit(Module(), torch.utils.data.DataLoader(DATA, batch_size=4, collate_fn=_plain))
    first.save_checkpoint(tmp_path / "plain.ckpt")
    chosen = data_module(DATA, Highest(), **OPTIONS)
    with pytest.raises(DataError, match="Trainer is at step 2, the stream at step 0: the check"):
        trainer(tmp_path).fit(Module(), datamodule=chosen, ckpt_path=tmp_path / "plain.ckpt")
    second = trainer(tmp_path, max_steps=2)
    second.fit(Module(), datamodule=data_module(DATA, Highest(), **OPTIONS))
    second.save_checkpoint(tmp_path / "chosen.ckpt")
    held = torch.load(tmp_path / "chosen.ckpt", weights_only=True)
    assert held["ChosenRows"]["stream"].dtype == torch.uint8
    other = data_module(DATA, Highest(memory=0.5), **OPTIONS)
    with pytest.raises(DataError, match="the state belongs to plan"):
        trainer(tmp_path).fit(Module(), datamodule=other, ckpt_path=tmp_path / "chosen.ckpt")


def _plain(examples: list[dict[str, Any]]) -> Any:
    return collate([{"input_ids": e["input_ids"]} for e in examples])


class _Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class _Ahead(Module):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        return super().training_step(*next(dataloader_iter)[:2])


class _Nameless(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = self.model
        del self.model

    def training_step(self, batch: Any, index: int) -> Any:
        return self.net(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class _Sharding(L.strategies.SingleDeviceStrategy):  # type: ignore[misc]
    """Stands for strategies that cannot be had here."""


@pytest.mark.filterwarnings("ignore:.*dataloader_iter")
def test_what_cannot_work_is_refused_with_the_reason(tmp_path: Path, monkeypatch: Any) -> None:
    def refused(message: str, module: Any = None, of: Any = None, **fields: Any) -> None:
        chosen = data_module(DATA, Highest(), **OPTIONS) if of is None else of
        with pytest.raises(DataError, match=message):
            trainer(tmp_path, **fields).fit(module or Module(), datamodule=chosen)

    refused("manual optimization", _Manual())
    refused("dataloader_iter", _Ahead())
    refused("_Nameless has no attribute 'model'", _Nameless())
    named = data_module(DATA, Highest(), model="net", **OPTIONS)
    trainer(tmp_path, max_steps=1).fit(_Nameless(), datamodule=named)
    scheduler = L.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    refused("GradientAccumulationScheduler", callbacks=[scheduler], enable_checkpointing=False)
    refused("overfit_batches", overfit_batches=2)
    refused(
        "an epoch of 5 batches ends within a step of 2 micro-batches",
        limit_train_batches=5, accumulate_grad_batches=2,
    )  # fmt: skip
    refused("4 rows cannot be cut into 3", accumulate_grad_batches=3)
    monkeypatch.setattr(L.strategies, "SingleDeviceStrategy", _Sharding)
    refused("SingleDeviceStrategy may share out the weights")
    monkeypatch.undo()
    monkeypatch.setattr(adapter, "_PRECISIONS", ("64-true",))
    refused("precision '32-true' was never tried; take one of 64-true")


class _Numbers(torch.utils.data.IterableDataset[Any]):
    def __len__(self) -> int:
        return len(DATA)

    def __iter__(self) -> Any:
        return iter(DATA)


def test_data_that_cannot_be_read_by_row_is_refused_at_once() -> None:
    for data, message in (
        (_Numbers(), "an IterableDataset has no rows by number"),
        (iter(DATA), "not a map-style data set"),
        ([], "has no rows"),
        ([{"input_ids": [1, 2]}] * 20, "no column 'id'"),
    ):
        with pytest.raises(DataError, match=message):
            data_module(data, Highest(), **OPTIONS)
    with pytest.raises(DataError, match="41 candidates a step are more than the 40 rows"):
        data_module(DATA, Highest(), **{**OPTIONS, "of": 41})


def test_it_can_be_sent_to_another_process() -> None:
    chosen = pickle.loads(pickle.dumps(data_module(DATA, Highest(), **OPTIONS)))
    assert type(chosen) is adapter.ChosenRows
    assert isinstance(chosen, L.LightningDataModule)
    assert chosen.steps_per_epoch == 3


class Summed(Module):
    """A loss whose gradient is the same however rows are shared out: 1/50 of the summed one."""

    def training_step(self, batch: Any, index: int) -> Any:
        self.seen.append([line[line > 0].tolist() for line in batch["input_ids"]])
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return self.model(**batch, num_items_in_batch=torch.tensor(50.0)).loss * parts

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=0.1)


def train(rank: int, world: int, folder: str, port: int, resume: bool) -> None:
    torch.set_num_threads(1)
    fields: dict[str, Any] = {"strategy": "auto"}
    if world > 1:
        os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        fields = {"strategy": L.strategies.DDPStrategy(process_group_backend="gloo")}
    module = Summed()
    options = {**OPTIONS, "keep": 8, "of": 32, "at_once": 4, "check_every": 1}
    chosen = data_module(rows(80), Highest(memory=0.01), **options)
    made = trainer(
        Path(folder), devices=world, accumulate_grad_batches=2, max_steps=6,
        callbacks=[every(Path(folder) / str(world), every_n_train_steps=3)], **fields,
    )  # fmt: skip
    path = f"{folder}/{world}/step=3.ckpt" if resume else None
    made.fit(module, datamodule=chosen, ckpt_path=path)
    kept = {"seen": module.seen, "weights": module.model.state_dict(), "report": chosen.report()}
    torch.save(kept, f"{folder}/{world}-{rank}-{resume}.pt")
    if world > 1:
        leave()


@pytest.mark.slow
def test_two_processes_choose_and_learn_what_one_does_and_resume(tmp_path: Path) -> None:
    train(0, 1, str(tmp_path), 0, False)
    for resume in (False, True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = (2, str(tmp_path), port, resume)
        torch.multiprocessing.spawn(train, args=given, nprocs=2)
    names = ("1-0-False", "2-0-False", "2-1-False", "2-0-True", "2-1-True")
    alone, *others = (torch.load(tmp_path / f"{name}.pt") for name in names)
    for ranks in (others[:2], others[2:]):
        first = len(alone["seen"]) - len(ranks[0]["seen"])  # on resume the rest of the steps
        for place in range(0, len(ranks[0]["seen"]), 2):
            found = [row for rank in ranks for part in rank["seen"][place:][:2] for row in part]
            expected = [row for part in alone["seen"][first + place :][:2] for row in part]
            assert found == expected
    assert len(others[2]["seen"]) == 6
    for other in others:
        assert other["report"]["agreement"] == alone["report"]["agreement"]
        for name, weights in alone["weights"].items():
            torch.testing.assert_close(other["weights"][name], weights, rtol=1e-4, atol=1e-5)
