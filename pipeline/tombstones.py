"""Documents that were forgotten: no step that comes later sees them, whatever it reads.

    <out>/deletions/forgotten.parquet     id, request      written by `foresift forget apply`

A row whose id is listed is not alive (`corpus.Shard.alive`) and is in no plan; in the plan of a run
its reason is `forgotten`. Steps that are done stay as they are: their rows keep their places. The
list lies beside the steps, so that a copied or moved store keeps it.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.errors import StoreError
from foresift.pipeline.ledger import among
from foresift.pipeline.tables import ID, id_words

FOLDER, FILE = "deletions", "forgotten.parquet"
SCHEMA = pa.schema([("id", ID), ("request", pa.string())])
REASON = "forgotten"


def path_of(step: Path) -> Path:
    """The list of the store in which a step's directory lies."""
    return step.parent.parent / FOLDER / FILE


def listed(step: Path) -> bool:
    """Whether anything was forgotten in the store of this step."""
    return path_of(step).exists()


def forgotten(ids: pa.Array | pa.ChunkedArray, step: Path) -> npt.NDArray[np.bool_]:
    """[n] whether each document was forgotten in the store of this step."""
    path = path_of(step)
    try:
        about = path.stat()
    except FileNotFoundError:
        return np.zeros(len(ids), dtype=np.bool_)
    return among(ids, _words(path, about.st_mtime_ns, about.st_size))


@functools.lru_cache(maxsize=8)
def _words(path: Path, changed: int, size: int) -> npt.NDArray[np.uint64]:
    try:
        with pq.ParquetFile(path) as file:
            return id_words(file.read(columns=["id"])["id"])
    except (OSError, KeyError, pa.ArrowException) as error:
        raise StoreError(f"no list of forgotten documents ({error})", where=str(path)) from error
