"""What the tests of epoch plans share: a run over them with made-up losses."""

from __future__ import annotations

import numpy as np

from foresift.pipeline.online import Epochs

Visit = tuple[list[int], list[float]]


def told(rows: np.ndarray, epoch: int) -> np.ndarray:
    """The loss of each document in an epoch: falls as training goes on, differs by document."""
    return 1.0 + (rows * 37 % 101) / (10.0 + epoch)


def play(epochs: Epochs, numbers: range) -> list[Visit]:
    """Run these epochs and tell the losses in batches of five."""
    visits = []
    for number in numbers:
        rows, weights = epochs.epoch(number)
        for begin in range(0, len(rows), 5):
            batch = rows[begin : begin + 5]
            epochs.update(batch, told(batch, number))
        visits.append((rows.tolist(), weights.tolist()))
    return visits
