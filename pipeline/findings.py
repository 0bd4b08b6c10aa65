"""Findings: what a detector says of a document, for which reason, and where.

A detector never drops. Beside its numbers it gives one column of findings, a list a row:

    reason   what was found, a short term of the detector: `email`, `few_stop_words`
    start    first character in the content as one string (`tables.content_texts`)
    stop     the character behind the last
    value    the number that decided, or how sure the detector is; NaN where there is none

`start` and `stop` are -1 where the whole document is meant. Findings of a row stand in the order of
their places, whole-document ones first; equal places by reason. Text itself is never kept: a report
cuts it out of the document, and masks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.tables import Column

FINDING = pa.struct(
    [("reason", pa.string()), ("start", pa.int32()), ("stop", pa.int32()), ("value", pa.float32())]
)
FINDINGS = pa.list_(FINDING)
#: how a detector declares its column of findings
FOUND = Column(FINDINGS, "reasons, and characters from start to stop")
WHOLE = -1

Ints = npt.NDArray[np.int64]


class Finding(NamedTuple):
    """One thing that was found in one row."""

    reason: str
    start: int = WHOLE
    stop: int = WHOLE
    value: float = float("nan")

    @property
    def whole(self) -> bool:
        """Whether the document as a whole is meant."""
        return self.start < 0


@dataclass
class Findings:
    """Collects findings of a batch, in any order, and makes the column of them."""

    rows: int
    _found: list[tuple[int, Finding]] = field(default_factory=list)

    def add(
        self, row: int, reason: str, start: int = WHOLE, stop: int = WHOLE,
        value: float = float("nan"),
    ) -> None:  # fmt: skip
        """Row `row` has it, in these characters or as a whole."""
        assert 0 <= row < self.rows, f"row {row} of {self.rows}"
        assert (start < 0 and stop < 0) or 0 <= start <= stop, f"no span: {start} to {stop}"
        self._found.append((row, Finding(reason, start, stop, value)))

    def whole(self, reason: str, which: npt.NDArray[np.bool_], values: npt.ArrayLike) -> None:
        """Every row of a mask has it, as a whole; `values` are of all rows."""
        numbers = np.asarray(values, dtype=np.float64)
        for row in np.flatnonzero(which).tolist():
            self.add(row, reason, value=float(numbers[row]))

    def array(self) -> pa.ListArray:
        """[rows] the column."""
        ranked = sorted(self._found, key=lambda pair: (pair[0], *pair[1][1:3], pair[1].reason))
        counts = np.bincount([row for row, _ in ranked], minlength=self.rows)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        columns: Sequence[Sequence[object]] = (
            list(zip(*(found for _, found in ranked), strict=True)) if ranked else [()] * 4
        )
        fields = [pa.array(values, FINDING.field(i).type) for i, values in enumerate(columns)]
        structs = pa.StructArray.from_arrays(fields, fields=list(FINDING))
        return pa.ListArray.from_arrays(pa.array(offsets), structs)


def findings(column: pa.ChunkedArray | pa.Array) -> Iterator[list[Finding]]:
    """What was found in each row; nothing where the column is null."""
    for row in column.to_pylist():
        yield [Finding(**found) for found in row or ()]


def rows_by_reason(column: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """Reason -> rows that have it (once or more often), the most frequent first."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    flat = pc.list_flatten(column)
    table = pa.table({"row": pc.list_parent_indices(column), "reason": flat.field("reason")})
    counted = (
        table.group_by(["row", "reason"])
        .aggregate([])
        .group_by("reason")
        .aggregate([("row", "count")])
    )
    pairs = zip(counted["reason"].to_pylist(), counted["row_count"].to_pylist(), strict=True)
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def is_findings(dtype: pa.DataType) -> bool:
    """Whether a column holds findings."""
    return bool(dtype.equals(FINDINGS))
