"""Which Trainers take an epoch plan: TRL's SFTTrainer, several processes; others are refused."""

from __future__ import annotations

import gzip
import json
import os
import socket
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.multiprocessing
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from foresift.pipeline.adapters.epochs import STATE_FILE, attach_epochs
from foresift.pipeline.adapters.hf import attach
from foresift.pipeline.errors import DataError
from foresift.pipeline.online import Rows
from foresift.stages.samplers.dynamic_random import DynamicRandom
from foresift.stages.samplers.infobatch import InfoBatch
from foresift.stages.samplers.seta import SeTa
from tests.pipeline.streams import Highest, leave, model
from tests.pipeline.test_adapter_epochs import (
    DATA,
    PLANS,
    Recording,
    Sized,
    _Sized,
    same,
    trainer,
)

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning"),
]


class _OwnLoss(Recording):
    def compute_loss(self, *args: Any, **fields: Any) -> Any:
        return super().compute_loss(*args, **fields)


def test_what_cannot_work_is_refused_with_the_reason(tmp_path: Path) -> None:
    def refused(message: str, prune: float = 0.5, ids: str = "id", **more: Any) -> None:
        made = trainer(tmp_path, **more)
        with pytest.raises(DataError, match=message):
            attach_epochs(made, InfoBatch(prune=prune), ids=ids)
        assert "train" not in vars(made)

    refused("IterableDataset", data=DATA.to_iterable_dataset(), max_steps=2)
    refused("no column 'key'", ids="key")
    refused("auto_find_batch_size", auto_find_batch_size=True)
    refused("whole epochs, num_train_epochs is 2.5", num_train_epochs=2.5)
    refused(r"must be 1 \.\. 26", per_device_train_batch_size=27)
    refused(
        "something else than the next token", net=LlamaForSequenceClassification(model().config)
    )
    refused("weights rows, .* and label_smoothing_factor is set", label_smoothing_factor=0.1)
    refused("there is _OwnLoss.compute_loss", kind=_OwnLoss)
    for plan in PLANS[1:]:
        attach_epochs(trainer(tmp_path, kind=_OwnLoss, label_smoothing_factor=0.1), plan)
    large = trainer(tmp_path, per_device_train_batch_size=12)
    with pytest.raises(DataError, match="no epoch of the plan fills one step of 24"):
        attach_epochs(large, DynamicRandom(prune=0.5))
    made = trainer(tmp_path)
    made.args.packing = True
    with pytest.raises(DataError, match="packing=False"):
        attach_epochs(made, InfoBatch())
    made.args.packing = False
    made.args._n_gpu = 2
    with pytest.raises(DataError, match="several GPUs in one process"):
        attach_epochs(made, InfoBatch())
    made.args._n_gpu, made.is_deepspeed_enabled = 0, True
    with pytest.raises(DataError, match=r"sharded \(FSDP, DeepSpeed\); epoch plans were not"):
        attach_epochs(made, InfoBatch())
    made.is_deepspeed_enabled = False
    attach_epochs(made, InfoBatch())
    for again in (lambda: attach_epochs(made, InfoBatch()), lambda: attach(made, Highest(), of=8)):
        with pytest.raises(DataError, match="attached already"):
            again()


def test_a_model_whose_class_names_no_loss_is_taken_by_the_default_one(tmp_path: Path) -> None:
    shape = {"vocab_size": 31, "n_embd": 16, "n_layer": 1, "n_head": 2}
    made = trainer(tmp_path, net=GPT2LMHeadModel(GPT2Config(**shape)))
    assert not made._loss_shifts_labels
    attached = attach_epochs(made, InfoBatch(prune=0.5))
    made.train()
    losses = attached.stream.epochs.state_dict()["latest"]
    with torch.no_grad():
        assert abs(losses.mean() - np.log(31)) < 0.3
    assert attached.report()["steps"] == made.state.global_step


def test_a_plan_of_more_rows_than_there_are_is_refused(tmp_path: Path) -> None:
    class Twice(_Sized):
        def epoch(self, number: int) -> tuple[Rows, Any]:
            return np.resize(np.arange(26), 60), np.ones(60, np.float32)

    made = trainer(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sized, "open", lambda part, n, epochs, seed: Twice(part, n))
        with pytest.raises(DataError, match="visits more rows than the 26"):
            attach_epochs(made, Sized(rows=(26,) * 4))


def sft(folder: Path, **more: Any) -> Any:
    trl = pytest.importorskip("trl", reason="needs the extra trl")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "configs/models/tiny")
    tokenizer.pad_token = tokenizer.eos_token
    given: dict[str, Any] = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 3,
        "report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True, "max_length": 48,
        "dataloader_pin_memory": False, "save_strategy": "no",
        "learning_rate": 1e-3, **more,
    }  # fmt: skip
    net = model()
    torch.manual_seed(0)
    net.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    args = trl.SFTConfig(output_dir=str(folder), **given)
    lines = gzip.decompress((ROOT / "examples/instruct.jsonl.gz").read_bytes()).splitlines()[:30]
    data = datasets.Dataset.from_list([
        {"id": f"r{i}", "prompt": row["prompt"][:60] + "\n", "completion": row["response"][:80]}
        for i, row in enumerate(json.loads(line) for line in lines)
    ])  # fmt: skip
    return trl.SFTTrainer(net, args, train_dataset=data, processing_class=tokenizer)


def test_sft_takes_weights_and_losses_as_the_trainer_does(tmp_path: Path) -> None:
    ours, plain = sft(tmp_path), sft(tmp_path)
    forwards = []
    ours.model.register_forward_hook(lambda *_: forwards.append(1))
    attached = attach_epochs(ours, InfoBatch(prune=0.5))
    ours.train()
    assert len(forwards) == 2 * attached.report()["steps"]  # no second forward
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2,
        num_train_epochs=3, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
        dataloader_pin_memory=False, learning_rate=1e-3, remove_unused_columns=False,
    )  # fmt: skip
    net, data = (
        sft(tmp_path).model,
        plain.train_dataset.select_columns(["id", "input_ids", "labels"]),
    )
    del net.forward  # the output layer that TRL fuses
    by_logits = Trainer(net, args, train_dataset=data, data_collator=plain.data_collator)
    other = attach_epochs(by_logits, InfoBatch(prune=0.5))
    by_logits.train()
    for one, two in zip(ours.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    told = [a.stream.state_dict()["epochs"]["latest"] for a in (attached, other)]
    np.testing.assert_allclose(*told, rtol=1e-4)
    assert attached.report() == other.report()


def test_sft_resumes_to_the_bit(tmp_path: Path) -> None:
    def made() -> Any:
        found = sft(tmp_path, save_strategy="steps", save_steps=10)
        attach_epochs(found, SeTa(groups=3))
        return found

    whole = made()
    whole.train()
    again = made()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert 10 < again.state.global_step == whole.state.global_step
    assert same(whole.model, again.model)
    for message, more in (("packing=False", {"packing": True}), ("'dft'", {"loss_type": "dft"})):
        with pytest.raises(DataError, match=message):
            attach_epochs(sft(tmp_path, **more), InfoBatch())


def test_preference_pairs_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs the extra trl")
    from tests.pipeline.test_adapter_trl import dpo

    with pytest.raises(DataError, match="something else than the next token of each row"):
        attach_epochs(dpo(tmp_path), SeTa(groups=3))


def process(rank: int, world: int, folder: str, port: int, resume: bool) -> None:
    """A Trainer in one of some processes; on resume from the middle of what was saved."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    backend = {"ddp_backend": "gloo"} if world > 1 else {}
    made = trainer(
        Path(folder) / str(world), model(), optim="sgd", learning_rate=0.1, save_strategy="steps",
        save_steps=9, per_device_train_batch_size=4 // world, num_train_epochs=5, **backend,
    )  # fmt: skip
    attached = attach_epochs(made, InfoBatch(prune=0.5))
    made.train(resume_from_checkpoint=f"{folder}/{world}/checkpoint-9" if resume else None)
    kept = {"weights": made.model.state_dict(), "report": attached.report()}
    kept |= {"rates": made.rates, "losses": attached.stream.state_dict()["epochs"]["latest"]}
    torch.save(kept, f"{folder}/{world}-{rank}-{resume}.pt")
    if world > 1:
        leave()


@pytest.mark.slow
def test_two_processes_visit_and_learn_what_one_does_and_resume(tmp_path: Path) -> None:
    process(0, 1, str(tmp_path), 0, False)
    for resume in (False, True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = (2, str(tmp_path), port, resume)
        torch.multiprocessing.spawn(process, args=given, nprocs=2)
    assert (tmp_path / "2" / "checkpoint-9" / STATE_FILE).is_file()
    names = ("1-0-False", "2-0-False", "2-1-False", "2-0-True", "2-1-True")
    alone, *others = (torch.load(tmp_path / f"{name}.pt", weights_only=False) for name in names)
    for other in others:
        assert other["report"] == alone["report"]
        assert other["rates"] == alone["rates"][-len(other["rates"]) :]
        np.testing.assert_allclose(other["losses"], alone["losses"], rtol=1e-3)
        for name, weights in alone["weights"].items():
            torch.testing.assert_close(other["weights"][name], weights, rtol=1e-3, atol=1e-5)
