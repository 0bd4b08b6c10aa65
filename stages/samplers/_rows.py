"""One number for each candidate, which is its utility: what the plain batch methods have in common.

Numbers are kept in float64. A row without a counted token, or whose number is not finite (a model
that diverged), is NaN: it cannot be judged and is taken last.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from foresift.pipeline.lm.signals import Signals
from foresift.pipeline.online import Chooser, Floats

if TYPE_CHECKING:
    from foresift.pipeline.lm.live import Seen


def row_means(signals: Signals, name: str) -> Floats:
    """[b] means of a token signal over the counted tokens, in float64; NaN where there are none."""
    counts = signals.counts
    out = np.full(len(counts), np.nan)
    np.divide(signals.sum(name), counts, out=out, where=counts > 0)
    return out


class RowChooser(Chooser):
    """Keeps the rows with the largest number."""

    @abstractmethod
    def values(self, seen: Seen) -> Floats:
        """[b] larger = train on it."""

    def measure(self, seen: Seen) -> Mapping[str, torch.Tensor]:
        values = np.array(self.values(seen), dtype=np.float64)
        values[~np.isfinite(values) | ~seen.counted.any(1).numpy()] = np.nan
        return {"utility": torch.from_numpy(values)}

    def utility(self, measured: Mapping[str, torch.Tensor], step: int) -> Floats:
        return np.array(measured["utility"].cpu().numpy(), dtype=np.float64)
