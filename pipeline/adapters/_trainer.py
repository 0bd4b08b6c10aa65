"""What the adapters share of a transformers Trainer: its rows, checkpoints, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from foresift.pipeline.errors import DataError

#: what an adapter puts in the place of the Trainer's own
REPLACED = ("train", "get_train_dataloader", "get_batch_samples")


def checkpoint_of(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


class Counted(torch.utils.data.Dataset[int]):
    """So many rows, and nothing in them."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int) -> int:
        return row


def no_rows(examples: Any) -> Any:
    return examples


def columns_of(trainer: Any, ids: str) -> Any:
    """The training data with the columns that the model takes, and the ids."""
    data = trainer.train_dataset
    if trainer.args.remove_unused_columns and hasattr(data, "select_columns"):
        wanted = {*signature(trainer), ids}
        return data.select_columns([name for name in data.column_names if name in wanted])
    return data


def signature(trainer: Any) -> set[str]:
    """The columns that the Trainer takes, whatever the data has."""
    trainer._set_signature_columns_if_needed()
    return set(trainer._signature_columns)


def takes_pairs(trainer: Any) -> bool:
    return signature(trainer) >= {"prompt_ids", "chosen_ids", "rejected_ids"}


def refuse(trainer: Any) -> None:
    """DataError with the reason, where a stream cannot choose for this Trainer."""
    from transformers import Trainer  # imports datasets, which the core does without

    args, kind = trainer.args, type(trainer)
    data, config = trainer.train_dataset, trainer.accelerator.dataloader_config
    own = [n for n in REPLACED[1:] if getattr(kind, n, None) is not getattr(Trainer, n)]
    parallel = [n for n in ("tp", "cp", "sp") if getattr(trainer, f"get_{n}_size", int)() > 1]
    reasons = {
        "a method is attached already; detach() it first": "train" in vars(trainer),
        "there is no train_dataset": data is None,
        "the data is an IterableDataset or has no length; candidates are read by row number":
            not (hasattr(data, "__len__") and hasattr(data, "__getitem__")),
        f"{kind.__name__} has its own {', '.join(own)}; choose its rows or prompts beforehand":
            bool(own),
        "rows are packed, so a row has no id and cannot be chosen; set packing=False":
            getattr(args, "packing", False),
        "padding_free puts all rows in one line; set padding_free=False":
            getattr(args, "padding_free", False),
        "dispatch_batches and split_batches let one process read for all; each reads its own here":
            bool(config.dispatch_batches or config.split_batches),
        "auto_find_batch_size changes the batch within a run": args.auto_find_batch_size,
        "several GPUs in one process (DataParallel) would be scored by one of them; start a process"
        " for each with torchrun": args.n_gpu > 1,
        "weights are sharded (FSDP, DeepSpeed): scoring needs whole weights in each process":
            trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled,
        f"processes share rows ({', '.join(parallel)} parallelism); only data parallelism works":
            bool(parallel),
        **_unlike_pairs(trainer, kind.__name__),
    }  # fmt: skip
    for reason, holds in reasons.items():
        if holds:
            raise DataError(reason, where="attach")


def _unlike_pairs(trainer: Any, name: str) -> dict[str, bool]:
    """Reasons against preference trainers whose rows are no pairs of texts; told by columns."""
    taken = signature(trainer)
    return {
        f"{name} trains a score on hidden states; its model predicts no tokens, which is what"
        " methods look at; choose its pairs beforehand, in a recipe":
            taken >= {"chosen_ids", "rejected_ids"} and "prompt_ids" not in taken,
        f"{name} estimates its KL term from the completions of rows that stand together in the"
        " data, which choosing takes apart; choose its rows beforehand, in a recipe, or train on"
        " pairs with DPOTrainer":
            taken >= {"completion_ids", "label"},
        f"{name} makes its inputs of images as it goes, and candidates are looked at without them;"
        " choose its rows beforehand, in a recipe":
            "images" in taken and not taken.isdisjoint({"chosen", "label"}),
    }  # fmt: skip
