"""Each batch method in a stream: an interrupted run goes on as if it had not been."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from foresift.pipeline.online import BatchMethod
from foresift.pipeline.parts import find
from foresift.pipeline.stream import Stream
from foresift.pipeline.stream_state import read_state, write_state
from tests.stages.samplers.tiny import candidates, draw, model

ROWS = draw(30, seed=4, shortest=4)
DATA = [{"id": f"row{i}", "input_ids": row} for i, row in enumerate(ROWS)]
METHODS: dict[str, dict[str, Any]] = {
    "gradient_match": {"reference": "aim.parquet", "every": 2, "precondition": True},
    "gradient_norm": {},
    "max_loss": {},
    "momentum_gain": {},
    "random": {},
    "rho_loss": {"against": "losses.parquet"},
    "uds": {"d1": 12, "d2": 4, "memory": 5},
    "uncertainty": {},
}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    found = candidates([row["input_ids"] for row in rows])
    names = ("input_ids", "attention_mask", "labels")
    return {name: getattr(found, name) for name in names}


class Run:
    """A model in training, and the stream that feeds it."""

    def __init__(self, method: BatchMethod) -> None:
        self.net = model().train()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2)
        self.stream = Stream(
            DATA, method, self.net, keep=2, of=6, at_once=3, collate=collate,
            optimizer=self.optimizer,
        )  # fmt: skip

    def step(self) -> list[list[int]]:
        batch = next(self.stream)
        self.net(**batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return batch["input_ids"].tolist()

    def carried_on(self, method: BatchMethod, path: Path) -> Run:
        """Another process that takes over."""
        write_state(self.stream.state_dict(), path)
        other = Run(method)
        other.net.load_state_dict(self.net.state_dict())
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        other.stream.load_state_dict(read_state(path))
        return other


@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_carried_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"input_ids": draw(2, seed=8)}), "aim.parquet")
    losses = {"id": [row["id"] for row in DATA], "loss": [i / 9 for i in range(len(DATA))]}
    pq.write_table(pa.table(losses), "losses.parquet")
    method = find("sample", name).parse(METHODS[name], name)
    assert isinstance(method, BatchMethod)
    whole, cut = Run(method), Run(method)
    for step in range(7):
        if step in (2, 3, 6):
            cut = cut.carried_on(method, tmp_path / "state")
        assert whole.step() == cut.step()
    for a, b in zip(whole.net.parameters(), cut.net.parameters(), strict=True):
        assert torch.equal(a, b)
    assert getattr(whole.stream.chooser, "facts", {}) == getattr(cut.stream.chooser, "facts", {})
    assert whole.stream.report()["nan_rows"] == 0
