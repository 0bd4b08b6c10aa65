"""Documents whose loss falls late in training: learned by heart, after what others share.

With l_1 .. l_K a document's mean NLL at K checkpoints (rounds, epochs), the last of which is the
end, and p_k = exp(-l_k),

    target  t <- beta t + (1 - beta) p_k over all K, from t = 0                (ELR's target)
    early   mean of l_1 .. l_{K-1} with weights that fall by beta for each checkpoint back
    late    early - l_K                     nats per token            utility = -late
    learned first checkpoint (from 1) from which on l_k stays at or below a loss; -1 where none is:
            `learned`, or by default the middle of l_1 and l_K, where that is a fall

What many documents teach is learned early; a singleton, a secret or noise falls late, once the
model begins to memorise. Larger `late` is more likely memorised, so utility keeps early ones first.
It compares documents of one run: `late` grows with the learning rate and with the checkpoints'
distance. A document's loss on a checkpoint that already saw it is what is meant; checkpoints from
before its first exposure only add noise.

Losses come from columns of earlier steps (`losses`, the earliest first: `round1.nll`, ...), or from
a log that a trainer wrote (`log`; id, epoch, loss, as in `early_learning`), of which each epoch is
a checkpoint. Checkpoints that a document lacks are left out; without the last one, or with fewer
than two, all is NaN and -1. Facts: checkpoints, documents, and how many were never learned.

Known answer: beta 0.5, p = (0, 0, 1): target 0.5. Errors: fewer than two checkpoints, losses below
0, a log of probabilities (`early_learning` judges those) or without any of the documents. Cost: a
pass over the columns; of a log, documents x epochs float64 in memory.
Source: early-learning regularisation (Liu et al. 2020, arXiv 2007.00151); `late` for language is
ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.errors import DataError
from foresift.pipeline.labels import numbers
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.parts import digest
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column, first_copies, id_words
from foresift.scorers._label_log import EpochLog, contents
from foresift.scorers._label_samples import places

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LateLearning(FittedScorer):
    """How late in training a document's loss fell, from its losses at several checkpoints."""

    losses: tuple[str, ...] = ()
    """Columns with the loss at each checkpoint, in nats per token, the earliest first."""
    log: str = ""
    """Instead of columns: parquet file or folder with the loss of each document and epoch."""
    beta: float = 0.7
    """Share of the average that a checkpoint leaves; larger remembers longer."""
    learned: float | None = None
    """Loss at which a document is learned; null: half of the fall from first to last."""

    reads_content: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "-late, nats per token", "higher"),
        "late": Column(pa.float32(), "nats per token", "lower"),
        "target": Column(pa.float32(), "probability"),
        "learned": Column(pa.int32(), "checkpoint from 1, -1: never", "lower"),
    }

    def __post_init__(self) -> None:
        if bool(self.losses) == bool(self.log):
            raise ValueError("name either losses or a log")
        if self.losses and len(set(self.losses)) < max(2, len(self.losses)):
            raise ValueError("losses are two columns or more, each named once")
        if not 0 <= self.beta < 1 or (self.learned is not None and not self.learned >= 0):
            raise ValueError("beta must lie in [0, 1), and learned must not be negative")

    @property
    def fingerprint(self) -> str:
        """What every part has, and the contents of the log."""
        return digest([super().fingerprint, contents(self.log) if self.log else ""])

    @property
    def needs(self) -> tuple[str, ...]:
        return self.losses

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        if not self.log:
            found = [self._read(table) for table in tables]
            return self._facts(np.concatenate([np.empty((0, len(self.losses))), *found]))
        words = np.concatenate([np.empty((0, 2), np.uint64), *(id_words(t["id"]) for t in tables)])
        words = words[np.lexsort((words[:, 1], words[:, 0]))]
        words = words[first_copies(words)]
        losses = logged(self.log, words)
        write_by_id(out, words, {"losses": losses})
        return self._facts(losses)

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        losses = read_by_id(out, batch["id"])["losses"] if self.log else self._read(batch)
        late = lateness(losses, self.beta)
        return {
            "utility": -late, "late": late, "target": target(losses, self.beta),
            "learned": learned_at(losses, self.learned),
        }  # fmt: skip

    def _read(self, table: pa.Table) -> Floats:
        """[rows, K] losses, NaN where there is none."""
        found = np.empty((table.num_rows, len(self.losses)))
        for k, name in enumerate(self.losses):
            column = numbers(table, name, "losses")
            if (column < 0).any():
                raise DataError("losses are not negative", where=name)
            found[:, k] = np.where(np.isfinite(column), column, np.nan)
        return found

    def _facts(self, losses: Floats) -> dict[str, Any]:
        known = np.isfinite(lateness(losses, self.beta))
        never = known & (learned_at(losses, self.learned) < 0)
        facts: dict[str, Any] = {"checkpoints": losses.shape[1], "documents": int(known.sum())}
        return {**facts, "never_learned": int(never.sum()), "warnings": _gaps(known)}


def _gaps(known: npt.NDArray[np.bool_]) -> list[str]:
    gone = int((~known).sum())
    if not gone:
        return []
    return [f"{gone} of {len(known)} rows lack the last loss or all others: they are not judged"]


def logged(path: str, words: npt.NDArray[np.uint64]) -> Floats:
    """[documents, epochs] losses from a log; `words` are distinct ids, ascending."""
    log = EpochLog(path)
    if log.kind != "loss":
        raise DataError("holds probabilities; take `early_learning`, or log losses", where=path)
    if len(log.epochs) < 2:
        raise DataError(f"has {len(log.epochs)} epoch; at least 2 are compared", where=path)

    def place(ids: npt.NDArray[np.uint64]) -> Rows:
        kinds, back = np.unique(ids, axis=0, return_inverse=True)
        return places(words, kinds)[back.reshape(-1)]

    losses = np.full((len(words), len(log.epochs)), math.nan)
    for k, epoch in enumerate(log.epochs):
        p, counts = log.epoch(epoch, place, len(words))
        here = counts > 0
        losses[here, k] = -np.log(np.maximum(p[here, 0], np.finfo(np.float64).tiny))
    if len(words) and not np.isfinite(losses).any():
        raise DataError(f"no id of the log is one of the {len(words)} documents", where=path)
    return losses


def target(losses: Floats, beta: float) -> Floats:
    """[n] ELR's target of [n, K] losses; NaN where `lateness` is."""
    found = np.zeros(len(losses))
    for column in losses.T:
        found = np.where(np.isnan(column), found, beta * found + (1 - beta) * np.exp(-column))
    return np.where(np.isfinite(lateness(losses, beta)), found, np.nan)


def lateness(losses: Floats, beta: float) -> Floats:
    """[n] average of the losses before the last, less the last; NaN where either is missing."""
    total, weight = np.zeros(len(losses)), np.zeros(len(losses))
    for column in losses.T[:-1]:
        known = np.isfinite(column)
        total = np.where(known, beta * total + (1 - beta) * np.nan_to_num(column), total)
        weight = np.where(known, beta * weight + (1 - beta), weight)
    early = np.divide(total, weight, out=np.full(len(losses), math.nan), where=weight > 0)
    return np.asarray(early - losses[:, -1])


def learned_at(losses: Floats, at: float | None = None) -> npt.NDArray[np.int32]:
    """[n] checkpoint (from 1) from which on the loss is at most `at`, -1 where there is none."""
    known = np.isfinite(losses)
    judged = known[:, -1] & (known.sum(axis=1) >= 2)
    limit = np.full(len(losses), math.nan if at is None else at)
    if at is None and len(losses):
        first = losses[np.arange(len(losses)), known.argmax(axis=1)]
        limit = np.where(losses[:, -1] < first, (first + losses[:, -1]) / 2, math.nan)
    below = (losses <= limit[:, None]) | ~known
    stays = np.logical_and.accumulate(below[:, ::-1], axis=1)[:, ::-1] & known
    found = np.where(judged & stays.any(axis=1), stays.argmax(axis=1) + 1, -1)
    return found.astype(np.int32)
