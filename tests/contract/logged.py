"""A log of predictions for the documents of `samples.py`, for parts that read what a trainer wrote.

It lies in the folder for temporary files under one name, so that two processes see the same part.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.contract import samples

EPOCHS = 3


@functools.cache
def log(kind: str) -> str:
    """Predictions for two labels (`probabilities`), or losses, of every kind of content."""
    rng, tables = np.random.default_rng(5), []
    for epoch in range(EPOCHS):
        for content in ("text", "pair", "messages"):
            ids = samples.table(content)["id"].combine_chunks()
            first = rng.random(len(ids))
            both = pa.array([[p, 1 - p] for p in first], pa.list_(pa.float32()))
            values = both if kind == "probabilities" else pa.array(-np.log(first + 1e-9))
            rows = {"id": ids, "epoch": pa.array([epoch] * len(ids)), kind: values}
            tables.append(pa.table(rows))
    path = Path(tempfile.gettempdir()) / f"foresift-contract-{kind}.parquet"
    partial = path.with_suffix(f".{os.getpid()}")
    pq.write_table(pa.concat_tables(tables), partial)
    os.replace(partial, path)
    return str(path)
