"""What a training run leaves: weights, tokenizer, optimizer moments, all safetensors and JSON.

    checkpoint/   model.safetensors  config.json  generation_config.json  tokenizer files
                  optimizer.safetensors   exp_avg.<parameter>, exp_avg_sq.<parameter>; step
    ledger.parquet   one row for each (document, optimizer step) in which a piece was trained
    curve.parquet    one row for each optimizer step

The same weights give the same bytes: no pickle, no time, no path of this machine.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from foresift.pipeline.errors import ModelError
from foresift.pipeline.store import ShardWriter
from foresift.stages.trainers._packing import Row

OPTIMIZER = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
LEDGER = pa.schema(
    [
        ("id", pa.binary(16)),
        ("round", pa.int32()),
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("step", pa.int32()),
        ("tokens", pa.int32()),
    ]
)
CURVE = pa.schema(
    [
        ("step", pa.int32()),
        ("tokens", pa.int64()),
        ("loss", pa.float64()),
        ("learning_rate", pa.float64()),
    ]
)


class Ledger:
    """Appends what was trained to an open ShardWriter, 64k rows at a time."""

    def __init__(self, writer: ShardWriter) -> None:
        self._writer = writer
        self._rows: list[tuple[Any, ...]] = []
        self.documents = 0
        """Entries of the plan that were trained, a repeated one counted each time."""

    def add(self, step: int, rows: list[Row]) -> int:
        """Record the pieces of one step, in order; returns their tokens."""
        total = 0
        pieces: list[list[Any]] = []
        for row in rows:
            for number, place, tokens in row.pieces:
                total += tokens
                if pieces and pieces[-1][0] == number:
                    pieces[-1][2] += tokens
                else:
                    pieces.append([number, place, tokens])
        for number, place, tokens in pieces:
            self._rows.append((*place, step, tokens))
            self.documents = number + 1
        if len(self._rows) >= 1 << 16:
            self.flush()
        return total

    def flush(self) -> None:
        """Write the rows kept so far."""
        if self._rows:
            self._writer.write(rows_table(self._rows, LEDGER))
        self._rows = []


def publish(work: Path, path: Path) -> None:
    """Move what a training left in `work` to its place; `stage.json` declares it done later."""
    for child in sorted(work.iterdir()):
        target = path / child.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(child, target)


def rows_table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Tuples as a table; there is at least one."""
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


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
    """Give the optimizer the moments of a checkpoint; returns the steps it had taken."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        step = int((file.metadata() or {}).get("step", "0"))
        known = set(file.keys())
        for name, parameter in model.named_parameters():
            if not all(f"{moment}.{name}" in known for moment in MOMENTS):
                continue
            moments = {m: file.get_tensor(f"{m}.{name}") for m in MOMENTS}
            if any(value.shape != parameter.shape for value in moments.values()):
                raise ModelError(
                    f"the moments of {name} have shape {tuple(moments['exp_avg'].shape)}, the "
                    f"parameter {tuple(parameter.shape)}",
                    where=str(path),
                )
            state = {m: value.to(parameter.device, torch.float32) for m, value in moments.items()}
            taken = torch.tensor(float(step), device=parameter.device)
            optimizer.state[parameter] = {"step": taken, **state}
    return step
