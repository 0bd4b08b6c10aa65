"""RAP's choice from rollouts: tasks that the context makes solvable, and some hard ones.

Of n rollouts of a task, a n were right with its context (image, passages) and t n without it:

    gain        a - t                                        utility = gain
    similarity  1 - (a - mu)^2 / (1 - mu)^2,  mu = mean of a: 1 for middling tasks, 0 for a = 1
    essential   similarity >= 0.6, a - t > 0.2, and not all n right                          (P)
    hard        exactly one right, similarity >= 0.85, and a - t >= 0.2 or above its mean    (Q)
    chosen      essential, or one of the first `share` |Q| (rounded down) hard ones by id

Successes are counted, not shares, so that 3 of 5 less 2 of 5 is not above 0.2 by rounding. A low
gain is also that of tasks that nothing solves: `without` tells those apart that need no context.
With five rollouts a share has a standard error of up to 0.22, so thresholds are one sample wide.
Where every rollout is right mu is 1: similarity is 1. Rows without numbers have NaN and are never
chosen. Copies count once; where their numbers differ, the smallest count.

Cost: a pass over two columns; making the rollouts is the user's. Source: RAP (arXiv 2506.04755), as
its released selection computes it: without the attention term, which that code leaves out, and
without the rule a - t >= 0.6 for hard tasks, which one right of five can never meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.errors import DataError
from foresift.pipeline.labels import numbers
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column, first_copies, id_words

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_MIDDLING, _HARD, _ROUNDING = 0.6, 0.85, 1e-9


@dataclass(frozen=True, kw_only=True)
class RolloutGain(FittedScorer):
    """Success with the context less success without it, and RAP's choice of tasks by it."""

    with_context: str
    """Column with the number of right rollouts that had the context."""
    without_context: str
    """Column with the number of right rollouts that did not."""
    rollouts: int = 5
    """Rollouts of each kind."""
    share: float = 0.1
    """Share of the hard tasks that are chosen beside the essential ones."""

    reads_content: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "gain, -1 to 1", "higher"),
        "gain": Column(pa.float32(), "success with less without, -1 to 1", "higher"),
        "without": Column(pa.float32(), "success without the context, 0 to 1"),
        "similarity": Column(pa.float32(), "to the mean success", "higher"),
        "essential": Column(pa.bool_(), "whether the context makes it solvable", "higher"),
        "hard": Column(pa.bool_(), "whether hard but solvable", "higher"),
        "chosen": Column(pa.bool_(), "whether RAP takes it", "higher"),
    }

    def __post_init__(self) -> None:
        if self.rollouts < 1 or not 0 <= self.share <= 1:
            raise ValueError("rollouts is at least 1, share is between 0 and 1")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.with_context, self.without_context)

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        words, counts = [np.empty((0, 2), dtype=np.uint64)], [np.empty((0, 2))]
        for table in tables:
            words.append(id_words(table["id"]))
            counts.append(self._counts(table))
        every, right = np.concatenate(words), np.concatenate(counts)
        order = np.lexsort((right[:, 1], right[:, 0], every[:, 1], every[:, 0]))
        order = order[first_copies(every[order])]
        every, right = every[order], right[order]
        similarity, essential, hard = choose(right, self.rollouts)
        chosen = essential.copy()
        chosen[np.flatnonzero(hard)[: int(self.share * hard.sum())]] = True
        told = {"essential": essential, "hard": hard, "chosen": chosen, "similarity": similarity}
        write_by_id(out, every, told)
        counted = {n: int(told[n].sum()) for n in ("essential", "hard", "chosen")}
        return {"tasks": int(np.isfinite(right).all(axis=1).sum()), **counted}

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        right = self._counts(batch) / self.rollouts
        gain = right[:, 0] - right[:, 1]
        return {
            "utility": gain, "gain": gain, "without": right[:, 1],
            **read_by_id(out, batch["id"]),
        }  # fmt: skip

    def _counts(self, table: pa.Table) -> Floats:
        """[rows, 2] right rollouts; NaN where one is not there."""
        found = np.empty((table.num_rows, 2))
        for k, name in enumerate(self.needs):
            found[:, k] = numbers(table, name, "right rollouts")
            known = found[np.isfinite(found[:, k]), k]
            if ((known < 0) | (known > self.rollouts) | (known % 1 != 0)).any():
                raise DataError(f"right ones of {self.rollouts} rollouts are counted", where=name)
        found[~np.isfinite(found).all(axis=1)] = np.nan
        return found


def choose(right: Floats, rollouts: int) -> tuple[Floats, Bools, Bools]:
    """(similarity, essential, hard) of [tasks, 2] right rollouts with and without context."""
    known = np.isfinite(right).all(axis=1)
    means = right[known].mean(axis=0) if known.any() else np.zeros(2)
    near = (right[:, 0] - means[0]) ** 2
    room = (rollouts - means[0]) ** 2
    similarity = 1 - near / room if room > 0 else np.where(known, 1.0, np.nan)
    more = right[:, 0] - right[:, 1]
    apart = 5 * more > rollouts
    essential = (similarity >= _MIDDLING - _ROUNDING) & apart & (right[:, 0] < rollouts)
    gains = (5 * more >= rollouts) | (more > means[0] - means[1] + _ROUNDING)
    hard = (right[:, 0] == 1) & (similarity >= _HARD - _ROUNDING) & gains
    return similarity, essential & known, hard & known
