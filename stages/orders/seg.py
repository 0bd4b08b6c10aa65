"""SEG: three shuffled segments, the extreme scores at the front and at the back.

    m = rows with a score, ranked ascending, ties by id
    front    round(front m) rows from the low end of the ranks (`front_from: high`: the high end)
    back     round(back m) of the others from the high end (`back_from: low`: the low end)
    order    front, everything else, back; each of the three shuffled by U(seed, id)

`round` takes a half to the even number; where front and back are more than there is, the back gets
what is left. A permutation. A row without a score (null, NaN) is neither low nor high and stands in
the middle. Cost: two sorts. Source: the SEG ordering of DELT's released code, with its defaults
(10 % low at the front, 10 % high at the back); where unscored rows stand is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import scores
from foresift.pipeline.nouns import Order, Rng
from foresift.stages.orders._folds import ranked

End = Literal["low", "high"]


@dataclass(frozen=True, kw_only=True)
class Seg(Order):
    """Arrange rows in three shuffled segments: low scores, the rest, high scores (SEG)."""

    by: str
    """Column of scores."""
    front: float = 0.1
    """Share of the scored rows in the first segment; from 0 to 1."""
    back: float = 0.1
    """Share of the scored rows in the last segment; from 0 to 1, with `front` at most 1."""
    front_from: End = "low"
    """From which end of the scores the first segment is taken."""
    back_from: End = "high"
    """From which end of what is left the last segment is taken."""

    def __post_init__(self) -> None:
        if not (0 <= self.front <= 1 and 0 <= self.back <= 1 and self.front + self.back <= 1):
            raise ValueError("front and back are shares of the rows, together at most 1")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def order(self, table: pa.Table, rng: Rng) -> npt.NDArray[np.int64]:
        left = ranked(table, self.by)[: int((~np.isnan(scores(table, self.by))).sum())]
        scored = len(left)
        segment = np.ones(table.num_rows, dtype=np.int64)
        for number, share, end in (
            (0, self.front, self.front_from),
            (2, self.back, self.back_from),
        ):
            count = min(round(scored * share), len(left))
            cut = count if end == "low" else len(left) - count
            low, high = left[:cut], left[cut:]
            taken, left = (low, high) if end == "low" else (high, low)
            segment[taken] = number
        return np.lexsort((rng.uniform(table["id"]), segment))
