"""Candidates that follow a given order: row numbers or plans, with rows that come again."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments

from foresift.pipeline.adapters.hf import attach
from foresift.pipeline.errors import DataError
from foresift.pipeline.given_order import GivenOrder, candidate_order
from foresift.pipeline.online import BatchMethod
from foresift.pipeline.parts import find, names
from foresift.pipeline.stream import Stream
from foresift.pipeline.stream_rows import RowSource
from foresift.pipeline.stream_state import read_state, write_state
from foresift.stages.samplers.uds import UDS
from tests.pipeline.streams import Given, Hardest, Highest, collate, model, rows
from tests.pipeline.test_stream import side_by_side
from tests.runs import go, recipe

DATA = rows(30)


def stream(order: Any, net: Any = None, method: Any = None, **fields: Any) -> Stream:
    given = {"keep": 4, "of": 8, "collate": collate, "seed": 7, "data": DATA, **fields}
    data = given.pop("data")
    return Stream(data, method or Highest(), net or model(), order=order, **given)


def lines(batch: Any) -> list[list[int]]:
    return [line[line > 0].tolist() for line in batch["input_ids"]]


@given(m=st.integers(1, 40), data=st.data())
def test_every_position_comes_in_turn_without_a_gap(m: int, data: st.DataObject) -> None:
    of = data.draw(st.integers(1, m))
    positions = np.array(data.draw(st.lists(st.integers(0, 9), min_size=m, max_size=m)))
    order = GivenOrder(positions, of)
    found = np.concatenate([order.rows(step) for step in range(7)])
    assert found.tolist() == np.tile(positions, 7)[: 7 * of].tolist()
    assert order.steps_per_epoch == m // of
    assert [order.cursor(s) for s in range(7)] == [s * of % m for s in range(7)]


def test_all_rows_in_the_order_given_are_trained_on_in_it() -> None:
    order = np.random.default_rng(0).permutation(30)
    found = stream(order, keep=5, of=5, steps=6)
    seen = [line for batch in found for line in lines(batch)]
    assert seen == [DATA[row]["input_ids"] for row in order]


def samplers() -> list[str]:
    """Names of the methods that choose rows and need no fields."""
    found = []
    for name in names("sample"):
        kind = find("sample", name)
        needed = [f for f in dataclasses.fields(kind) if f.default is f.default_factory]
        if issubclass(kind, BatchMethod) and not needed:
            found.append(name)
    return found


@pytest.mark.parametrize("name", samplers())
def test_a_row_that_comes_again_in_a_step_has_one_utility(name: str) -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    order = np.repeat(np.arange(12), 2)  # each row twice, side by side
    method = find("sample", name)()
    found = stream(order, net, method, optimizer=optimizer, at_once=4)
    told: list[Any] = []
    utility = found.chooser.utility

    def listening(measured: Any, step: int) -> Any:
        told.append(utility(measured, step))
        return told[-1]

    found.chooser.utility = listening  # type: ignore[method-assign]
    for _ in range(3):
        batch = next(found)
        net.train()
        net(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        first, second = lines(batch)[::2], lines(batch)[1::2]
        assert first == second  # both views or none
        np.testing.assert_allclose(told[-1][::2], told[-1][1::2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("world", [2, 4])
def test_rows_that_come_again_are_shared_out_as_one_process_has_them(world: int) -> None:
    nets = [model() for _ in range(world)]
    order = np.random.default_rng(3).integers(0, 6, size=21)

    def batches(rank: int, gather: Any = None, world: int = world) -> Any:
        ranks = {"rank": rank, "world": world, "gather": gather}
        method = Highest(memory=0.1)
        found = stream(order, nets[rank], method, keep=8, of=16, at_once=4, steps=5, **ranks)
        return (lines(batch) for batch in found)

    alone = list(batches(0, world=1))
    together = side_by_side(world, batches)
    for step, expected in enumerate(alone):
        assert [line for of_rank in together for line in of_rank[step]] == expected


def test_copies_beyond_what_is_kept_are_left_out_by_place() -> None:
    order = np.array([3, 3, 3, 3, 3, 3, 3, 3])
    assert lines(next(stream(order))) == [DATA[3]["input_ids"]] * 4


class _Views:
    """A data set in which every reading of a row is another view of it."""

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, row: int) -> Any:
        return {"id": DATA[row]["id"], "input_ids": torch.randint(1, 31, (5,)).tolist()}


def test_a_row_that_comes_again_keeps_the_view_that_was_measured() -> None:
    batch = next(stream([5] * 8, data=_Views(), method=Given(), keep=4))
    again = next(stream([5] * 8, data=_Views(), method=Given(), keep=8))
    views = lines(again)
    assert len({tuple(v) for v in views}) > 4
    highest = sorted((v[0] for v in views), reverse=True)[:4]
    assert sorted((v[0] for v in lines(batch)), reverse=True) == highest


@pytest.mark.parametrize("trial", range(6))
def test_an_interrupted_run_goes_on_exactly(trial: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(trial)
    order = rng.integers(0, 30, size=37)
    stop = int(rng.integers(1, 10))  # of 11 steps, more than two passes

    def begin() -> tuple[Any, Any, Stream]:
        net = model()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        fields = {"optimizer": optimizer, "tokens": Hardest()}
        return net, optimizer, stream(order, net, Highest(memory=0.02), **fields)

    def train(net: Any, optimizer: Any, found: Stream, steps: int) -> list[Any]:
        seen = []
        for _ in range(steps):
            batch = next(found)
            seen.append(lines(batch))
            net(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return seen

    whole = begin()
    expected = train(*whole, 11)
    first = begin()
    before = train(*first, stop)
    write_state(first[2].state_dict(), tmp_path / "state")
    second = begin()
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    second[2].load_state_dict(read_state(tmp_path / "state"))
    assert second[2].state_dict()["cursor"] == stop * 8 % 37
    assert before + train(*second, 11 - stop) == expected
    for name, weights in whole[0].state_dict().items():
        assert torch.equal(weights, second[0].state_dict()[name]), name


def test_the_plan_covers_the_order() -> None:
    orders = [None, np.arange(30), np.arange(30)[::-1], np.arange(29)]
    plans = [stream(order).plan for order in orders]
    assert len(set(plans)) == len(plans)
    assert stream(list(range(30))).plan == plans[1]
    with pytest.raises(DataError, match="data, order, seed"):
        stream(orders[2]).load_state_dict(stream(orders[1]).state_dict())


def trained_on(order: Any, data: Any, **fields: Any) -> list[int]:
    """The rows of each step's candidates, through one pass."""
    found = candidate_order(order, RowSource(data, fields.get("ids", "id"), list), 5, 0)
    return [r for step in range(found.steps_per_epoch) for r in found.rows(step).tolist()]


@pytest.fixture(scope="module")
def repeating(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run whose rows come again, the plan of its order step, and its documents as data."""
    steps = [{"order": "view_batch", "views": 2, "epochs": 2, "batch": 4}]
    run = go(recipe(steps=steps), tmp_path_factory.mktemp("repeating"))
    [step] = [s for s in run.manifest["steps"] if s["verb"] == "order"]
    plan = pq.read_table(Path(step["path"]) / "plan.parquet")
    ids = sorted(set(plan["id"].to_pylist()))
    return run, Path(step["path"]), plan["id"].to_pylist(), ids


def test_a_plan_is_followed_with_its_repeats(repeating: Any) -> None:
    run, step, listed, ids = repeating
    assert len(listed) == 2 * len(ids)
    binary = datasets.Dataset.from_list([{"id": i, "n": n} for n, i in enumerate(ids)])
    texts = [{"id": i.hex(), "n": n} for n, i in enumerate(ids)]
    expected = [ids.index(i) for i in listed][: len(listed) // 5 * 5]
    for order in (run, run.path, str(run.plan), step, step / "plan.parquet"):
        assert trained_on(order, binary) == expected
        assert trained_on(order, texts) == expected


def test_rounds_follow_one_another(tmp_path: Path) -> None:
    steps = [{"select": "random", "budget": "10%"}, {"order": "shuffle"}]
    run = go(recipe(steps=[], rounds={"count": 2, "steps": steps}), tmp_path)
    listed = []
    for number in (1, 2):
        [path] = [
            s["path"]
            for s in run.manifest["steps"]
            if s["verb"] == "order" and s["round"] == number
        ]
        listed += pq.read_table(Path(path) / "plan.parquet")["id"].to_pylist()
    data = [{"id": i.hex()} for i in sorted(listed)]
    expected = [sorted(listed).index(i) for i in listed]
    assert trained_on(run, data) == expected[: len(expected) // 5 * 5]


def test_a_copied_store_is_followed_itself_while_the_first_one_is_there(tmp_path: Path) -> None:
    run = go(recipe(), tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    [path] = (tmp_path / "copy").glob("steps/shuffle-*/plan.parquet")
    plan = pq.read_table(path)
    pq.write_table(plan.slice(0, 10), path)  # as after a deletion there
    data = [{"id": i.hex()} for i in plan["id"].to_pylist()]
    copied = tmp_path / "copy" / "runs" / run.path.name
    sizes = [len(trained_on(path, data)) for path in (copied, run.path)]
    assert sizes == [10, len(plan) // 5 * 5]


def test_copies_stand_for_the_first(tmp_path: Path) -> None:
    table = pa.table({"id": [b"b" * 16, b"a" * 16, b"b" * 16], "position": [2, 0, 1]})
    pq.write_table(table, tmp_path / "plan.parquet")
    data = [{"id": (c * 16).hex()} for c in (b"c", b"b", b"a", b"b")]
    found = candidate_order(tmp_path, RowSource(data, "id", list), 3, 0)
    assert found.rows(0).tolist() == [2, 1, 1]


def test_a_trainer_follows_a_plan(tmp_path: Path) -> None:
    table = pa.table({"id": [r["id"] for r in DATA] * 2, "position": np.arange(60)[::-1]})
    pq.write_table(table, tmp_path / "plan.parquet")
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=4, num_train_epochs=1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model(), args, train_dataset=DATA, data_collator=collate)
    attached = attach(trainer, Highest(), of=8, order=tmp_path / "plan.parquet")
    trainer.train()
    assert attached.report()["steps"] == 60 // 8
    assert attached.stream is not None
    assert attached.stream.order.rows(0).tolist() == list(range(29, 21, -1))
    assert attached.stream.plan == stream(np.tile(np.arange(29, -1, -1), 2), seed=42).plan


def test_a_report_says_what_the_parts_say() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tokens = find("sample", "random_tokens")()
    found = stream(None, net, UDS(), optimizer=optimizer, tokens=tokens)
    next(found)
    report = found.report()
    assert report["method"] == dict(found.chooser.facts)  # type: ignore[attr-defined]
    assert report["tokens"] == found.masker.facts != {}  # type: ignore[union-attr]
    plain = stream(None).report()
    assert plain["method"] == plain["tokens"] == {}


@pytest.mark.parametrize(
    ("order", "fields", "message"),
    [
        ([0, 30, 1, 2, 3, 4, 5, 6], {}, r"order: row 30 is not among the rows 0 \.\. 29"),
        ([-1] * 8, {}, "row -1 is not among"),
        ([0.5] * 8, {}, "row numbers are needed.*float64"),
        (np.zeros((8, 2), dtype=int), {}, r"shape \[8, 2\]"),
        ([0, 1, 2], {}, "8 candidates a step are more than the 3 positions of the order"),
        ([], {}, "more than the 0 positions"),
        ("nowhere", {}, "nowhere: no plan can be read here"),
        ("plan", {"ids": "row", "data": [{"input_ids": [1, 2]}] * 9}, "ids=\"row\" gives none"),
        ("plan", {}, r"plan.parquet: 1 ids of the plan are not in column 'id'.*such as nobody"),
        ("run", {}, "run: the run has no `order` step"),
        ("flat", {}, "flat.parquet: this is no plan.*it needs an id and a position"),
    ],
)  # fmt: skip
def test_orders_that_cannot_be(order: Any, fields: Any, message: str, tmp_path: Path) -> None:
    table = pa.table({"id": [DATA[0]["id"], "nobody"], "position": [0, 1]})
    pq.write_table(table, tmp_path / "plan.parquet")
    pq.write_table(table.select(["id"]), tmp_path / "flat.parquet")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text('{"steps": []}')
    paths = {"plan": "plan.parquet", "flat": "flat.parquet", "run": "run", "nowhere": "nowhere"}
    given = tmp_path / paths[order] if isinstance(order, str) else order
    with pytest.raises(DataError, match=message):
        stream(given, **fields)
