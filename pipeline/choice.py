"""Budget and Choice: how much to keep, and what was kept, in which order of preference, and why."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.errors import DataError, RecipeError

_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_AMOUNT = re.compile(
    r"\s*((?:[0-9]{1,3}(?:[_,][0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)"
    r"\s*(%|[kmbt](?![\w.])|)\s*([^\W\d_][\w.-]*)?\s*",
    re.I,
)


@dataclass(frozen=True)
class Budget:
    """An amount and the column it is counted in: 5%, 10,000 rows and 1B tokens are one type."""

    amount: float
    relative: bool = False
    cost: str = "n_tokens"
    """The cost column; `rows` counts every row as 1."""

    @classmethod
    def parse(cls, value: Any, where: str = "budget") -> Budget:
        """Read `20%`, `1.5B tokens`, `10_000 rows`, `30% rows`, `5M n_bytes` or a number."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = repr(value)
        match = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
        if not match or not math.isfinite(float(re.sub("[_,]", "", match[1]))):
            raise RecipeError(
                f"a budget is an amount and a unit, such as '20%', '1B tokens' or '500 rows'; "
                f"got {value!r}",
                where=where,
            )
        number, scale, unit = match.groups()
        amount = float(re.sub("[_,]", "", number))
        cost = {"tokens": "n_tokens", "token": "n_tokens", "row": "rows"}.get(
            unit, unit or "n_tokens"
        )
        if scale == "%":
            if amount > 100:
                raise RecipeError(f"a budget of more than 100 %: {value!r}", where=where)
            return cls(amount / 100, True, cost)
        return cls(amount * _SCALE[scale.lower()], False, cost)

    def costs(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """The cost of each row of a table."""
        if self.cost == "rows":
            return np.ones(table.num_rows, dtype=np.int64)
        try:
            column = table[self.cost].cast(pa.int64())
        except pa.ArrowException as error:
            raise DataError(f"a budget counts whole numbers: {error}", where=self.cost) from None
        costs: npt.NDArray[np.int64] = column.fill_null(-1).to_numpy()
        if costs.min(initial=0) < 0:
            raise DataError("a budget cannot count missing or negative numbers", where=self.cost)
        return costs

    def limit(self, costs: npt.NDArray[np.int64]) -> float:
        """The absolute amount, given what there is (7 % of 100 is 7 without a rounding error)."""
        return round(self.amount * float(costs.sum()), 6) if self.relative else self.amount

    def take(
        self, order: npt.NDArray[np.int64], costs: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """The head of `order` that fills the budget, the row that crosses it included.

        The overshoot is therefore smaller than the longest document (QuRating's rule). A budget
        of 0 takes nothing.
        """
        spent = np.cumsum(costs[order], dtype=np.int64)
        limit = self.limit(costs)
        count = int(np.searchsorted(spent, limit, side="left")) + 1 if limit > 0 else 0
        return order[:count]

    def __str__(self) -> str:
        amount = f"{self.amount * 100:.12g}%" if self.relative else f"{self.amount:.15g}"
        return f"{amount} {self.cost}"


@dataclass(frozen=True, eq=False)
class Choice:
    """A decision about every row of a table, kept and dropped alike.

    All arrays have one entry a row. `rank` is the order of preference (0 first, -1 not ranked),
    so a choice can be cut again at another budget without computing anything anew.
    """

    kept: npt.NDArray[np.bool_]
    rank: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    reason: npt.NDArray[np.object_]
    facts: dict[str, Any]

    @classmethod
    def from_order(
        cls,
        order: npt.NDArray[np.int64],
        table: pa.Table,
        budget: Budget,
        *,
        unranked_reason: str = "not eligible",
    ) -> Choice:
        """Keep the head of `order` that fills `budget`; rows missing from `order` are dropped."""
        n = table.num_rows
        rank = np.full(n, -1, dtype=np.int64)
        rank[order] = np.arange(len(order))
        reason = np.full(n, unranked_reason, dtype=object)
        choice = cls(
            kept=np.zeros(n, dtype=np.bool_),
            rank=rank,
            weight=np.ones(n, dtype=np.float32),
            reason=reason,
            facts={},
        )
        return choice.recut(budget, budget.costs(table))

    def recut(self, budget: Budget, costs: npt.NDArray[np.int64]) -> Choice:
        """The same preferences under another budget."""
        ranked = np.flatnonzero(self.rank >= 0)
        order = ranked[np.argsort(self.rank[ranked], kind="stable")]
        # the budget is a share of all rows, but only ranked ones can be taken
        limit = Budget(budget.limit(costs), False, budget.cost)
        chosen = limit.take(order, costs)
        kept = np.zeros(len(self.rank), dtype=np.bool_)
        kept[chosen] = True
        reason = self.reason.copy()
        reason[order] = "over budget"
        reason[chosen] = "within budget"
        spent = int(costs[chosen].sum())
        facts = {"budget": str(budget), "limit": limit.amount, "spent": spent}
        facts["short"] = bool(spent < limit.amount)
        return replace(self, kept=kept, reason=reason, facts={**self.facts, **facts})


def scores(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """A column of numbers or booleans as float64; missing values are NaN."""
    column = table[name]
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_dictionary(column.type) or not _is_number(column.type):
        raise DataError(f"rows are ranked by numbers, not by {column.type}", where=name)
    values: npt.NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    return values


def _is_number(dtype: pa.DataType) -> bool:
    types = pa.types
    plain = types.is_integer(dtype) or types.is_floating(dtype) or types.is_decimal(dtype)
    return bool(plain or types.is_null(dtype))
