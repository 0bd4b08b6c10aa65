"""Two processes train as one does, in a bare loop and in a Trainer: equal choices and weights."""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

from foresift.pipeline.adapters.hf import STATE_FILE, attach
from foresift.pipeline.stream import Stream
from tests.pipeline.streams import Highest, collate, leave, model, rows

STEPS = 8


def train(rank: int, world: int, folder: str) -> None:
    """The bare loop under DistributedDataParallel; keeps what was chosen and the weights."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
        )
    net = model()
    wrapped: Any = DistributedDataParallel(net) if world > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    fields: Any = {"keep": 8, "of": 32, "collate": collate, "seed": 2, "check_every": 1}
    stream = Stream(rows(80), Highest(memory=0.01), wrapped, **fields)
    chosen = []
    for batch in itertools.islice(stream, STEPS):
        chosen.append([line[line > 0].tolist() for line in batch["input_ids"]])
        net.train()
        counted = torch.tensor(float((batch["labels"][:, 1:] != -100).sum()))
        if world > 1:
            dist.all_reduce(counted)
        # the mean over the tokens of all processes; DistributedDataParallel takes the mean of both
        loss = wrapped(**batch, num_items_in_batch=counted).loss * world
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    kept = {"chosen": chosen, "weights": net.state_dict(), "state": stream.state_dict()}
    torch.save(kept, f"{folder}/{world}-{rank}.pt")
    if world > 1:
        leave()


@pytest.mark.slow
def test_two_processes_choose_and_learn_what_one_does(tmp_path: Path) -> None:
    train(0, 1, str(tmp_path))
    torch.multiprocessing.spawn(train, args=(2, str(tmp_path)), nprocs=2)
    alone, first, second = (torch.load(tmp_path / f"{n}.pt") for n in ("1-0", "2-0", "2-1"))
    for step in range(STEPS):
        assert first["chosen"][step] + second["chosen"][step] == alone["chosen"][step], step
    for name, weights in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], weights, rtol=1e-4, atol=1e-5)
        assert torch.equal(first["weights"][name], second["weights"][name])
    assert first["state"]["plan"] == second["state"]["plan"] == alone["state"]["plan"]
    assert first["state"]["step"] == alone["state"]["step"] == STEPS
    assert torch.equal(first["state"]["chooser"]["mean"], second["state"]["chooser"]["mean"])


def train_trainer(rank: int, world: int, folder: str, port: int, resume: bool) -> None:
    """A Trainer in one of some processes; on resume from the middle of what was saved."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    args = TrainingArguments(
        output_dir=f"{folder}/{world}", per_device_train_batch_size=4 // world, max_steps=6,
        gradient_accumulation_steps=2, learning_rate=0.1, optim="sgd", save_steps=3, use_cpu=True,
        report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
        ddp_backend="gloo" if world > 1 else None,
    )  # fmt: skip
    trainer = Trainer(model(), args, train_dataset=rows(80), data_collator=collate)
    attached = attach(trainer, Highest(memory=0.01), of=32, at_once=4, check_every=1)
    trainer.train(resume_from_checkpoint=f"{folder}/{world}/checkpoint-3" if resume else None)
    kept = {"weights": trainer.model.state_dict(), "report": attached.report()}
    torch.save(kept, f"{folder}/trainer-{world}-{rank}-{resume}.pt")
    if world > 1:
        leave()


@pytest.mark.slow
def test_a_trainer_in_two_processes_chooses_what_one_does_and_resumes(tmp_path: Path) -> None:
    train_trainer(0, 1, str(tmp_path), 0, False)
    for resume in (False, True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = (2, str(tmp_path), port, resume)
        torch.multiprocessing.spawn(train_trainer, args=given, nprocs=2)
    assert (tmp_path / "2" / "checkpoint-3" / STATE_FILE).is_file()
    names = ("1-0-False", "2-0-False", "2-1-False", "2-0-True", "2-1-True")
    alone, *others = (torch.load(tmp_path / f"trainer-{name}.pt") for name in names)
    for other in others:
        assert other["report"]["agreement"] == alone["report"]["agreement"]
        assert other["report"]["candidates_seen"] == 6 * 32
        for name, weights in alone["weights"].items():
            torch.testing.assert_close(other["weights"][name], weights, rtol=1e-4, atol=1e-5)
