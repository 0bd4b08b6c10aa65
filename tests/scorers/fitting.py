"""Tables of vectors, and fitted scorers in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.nouns import FittedScorer

NAME = "embedding.vector"


def ids(numbers: npt.ArrayLike) -> pa.Array:
    """An id for each number; larger numbers have larger ids."""
    words = np.zeros((len(np.asarray(numbers)), 2), dtype="<u8")
    words[:, 0] = numbers
    return pa.Array.from_buffers(pa.binary(16), len(words), [None, pa.py_buffer(words.tobytes())])


def vectors(rows: npt.ArrayLike, numbers: npt.ArrayLike | None = None) -> pa.Table:
    """Rows of vectors (a row of NaN becomes null) with ids 0, 1, 2 .. or those given."""
    values = np.asarray(rows, dtype=np.float32)
    missing = np.isnan(values).all(axis=1)
    column = [None if gone else row.tolist() for row, gone in zip(values, missing, strict=True)]
    wanted = np.arange(len(values)) if numbers is None else numbers
    return pa.table({"id": ids(wanted), NAME: pa.array(column, pa.list_(pa.float32()))})


def groups(number: int, size: int, width: int = 16, spread: float = 0.05, seed: int = 0) -> Any:
    """[number x size, width] vectors in tight groups, and the group of each."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((number, width))
    group = np.repeat(np.arange(number), size)
    noise = spread * rng.standard_normal((len(group), width))
    return (centres[group] + noise).astype(np.float32), group


def unit(rows: npt.ArrayLike) -> npt.NDArray[np.float64]:
    wide = np.asarray(rows, dtype=np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def score(
    part: FittedScorer, table: pa.Table, out: Path, pieces: int = 1
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of a table, as plain arrays, and what fitting said."""
    out.mkdir(parents=True)
    step = -(-max(table.num_rows, 1) // pieces)
    parts = [table.slice(at, step) for at in range(0, max(table.num_rows, 1), step)]
    facts = part.fit(iter(parts), out) or {}
    found = part.score(table, out)
    return {
        name: np.asarray(
            values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values
        )
        for name, values in found.items()
    }, facts
