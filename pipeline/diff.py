"""Two plans side by side: which documents entered, left or moved between them, and why.

Documents are matched by (id, occurrence): the i-th copy of a content with the i-th copy. A document
that both plans keep has moved when its round differs, or its place among those that both keep: what
enters or leaves does not move the rest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from foresift.pipeline.run import Run

_COLUMNS = ["id", "source", "kept", "round", "position", "reason", "n_tokens"]


@dataclass(frozen=True)
class Difference:
    """Rows of the joined plans, by what happened to them."""

    entered: pd.DataFrame
    left: pd.DataFrame
    moved: pd.DataFrame
    same: int

    def counts(self) -> dict[str, int]:
        """How many of each."""
        named = {"entered": self.entered, "left": self.left, "moved": self.moved}
        return {name: len(frame) for name, frame in named.items()} | {"same": self.same}


def compare(before: Path, after: Path) -> Difference:
    """Join two `plan.parquet` files."""
    joined = _read(before, "_before").join(_read(after, "_after"), how="outer")
    was = joined["kept_before"].fillna(False).astype(bool)
    now = joined["kept_after"].fillna(False).astype(bool)
    both = joined[was & now]
    stayed = (both["round_before"] == both["round_after"]) & (
        _place_among(both, "before") == _place_among(both, "after")
    )
    return Difference(joined[now & ~was], joined[was & ~now], both[~stayed], int(stayed.sum()))


def _place_among(both: pd.DataFrame, side: str) -> Any:
    return both.groupby(f"round_{side}")[f"position_{side}"].rank().fillna(-1)


def _read(path: Path, suffix: str) -> pd.DataFrame:
    frame = pq.read_table(path, columns=_COLUMNS).to_pandas()
    frame["id"] = [i.hex() for i in frame["id"]]
    frame["copy"] = frame.groupby("id").cumcount()
    indexed: pd.DataFrame = frame.set_index(["id", "copy"]).add_suffix(suffix)
    return indexed


def show(before: Run, after: Run, console: Console, limit: int) -> None:
    """Print the difference: the counts, then some documents of each group with the reasons."""
    found = compare(before.plan, after.plan)
    counts = ", ".join(f"{n:,} {name}" for name, n in found.counts().items())
    console.print(f"{before.path.name} -> {after.path.name}: {counts}", highlight=False)
    for title, frame in (("entered", found.entered), ("left", found.left), ("moved", found.moved)):
        if len(frame):
            _reasons(title, frame, console)
            _documents(title, frame.head(limit), console)


def _reasons(title: str, frame: pd.DataFrame, console: Console) -> None:
    pairs = Counter(zip(frame["reason_before"], frame["reason_after"], strict=True))
    for (was, now), count in pairs.most_common(5):
        console.print(
            f"  {count:,} {title}: {_word(was)} -> {_word(now)}", highlight=False, markup=False
        )


def _documents(title: str, frame: pd.DataFrame, console: Console) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("id", "source", "before", "after"):
        table.add_column(name, overflow="fold")
    for (identity, _), (_, row) in zip(frame.index.tolist(), frame.iterrows(), strict=True):
        source = (
            row["source_after"] if isinstance(row["source_after"], str) else row["source_before"]
        )
        table.add_row(identity[:12], str(source), _place(row, "before"), _place(row, "after"))
    console.print(table)


def _place(row: pd.Series[Any], side: str) -> str:
    if pd.isna(row[f"kept_{side}"]):
        return "not in the data"
    if not row[f"kept_{side}"]:
        return f"out: {row[f'reason_{side}']}"
    place = "" if pd.isna(row[f"position_{side}"]) else f", place {int(row[f'position_{side}']):,}"
    return f"in: round {int(row[f'round_{side}'])}{place}"


def _word(reason: Any) -> str:
    return reason if isinstance(reason, str) else "not in the data"
