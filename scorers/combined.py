"""One score out of several: a weighted mean of columns brought to one scale.

    utility_i = sum_j |w_j| q_ij / sum_j |w_j|       q_ij = sign(w_j) applied to column j

    rank       q = percentile rank in (0, 1), average rank for ties;   1 - q for a negative weight
    standard   q = (x - mean) / deviation (population);                -q for a negative weight

over the alive rows, exact copies counted each. Larger = keep first; a negative weight says that
small values of a column are the good ones. A row without one of the columns (null, NaN) has NaN. A
constant column says nothing (rank 0.5, standard 0) and is named in a warning. Ranks make columns of
any unit comparable; `standard` keeps how far the best lie ahead.

Cost: one sort of each column; its numbers lie in memory while fitting. Source: the weighted sums of
Meta-rater (arXiv 2504.14194), with given weights instead of learned ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import scores
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Arrays, Facts, FittedScorer
from foresift.pipeline.tables import Column

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Combined(FittedScorer):
    """A weighted mean of several scores, as ranks or in standard deviations."""

    by: dict[str, float]
    """Column -> weight; a negative weight where small values are the good ones."""
    scale: Literal["rank", "standard"] = "rank"
    """How columns of different units are made comparable."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "weighted mean of ranks or deviations", "higher"),
    }
    reads_content: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.by:
            raise ValueError("by names at least one column")
        for name, weight in self.by.items():
            if not math.isfinite(weight) or weight == 0:
                raise ValueError(f"the weight of {name} must be a finite number other than 0")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(self.by)

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        found: dict[str, list[Floats]] = {name: [np.empty(0)] for name in self.by}
        for table in tables:
            for name, parts in found.items():
                parts.append(scores(table, name))
        constant, missing = [], {}
        for number, (name, parts) in enumerate(found.items()):
            values = np.concatenate(parts)
            known = np.sort(values[~np.isnan(values)])
            missing[name] = len(values) - len(known)
            if len(known) == 0:
                raise DataError("has no number in any row", where=name)
            if np.isinf(known[[0, -1]]).any():
                raise DataError("holds an infinite number", where=name)
            if known[0] == known[-1]:
                constant.append(name)
            np.save(out / f"{number}.npy", self._learned(known), allow_pickle=False)
        told = [f"{name} is the same in every row and says nothing" for name in constant]
        return {"missing": missing, "constant": constant, "warnings": told}

    def _learned(self, known: Floats) -> Floats:
        """What `_scaled` needs: the sorted values, or (mean, deviation)."""
        if self.scale == "rank":
            return known
        return np.array([known.mean(), known.std()])

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        total = np.zeros(batch.num_rows)
        for number, (name, weight) in enumerate(self.by.items()):
            learned = np.load(out / f"{number}.npy", mmap_mode="r", allow_pickle=False)
            total += abs(weight) * self._scaled(scores(batch, name), weight < 0, learned)
        return {"utility": total / sum(abs(w) for w in self.by.values())}

    def _scaled(self, values: Floats, negative: bool, learned: npt.NDArray[Any]) -> Floats:
        if self.scale == "standard":
            mean, deviation = learned
            scaled: Floats = (values - mean) / deviation if deviation > 0 else values - mean
            return -scaled if negative else scaled
        low = np.searchsorted(learned, values, side="left")
        high = np.searchsorted(learned, values, side="right")
        rank: Floats = np.where(np.isnan(values), np.nan, (low + high) / 2 / len(learned))
        return 1 - rank if negative else rank
