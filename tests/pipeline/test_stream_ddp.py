"""Two processes train as one does: equal choices, weights equal but for rounding."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from foresift.pipeline.stream import Stream
from tests.pipeline.streams import Highest, collate, model, rows

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
        dist.destroy_process_group()


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
