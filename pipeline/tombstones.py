"""Documents that were forgotten: no step that comes later sees them, whatever it reads.

    <out>/deletions/forgotten.parquet     id, request      written by `foresift forget apply`

A row whose id is listed is not alive (`corpus.Shard.alive`) and is in no plan; in the plan of a run
its reason is `forgotten`. Steps that are done stay as they are: their rows keep their places. The
list lies beside the steps, so that a copied or moved store keeps it.

    <out>/deletions/journal.json          there while a deletion is being applied or undone
    <out>/steps/<training>/tainted.json   its weights saw documents that were forgotten: request,
                                          first step, documents, exposures, checkpoints
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline import checkpoints
from foresift.pipeline.errors import StoreError
from foresift.pipeline.ledger import among
from foresift.pipeline.store import Facts, read_json
from foresift.pipeline.tables import ID, id_words

FOLDER, FILE = "deletions", "forgotten.parquet"
SCHEMA = pa.schema([("id", ID), ("request", pa.string())])
REASON = "forgotten"
JOURNAL, TAINTED = "journal.json", "tainted.json"


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


def taint(training: Path) -> Facts | None:
    """What a training saw of what was forgotten; None: nothing, or it was not asked."""
    path = training / TAINTED
    return read_json(path) if path.exists() else None


def ready(out: Path, trainings: Iterable[Path], models: Iterable[str | Path]) -> None:
    """StoreError where a deletion is half done, or a model to be used saw what was forgotten."""
    if (out / FOLDER / JOURNAL).exists():
        raise StoreError(
            "a deletion was interrupted here; `foresift forget apply` or `undo` (without a name)"
            " finishes it first",
            where=str(out / FOLDER / JOURNAL),
        )
    for training in trainings:
        _refuse(training, None)
    for model in map(Path, models):
        if model.name == checkpoints.FINAL:
            _refuse(model.parent, None)
        elif model.parent.name == checkpoints.FOLDER:
            _refuse(model.parent.parent, model.name)


def _refuse(training: Path, checkpoint: str | None) -> None:
    told = taint(training)
    if told is None or (checkpoint and checkpoint not in [c["name"] for c in told["checkpoints"]]):
        return
    raise StoreError(
        f"this training saw documents that the deletion request {', '.join(told['requests'])} took"
        " out; `foresift forget replay` trains it again without them",
        where=str(training),
    )
