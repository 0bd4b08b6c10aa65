"""A trace as tables on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
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
    some = ("id",) if len(ids) > 1 else ()
    _table(console, "where it is", (*some, "source", "where", "became"), map(_place, trace.rows))
    if trace.copies:
        counts = ", ".join(
            f"{n:,} {k}" for k, n in Counter(c["kind"] for c in trace.copies).items()
        )
        columns = ("kind", "similarity", "source", "id", "shard", "row")
        _table(console, f"copies of it that are other documents: {counts}", columns, trace.copies)
    if trace.exposures:
        columns = ("training", *some, "round", "shard", "step", "tokens")
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


def _place(row: dict[str, Any]) -> dict[str, Any]:
    """Where a row lies, and what became of it in words."""
    if row.get("kept"):
        place = "" if row["position"] is None else f", place {row['position']:,}"
        became = f"in: round {row['round']}{place} ({row['reason']})"
    elif row.get("reason"):
        became = f"out: {row['reason']} ({row['decision']})"
    else:
        became = "held out" if row["holdout"] else ""
    where = f"{row['data']}/{row['shard']}, row {row['row']:,}"
    return {"id": row["id"], "source": row["source"], "where": where, "became": became}


def _table(
    console: Console, title: str, columns: Sequence[str], given: Iterable[dict[str, Any]]
) -> None:
    lines = list(given)
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
