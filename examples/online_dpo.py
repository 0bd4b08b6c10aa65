"""The model chooses the preference pairs that TRL's DPOTrainer trains on. Needs the extra trl.

    python examples/online_dpo.py FOLDER [STEPS]

FOLDER gets the checkpoint. 48 made-up pairs, and a tiny model with random weights. Of 12 pairs a
step the 4 of the largest loss are trained on, which is the mean of the losses of both answers. A
second trainer goes on from a checkpoint and ends with the same weights.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from foresift import attach
from foresift.stages.samplers.max_loss import MaxLoss

MODEL = "configs/models/tiny"
VERBS = ("sort", "reverse", "copy", "count")
THINGS = ("a list", "a string", "the keys of a dictionary", "the lines of a file")


def pairs() -> Dataset:
    """Questions with a helpful and an evasive answer, in three lengths."""
    return Dataset.from_list([
        {
            "id": f"{verb} {thing} {times}",
            "prompt": f"How do I {verb} {thing}?\n",
            "chosen": f"To {verb} {thing}, write a loop and test it. " * times,
            "rejected": "That depends. " * times,
        }
        for verb in VERBS
        for thing in THINGS
        for times in (1, 2, 3)
    ])  # fmt: skip


class Printing(DPOTrainer):  # type: ignore[misc]
    """Says what a step trains on."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **fields: Any) -> Any:
        chosen, rejected = inputs["completion_mask"].sum(1).chunk(2)
        prompts = (inputs["input_ids"] * (1 - inputs["completion_mask"])).chunk(2)[0]
        for prompt, liked, other in zip(prompts, chosen, rejected, strict=True):
            asked = self.processing_class.decode(prompt, skip_special_tokens=True).strip()
            print(f"step {self.state.global_step + 1}: {asked} ({liked} and {other} tokens)")
        return super().training_step(model, inputs, *args, **fields)


def trainer(folder: str, steps: int) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.pad_token = tokenizer.eos_token
    args = DPOConfig(
        output_dir=folder, max_steps=steps, learning_rate=2e-3, max_length=64, use_cpu=True,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to=[], bf16=False,
        save_steps=steps // 2, dataloader_pin_memory=False, logging_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL))
    reference = copy.deepcopy(model)
    return Printing(model, reference, args, train_dataset=pairs(), processing_class=tokenizer)


def main() -> None:
    folder, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8
    whole = trainer(folder, steps)
    attached = attach(whole, MaxLoss(), of=12)
    whole.train()
    for name, value in attached.report().items():
        print(f"{name}: {value}")
    resumed = trainer(folder, steps)
    attach(resumed, MaxLoss(), of=12)
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{steps // 2}")
    both = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    same = all(torch.equal(one, other) for one, other in both)
    print(f"weights after going on from step {steps // 2}: {'the same' if same else 'others'}")


if __name__ == "__main__":
    main()
