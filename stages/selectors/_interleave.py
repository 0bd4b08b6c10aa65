"""How cells share a budget at every amount of it: the picks of all cells in one order.

Pick i of cell c is due when the share t of the corpus is spent,

    t = (cost of the picks of c before i + cost_i / 2) / cost of c

and picks stand by t, then by row number (Webster's rule of halves). With largest remainders a
larger budget can take a place away, so that no single order has them at its cuts. A cell without
picks left goes on to be given its share, which is spent on the pick of largest value in any other
cell, by the same rule. The order does not depend on the amount of the budget; `limit` only says
where to stop. Cells that can make more picks are asked for them when they run out of those they
made. Cost: a few heap operations a pick.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from foresift.pipeline.vectors import Rows


@dataclass
class Queue:
    """The picks of one cell, and how far they have gone."""

    rows: list[int]
    values: list[float]
    share: int
    """Cost of all rows of the cell, those included that are never picked."""
    more: Callable[[], tuple[list[int], list[float]]] | None = None
    """The next rows and their values; none where the cell has no more."""
    at: int = 0
    spent: int = 0
    """Cost of its picks that its own share paid for."""

    def has_next(self) -> bool:
        """Whether there is a pick at `at`; makes it where that is possible."""
        if self.at == len(self.rows) and self.more is not None:
            rows, values = self.more()
            self.rows.extend(rows)
            self.values.extend(values)
        return self.at < len(self.rows)


def interleave(queues: list[Queue], costs: Rows, limit: float = math.inf) -> Rows:
    """The picks in the order in which they are due, until their cost reaches the limit."""
    cost = costs.tolist()
    due: list[tuple[float, int, Queue]] = []
    best: list[tuple[float, int, Queue]] = []
    left = Queue([], [], 0)

    def offer(queue: Queue) -> None:
        if not queue.has_next():
            left.share += queue.share
            left.spent += queue.spent
            return
        row = queue.rows[queue.at]
        heapq.heappush(due, (_due(queue, cost[row]), row, queue))
        heapq.heappush(best, (-queue.values[queue.at], row, queue))

    if limit > 0:
        for queue in queues:
            offer(queue)
    order: list[int] = []
    spent = 0
    while spent < limit and _drop_stale(due) and _drop_stale(best):
        time, row, queue = due[0]
        payer = queue
        if left.share and _due(left, cost[best[0][1]]) < time:
            _, row, queue = best[0]
            payer = left
        payer.spent += cost[row]
        spent += cost[row]
        queue.at += 1
        order.append(row)
        if spent < limit:
            offer(queue)
    return np.array(order, dtype=np.int64)


def _due(queue: Queue, cost: int) -> float:
    return (queue.spent + cost / 2) / max(queue.share, 1)


def _drop_stale(heap: list[tuple[float, int, Queue]]) -> bool:
    """Take away entries of rows that were picked; False when nothing is left."""
    while heap:
        _, row, queue = heap[0]
        if queue.at < len(queue.rows) and queue.rows[queue.at] == row:
            return True
        heapq.heappop(heap)
    return False
