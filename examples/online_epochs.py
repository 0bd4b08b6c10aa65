"""A transformers Trainer visits the rows that an epoch plan says, and saves steps.

    python examples/online_epochs.py FOLDER [ROWS]

A tiny model with random weights learns ROWS functions for 4 epochs: all of them in each epoch, half
of them taken by chance, and by the plans that look at the losses of the epochs before, which the
training gives anyway. The schedule of the learning rate is made for the steps of the forecast.
Other functions are kept for the loss afterwards, in nats per token; whoever saves steps here has
trained less, so that it is the loss for the steps that says something.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from foresift import attach_epochs
from foresift.stages.samplers.dynamic_random import DynamicRandom
from foresift.stages.samplers.infobatch import InfoBatch
from foresift.stages.samplers.seta import SeTa

MODEL = "configs/models/tiny"
PLANS = {
    "all rows": DynamicRandom(prune=0.0),
    "half by chance": DynamicRandom(prune=0.5),
    "infobatch": InfoBatch(prune=0.5, anneal=1.0),
    "seta": SeTa(groups=4, window=0.5, grouping="quantile", anneal=1.0),
}


def trainer(folder: str, rows: int) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.pad_token = tokenizer.eos_token
    lines = gzip.decompress(Path("examples/instruct.jsonl.gz").read_bytes()).splitlines()
    texts = ["{prompt}\n{response}".format(**json.loads(line)) for line in lines[: rows + 32]]
    tokens = [tokenizer(text)["input_ids"][:64] for text in texts]
    data = Dataset.from_dict(
        {"id": [f"function-{i}" for i in range(len(texts))], "input_ids": tokens, "labels": tokens}
    )
    args = TrainingArguments(
        output_dir=folder, num_train_epochs=4, learning_rate=2e-3, use_cpu=True, report_to=[],
        per_device_train_batch_size=4, gradient_accumulation_steps=2, save_strategy="no",
        disable_tqdm=True, dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    torch.manual_seed(0)
    return Trainer(
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL)),
        args,
        train_dataset=data.select(range(rows)),
        eval_dataset=data.select(range(rows, len(texts))),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )


def main() -> None:
    folder, rows = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 96
    lines = []
    for name, plan in PLANS.items():
        made = trainer(folder, rows)
        attached = attach_epochs(made, plan)
        forecast = attached.forecast()
        made.train()
        report, loss = attached.report(), made.evaluate()["eval_loss"]
        lines.append(
            f"{name:<15} {forecast.steps:4d} steps forecast, {report['steps']:4d} done,"
            f" {report['saved']:4.0%} saved, loss {loss:.3f}"
        )
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
