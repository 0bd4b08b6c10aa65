"""The model chooses its next batch in an Accelerate loop, with accumulation and resume.

    python examples/online_accelerate.py FOLDER [STEPS]
    torchrun --nproc_per_node 2 examples/online_accelerate.py FOLDER [STEPS]

A tiny model with random weights; of 32 candidates a step the 8 of the largest loss are trained on,
in 2 micro-batches. FOLDER gets a checkpoint half way, in which the state of the stream lies beside
the weights: a stream is registered as it is. A second run goes on from there and ends with the same
weights. Seconds on a CPU. (On a CPU `accelerate launch --num_processes 2` starts two processes only
where it has MPI; torchrun always does.)
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from foresift import Stream
from foresift.stages.samplers.max_loss import MaxLoss

MODEL = "configs/models/tiny"


def examples() -> list[dict[str, Any]]:
    """Rows of token ids; the id of a row is the same in every run."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = gzip.decompress(Path("examples/instruct.jsonl.gz").read_bytes()).splitlines()
    texts = ["{prompt}\n{response}".format(**json.loads(line)) for line in lines]
    return [
        {"id": f"function-{i}", "input_ids": tokenizer(text)["input_ids"][:96]}
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


def begin(cpu: bool = True) -> tuple[Accelerator, Any, Any, Stream]:
    accelerator = Accelerator(cpu=cpu, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    stream = Stream(examples(), MaxLoss(), model, keep=8, of=32, collate=collate)
    accelerator.register_for_checkpointing(stream)
    return accelerator, model, optimizer, stream


def train(accelerator: Accelerator, model: Any, optimizer: Any, stream: Stream, end: int) -> None:
    """Up to a step; one choice for the micro-batches of a step."""
    while stream.step < end:
        for batch in stream.take(accelerator.gradient_accumulation_steps):
            model.train()
            with accelerator.accumulate(model):
                batch = send_to_device(batch, accelerator.device)
                accelerator.backward(model(**batch).loss)
                optimizer.step()
                optimizer.zero_grad()


def main() -> None:
    folder, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
    accelerator, model, optimizer, stream = begin()
    train(accelerator, model, optimizer, stream, steps // 2)
    accelerator.save_state(folder)
    train(accelerator, model, optimizer, stream, steps)
    whole = [weights.detach().clone() for weights in model.parameters()]
    report = stream.report()
    accelerator.print(
        f"{accelerator.num_processes} processes, {report['candidates_seen']} seen,"
        f" {report['rows_trained_on']} trained on"
    )
    accelerator.print(f"{report['seconds_scoring_per_step']:.3f} s a step for choosing")
    accelerator, model, optimizer, stream = begin()
    accelerator.load_state(folder)
    train(accelerator, model, optimizer, stream, steps)
    same = all(torch.equal(a, b) for a, b in zip(whole, model.parameters(), strict=True))
    accelerator.print(
        f"weights after going on from step {steps // 2}: {'the same' if same else 'others'}"
    )
    accelerator.end_training()


if __name__ == "__main__":
    main()
