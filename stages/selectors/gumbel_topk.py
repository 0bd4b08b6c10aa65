"""Top-k of perturbed scores: sampling without replacement that prefers good rows.

    textbook      keep the largest of   u / tau + G        G ~ Gumbel(0, 1), one draw an id
    discard_pl    keep the smallest of  -u / tau + G

`textbook` is Plackett-Luce sampling without replacement with weights exp(u / tau): tau -> 0 is
hard top-k, tau -> infinity is uniform. `discard_pl` adds the same noise to the predicted loss -u
and keeps the smallest, as the released code of MATES does; that is Plackett-Luce sampling of the
*discarded* rows with weights exp(-u / tau), which keeps more of the best. For u = (0, -1, -2),
tau = 1 and one row kept, the frequencies are (0.6652, 0.2447, 0.0900) and (0.7019, 0.2447, 0.0534).

Both are computed as u / max(tau, 1) +- min(tau, 1) G, which ranks alike and is defined at tau = 0.
u is in any unit, larger = keep first; tau is in the unit of u. Rows without a score are never kept;
ties are broken by id. Cost: one sort. Source: MATES (Yu, Das, Xiong 2024), section on selection;
Vieira 2014 and Kool et al. 2019 for the identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.stages.selectors._ranking import cut, perturbed, standardised, utilities


@dataclass(frozen=True, kw_only=True)
class GumbelTopK(Selector):
    """Sample without replacement, good scores first more often."""

    by: str
    """Column of scores; larger = keep first."""
    lowest: bool = False
    """True prefers the smallest scores."""
    temperature: float = 0.5
    """tau >= 0, in the unit of the score (after `standardise`); 0 is `topk`. Default: MATES."""
    variant: Literal["textbook", "discard_pl"] = "textbook"
    """Which side the noise is drawn for: the kept rows or the discarded ones."""
    standardise: bool = False
    """True divides the scores by their standard deviation over the finite scores first, so that the
    temperature is in standard deviations."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError("temperature must be a finite number of at least 0")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        utility = utilities(table, self.by, self.lowest)
        if self.standardise:
            utility = standardised(utility)
        sign = 1.0 if self.variant == "textbook" else -1.0
        noise = sign * rng.gumbel(table["id"])
        return cut(perturbed(utility, self.temperature, noise), table, budget)
