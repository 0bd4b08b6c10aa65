"""The model chooses its next batch in a plain PyTorch loop: UDS against rows taken by chance.

    python examples/online_bare.py [STEPS]

A tiny model with random weights learns to describe functions. Each step has 32 candidates; the 8 of
the largest utility are trained on. Half way the run is stopped and goes on from its saved state, as
after a crash.
"""

from __future__ import annotations

import gzip
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from foresift import Stream
from foresift.pipeline.stream_state import read_state, write_state
from foresift.stages.samplers.random import Random
from foresift.stages.samplers.uds import UDS

MODEL = "configs/models/tiny"
LENGTH = 96


def examples() -> list[dict[str, Any]]:
    """Rows of token ids; the id of a row is the same in every run."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = gzip.decompress(Path("examples/instruct.jsonl.gz").read_bytes()).splitlines()
    texts = ["{prompt}\n{response}".format(**json.loads(line)) for line in lines]
    return [
        {"id": f"function-{i}", "input_ids": tokenizer(text)["input_ids"][:LENGTH]}
        for i, text in enumerate(texts)
    ]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Padded on the right; every token counts in the loss."""
    lines = [torch.tensor(row["input_ids"]) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(lines, batch_first=True),
        "labels": pad(lines, batch_first=True, padding_value=-100),
        "attention_mask": pad([torch.ones_like(line) for line in lines], batch_first=True),
    }


def begin(method: Any) -> tuple[Any, Any, Stream]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    stream = Stream(examples(), method, model, keep=8, of=32, collate=collate, optimizer=optimizer)
    return model, optimizer, stream


def train(model: Any, optimizer: Any, stream: Stream, steps: int) -> None:
    for batch in itertools.islice(stream, steps):
        model.train()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    for method in (Random(), UDS()):
        model, optimizer, stream = begin(method)
        train(model, optimizer, stream, steps // 2)
        with tempfile.TemporaryDirectory() as folder:
            write_state(stream.state_dict(), Path(folder) / "stream")
            weights, moments = model.state_dict(), optimizer.state_dict()
            model, optimizer, stream = begin(method)
            model.load_state_dict(weights)
            optimizer.load_state_dict(moments)
            stream.load_state_dict(read_state(Path(folder) / "stream"))
        train(model, optimizer, stream, steps - steps // 2)
        report = stream.report()
        print(
            f"{type(method).__name__:8} {report['candidates_seen']} seen,"
            f" {report['rows_trained_on']} trained on,"
            f" {report['seconds_scoring_per_step']:.3f} s of"
            f" {report['seconds_per_step']:.3f} s a step for choosing"
        )


if __name__ == "__main__":
    main()
