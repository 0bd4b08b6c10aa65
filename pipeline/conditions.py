"""How a parsed condition is answered: nodes of `expression.py` to Arrow arrays.

Every node yields (kind, values): `number` (float64, NaN as null), `text` (large_string) or `truth`
(boolean, null = unknown). A boolean column counts as 0 or 1 where a number is asked for. Logic is
Kleene's, comparisons with null are null.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.errors import RecipeError

_TYPES = {"number": pa.float64(), "text": pa.large_string(), "truth": pa.bool_()}
_KINDS: dict[type, str] = {float: "number", str: "text", bool: "truth"}
_ARROW: dict[str, Callable[..., Any]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
    "+": pc.add,
    "-": pc.subtract,
    "*": pc.multiply,
    "/": pc.divide,
    "and": pc.and_kleene,
    "or": pc.or_kleene,
}
Value = tuple[str, Any]


@dataclass(frozen=True)
class Node:
    """One place of a condition: what it is, its operands, and where it stands in the text."""

    kind: str
    value: Any
    args: tuple[Node, ...]
    start: int
    end: int
    text: str

    def error(self, message: str) -> RecipeError:
        """An error that shows this place."""
        here = self.text[self.start : self.end]
        return RecipeError(f"{message}: {here!r} at position {self.start + 1} of {self.text!r}")


def condition(node: Node, table: pa.Table) -> npt.NDArray[np.bool_]:
    """For each row, whether the condition certainly holds."""
    truth = _truth(node, table)
    if isinstance(truth, pa.Scalar):
        return np.full(table.num_rows, truth.as_py() is True, dtype=np.bool_)
    return np.asarray(pc.fill_null(truth, False), dtype=np.bool_)


def _evaluate(node: Node, table: pa.Table) -> Value:
    if node.kind == "column":
        return _column(node, table)
    if node.kind == "constant":
        kind = _KINDS[type(node.value)]
        return kind, pa.scalar(node.value, _TYPES[kind])
    if node.kind in ("and", "or"):
        return "truth", reduce(_ARROW[node.kind], [_truth(arg, table) for arg in node.args])
    if node.kind == "not":
        return "truth", pc.invert(_truth(node.args[0], table))
    if node.kind == "is null":
        return "truth", pc.is_null(_evaluate(node.args[0], table)[1])
    if node.kind == "in":
        return "truth", _is_in(node, table)
    if node.kind == "negative":
        return "number", pc.negate(_number(node.args[0], table))
    if node.kind in "+-*/":
        left, right = (_number(arg, table) for arg in node.args)
        return "number", _nan_as_null(_ARROW[node.kind](left, right))
    return "truth", _compare(node, table)


def _column(node: Node, table: pa.Table) -> Value:
    column = table[node.value]
    dtype = column.type
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    if pa.types.is_boolean(dtype):
        return "truth", column.cast(pa.bool_())
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return "text", column.cast(pa.large_string())
    if pa.types.is_null(dtype) or _is_number(dtype):
        return "number", _nan_as_null(column.cast(pa.float64(), safe=False))
    raise node.error(f"a condition cannot read a column of type {dtype}")


def _is_number(dtype: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(dtype) or types.is_floating(dtype) or types.is_decimal(dtype))


def _nan_as_null(values: Any) -> Any:
    return pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)


def _truth(node: Node, table: pa.Table) -> Any:
    kind, values = _evaluate(node, table)
    if kind == "truth":
        return values
    if kind == "number" and _all_null(values):
        return values.cast(pa.bool_())
    raise node.error(f"a condition is needed here, not a {kind}")


def _number(node: Node, table: pa.Table) -> Any:
    kind, values = _evaluate(node, table)
    if kind == "text":
        raise node.error("a number is needed here, not a text")
    return values if kind == "number" else _as_number(values)


def _as_number(truth: Any) -> Any:
    return truth.cast(pa.int8()).cast(pa.float64())


def _all_null(values: Any) -> bool:
    if isinstance(values, pa.Scalar):
        return not values.is_valid
    return bool(values.null_count == len(values))


def _compare(node: Node, table: pa.Table) -> Any:
    (left_kind, left), (right_kind, right) = (_evaluate(arg, table) for arg in node.args)
    left_kind, left, right_kind, right = _alike(left_kind, left, right_kind, right)
    if left_kind != right_kind:
        raise node.error(f"a {left_kind} does not compare with a {right_kind}")
    return _ARROW[node.kind](left, right)


def _alike(left_kind: str, left: Any, right_kind: str, right: Any) -> tuple[str, Any, str, Any]:
    """Truth beside a number becomes a number; a column of nulls takes the other's kind."""
    if left_kind == right_kind:
        return left_kind, left, right_kind, right
    if {left_kind, right_kind} == {"number", "truth"}:
        left = left if left_kind == "number" else _as_number(left)
        right = right if right_kind == "number" else _as_number(right)
        return "number", left, "number", right
    if _all_null(left):
        return right_kind, pa.scalar(None, _TYPES[right_kind]), right_kind, right
    if _all_null(right):
        return left_kind, left, left_kind, pa.scalar(None, _TYPES[left_kind])
    return left_kind, left, right_kind, right


def _is_in(node: Node, table: pa.Table) -> Any:
    kind, values = _evaluate(node.args[0], table)
    if not node.value:
        return pc.if_else(pc.is_null(values), pa.scalar(None, pa.bool_()), False)
    like = _KINDS[type(node.value[0])]
    kind, values, like, _ = _alike(kind, values, like, pa.scalar(node.value[0], _TYPES[like]))
    if kind != like:
        raise node.error(f"a {kind} is not in a list of {like}s")
    items = node.value
    if kind == "number":  # adding 0 makes -0 and 0 one value
        values, items = pc.add(values, 0.0), [float(item) + 0.0 for item in items]
    found = pc.is_in(values, value_set=pa.array(items, _TYPES[kind]))
    return pc.if_else(pc.is_null(values), pa.scalar(None, pa.bool_()), found)
