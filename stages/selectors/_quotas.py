"""Quotas: how much of a budget each cell gives, and which documents fill it.

    assign_quota        q_c = budget w_c / sum w,  q_c <= size_c, whole numbers by largest remainder
    temperature_shares  p_c ~ size_c^(1/T)         T = 1 proportional, T = inf uniform
    unimax              p_c as equal as an upper bound of `epochs` readings of each cell lets it
    expert_quota        int(active / experts x length x ratio)
    fill                documents of each cell, first ones first, up to its quota

What a full cell cannot take goes to the others in proportion to their weights, again and again,
until everything is placed or every cell of positive weight is full. Arithmetic is done in whole
numbers, so equal cells are treated alike to the last unit; remainders that are equal go to the
earlier cell. Cells are few (hundreds of thousands at most); nothing here reads a document.

`fill` is the largest-remainder rule for documents of unequal length. Each cell takes its first
documents as long as they fit; then the cells whose next document fits best (unfilled quota / cost
of the document, largest first) take that one too, until the sum of the quotas is reached. So the
whole exceeds the sum of the quotas by less than one document, every cell differs from its own by
less than one document, and where documents cost 1 each cell gets exactly its quota. Documents that
cost nothing are taken as long as the quota is not reached, and where the cell gives all it has.

Sources: Hamilton's method of largest remainders; UniMax (Chung et al. 2023), algorithm 1; EAQuant
(calibration balance) for `expert_quota`, which counts tokens routed to an expert.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import Budget, Choice
from foresift.pipeline.tables import id_words
from foresift.stages.selectors._ranking import NO_SCORE

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
#: weights that are not whole are rounded to this fraction of the largest one
GRAIN = 2**-50


def assign_quota(
    sizes: npt.ArrayLike, budget: int, weights: npt.ArrayLike | None = None, refill: bool = True
) -> Rows:
    """The quota of each cell: at most its size, in proportion to `weights` (by default its size).

    `refill=False` leaves unplaced what a full cell cannot take.
    """
    room = np.asarray(sizes, dtype=np.int64)
    weight = _whole(room if weights is None else np.asarray(weights))
    if not refill:
        return np.minimum(_largest_remainder(budget, weight), room)
    quota = np.zeros(len(room), dtype=np.int64)
    left, is_open = budget, (room > 0) & (weight > 0)
    while is_open.any():
        cells = np.flatnonzero(is_open)
        full = left * weight[cells] >= room[cells].astype(object) * weight[cells].sum()
        full = full.astype(np.bool_)
        if not full.any():
            quota[cells] = _largest_remainder(left, weight[cells])
            break
        quota[cells[full]] = room[cells[full]]
        left -= int(room[cells[full]].sum())
        is_open[cells[full]] = False
    return quota


def _whole(weights: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    """Weights as Python integers of any size, in the same proportions."""
    if not np.issubdtype(weights.dtype, np.integer):
        largest = float(weights.max(initial=0.0))
        weights = np.rint(weights / (largest * GRAIN if largest > 0 else 1.0)).astype(np.int64)
    return weights.astype(object)


def _largest_remainder(budget: int, weights: npt.NDArray[np.object_]) -> Rows:
    """Whole numbers that sum to `budget` and differ from the exact shares by less than 1."""
    total = weights.sum() if len(weights) else 0
    if not total:
        return np.zeros(len(weights), dtype=np.int64)
    quota: Rows = (budget * weights // total).astype(np.int64)
    remainders = (budget * weights % total).tolist()
    extra = budget - int(quota.sum())
    quota[sorted(range(len(weights)), key=lambda c: -remainders[c])[:extra]] += 1
    return quota


def temperature_shares(sizes: npt.ArrayLike, temperature: float) -> Floats:
    """Shares that sum to 1, p_c ~ size_c^(1/T); an empty cell has none."""
    size = np.asarray(sizes, dtype=np.float64)
    shares = np.zeros(len(size))
    alive = size > 0
    if alive.any():
        logs = np.log(size[alive]) / temperature
        shares[alive] = np.exp(logs - logs.max())
        shares /= shares.sum()
    return shares


def unimax(sizes: npt.ArrayLike, budget: float, epochs: float) -> Floats:
    """What is drawn from each cell, repetitions counted: at most `epochs` times its size.

    From the smallest cell up, each takes an equal part of what is left, or all that it may give.
    """
    size = np.asarray(sizes, dtype=np.float64)
    drawn = np.zeros(len(size))
    left = float(budget)
    order = np.argsort(size, kind="stable")
    for place, cell in enumerate(order):
        drawn[cell] = min(left / (len(size) - place), epochs * size[cell])
        left -= drawn[cell]
    return drawn


def expert_quota(active: int, experts: int, length: int, ratio: float) -> int:
    """Tokens that calibration wants for each expert: int(active / experts x length x ratio)."""
    return int(active * length * ratio / experts)


def whole(limit: float) -> int:
    """The smallest whole amount that reaches a limit."""
    return max(0, math.ceil(limit))


def in_cells(cell: Rows, utility: Floats, words: npt.NDArray[np.uint64]) -> Rows:
    """Rows that have a cell and a utility: cell by cell, largest utility first, ties by id."""
    rows = np.flatnonzero((cell >= 0) & ~np.isnan(utility))
    keys = (words[rows, 1], words[rows, 0], -utility[rows], cell[rows])
    return rows[np.lexsort(keys)]


def fill(rows: Rows, cell: Rows, costs: Rows, quota: Rows) -> tuple[Bools, Floats]:
    """(whether each of `rows` is taken, when it is due), both in the order of `rows`.

    `rows` stand as `in_cells` gives them; `cell` and `costs` belong to the whole table. A row is
    due at (cost of its cell before it + half its own) / quota of the cell: below 1 inside the
    quota, infinite where there is none.
    """
    where, cost = cell[rows], costs[rows]
    spent = np.cumsum(cost)
    first = np.searchsorted(where, np.arange(len(quota)))
    base = np.concatenate([[0], spent])[first]
    until = spent - base[where]
    before, wanted = until - cost, quota[where]
    full = np.bincount(where, cost, len(quota))[where] == wanted
    taken: Bools = ((before < wanted) & (until <= wanted)) | (full & (wanted > 0))
    crossing = np.flatnonzero((before < wanted) & (until > wanted))
    fit = (wanted - before)[crossing] / cost[crossing]
    crossing = crossing[np.argsort(-fit, kind="stable")]
    missing = int(quota.sum()) - int(cost[taken].sum())
    if missing > 0 and len(crossing):
        count = int(np.searchsorted(np.cumsum(cost[crossing]), missing, side="left")) + 1
        taken[crossing[:count]] = True
    due = np.full(len(rows), np.inf)
    np.divide(before + cost / 2, wanted, out=due, where=wanted > 0)
    return taken, due


def chosen(
    table: pa.Table, budget: Budget, cell: Rows, utility: Floats, quota: Rows, unlabelled: str
) -> Choice:
    """Fill the quotas with the rows of largest utility; rows without a cell are `unlabelled`.

    Kept rows rank first, then the others, both by the time at which they are due.
    """
    costs = budget.costs(table)
    rows = in_cells(cell, utility, id_words(table["id"]))
    taken, due = fill(rows, cell, costs, quota)
    order = rows[np.lexsort((due, ~taken))]
    n = table.num_rows
    rank = np.full(n, -1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    kept = np.zeros(n, dtype=np.bool_)
    kept[rows[taken]] = True
    reason = np.where(cell < 0, unlabelled, NO_SCORE).astype(object)
    reason[rows] = "over quota"
    reason[kept] = "within quota"
    limit, spent = budget.limit(costs), int(costs[kept].sum())
    facts = {
        "budget": str(budget),
        "limit": limit,
        "spent": spent,
        "short": bool(spent < limit),
        "unranked": n - len(order),
    }
    return Choice(kept, rank, np.ones(n, dtype=np.float32), reason, facts)


def supply(cell: Rows, utility: Floats, costs: Rows, cells: int) -> Rows:
    """The cost of the rows of each cell that can be taken."""
    rows = (cell >= 0) & ~np.isnan(utility)
    return spent_by(cell, rows, costs, cells)


def spent_by(cell: Rows, rows: Bools, costs: Rows, cells: int) -> Rows:
    """The cost of some rows, cell by cell."""
    found: Rows = np.bincount(cell[rows], costs[rows], cells).astype(np.int64)
    return found
