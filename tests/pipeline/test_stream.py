"""A stream chooses what its method prefers, the same in any number of processes, and resumes."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import threading
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import pytest
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.online import IGNORED, BatchMethod, TokenSelector
from foresift.pipeline.parts import find, names
from foresift.pipeline.stream import Stream, best
from foresift.pipeline.stream_rows import id_words
from foresift.pipeline.stream_state import read_state, write_state
from tests.pipeline.streams import Given, Hardest, Highest, collate, model, rows

DATA = rows(50)


def stream(net: Any = None, method: Any = None, data: Any = None, **fields: Any) -> Stream:
    given = {"keep": 4, "of": 12, "collate": collate, "seed": 7, **fields}
    data = DATA if data is None else data
    return Stream(data, method or Highest(), model() if net is None else net, **given)


def train(net: Any, batches: Any, optimizer: Any) -> list[Any]:
    """The bare loop; gives back what was trained on."""
    seen = []
    for batch in batches:
        net.train()
        net(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(batch["input_ids"])
    return seen


def sgd(net: Any) -> Any:
    return torch.optim.AdamW(net.parameters(), lr=1e-2)


def plain_choice(net: Any, found: Stream, step: int, keep: int) -> list[int]:
    """Rows of the highest mean loss, one at a time from the model's own logits."""
    losses = {}
    for row in found.order.rows(step).tolist():
        ids = torch.tensor([DATA[row]["input_ids"]])
        with torch.no_grad():
            losses[row] = float(net.eval()(input_ids=ids, labels=ids).loss)
    top = sorted(losses, key=lambda row: -losses[row])[:keep]
    return [row for row in losses if row in top]


def test_it_trains_on_the_rows_that_the_method_prefers() -> None:
    net = model()
    optimizer, found = sgd(net), stream(net, steps=6)
    for step in range(6):
        expected = plain_choice(net, found, step, 4)
        batch = next(found)
        assert (
            batch["input_ids"].tolist()
            == collate([{"input_ids": DATA[row]["input_ids"]} for row in expected])[
                "input_ids"
            ].tolist()
        )
        train(net, [batch], optimizer)
    assert next(found, None) is None
    report = found.report()
    assert report["candidates_seen"] == 72
    assert report["rows_trained_on"] == 24
    assert report["seconds_per_step"] > report["seconds_scoring_per_step"] > 0
    assert report["keep_fraction"] == 1 / 3


def test_rows_that_cannot_be_judged_come_last_and_are_counted() -> None:
    firsts = [row["input_ids"][0] for row in DATA]
    found = stream(method=Given(unknown=tuple(range(2, 31))), steps=4)
    known = 0
    for step in range(4):
        candidates = found.order.rows(step)
        ones = [row for row in candidates.tolist() if firsts[row] == 1]
        if not ones:
            with pytest.raises(DataError, match=f"no candidate of step {step} can be judged"):
                next(found)
            found.step += 1
            continue
        known += len(ones)
        chosen = next(found)["input_ids"][:, 0].tolist()
        assert chosen.count(1) == min(4, len(ones))
        assert len(chosen) == 4
    assert known
    assert found.report()["nan_rows"] == found.report()["candidates_seen"] - known


def test_ties_go_by_id_and_not_by_place() -> None:
    words = id_words(f"d{i}" for i in range(9)).numpy().view(np.uint64)
    utility = np.array([1, 0, 1, 1, 0, 2, 1, np.nan, -np.inf])
    places = np.arange(9)
    first = {f"d{i}" for i in best(utility, words, places, 4)}
    assert "d5" in first
    for seed in range(10):
        moved = np.random.default_rng(seed).permutation(9)
        again = best(utility[moved], words[moved], places, 4)
        assert {f"d{moved[i]}" for i in again} == first
        assert again.tolist() == sorted(again.tolist())
    assert 7 not in best(utility, words, places, 8)
    assert 8 in best(utility, words, places, 8)


def side_by_side(world: int, make: Any) -> list[list[Any]]:
    """What each of some processes (here: threads) yields; they wait for each other to gather."""
    barrier, slots = threading.Barrier(world), [None] * world
    found: list[list[Any]] = [[] for _ in range(world)]

    def run(rank: int) -> None:
        def gather(part: torch.Tensor) -> torch.Tensor:
            slots[rank] = part  # type: ignore[call-overload]
            barrier.wait(20)
            whole = torch.cat(list(slots))  # type: ignore[arg-type]
            barrier.wait(20)
            return whole

        try:
            found[rank] = list(make(rank, gather))
        except BaseException as error:
            found[rank] = [error]
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_the_same_rows_in_any_number_of_processes(world: int) -> None:
    nets = [model() for _ in range(world)]  # threads share one random state

    def batches(rank: int, world: int, gather: Any) -> Any:
        fields = {"keep": 8, "of": 16, "at_once": 4, "steps": 5, "check_every": 1}
        ranks = {"rank": rank, "world": world, "gather": gather}
        found = stream(nets[rank], Highest(memory=0.1), **ranks, **fields)
        return ([line[line > 0].tolist() for line in batch["input_ids"]] for batch in found)

    alone = list(batches(0, 1, None))
    together = side_by_side(world, lambda rank, gather: batches(rank, world, gather))
    for step, expected in enumerate(alone):
        assert [line for of_rank in together for line in of_rank[step]] == expected


def test_processes_that_choose_differently_are_told() -> None:
    nets = [model() for _ in range(2)]

    def batches(rank: int, gather: Any) -> Any:
        return stream(nets[rank], seed=rank, rank=rank, world=2, gather=gather, steps=1)

    errors = [found[0] for found in side_by_side(2, batches)]
    told = [e for e in errors if isinstance(e, DataError)]
    assert told
    assert "the processes chose 2 different batches at step 0" in str(told[0])


@pytest.mark.parametrize("trial", range(20))
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(trial: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(trial)
    mode = "train" if trial % 2 else "eval"
    tokens = Hardest() if trial % 3 == 0 else None
    total, stop = 9, int(rng.integers(1, 9))

    def begin(steps: int) -> tuple[Any, Any, Stream]:
        net = model(attention_dropout=0.3)
        optimizer = sgd(net)
        torch.manual_seed(trial)
        fields = {"steps": steps, "mode": mode, "tokens": tokens, "optimizer": optimizer}
        return net, optimizer, stream(net, Highest(memory=0.02), **fields)

    net, optimizer, whole = begin(total)
    expected = train(net, whole, optimizer)
    first, optimizer, found = begin(stop)
    before = train(first, found, optimizer)
    write_state(found.state_dict(), tmp_path / "stream")
    kept = copy.deepcopy([first.state_dict(), optimizer.state_dict(), torch.get_rng_state()])
    found.steps = total
    next(found)  # what is asked for after saving, in a run that then dies, is asked for again

    second, optimizer, found = begin(total)
    second.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    found.load_state_dict(read_state(tmp_path / "stream"))
    torch.set_rng_state(kept[2])
    after = train(second, found, optimizer)
    assert [b.tolist() for b in before + after] == [b.tolist() for b in expected]
    for name, weights in net.state_dict().items():
        assert torch.equal(weights, second.state_dict()[name]), name
    for key in ("candidates_seen", "rows_trained_on", "steps", "agreement"):
        assert found.report()[key] == whole.report()[key]


def test_scoring_leaves_the_global_random_state_alone() -> None:
    net = model(attention_dropout=0.3).train()
    before = torch.get_rng_state()
    found = stream(net, mode="train")
    one = next(found)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    again = next(stream(net, mode="train"))
    assert torch.equal(one["input_ids"], again["input_ids"])


def test_a_state_of_another_plan_is_refused() -> None:
    state = stream().state_dict()
    for other in (
        stream(seed=8), stream(keep=5), stream(of=13), stream(mode="train"),
        stream(method=Highest(memory=1.0)), stream(tokens=Hardest()), stream(data=rows(51)),
        stream(ids="row", data=[{"input_ids": r["input_ids"]} for r in DATA]),
        stream(data=[{**r, "id": r["id"] + "x"} for r in DATA]),
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            other.load_state_dict(state)
        assert state["plan"] in str(caught.value)
        assert other.plan in str(caught.value)
    same = stream(at_once=3, check_every=2, steps=99)
    same.load_state_dict(state)


def test_what_a_chunk_holds_does_not_change_the_choice() -> None:
    one, other = (stream(at_once=n, steps=8) for n in (1, 12))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a["input_ids"], b["input_ids"])


def test_only_chosen_tokens_count() -> None:
    net = model()
    batch = next(stream(net, tokens=Hardest()))
    plain = next(stream(net))
    assert torch.equal(batch["input_ids"], plain["input_ids"])
    assert ((batch["labels"] != IGNORED).sum(1) == 1).all()
    kept = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][kept], plain["labels"][kept])


def test_micro_batches_are_cut_from_one_choice() -> None:
    net = model()
    whole, parts = next(stream(net)), stream(net).take(2)
    lines = [line[line > 0].tolist() for part in parts for line in part["input_ids"]]
    assert lines == [line[line > 0].tolist() for line in whole["input_ids"]]
    with pytest.raises(DataError, match="4 rows cannot be cut into 3"):
        stream(net).take(3)


def test_a_hub_data_set_is_read_as_a_list_is() -> None:
    net = model()
    held = datasets.Dataset.from_list(DATA)
    one, other = stream(net, steps=4), stream(net, data=held, steps=4)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a["input_ids"], b["input_ids"])
    bytes_ids = held.map(lambda row: {"id": row["id"].encode()})
    assert stream(data=bytes_ids).plan == stream(data=bytes_ids.with_format("numpy")).plan
    assert stream(data=held.rename_column("id", "key"), ids="key").plan == other.plan


def test_states_keep_arrays_tensors_and_plain_values(tmp_path: Path) -> None:
    state = {
        "a": np.arange(6).reshape(2, 3)[:, ::2], "b": {"c": torch.ones(2, dtype=torch.bfloat16)},
        "d": [1, 2.5, None, "x", np.float32(0.5), {"e": np.zeros(0)}], "big": 2**60, "ok": True,
    }  # fmt: skip
    write_state(state, tmp_path / "s")
    found = read_state(tmp_path / "s")
    np.testing.assert_array_equal(found["a"], [[0, 2], [3, 5]])
    assert torch.equal(found["b"]["c"], state["b"]["c"])  # type: ignore[index]
    assert found["d"][:5] == [1, 2.5, None, "x", 0.5]
    assert found["d"][5]["e"].shape == (0,)
    assert (found["big"], found["ok"]) == (2**60, True)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    write_state({}, tmp_path / "s")
    assert read_state(tmp_path / "s") == {}
    (tmp_path / "broken").write_bytes(b"nothing")
    for name in ("broken", "missing"):
        with pytest.raises(DataError, match="no state of a stream can be read"):
            read_state(tmp_path / name)
    with pytest.raises(TypeError, match="names must be strings"):
        write_state({"a": {1: 2}}, tmp_path / "s")


class _Two(Given):
    """Gives one utility too few."""

    def open(self, live: Any) -> Any:
        chooser = super().open(live)
        chooser.utility = lambda measured, step: np.zeros(2)  # type: ignore[method-assign]
        return chooser


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": 13}, r"keep: keep must be 1 \.\. of = 12, got 13"),
        ({"keep": 0}, "keep must be 1"),
        ({"keep": 3, "world": 2, "rank": 0, "gather": torch.clone}, "to 2 processes; take 2 or 4"),
        ({"of": 13, "world": 2, "rank": 0, "gather": torch.clone}, "of: 13 cannot be shared"),
        ({"world": 2, "rank": 0}, "torch.distributed is not initialised"),
        ({"world": 2, "rank": 2, "gather": torch.clone}, "rank 2 is not among 2"),
        ({"of": 51}, "51 candidates a step are more than the 50 rows"),
        ({"data": []}, "the data set has no rows"),
        ({"data": iter(DATA)}, "not a map-style data set"),
        ({"data": torch.utils.data.ChainDataset([])}, "not a map-style data set"),
        ({"ids": "key"}, r"no column 'key' \(they have: id, input_ids\).*ids=\"row\""),
        ({"data": [[1, 2]] * 20}, "row 0 is a list, not a mapping"),
        ({"data": [{"id": None, "input_ids": [1, 2]}] * 20}, "has no id"),
        ({"mode": "off"}, "'eval' or 'train', got 'off'"),
        ({"at_once": 0}, "at_once: must be at least 1"),
        ({"collate": lambda rows: {"input_ids": torch.ones(8, 2)}}, "gives no 'labels'"),
        ({"collate": lambda rows: rows}, "gives no 'input_ids'.*gives: list"),
        ({"collate": lambda rows: collate(rows[:2])}, "packing is not possible"),
        ({"method": Given(unknown=tuple(range(31)))}, "no candidate of step 0 can be judged"),
        ({"method": _Two()}, r"gave utilities of shape \[2\] for 12 candidates"),
    ],
)
def test_bad_input(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        next(stream(**fields))


def test_exact_ties_over_many_steps_visit_every_row() -> None:
    found = stream(method=Given(level=True), keep=12, of=12)
    seen = [line[line > 0].tolist() for b in itertools.islice(found, 12) for line in b["input_ids"]]
    assert {tuple(line) for line in seen} == {tuple(r["input_ids"]) for r in DATA}


def parts() -> list[str]:
    """Names of the samplers that choose rows or tokens and need no fields."""
    found = []
    for name in names("sample"):
        kind = find("sample", name)
        needed = [f for f in dataclasses.fields(kind) if f.default is f.default_factory]
        if issubclass(kind, (BatchMethod, TokenSelector)) and not needed:
            found.append(name)
    return found


@pytest.mark.parametrize("name", parts())
def test_every_sampler_goes_on_from_its_state(name: str, tmp_path: Path) -> None:
    wide = {"reject": 0.5} if name == "stability_mask" else {}  # 0.5 is no rate for its thresholds
    part = find("sample", name)(**wide)
    fields = {"tokens": part} if isinstance(part, TokenSelector) else {"method": part}

    def begin() -> tuple[Any, Any, Stream]:
        net = model()
        optimizer = sgd(net)
        return net, optimizer, stream(net, steps=6, optimizer=optimizer, **fields)

    def labels(found: Stream, net: Any, optimizer: Any, steps: int) -> list[Any]:
        kept = []
        for batch in itertools.islice(found, steps):
            train(net, [batch], optimizer)
            kept.append((batch["input_ids"].tolist(), batch["labels"].tolist()))
        return kept

    net, optimizer, whole = begin()
    first = labels(whole, net, optimizer, 3)
    write_state(whole.state_dict(), tmp_path / "stream")
    kept = copy.deepcopy([net.state_dict(), optimizer.state_dict()])
    expected = labels(whole, net, optimizer, 3)
    net, optimizer, again = begin()
    net.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    again.load_state_dict(read_state(tmp_path / "stream"))
    assert labels(again, net, optimizer, 3) == expected
    assert len(first) == len(expected) == 3
    assert any(label != IGNORED for _, lines in expected for line in lines for label in line)


def test_accelerate_needs_no_more_than_the_loop() -> None:
    plain, prepared = model(), model()
    optimizer = sgd(plain)
    expected = train(plain, stream(plain, steps=5, optimizer=optimizer), optimizer)
    accelerator = accelerate.Accelerator(cpu=True)
    wrapped, optimizer = accelerator.prepare(prepared, sgd(prepared))
    found = stream(wrapped, steps=5, optimizer=optimizer)
    assert isinstance(found.live.optimizer, torch.optim.AdamW)
    for step, batch in enumerate(found):
        assert torch.equal(batch["input_ids"], expected[step])
        wrapped.train()
        accelerator.backward(wrapped(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    for one, other in zip(plain.parameters(), prepared.parameters(), strict=True):
        assert torch.equal(one, other)
