"""Random rows of each step's candidates: what every other method has to be better than.

    utility = u(seed, step, id)        uniform in (0, 1)

A row's draw depends on nothing but seed, step and id: neither the other candidates, nor processes,
nor restarts change it, and copies with one id are treated alike. Also the right comparison for
cost: no signal is asked for. A row without a counted token is NaN, as in every other method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
import xxhash

from foresift.pipeline.online import BatchMethod, Chooser, Floats
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import ID

if TYPE_CHECKING:
    from foresift.pipeline.lm.live import LiveModel, Seen


@dataclass(frozen=True, kw_only=True)
class Random(BatchMethod):
    """Random candidates, keyed by seed, step and id."""

    seed: int = 0
    """Of the draws."""

    @property
    def signals(self) -> tuple[str, ...]:
        return ()

    def open(self, live: LiveModel) -> Chooser:
        return _RandomChooser(Rng(self.seed).at("random"))


class _RandomChooser(Chooser):
    def __init__(self, rng: Rng) -> None:
        self.rng = rng

    def measure(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        raw = b"".join(xxhash.xxh3_128_digest(name.encode()) for name in seen.candidates.ids)
        words = np.frombuffer(raw, dtype="<i8").reshape(-1, 2).copy()
        return {"words": torch.from_numpy(words), "counted": seen.counted.any(1)}

    def utility(self, measured: Mapping[str, torch.Tensor], step: int) -> Floats:
        words = measured["words"].cpu().numpy().astype("<i8")
        ids = pa.Array.from_buffers(ID, len(words), [None, pa.py_buffer(words.tobytes())])
        drawn = self.rng.at(step).uniform(ids)
        return np.where(measured["counted"].cpu().numpy(), drawn, np.nan)
