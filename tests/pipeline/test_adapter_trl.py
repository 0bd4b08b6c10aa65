"""TRL's SFTTrainer takes a stream as the Trainer does: ids survive its preparation of the data."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoTokenizer

from foresift.pipeline.adapters.hf import attach
from foresift.pipeline.errors import DataError
from tests.pipeline.streams import Hardest, Highest, model

trl = pytest.importorskip("trl", reason="needs the extra trl")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


def pairs() -> datasets.Dataset:
    lines = gzip.decompress((ROOT / "examples/instruct.jsonl.gz").read_bytes()).splitlines()
    rows = [json.loads(line) for line in lines[:40]]
    return datasets.Dataset.from_list([
        {"id": f"r{i}", "prompt": row["prompt"][:60] + "\n", "completion": row["response"][:80]}
        for i, row in enumerate(rows)
    ])  # fmt: skip


def sft(folder: Path, **fields: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "configs/models/tiny")
    tokenizer.pad_token = tokenizer.eos_token
    args = trl.SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2,
        max_steps=4, save_steps=2, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
        max_length=48, dataloader_pin_memory=False, **fields,
    )  # fmt: skip
    net = model()
    torch.manual_seed(0)
    net.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return trl.SFTTrainer(net, args, train_dataset=pairs(), processing_class=tokenizer)


def test_sft_trains_on_what_is_chosen_and_resumes(tmp_path: Path) -> None:
    made = sft(tmp_path)
    attached = attach(made, Highest(memory=0.01), of=12, tokens=Hardest())
    assert attached.data.column_names == ["id", "input_ids", "labels"]
    made.train()
    again = sft(tmp_path)
    resumed = attach(again, Highest(memory=0.01), of=12, tokens=Hardest())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.report()["agreement"] == attached.report()["agreement"]
    for name, weights in made.model.state_dict().items():
        assert torch.equal(weights, again.model.state_dict()[name]), name


def test_packed_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows are packed, so a row has no id"):
        attach(sft(tmp_path, packing=True), Highest(), of=12)
