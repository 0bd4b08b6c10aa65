"""A TRL SFTTrainer with LoRA: the model chooses its rows, and the tokens that count in them.

    python examples/online_sft.py FOLDER [STEPS]

FOLDER gets the checkpoints. A tiny model with random weights, and adapters on its attention. Of 32
candidates a step the 8 of the largest loss are trained on, in 2 micro-batches of 4. Of each answer
60 % of the tokens count: those that the adapters have learned most about (the model without them is
the history), and those that attend to the prompt. A second Trainer goes on from the checkpoint half
way and ends with the same adapters. Seconds on a CPU. Needs the extras trl and peft.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from foresift import attach
from foresift.stages.samplers.max_loss import MaxLoss
from foresift.stages.samplers.sstoken import SsToken

MODEL = "configs/models/tiny"


def trainer(folder: str, steps: int) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.pad_token = tokenizer.eos_token
    lines = gzip.decompress(Path("examples/instruct.jsonl.gz").read_bytes()).splitlines()
    rows = [json.loads(line) for line in lines]
    data = Dataset.from_list([
        {"id": f"function-{i}", "prompt": row["prompt"] + "\n", "completion": row["response"]}
        for i, row in enumerate(rows)
    ])  # fmt: skip
    args = SFTConfig(
        output_dir=folder, max_steps=steps, save_steps=steps // 2, learning_rate=1e-2,
        per_device_train_batch_size=4, gradient_accumulation_steps=2, max_length=128, bf16=False,
        use_cpu=True, report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
        logging_strategy="no",
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL))
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer, peft_config=lora)


def main() -> None:
    folder, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
    tokens = SsToken(history="adapters")
    whole = trainer(folder, steps)
    attached = attach(whole, MaxLoss(), of=32, tokens=tokens)
    whole.train()
    resumed = trainer(folder, steps)
    attach(resumed, MaxLoss(), of=32, tokens=tokens)
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{steps // 2}")
    report = attached.report()
    print(f"{report['candidates_seen']} seen, {report['rows_trained_on']} trained on")
    last = report["tokens"]
    print(f"of the last {last['tokens']} tokens of answers {last['kept']} counted")
    print(f"{last['progress_nats']:.2f} nats a token learned of them")
    print(f"{report['seconds_scoring_per_step']:.3f} s a step for choosing")
    one, other = (get_peft_model_state_dict(made.model) for made in (whole, resumed))
    same = all(torch.equal(one[name], other[name]) for name in one)
    print(f"adapters after going on from step {steps // 2}: {'the same' if same else 'others'}")


if __name__ == "__main__":
    main()
