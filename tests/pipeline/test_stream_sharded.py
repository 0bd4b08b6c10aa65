"""Two processes share out the weights (FSDP2) and choose and learn what one does."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.live import LiveModel
from foresift.pipeline.online import BatchMethod
from foresift.pipeline.stream import Stream
from foresift.stages.samplers.max_loss import MaxLoss
from foresift.stages.samplers.momentum_gain import MomentumGain
from foresift.stages.samplers.random_tokens import RandomTokens
from foresift.stages.samplers.uds import UDS
from tests.pipeline.streams import collate, leave, model, rows

STEPS = 5
UDS_SMALL = UDS(d1=8, d2=2, memory=16, max_length=16)


def train(rank: int, world: int, folder: str) -> None:
    """A bare loop for each method under fully_shard; keeps what was chosen and the weights."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
        )
    kept = {
        "max_loss": one(MaxLoss(), world),
        "uds": one(UDS_SMALL, world),
        "tokens": one(MaxLoss(), world, tokens=RandomTokens(share=0.5)),
    }
    if world > 1:
        with pytest.raises(ModelError, match="momentum_gain needs whole weights"):
            Stream(rows(40), MomentumGain(), shared(model()), **fields())
    torch.save(kept, f"{folder}/{world}-{rank}.pt")
    if world > 1:
        leave()


def fields() -> dict[str, Any]:
    return {"keep": 4, "of": 16, "collate": collate, "seed": 2, "check_every": 1}


def shared(net: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    for layer in net.model.layers:
        fully_shard(layer)
    return fully_shard(net)


def one(method: BatchMethod, world: int, **more: Any) -> dict[str, Any]:
    net = model()
    if world > 1:
        net = shared(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    stream = Stream(rows(40), method, net, **fields(), **more)
    chosen = []
    for batch in itertools.islice(stream, STEPS):
        chosen.append([line[line > 0].tolist() for line in batch["input_ids"]])
        net.train()
        counted = torch.tensor(float((batch["labels"][:, 1:] != -100).sum()))
        if world > 1:
            dist.all_reduce(counted)
        # the mean over the tokens of all processes; fully_shard takes the mean of both
        (net(**batch, num_items_in_batch=counted).loss * world).backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in net.named_parameters()
    }
    return {"chosen": chosen, "weights": weights, "reason": stream.live.reason}


@pytest.mark.slow
def test_two_processes_with_shared_out_weights_choose_and_learn_what_one_does(
    tmp_path: Path,
) -> None:
    train(0, 1, str(tmp_path))
    torch.multiprocessing.spawn(train, args=(2, str(tmp_path)), nprocs=2)
    alone, first, second = (torch.load(tmp_path / f"{n}.pt") for n in ("1-0", "2-0", "2-1"))
    for name, by_one in alone.items():
        a, b = first[name], second[name]
        assert "sharded" in a["reason"]
        for step in range(STEPS):
            assert a["chosen"][step] + b["chosen"][step] == by_one["chosen"][step], (name, step)
        torch.testing.assert_close(a["weights"], by_one["weights"], rtol=1e-4, atol=1e-5)
        assert all(w.equal(b["weights"][n]) for n, w in a["weights"].items())


def test_other_ways_of_sharding_are_refused() -> None:
    class FullyShardedDataParallel(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module

    with pytest.raises(ModelError, match="fully_shard instead"):
        LiveModel(FullyShardedDataParallel(model()))
    net = model()
    next(net.parameters()).ds_status = "NOT_AVAILABLE"
    with pytest.raises(ModelError, match="ZeRO-3"):
        LiveModel(net)
