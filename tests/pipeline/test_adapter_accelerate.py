"""Accelerate needs no adapter: a stream is registered as it is, and its state is read anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from foresift.pipeline.errors import DataError
from foresift.pipeline.online import BatchMethod, TokenSelector
from foresift.pipeline.parts import find, names
from foresift.pipeline.stream import Stream
from tests.pipeline.streams import Hardest, Highest, collate, model, rows

DATA = rows(50)
CUT = 2


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Accelerate's settings are of the whole process; leave none behind."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def begin(**fields: Any) -> tuple[Accelerator, Any, Any, Stream]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=CUT, **fields)
    net = model(attention_dropout=0.3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    net, optimizer = accelerator.prepare(net, optimizer)
    torch.manual_seed(5)
    given: dict[str, Any] = {"keep": 4, "of": 12, "collate": collate, "seed": 7}
    given |= {"optimizer": optimizer, "tokens": Hardest(), "mode": "train"}
    stream = Stream(DATA, Highest(memory=0.02), net, **given)
    accelerator.register_for_checkpointing(stream)
    return accelerator, net, optimizer, stream


def train(accelerator: Accelerator, net: Any, optimizer: Any, stream: Stream, end: int) -> Any:
    seen = []
    net.train()
    while stream.step < end:
        for batch in stream.take(CUT):
            with accelerator.accumulate(net):
                accelerator.backward(net(**batch).loss)
                optimizer.step()
                optimizer.zero_grad()
            seen.append((batch["input_ids"].tolist(), batch["labels"].tolist()))
    return seen


def same_weights(one: Any, other: Any) -> None:
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, other.state_dict()[name]), name


def test_it_is_the_bare_loop() -> None:
    accelerator, net, optimizer, stream = begin()
    seen = train(accelerator, net, optimizer, stream, 5)
    bare = model(attention_dropout=0.3).train()
    own = torch.optim.AdamW(bare.parameters(), lr=1e-2)
    torch.manual_seed(5)
    given: dict[str, Any] = {"keep": 4, "of": 12, "collate": collate, "seed": 7, "optimizer": own}
    alone = Stream(DATA, Highest(memory=0.02), bare, tokens=Hardest(), mode="train", **given)
    expected = []
    for _ in range(5):
        for batch in alone.take(CUT):
            (bare(**batch).loss / CUT).backward()
            expected.append((batch["input_ids"].tolist(), batch["labels"].tolist()))
        own.step()
        own.zero_grad()
    assert seen == expected
    same_weights(bare, net)
    assert stream.live.optimizer is optimizer.optimizer


@pytest.mark.parametrize("stop", [1, 4])
def test_a_saved_state_goes_on_to_the_same_weights(tmp_path: Path, stop: int) -> None:
    whole = begin()
    before = train(*whole, stop)
    whole[0].save_state(str(tmp_path))
    after = train(*whole, 7)
    again = begin()
    again[0].load_state(str(tmp_path))
    assert again[3].step == stop
    assert train(*again, 7) == after
    assert len(before) == stop * CUT
    same_weights(whole[1], again[1])
    for key in ("candidates_seen", "rows_trained_on", "agreement"):
        assert again[3].report()[key] == whole[3].report()[key]


def test_a_state_of_another_plan_is_refused(tmp_path: Path) -> None:
    accelerator, net, optimizer, stream = begin()
    train(accelerator, net, optimizer, stream, 1)
    accelerator.save_state(str(tmp_path))
    other = Accelerator(cpu=True)
    less = Stream(DATA, Highest(), model(), keep=4, of=13, collate=collate)
    other.register_for_checkpointing(less)
    with pytest.raises(DataError, match="the state belongs to plan"):
        other.load_state(str(tmp_path), load_kwargs={})


def test_it_chooses_under_mixed_precision() -> None:
    made = begin(mixed_precision="bf16")
    assert len(train(*made, 3)) == 3 * CUT
    assert made[3].report()["nan_rows"] == 0


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
def test_a_state_is_read_where_only_weights_are_trusted(name: str, tmp_path: Path) -> None:
    wide = {"reject": 0.5} if name == "stability_mask" else {}  # 0.5 is no rate for its thresholds
    part = find("sample", name)(**wide)
    fields: dict[str, Any] = {"keep": 4, "of": 12, "collate": collate, "seed": 7}
    chooses = not isinstance(part, TokenSelector)
    fields |= {} if chooses else {"tokens": part}

    def made() -> tuple[Any, Stream]:
        net = model()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        method = part if chooses else Highest()
        return optimizer, Stream(DATA, method, net, optimizer=optimizer, **fields)

    optimizer, stream = made()
    for _ in range(2):
        stream.live.model(**next(stream)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(stream.state_dict(), tmp_path / "state.pt")
    weights, moments = stream.live.model.state_dict(), optimizer.state_dict()
    other, again = made()
    again.live.model.load_state_dict(weights)
    other.load_state_dict(moments)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    one, two = next(stream), next(again)
    assert torch.equal(one["input_ids"], two["input_ids"])
    assert torch.equal(one["labels"], two["labels"])
