"""What a training run leaves: weights, tokenizer, optimizer moments, all safetensors and JSON.

    checkpoint/   model.safetensors  config.json  generation_config.json  tokenizer files
                  optimizer.safetensors   exp_avg.<parameter>, exp_avg_sq.<parameter>; step
                  training.json           what it was trained on (`_resume.py`)
    curve.parquet    one row for each optimizer step

The same weights give the same bytes: no pickle, no time, no path of this machine. A folder is
written under another name and renamed; where one of the same bytes lies already (two processes did
the same work), that one stays as it is.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from foresift.pipeline.errors import ModelError
from foresift.pipeline.store import temporary

OPTIMIZER = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
CURVE = pa.schema(
    [
        ("step", pa.int32()),
        ("tokens", pa.int64()),
        ("loss", pa.float64()),
        ("learning_rate", pa.float64()),
    ]
)


def publish(work: Path, path: Path) -> None:
    """Move what a training left in `work` to its place, files first; `stage.json` declares it done
    later."""
    for child in sorted(work.iterdir(), key=lambda p: (p.is_dir(), p.name)):
        if child.is_dir():
            place(child, path / child.name)
        else:
            os.replace(child, path / child.name)


def place(folder: Path, target: Path) -> None:
    """Rename a finished folder into place, once its files are on disk."""
    for file in folder.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    try:
        os.rename(folder, target)
    except OSError:
        if not target.is_dir():
            raise
        if _same(folder, target):
            shutil.rmtree(folder)
        else:
            remove(target)
            os.rename(folder, target)


def remove(folder: Path) -> None:
    """Take a folder away, as a whole."""
    gone = temporary(folder.with_name(f"{folder.name}.gone"))
    with contextlib.suppress(FileNotFoundError):  # another process took it
        os.rename(folder, gone)
        shutil.rmtree(gone)


def _same(one: Path, other: Path) -> bool:
    names = sorted(p.name for p in one.iterdir())
    if names != sorted(p.name for p in other.iterdir()):
        return False
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


def curve_table(rows: list[tuple[int, int, float, float]]) -> pa.Table:
    """The curve as a table; there is at least one step."""
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, CURVE, strict=True)]
    return pa.table(arrays, schema=CURVE)


def save(folder: Path, model: Any, tokenizer: Any, optimizer: Any, step: int) -> None:
    """Write a checkpoint that transformers loads and that training can go on from."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_moments(folder / OPTIMIZER, model, optimizer, step)


def save_moments(path: Path, model: Any, optimizer: Any, step: int) -> None:
    """AdamW's two moments by parameter name, and the number of steps taken so far."""
    from safetensors.torch import save_file

    tensors = {
        f"{moment}.{name}": optimizer.state[parameter][moment].detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in MOMENTS
    }
    save_file(tensors, path, metadata={"step": str(step)})


def restore_moments(path: Path, model: Any, optimizer: Any) -> int:
    """Give the optimizer the moments of a checkpoint, for what it may move; returns its steps."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        step = int((file.metadata() or {}).get("step", "0"))
        known = set(file.keys())
        for name, parameter in model.named_parameters():
            held = all(f"{moment}.{name}" in known for moment in MOMENTS)
            if not held or not parameter.requires_grad:
                continue
            moments = {m: file.get_tensor(f"{m}.{name}") for m in MOMENTS}
            if any(value.shape != parameter.shape for value in moments.values()):
                raise ModelError(
                    f"the moments of {name} have shape {tuple(moments['exp_avg'].shape)}, the "
                    f"parameter {tuple(parameter.shape)}",
                    where=str(path),
                )
            state = {
                m: torch.empty_like(parameter, dtype=torch.float32).copy_(value)
                for m, value in moments.items()
            }
            taken = torch.tensor(float(step), device=parameter.device)
            optimizer.state[parameter] = {"step": taken, **state}
    return step
