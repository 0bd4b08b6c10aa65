"""Reducible loss (RHO-LOSS): train on what is left to learn and can be learned, at this moment.

    utility = nll - irreducible        nats per token, means over the row's counted tokens

`nll` is the loss under the model in training; `irreducible` the loss of the same row under a model
that was trained on held-out or trusted data, from a table made before: noise is high in both and
scores about 0, what is learned already about 0 or below, what can be learned scores high. Larger is
kept first. The scorer `excess_loss` computes the same number offline.

A row without a finite loss in the table is NaN and is counted. The table stands in
memory, some 150 bytes a row. An id with two losses is a DataError.

Cost: one forward without gradients. Source: Mindermann et al. 2022 (ICML), eq. 3 and algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from foresift.pipeline.errors import DataError, nearest
from foresift.pipeline.online import BatchMethod, Floats, State
from foresift.stages.samplers._rows import RowChooser, row_means

if TYPE_CHECKING:
    from foresift.pipeline.lm.live import LiveModel, Seen


@dataclass(frozen=True, kw_only=True)
class RhoLoss(BatchMethod):
    """Loss as it is now beyond the loss that training cannot take away (RHO-LOSS)."""

    against: str
    """Parquet file with the irreducible loss of each row, by `id`."""
    column: str = "loss"
    """Its column of losses, nats per token."""

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll",)

    def open(self, live: LiveModel) -> RhoLossChooser:
        return RhoLossChooser(_read(self.against, self.column))


class RhoLossChooser(RowChooser):
    """The table of irreducible losses."""

    def __init__(self, table: Mapping[str, float]) -> None:
        self.table = table
        self.missing = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"in_table": len(self.table), "candidates_missing": self.missing}

    def values(self, seen: Seen) -> Floats:
        irreducible = np.array([self.table.get(i, math.nan) for i in seen.candidates.ids])
        reducible: Floats = row_means(seen.signals, "nll") - irreducible
        return reducible

    def measure(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        absent = torch.tensor([i not in self.table for i in seen.candidates.ids])
        return {**super().measure(seen), "missing": absent}

    def utility(self, measured: Mapping[str, torch.Tensor], step: int) -> Floats:
        self.missing += int(measured["missing"].sum())
        return super().utility(measured, step)

    def state_dict(self) -> State:
        return {"missing": self.missing}

    def load_state_dict(self, state: State) -> None:
        self.missing = int(state["missing"])


def _read(path: str, column: str) -> dict[str, float]:
    """id -> loss; ids of bytes are read as hexadecimal digits, losses not finite left out."""
    try:
        have = pq.read_schema(path).names
        for name in ("id", column):
            if name not in have:
                raise DataError(f"has no column {name!r}{nearest(name, have)}", where=path)
        table = pq.read_table(path, columns=["id", column])
        losses = table[column].cast(pa.float64()).to_pylist()
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"cannot be read as losses: {error}", where=path) from error
    found: dict[str, float] = {}
    for key, loss in zip(table["id"].to_pylist(), losses, strict=True):
        name = key.hex() if isinstance(key, bytes) else str(key)
        if key is None or loss is None or not math.isfinite(loss):
            continue
        if found.setdefault(name, loss) != loss:
            raise DataError(f"id {name} has losses {found[name]:g} and {loss:g}", where=path)
    if not found:
        raise DataError(f"no row has an id and a {column}", where=path)
    return found
