"""Small labelled sets for tests of detectors of wrong labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.vectors import vector_column
from tests.scorers.fitting import ids

LABEL, VECTORS = "given.label", "embedding.vector"


def table(labels: Sequence[Any], numbers: npt.ArrayLike | None = None, **columns: Any) -> pa.Table:
    """Ids 0, 1, 2 .. (or those given), labels, and columns; matrices become vectors."""
    found = {"id": ids(np.arange(len(labels)) if numbers is None else numbers)}
    found[LABEL] = labels if isinstance(labels, pa.Array) else pa.array(list(labels))
    for name, values in columns.items():
        wide = isinstance(values, np.ndarray) and values.ndim == 2
        found[name] = vector_column(values) if wide else pa.array(values)
    return pa.table(found)


def planted(
    n: int, classes: int, rate: float, seed: int = 0, spread: float = 0.6
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Vectors around the centre of their class, given labels, and true ones."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, n)
    centres = rng.standard_normal((classes, 12))
    vectors = centres[true] + spread * rng.standard_normal((n, 12))
    flip = rng.random(n) < rate
    given = np.where(flip, (true + rng.integers(1, classes, n)) % classes, true)
    return vectors.astype(np.float32), given, true


def sentences(labels: Sequence[int], seed: int = 0) -> list[str]:
    """Texts of which some words tell the label."""
    rng = np.random.default_rng(seed)
    told = [["goal", "match", "team"], ["court", "law", "judge"], ["atom", "star", "cell"]]
    rest = [f"word{i}" for i in range(60)]
    return [
        " ".join([*rng.choice(told[k], 4), *rng.choice(rest, 12), str(i)])
        for i, k in enumerate(labels)
    ]
