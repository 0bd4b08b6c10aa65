"""Candidates in an order that is given: row numbers, or the plan of a foresift run.

    position p of the order -> row        step s takes positions s x of .. s x of + of - 1
    after the last position comes the first again, without a gap: position p stands for p mod m

An order is one of

    row numbers     a sequence or an array of integers, [m]
    a run           a `Run`, its folder, or the `plan.parquet` in it: the plans of its `order`
                    steps, one round after the other
    an order step   its folder, or the `plan.parquet` in it: (id, position)

The ids of a plan are 16 bytes; in the data they are bytes, or text of 32 hex digits. Exact copies
share an id and a content: all of them stand for the first such row. The file that a run keeps has
one place a document; rows that come again (`rehearsal`, `view_batch`) are in the plan of the order
step, so a run is read through its manifest. Weights of a plan are not used.

A row may come several times, also in one step: it is then a candidate as often. It is measured as
often, by itself like any other (a data set or a collator that draws gives each its own view), so
its utilities are those of one row, and of equal utilities all are taken but where `keep` ends.

Errors: a row that is not there; an id that is not in the data; an order shorter than a step.
Memory: 8 bytes a position; some 300 bytes a row and a position while the ids of a plan are matched.
Cost: 14 s once for a plan of a million rows (measured).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from foresift.pipeline.candidates import CandidateOrder
from foresift.pipeline.errors import DataError
from foresift.pipeline.online import Rows
from foresift.pipeline.plan import MAIN
from foresift.pipeline.run import Run
from foresift.pipeline.stream_rows import RowSource
from foresift.pipeline.tables import ID

PLAN, MANIFEST = "plan.parquet", "manifest.json"
#: ids of a plan that are named when they are not in the data
NAMED = 3


class GivenOrder:
    """The rows of each step: `of` after `of` of an order, and again from its start."""

    def __init__(self, positions: Rows, of: int) -> None:
        if of < 1:
            raise DataError(f"at least 1 candidate a step is needed, got {of}", where="of")
        if of > len(positions):
            raise DataError(
                f"{of} candidates a step are more than the {len(positions)} positions of the order",
                where="of",
            )
        self.positions, self.of = positions, of
        self.steps_per_epoch = len(positions) // of

    @property
    def digest(self) -> str:
        """What stands for the order in the fingerprint of a plan."""
        return xxhash.xxh3_128_hexdigest(self.positions.astype("<i8").tobytes())

    def cursor(self, step: int) -> int:
        """The position at which a step begins."""
        return step * self.of % len(self.positions)

    def rows(self, step: int) -> Rows:
        """[of] row numbers of the candidates of a step, steps counted from 0."""
        first = self.cursor(step)
        return self.positions[np.arange(first, first + self.of) % len(self.positions)]


def candidate_order(
    order: Any, source: RowSource, of: int, seed: int
) -> CandidateOrder | GivenOrder:
    """The seeded order of candidates, or the one that is given."""
    if order is None:
        return CandidateOrder(len(source), of, seed)
    if isinstance(order, GivenOrder):
        return GivenOrder(_checked(order.positions, len(source)), of)
    if isinstance(order, Run):
        order = order.path
    if isinstance(order, (str, Path)):
        return GivenOrder(_of_plan(Path(order), source), of)
    return GivenOrder(_checked(order, len(source)), of)


def _checked(given: Any, n: int) -> Rows:
    """[m] row numbers, each of which is there."""
    rows = np.asarray(given)
    if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
        raise DataError(
            "row numbers are needed, one after the other, or the path of a plan; got"
            f" {rows.dtype} of shape {list(rows.shape)}",
            where="order",
        )
    outside = rows[(rows < 0) | (rows >= n)]
    if len(outside):
        raise DataError(
            f"row {outside[0]} is not among the rows 0 .. {n - 1} of the data", where="order"
        )
    return rows.astype(np.int64)


def _of_plan(path: Path, source: RowSource) -> Rows:
    """[m] row numbers in the data of what a plan lists."""
    if source.column == "row":
        raise DataError(
            'a plan names rows by their ids and ids="row" gives none; name the column of ids, or'
            " give row numbers as the order",
            where="order",
        )
    wanted = _names(path)
    place: dict[str, int] = {}
    for row, name in enumerate(source.names()):
        place.setdefault(name, row)
    rows = np.array([place.get(name, -1) for name in wanted], dtype=np.int64)
    missing = list(dict.fromkeys(wanted[i] for i in np.flatnonzero(rows < 0)))
    if missing:
        raise DataError(
            f"{len(missing)} ids of the plan are not in column {source.column!r} of the data, such"
            f" as {', '.join(missing[:NAMED])}; the data must be what the plan was made of",
            where=str(path),
        )
    return rows


def _names(path: Path) -> list[str]:
    """The ids of a plan, in its order, as the data writes them."""
    folder = path if path.is_dir() else path.parent
    plans = _order_steps(folder) if (folder / MANIFEST).is_file() else []
    files = plans or [folder / PLAN if path.is_dir() else path]
    return [name for file in files for name in _listed(file)]


def _order_steps(run: Path) -> Sequence[Path]:
    """The plans of the order steps of a run, in the order of its rounds."""
    steps = Run(run).manifest["steps"]
    mine = [s for s in steps if s["verb"] == "order" and s["line"] == MAIN and not s["repeat"]]
    last = {int(s["round"]): _beside(run, Path(s["path"])) / PLAN for s in mine}
    if not last:
        raise DataError("the run has no `order` step, so its rows are in no order", where=str(run))
    # an order before the first round is of the rows that the rounds choose from
    return [last[number] for number in sorted(last) if number or len(last) == 1]


def _beside(run: Path, step: Path) -> Path:
    """A step's directory; that of a store which was moved or copied lies beside its runs."""
    here = run.resolve().parents[1] / "steps" / step.name
    return here if here.parent.is_dir() else step


def _listed(file: Path) -> list[str]:
    try:
        with pq.ParquetFile(file) as opened:
            table = opened.read(columns=["id", "position"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"no plan can be read here ({error})", where=str(file)) from error
    absent = {"id", "position"} - set(table.column_names)
    if absent or table["position"].null_count:
        raise DataError(
            "this is no plan of an `order` step: it needs an id and a position in every line",
            where=str(file),
        )
    positions: npt.NDArray[np.int64] = np.asarray(table["position"])
    ids = table["id"].take(pa.array(np.argsort(positions, kind="stable")))
    binary = ids.type == ID or pa.types.is_binary(ids.type)
    return [v.hex() if binary else str(v) for v in ids.to_pylist()]
