"""A trace as tables on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foresift.stages.forget.trace import Trace

#: lines of a table that are printed; the JSON has all
LINES = 20


def show(trace: Trace, console: Console) -> None:
    """What a run knows of the documents asked for."""
    ids = {row["id"] for row in trace.rows}
    asked = trace.asked if len(trace.asked) <= 80 else trace.asked[:77] + "..."
    _say(console, f"{trace.how} {asked!r}: {len(ids):,} documents in {len(trace.rows):,} rows")
    _table(console, "where it is", _decided(trace.rows), trace.rows)
    if trace.copies:
        counts = ", ".join(
            f"{n:,} {k}" for k, n in Counter(c["kind"] for c in trace.copies).items()
        )
        columns = ("kind", "similarity", "source", "id", "shard", "row")
        _table(console, f"copies of it that are other documents: {counts}", columns, trace.copies)
    if trace.exposures:
        columns = (
            "training",
            *(("id",) if len(ids) > 1 else ()),
            "round",
            "shard",
            "step",
            "tokens",
        )
        _table(console, f"trained on: {len(trace.exposures):,} times", columns, trace.exposures)
    else:
        _say(console, "no training was given it, as far as ledgers say")
    if trace.checkpoints:
        lines = [{**c, "saw": _SAW[c["saw"]]} for c in trace.checkpoints]
        _table(console, "checkpoints", ("training", "step", "saw", "path"), lines)
    if trace.exports:
        _table(console, "exported", ("step", "file", "rows", "path"), trace.exports)
    if trace.requests:
        _table(console, "deletion requests", ("id", "status", "documents"), trace.requests)
    for note in trace.notes:
        _say(console, note)


_SAW = {True: "saw it", False: "did not", None: "unknown"}


def _decided(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The columns about rows; what the plan says only where it says something."""
    said = ("kept", "round", "position", "reason", "decision")
    shown = [name for name in said if any(row.get(name) is not None for row in rows)]
    several = len({row["id"] for row in rows}) > 1
    return (*(("id",) if several else ()), "source", "data", "shard", "row", "holdout", *shown)


def _table(
    console: Console, title: str, columns: Sequence[str], lines: Sequence[dict[str, Any]]
) -> None:
    table = Table(title=escape(title), title_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    for line in lines[:LINES]:
        table.add_row(*(_cell(line.get(name)) for name in columns))
    console.print(table)
    if len(lines) > LINES:
        _say(console, f"... and {len(lines) - LINES:,} more (--json has all)")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(f"{value:.3f}" if isinstance(value, float) else str(value))


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
