"""The checkpoints that a training left, in the order of their steps, the final one included.

    checkpoints/step-000100/   after step 100 of the training: weights, tokenizer, optimizer
                               moments, curve.parquet and training.json; whole or not there
    checkpoint/                after the last step

Steps count from 1, as in the ledger: a checkpoint of step s has seen what the ledger lists up to s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.errors import StoreError

#: the final checkpoint, the folder of those before it, and what describes one of those
FINAL, FOLDER, FACTS = "checkpoint", "checkpoints", "training.json"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """The weights after a step of a training."""

    step: int | None
    """The last step that they were trained in; None: unknown, they may have seen everything."""
    path: Path


def intermediate(training: Path) -> list[Checkpoint]:
    """The checkpoints before the final one, ascending."""
    found = [(_NAME.fullmatch(path.name), path) for path in (training / FOLDER).glob("step-*")]
    return sorted(
        (Checkpoint(int(name[1]), path) for name, path in found if name and path.is_dir()),
        key=lambda c: c.step or 0,
    )


def checkpoints(training: Path) -> list[Checkpoint]:
    """All checkpoints of a training's directory, ascending; the final one is the last."""
    final = training / FINAL
    last = [Checkpoint(_last_step(training), final)] if final.is_dir() else []
    return intermediate(training) + last


def folder_name(step: int) -> str:
    """The name of the folder of a checkpoint."""
    return f"step-{step:06d}"


def _last_step(training: Path) -> int | None:
    """The last step: of curve.parquet, or of the ledger; None where neither says it."""
    for name in ("curve.parquet", "ledger.parquet"):
        path = training / name
        if path.exists():
            try:
                with pq.ParquetFile(path) as file:
                    return _largest(file, "step")
            except (OSError, pa.ArrowException) as error:
                raise StoreError(f"cannot be read ({error})", where=str(path)) from error
    return None


def _largest(file: pq.ParquetFile, name: str) -> int | None:
    """The largest value of a column, by its statistics; None where it has a null or nothing."""
    at = file.schema_arrow.get_field_index(name)
    largest: list[int] = []
    for group in range(file.metadata.num_row_groups):
        told = file.metadata.row_group(group).column(at).statistics
        if told is None or told.null_count or not told.has_min_max:
            return None
        largest.append(int(told.max))
    return max(largest, default=None)
