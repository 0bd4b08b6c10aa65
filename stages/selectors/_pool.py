"""What selectors over vectors choose from: distinct documents, their weights, costs and cells.

Exact copies share an id: they are one document. Its scores are the largest among its copies, its
cost is the sum of theirs, and they stand side by side in the order of preference. Documents are in
the order of their ids. Rows that no document stands for have a reason: "no score" (a missing one),
"no embedding" (no vector, or one that is not finite or 0), "no cluster".

    weight = product of the columns, each as it is (raw) or by rank:
    rank(x) = (number of smaller values + (number of equal values) / 2) / m      in (0, 1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.cells import Cells
from foresift.pipeline.choice import Budget, Choice, scores
from foresift.pipeline.errors import DataError, RecipeError
from foresift.pipeline.labels import labels
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import first_copies, id_words
from foresift.pipeline.vectors import Documents, Rows
from foresift.stages.selectors._interleave import Queue, interleave
from foresift.stages.selectors._ranking import NO_SCORE, Floats

Scale = Literal["rank", "raw"]
#: how far above its expected share the first picks of a cell go
SPARE = 1.05


@dataclass(frozen=True, eq=False)
class Pool:
    """Documents to choose from; arrays of [m] unless said otherwise."""

    documents: Documents
    weight: Floats
    cost: Rows
    label: Rows
    """Number of the label in the column of cells; 0 where there is none."""
    reason: npt.NDArray[np.object_]
    """[rows] why a row belongs to no document; empty where it does."""
    limit: float
    """What the budget allows."""
    _copies: tuple[Rows, Rows]
    """Eligible rows in the order of their ids, and the first of each document."""

    @classmethod
    def of(
        cls,
        table: pa.Table,
        embedding: str,
        by: Sequence[str],
        scale: Scale,
        budget: Budget | None,
        cells: int | str = 1,
    ) -> Pool:
        """The documents with all scores, a vector and a cell."""
        if budget is None:
            raise RecipeError("this selector needs a budget, such as '20%' or '1B tokens'")
        given = [scores(table, name) for name in by]
        label = np.zeros(len(table), dtype=np.int64)
        if isinstance(cells, str):
            label = labels(table, cells)[1]
        reason = np.where(label < 0, "no cluster", "").astype(object)
        missing = np.zeros(len(table), dtype=np.bool_)
        for values in given:
            missing |= np.isnan(values)
        reason[missing] = NO_SCORE
        documents = Documents.of(table, embedding, np.flatnonzero(reason == ""))
        reason[~documents.vectors.valid & ~missing] = "no embedding"
        rows, first = _by_id(table, np.flatnonzero(reason == ""))
        costs = budget.costs(table)
        weight = np.ones(len(first))
        for name, values in zip(by, given, strict=True):
            largest = np.maximum.reduceat(values[rows], first) if len(first) else weight
            weight = weight * _scaled(largest, scale, name)
        sums = np.add.reduceat(costs[rows], first) if len(first) else np.empty(0, np.int64)
        least = np.minimum.reduceat(label[rows], first) if len(first) else sums
        return cls(documents, weight, sums, least, reason, budget.limit(costs), (rows, first))

    def best(self, share: float) -> Rows:
        """The numbers of the best share of the documents by weight, ascending."""
        order = np.argsort(-self.weight, kind="stable")
        return np.sort(order[: int(np.ceil(round(share * len(order), 6)))])

    def members(self, cells: int | str, rng: Rng, among: Rows | None = None) -> list[Rows]:
        """The numbers of the documents of each cell, ascending; all or some of them."""
        among = np.arange(len(self.documents)) if among is None else among
        if not len(among):
            return []
        if isinstance(cells, str):
            label = self.label[among]
            order = np.argsort(label, kind="stable")
            starts = np.flatnonzero(np.diff(label[order])) + 1
            return [among[part] for part in np.split(order, starts)]
        if cells == 1:
            return [among]
        found = Cells.fit(self.some(among), cells, rng.at("cells"), where="cells")
        every = (among[found.members(cell)] for cell in range(len(found)))
        return [part for part in every if len(part)]

    def some(self, which: Rows) -> Documents:
        """The documents with these numbers."""
        all_of = self.documents
        return replace(all_of, words=all_of.words[which], rows=all_of.rows[which])

    def shared(self, cells: list[Rows], picker: Callable[[int, Rows], Picker]) -> Rows:
        """The picks of all cells in the order in which they are due, until the budget is full."""
        shares = [int(self.cost[cell].sum()) for cell in cells]
        part = self.limit / max(sum(shares), 1)
        queues = []
        for number, (cell, share) in enumerate(zip(cells, shares, strict=True)):
            more = _Chunks(picker(number, cell), self.cost, SPARE * share * part)
            queues.append(Queue([], [], share, more))
        return interleave(queues, self.cost, self.limit)

    def choice(
        self, table: pa.Table, budget: Budget, order: Rows, others: dict[str, Rows]
    ) -> Choice:
        """Documents in this order of preference; `others`: reasons of documents not in it."""
        rows, first = self._copies
        ends = np.append(first, len(rows))
        lengths = ends[order + 1] - ends[order]
        steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        ranked = rows[np.repeat(ends[order], lengths) + steps]
        choice = Choice.from_order(ranked, table, budget, unranked_reason="not reached")
        number = np.repeat(np.arange(len(first)), np.diff(ends))
        for reason, which in others.items():
            choice.reason[rows[np.isin(number, which)]] = reason
        choice.reason[self.reason != ""] = self.reason[self.reason != ""]
        facts = {"unranked": table.num_rows - len(ranked)}
        return replace(choice, facts={**choice.facts, **facts})


#: given `enough`, the next documents and their values
Picker = Callable[[Callable[[int], bool]], tuple[list[int], list[float]]]


@dataclass
class _Chunks:
    """Picks of a cell, made up to its expected share first and then a quarter of it at a time."""

    picker: Picker
    cost: Rows
    target: float
    spent: float = 0.0

    def __call__(self) -> tuple[list[int], list[float]]:
        before = self.spent

        def enough(document: int) -> bool:
            """Whether the pick made stands at or beyond the target by the rule of halves."""
            cost = float(self.cost[document])
            self.spent += cost
            return self.spent - cost / 2 > self.target

        found = self.picker(enough)
        self.target = max(1.25 * self.target, 2 * self.spent - before)
        return found


def _by_id(table: pa.Table, rows: Rows) -> tuple[Rows, Rows]:
    """Rows in the order of their ids, and where each id begins."""
    words = id_words(table["id"])[rows]
    order = np.lexsort((words[:, 1], words[:, 0]))
    return rows[order], np.flatnonzero(first_copies(words[order]))


def _scaled(values: Floats, scale: Scale, name: str) -> Floats:
    if scale == "rank":
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks: Floats = (np.cumsum(counts) - counts / 2) / max(len(values), 1)
        return ranks[place]
    if len(values) and not (np.isfinite(values).all() and values.min() >= 0):
        raise DataError(
            f"weights are finite and at least 0, this column has {values.min():.4g} to "
            f"{values.max():.4g}; use `scale: rank`",
            where=name,
        )
    return values
