"""The model chooses its next batch inside a Lightning Trainer, with accumulation and resume.

    python examples/online_lightning.py FOLDER [STEPS]

FOLDER gets the checkpoints. A tiny model with random weights; of 32 candidates a step the 8 of the
largest loss are trained on, in 2 micro-batches of 4. A second Trainer goes on from the checkpoint
half way and ends with the same weights. Seconds on a CPU. Needs the lightning package.
"""

from __future__ import annotations

import gzip
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from foresift.pipeline.adapters.lightning import data_module
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


class Describer(lightning.LightningModule):
    """The causal language model is its attribute `model`, where the data module looks for it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL))

    def training_step(self, batch: Any, index: int) -> Any:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def fit(folder: str, steps: int, checkpoint: str | None = None) -> tuple[Any, Any]:
    """The trained module, and the data module that chose its rows."""
    module = Describer()
    chosen = data_module(examples(), MaxLoss(), keep=8, of=32, collate=collate)
    saving = lightning.pytorch.callbacks.ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=steps // 2, save_top_k=-1
    )
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, accumulate_grad_batches=2,
        callbacks=[saving], logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=chosen, ckpt_path=checkpoint)
    return module, chosen


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning|torch|typing_extensions")
    folder, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
    whole, chosen = fit(folder, steps)
    resumed, _ = fit(folder, steps, f"{folder}/step={steps // 2}.ckpt")
    report = chosen.report()
    print(f"{report['candidates_seen']} seen, {report['rows_trained_on']} trained on")
    print(f"{report['seconds_scoring_per_step']:.3f} s a step for choosing")
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    same = all(torch.equal(one, other) for one, other in pairs)
    print(f"weights after going on from step {steps // 2}: {'the same' if same else 'others'}")


if __name__ == "__main__":
    main()
