"""Epoch plans in a bare loop: what the plan says is trained on, in any number of processes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from foresift.pipeline.document_losses import document_losses, weighted
from foresift.pipeline.epoch_stream import EpochStream
from foresift.pipeline.errors import DataError
from foresift.pipeline.stream_state import read_state, write_state
from foresift.stages.samplers.dynamic_random import DynamicRandom
from foresift.stages.samplers.infobatch import InfoBatch
from foresift.stages.samplers.seta import SeTa
from tests.pipeline.streams import collate, leave, model, rows
from tests.pipeline.test_stream import side_by_side

DATA = rows(23)
PLANS = [InfoBatch(prune=0.5), SeTa(groups=4, window=0.5), DynamicRandom(prune=0.4)]
EPOCHS, BATCH = 4, 4


def stream(plan: Any, **fields: Any) -> EpochStream:
    given = {"batch": BATCH, "epochs": EPOCHS, "collate": collate, "seed": 5, "data": DATA}
    given |= fields
    return EpochStream(given.pop("data"), plan, **given)


def loss_of(row: int, epoch: int) -> float:
    """A loss that falls at a pace of each row's own."""
    return float((row * 7 % 23) / 10 * 0.5**epoch)


def walk(found: EpochStream, steps: int | None = None) -> list[Any]:
    """(epoch, positions, weights) of each step, told made-up losses."""
    seen = []
    for batch, weights, positions in itertools.islice(found, steps):
        assert [line[line > 0].tolist() for line in batch["input_ids"]] == [
            DATA[row]["input_ids"] for row in positions
        ]
        seen.append((found.epoch, positions.tolist(), weights.tolist()))
        found.observe(positions, [loss_of(row, found.epoch) for row in positions])
    return seen


@pytest.mark.parametrize("plan", PLANS)
def test_it_visits_what_the_plan_says(plan: Any) -> None:
    expected = []
    running = plan.open(len(DATA), EPOCHS, 5)
    for epoch in range(EPOCHS):
        visited, weights = running.epoch(epoch)
        for at in range(0, len(visited) - BATCH + 1, BATCH):
            some = visited[at : at + BATCH]
            expected.append((epoch, some.tolist(), weights[at : at + BATCH].tolist()))
            running.update(some, np.array([loss_of(row, epoch) for row in some]))
    found = stream(plan)
    assert walk(found) == expected
    assert next(found, None) is None
    assert found.report()["steps"] == len(expected)
    assert found.report()["rows_trained_on"] == len(expected) * BATCH


def test_forecasts_become_steps() -> None:
    found = stream(DynamicRandom(prune=0.4))  # floor(13.8) of 23 rows: 3 steps of 4
    assert found.planned_steps_by_epoch == [3] * 4
    assert found.planned_steps == len(walk(found)) == 12
    assert stream(InfoBatch(prune=0.5)).planned_steps_by_epoch == [5, 4, 4, 5]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("world", [2, 4])
def test_the_same_rows_in_any_number_of_processes(plan: Any, world: int) -> None:
    alone = walk(stream(plan))

    def steps(rank: int, gather: Any) -> Any:
        return walk(stream(plan, rank=rank, world=world, gather=gather))

    together = side_by_side(world, steps)
    for step, (epoch, positions, weights) in enumerate(alone):
        parts = [of_rank[step] for of_rank in together]
        assert {part[0] for part in parts} == {epoch}
        assert [row for part in parts for row in part[1]] == positions
        assert [weight for part in parts for weight in part[2]] == weights


def test_processes_may_tell_of_different_numbers_of_rows() -> None:
    def tell(rank: int, gather: Any) -> Any:
        found = stream(InfoBatch(), rank=rank, world=2, gather=gather)
        _, _, positions = next(found)
        found.observe(positions[:rank], np.full(rank, 0.25))
        return [found.state_dict()["epochs"]["latest"], positions]

    (one, _), (other, second) = side_by_side(2, tell)
    assert one.tolist() == other.tolist()
    assert np.flatnonzero(one == 0.25).tolist() == [second[0]]


def train(net: Any, optimizer: Any, found: EpochStream, steps: int | None = None) -> list[Any]:
    """The bare loop; gives back the rows of each step."""
    seen = []
    for batch, weights, positions in itertools.islice(found, steps):
        net.train()
        labels = batch.pop("labels")
        losses = document_losses(net(**batch).logits, labels)
        weighted(losses, weights).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.observe(positions, losses)
        seen.append(positions.tolist())
    return seen


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("trial", range(4))
def test_an_interrupted_run_goes_on_exactly(plan: Any, trial: int, tmp_path: Path) -> None:
    def begin() -> tuple[Any, Any, EpochStream]:
        net = model()
        return net, torch.optim.AdamW(net.parameters(), lr=1e-2), stream(plan)

    whole = begin()
    expected = train(*whole)
    stop = int(np.random.default_rng(trial).integers(0, len(expected) + 1))
    first = begin()
    before = train(*first, stop)
    write_state(first[2].state_dict(), tmp_path / "state")
    next(first[2], None)  # asked for after saving, and lost
    second = begin()
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    second[2].load_state_dict(read_state(tmp_path / "state"))
    assert before + train(*second) == expected
    for name, weights in whole[0].state_dict().items():
        assert torch.equal(weights, second[0].state_dict()[name]), name
    assert second[2].report() == whole[2].report()


def test_the_end_of_an_epoch_is_a_place_to_stop() -> None:
    found = stream(InfoBatch())
    expected = walk(stream(InfoBatch()))
    before = walk(found, 5)  # the whole first epoch
    assert [epoch for epoch, *_ in expected[4:6]] == [0, 1]
    again = stream(InfoBatch())
    again.load_state_dict(found.state_dict())
    assert before + walk(again) == expected


def test_losses_by_id_are_losses_by_position() -> None:
    one, other = stream(InfoBatch()), stream(InfoBatch())
    _, _, positions = next(one)
    next(other)
    losses = torch.tensor([0.5, 0.25, float("nan"), 0.125])
    one.observe(positions, losses)
    other.observe([DATA[row]["id"] for row in positions], losses.numpy())
    for name in ("losses", "latest"):
        a, b = (s.state_dict()["epochs"][name] for s in (one, other))
        assert a.tolist() == b.tolist()
    assert one.state_dict()["epochs"]["latest"][positions].tolist() == [0.5, 0.25, 3.0, 0.125]
    absent = next(row for row in range(23) if row not in positions)
    with pytest.raises(DataError, match=f"'{DATA[absent]['id']}' is not among the rows"):
        one.observe([DATA[absent]["id"]], [1.0])
    with pytest.raises(DataError, match="2 rows, losses of shape"):
        one.observe([0, 1], [1.0])


def test_micro_batches_are_cut_from_one_step() -> None:
    whole, parts = stream(InfoBatch()).take()[0], stream(InfoBatch()).take(2)
    assert np.concatenate([p.positions for p in parts]).tolist() == whole.positions.tolist()
    assert torch.equal(torch.cat([p.weights for p in parts]), whole.weights)
    with pytest.raises(DataError, match="4 rows cannot be cut into 3"):
        stream(InfoBatch()).take(3)


def test_the_global_random_state_is_left_alone() -> None:
    def noisy(examples: Any) -> Any:
        return torch.rand(len(examples))

    before = torch.get_rng_state()
    one = [visit.batch.tolist() for visit in stream(InfoBatch(), collate=noisy)]
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert one == [visit.batch.tolist() for visit in stream(InfoBatch(), collate=noisy)]
    assert one[0] != one[1]


def test_a_state_of_another_plan_is_refused() -> None:
    state = stream(InfoBatch()).state_dict()
    for other in (
        stream(InfoBatch(prune=0.25)), stream(DynamicRandom()), stream(InfoBatch(), seed=1),
        stream(InfoBatch(), batch=5), stream(InfoBatch(), epochs=3),
        stream(InfoBatch(), data=rows(24)),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"belongs to plan {state['plan']}.*{other.plan}"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, r"batch: must be 1 \.\. 23"),
        ({"batch": 24}, "got 24"),
        ({"batch": 5, "rank": 0, "world": 2, "gather": torch.clone}, "5 cannot be shared out"),
        ({"epochs": 0}, "there must be at least 1"),
        ({"data": iter(DATA)}, "not a map-style data set"),
    ],
)
def test_bad_input(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        stream(InfoBatch(), **fields)


def distributed(rank: int, world: int, folder: str) -> None:
    """The bare loop under DistributedDataParallel; keeps rows, weights and what the plan knows."""
    torch.set_num_threads(1)
    if world > 1:
        meet = f"file://{folder}/meet"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    net = model()
    wrapped: Any = DistributedDataParallel(net) if world > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found = stream(InfoBatch(prune=0.5))
    kept = {"rows": train(wrapped, optimizer, found), "weights": net.state_dict()}
    torch.save(kept | {"state": found.state_dict()}, f"{folder}/{world}-{rank}.pt")
    if world > 1:
        leave()


@pytest.mark.slow
def test_two_processes_visit_and_learn_what_one_does(tmp_path: Path) -> None:
    distributed(0, 1, str(tmp_path))
    torch.multiprocessing.spawn(distributed, args=(2, str(tmp_path)), nprocs=2)
    alone, first, second = (
        torch.load(tmp_path / f"{n}.pt", weights_only=False) for n in ("1-0", "2-0", "2-1")
    )
    assert [a + b for a, b in zip(first["rows"], second["rows"], strict=True)] == alone["rows"]
    for name, weights in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], weights, rtol=1e-4, atol=1e-5)
        assert torch.equal(first["weights"][name], second["weights"][name])
    for other in (first, second):
        np.testing.assert_allclose(
            other["state"]["epochs"]["latest"], alone["state"]["epochs"]["latest"], rtol=1e-3
        )
