"""TRL's SFTTrainer and DPOTrainer take a stream as the Trainer does: ids survive preparation."""

from __future__ import annotations

import copy
import gzip
import json
import os
import socket
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
import torch.multiprocessing
from transformers import AutoTokenizer, LlamaForSequenceClassification

from foresift.pipeline.adapters.hf import attach
from foresift.pipeline.errors import DataError
from foresift.pipeline.stream import Stream
from foresift.stages.samplers.uds import UDS
from tests.pipeline.streams import Hardest, Highest, leave, model

trl = pytest.importorskip("trl", reason="needs the extra trl")
ROOT = Path(__file__).resolve().parents[2]
FIELDS: dict[str, Any] = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4,
    "save_steps": 2, "report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True,
    "dataloader_pin_memory": False,
}  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


def pairs() -> datasets.Dataset:
    lines = gzip.decompress((ROOT / "examples/instruct.jsonl.gz").read_bytes()).splitlines()
    rows = [json.loads(line) for line in lines[:40]]
    return datasets.Dataset.from_list([
        {"id": f"r{i}", "prompt": row["prompt"][:60] + "\n", "completion": row["response"][:80]}
        for i, row in enumerate(rows)
    ])  # fmt: skip


def preferences() -> datasets.Dataset:
    """The same with a rejected completion: the one of the row before. One prompt is too long."""
    data = pairs()
    told = [*data["completion"]]
    data = data.rename_column("completion", "chosen").add_column("rejected", told[-1:] + told[:-1])
    long = {"id": "long", "prompt": "word " * 200, "chosen": "yes", "rejected": "no"}
    return datasets.concatenate_datasets([datasets.Dataset.from_list([long]), data])


def tokenizer() -> Any:
    found = AutoTokenizer.from_pretrained(ROOT / "configs/models/tiny")
    found.pad_token = found.eos_token
    return found


def net() -> Any:
    found, size = model(), len(tokenizer())
    torch.manual_seed(0)
    found.resize_token_embeddings(size, mean_resizing=False)
    return found


def sft(folder: Path, **fields: Any) -> Any:
    args = trl.SFTConfig(output_dir=str(folder), max_length=48, **FIELDS, **fields)
    return trl.SFTTrainer(net(), args, train_dataset=pairs(), processing_class=tokenizer())


class Recording(trl.DPOTrainer):  # type: ignore[name-defined,misc]
    """Keeps what was trained on."""

    def training_step(self, net: Any, inputs: Any, *args: Any, **fields: Any) -> Any:
        kept = {name: values.clone() for name, values in inputs.items()}
        self.__dict__.setdefault("seen", []).append(kept)
        return super().training_step(net, inputs, *args, **fields)


def dpo(folder: Path, start: Any = None, lora: bool = False, **fields: Any) -> Any:
    args = trl.DPOConfig(
        output_dir=str(folder), max_length=48, **{**FIELDS, "learning_rate": 1e-2, **fields}
    )
    policy = net() if start is None else start
    own = lora or isinstance(policy, peft.PeftModel) or args.precompute_ref_log_probs
    return Recording(
        policy,
        None if own else copy.deepcopy(policy),
        args,
        train_dataset=preferences(),
        processing_class=tokenizer(),
        peft_config=peft.LoraConfig(r=2, task_type="CAUSAL_LM") if lora else None,
    )


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


def equal(some: list[Any], others: list[Any]) -> bool:
    """Whether two lists of batches are the same."""
    return len(some) == len(others) and all(
        one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
        for one, other in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("side", ["mean", "rejected"])
def test_dpo_trains_on_the_pairs_that_a_stream_chooses(tmp_path: Path, side: Any) -> None:
    made = dpo(tmp_path, max_steps=1)
    attached = attach(made, Highest(), of=12, side=None if side == "mean" else side)
    assert attached.data.column_names == ["id", "prompt_ids", "chosen_ids", "rejected_ids"]
    assert "long" not in attached.data["id"]
    assert attached.steps_per_epoch == 40 // 12
    fields: Any = {"keep": 4, "of": 12, "collate": made.data_collator, "seed": 42, "side": side}
    alone = Stream(attached.data, Highest(), net(), **fields)
    expected = alone.take(2)
    made.train()
    assert equal(made.seen, expected)
    assert {len(batch["input_ids"]) for batch in made.seen} == {4}  # two pairs
    assert attached.report()["agreement"] == alone.report()["agreement"]
    assert attached.report()["rows_trained_on"] == 4


@pytest.mark.parametrize("kind", ["ref_model", "precomputed", "lora", "own_adapter"])
def test_dpo_resumes_with_any_reference(tmp_path: Path, kind: str) -> None:
    fields: dict[str, Any] = {}
    if kind == "precomputed":
        fields["precompute_ref_log_probs"] = True
    fields["lora"] = kind == "lora"

    def made() -> Any:
        start = net()
        if kind == "own_adapter":
            start = peft.get_peft_model(start, peft.LoraConfig(r=2, task_type="CAUSAL_LM"))
        found = dpo(tmp_path, start, **fields)
        return found, attach(found, UDS(memory=8, d1=8, d2=4), of=12)

    whole, attached = made()
    before = {name: values.clone() for name, values in whole.model.state_dict().items()}
    whole.train()
    second, resumed = made()
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert equal(whole.seen[4:], second.seen)
    assert resumed.report()["agreement"] == attached.report()["agreement"]
    moved = set()
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, second.model.state_dict()[name]), name
        if not torch.equal(weights, before[name]):
            moved.add(name)
    assert moved
    if kind in ("lora", "own_adapter"):
        assert all("lora_" in name and ".default." in name for name in moved)


def test_reference_log_probabilities_follow_the_chosen_pairs(tmp_path: Path) -> None:
    made = dpo(tmp_path, precompute_ref_log_probs=True)
    attached = attach(made, Highest(), of=12)
    known = {
        tuple(row["prompt_ids"] + row["chosen_ids"])[:48]: (
            row["ref_chosen_logps"], row["ref_rejected_logps"],
        )
        for row in made.train_dataset
    }  # fmt: skip
    assert len(known) == 40
    made.train()
    for batch in made.seen:
        for place, (line, real) in enumerate(
            zip(*(batch[n].chunk(2)[0] for n in ("input_ids", "attention_mask")), strict=True)
        ):
            chosen, rejected = known[tuple(line[real.bool()].tolist())]
            assert float(batch["ref_chosen_logps"][place]) == pytest.approx(chosen)
            assert float(batch["ref_rejected_logps"][place]) == pytest.approx(rejected)
    assert attached.report()["steps"] == 4


def test_candidates_are_scored_with_the_adapters_on(tmp_path: Path) -> None:
    made = dpo(tmp_path, lora=True, max_steps=1)
    attached = attach(made, Highest(), of=12)
    for name, values in made.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(values)
    merged = net()
    merged.load_state_dict(copy.deepcopy(made.model).merge_and_unload().state_dict())
    made.train()
    fields: Any = {"keep": 4, "of": 12, "collate": made.data_collator, "seed": 42, "side": "mean"}
    assert equal(made.seen, Stream(attached.data, Highest(), merged, **fields).take(2))
    assert not equal(made.seen, Stream(attached.data, Highest(), net(), **fields).take(2))


def test_tokens_and_sides_are_refused_where_they_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a preference loss is of whole completions"):
        attach(dpo(tmp_path), Highest(), of=12, tokens=Hardest())
    with pytest.raises(DataError, match=r"side: must be 'mean', 'chosen', .*, got 'both'"):
        attach(dpo(tmp_path), Highest(), of=12, side="both")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="side: SFTTrainer takes no preference pairs"):
        attach(sft(tmp_path), Highest(), of=12, side="mean")


def test_other_preference_trainers_are_refused_with_the_reason(tmp_path: Path) -> None:
    def refused(made: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            attach(made, Highest(), of=12)

    start, given = net(), {"processing_class": tokenizer()}
    told = pairs().add_column("label", [bool(i % 2) for i in range(40)])
    kto = trl.KTOConfig(output_dir=str(tmp_path), max_length=48, **FIELDS)
    refused(
        trl.KTOTrainer(start, copy.deepcopy(start), kto, train_dataset=told, **given),
        "KTOTrainer estimates its KL term from the completions of rows that stand together",
    )
    config = copy.deepcopy(start.config)
    config.num_labels = 1
    score = LlamaForSequenceClassification(config)
    reward = trl.RewardConfig(output_dir=str(tmp_path), max_length=48, **FIELDS)
    refused(
        trl.RewardTrainer(score, reward, train_dataset=preferences(), **given),
        "RewardTrainer trains a score on hidden states; its model predicts no tokens",
    )
    prompts = pairs().remove_columns("completion")
    grpo = trl.GRPOConfig(output_dir=str(tmp_path), **{**FIELDS, "num_generations": 2})
    refused(
        trl.GRPOTrainer(start, len, grpo, train_dataset=prompts, **given),
        "GRPOTrainer has its own get_train_dataloader; choose its rows or prompts beforehand",
    )
    images = dpo(tmp_path)
    images._signature_columns = ["prompt", "chosen", "rejected", "image", "images"]
    refused(images, "makes its inputs of images as it goes")


def train_dpo(rank: int, world: int, folder: str, port: int) -> None:
    """A DPOTrainer in one of some processes."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    more: dict[str, Any] = {"ddp_backend": "gloo"} if world > 1 else {}
    made = dpo(
        Path(folder) / str(world), per_device_train_batch_size=4 // world, optim="sgd",
        learning_rate=0.1, save_strategy="no", **more,
    )  # fmt: skip
    attached = attach(made, Highest(memory=0.01), of=16, at_once=4, check_every=1)
    made.train()
    kept = {"weights": made.model.state_dict(), "report": attached.report()}
    torch.save(kept, f"{folder}/dpo-{world}-{rank}.pt")
    if world > 1:
        leave()


@pytest.mark.slow
def test_dpo_in_two_processes_chooses_what_one_does(tmp_path: Path) -> None:
    train_dpo(0, 1, str(tmp_path), 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_dpo, args=(2, str(tmp_path), port), nprocs=2)
    alone, *others = (torch.load(tmp_path / f"dpo-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for other in others:
        assert other["report"]["agreement"] == alone["report"]["agreement"]
        assert other["report"]["candidates_seen"] == 4 * 16
        for name, weights in alone["weights"].items():
            torch.testing.assert_close(other["weights"][name], weights, rtol=1e-4, atol=1e-5)
