"""What the ranking selectors share: eligible rows, noise, an order of preference, a budgeted cut.

Ties are broken by the two words of the id, so a result does not depend on the order of the rows;
exact copies share an id and are interchangeable.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import Budget, Choice, scores
from foresift.pipeline.errors import RecipeError
from foresift.pipeline.tables import id_words

Floats = npt.NDArray[np.float64]
NO_SCORE = "no score"


def utilities(table: pa.Table, by: str, lowest: bool) -> Floats:
    """The column to rank by, turned so that larger is first; NaN where there is none."""
    values = scores(table, by)
    return -values if lowest else values


def standardised(utility: Floats) -> Floats:
    """Zero mean and unit (population) deviation of the finite scores; equal scores become 0."""
    finite = np.sort(utility[np.isfinite(utility)])  # sums do not depend on the order of rows
    if not len(finite):
        return utility
    spread = float(finite.std())
    centred: Floats = utility - finite.mean()
    return centred / spread if spread > 0 else centred


def perturbed(utility: Floats, temperature: float, noise: Floats) -> Floats:
    """Ranks as utility / temperature + noise does, and is defined at temperature 0."""
    found: Floats = utility / max(temperature, 1.0) + min(temperature, 1.0) * noise
    return found


def asked(budget: Budget | None) -> Budget:
    """The budget, which this selector cannot do without."""
    if budget is None:
        raise RecipeError("this selector needs a budget, such as '20%' or '1B tokens'")
    return budget


def preference(utility: Floats, table: pa.Table) -> npt.NDArray[np.int64]:
    """Row numbers from the largest utility down; rows whose utility is NaN are left out."""
    rows = np.flatnonzero(~np.isnan(utility))
    words = id_words(table["id"])[rows]
    return rows[np.lexsort((words[:, 1], words[:, 0], -utility[rows]))]


def cut(
    utility: Floats, table: pa.Table, budget: Budget | None, unranked_reason: str = NO_SCORE
) -> Choice:
    """Keep the rows of largest utility that fill the budget; say how many could not be ranked."""
    order = preference(utility, table)
    choice = Choice.from_order(order, table, asked(budget), unranked_reason=unranked_reason)
    return replace(choice, facts={**choice.facts, "unranked": table.num_rows - len(order)})
