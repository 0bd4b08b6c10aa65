"""The model chooses its next batch inside a transformers Trainer, with accumulation and resume.

    python examples/online_trainer.py FOLDER [STEPS]

FOLDER gets the checkpoints. A tiny model with random weights; of 32 candidates a step the 8 of the
largest loss are trained on, in 2 micro-batches of 4. A second Trainer goes on from the first
checkpoint and ends with the same weights.
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

from foresift import attach
from foresift.stages.samplers.max_loss import MaxLoss

MODEL = "configs/models/tiny"


def trainer(folder: str, steps: int) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.pad_token = tokenizer.eos_token
    lines = gzip.decompress(Path("examples/instruct.jsonl.gz").read_bytes()).splitlines()
    texts = ["{prompt}\n{response}".format(**json.loads(line)) for line in lines]
    tokens = [tokenizer(text)["input_ids"][:96] for text in texts]
    data = Dataset.from_dict(
        {"id": [f"function-{i}" for i in range(len(texts))], "input_ids": tokens, "labels": tokens}
    )
    args = TrainingArguments(
        output_dir=folder, max_steps=steps, save_steps=steps // 2, learning_rate=2e-3, use_cpu=True,
        per_device_train_batch_size=4, gradient_accumulation_steps=2, report_to=[],
        disable_tqdm=True, dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL))
    return Trainer(model, args, train_dataset=data, data_collator=DataCollatorForSeq2Seq(tokenizer))


def main() -> None:
    folder, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
    whole = trainer(folder, steps)
    attached = attach(whole, MaxLoss(), of=32)
    whole.train()
    resumed = trainer(folder, steps)
    attach(resumed, MaxLoss(), of=32)
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{steps // 2}")
    report = attached.report()
    print(f"{report['candidates_seen']} seen, {report['rows_trained_on']} trained on")
    print(f"{report['seconds_scoring_per_step']:.3f} s a step for choosing")
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    same = all(torch.equal(one, other) for one, other in pairs)
    print(f"weights after going on from step {steps // 2}: {'the same' if same else 'others'}")


if __name__ == "__main__":
    main()
