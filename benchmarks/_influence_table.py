"""The table of benchmarks/influence.py: seconds of a label, and how it ranks beside exact ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from foresift.pipeline.lm.regress import agreement

Floats = npt.NDArray[np.float64]
Group = npt.NDArray[np.bool_]
SPEED, MIXED, INSIDE = 100.0, 0.9, 0.85
#: resampled sets of documents for an interval
RESAMPLED = 1000


@dataclass
class Table:
    """One row a contestant; the first is the one that the others are measured against."""

    truth: Floats
    """Exact labels."""
    groups: dict[str, Group]
    """Documents of each group in which ranks are compared."""
    documents: int
    """All of them."""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, found: Floats, label: float, once: float = 0.0) -> None:
        """Labels, seconds of each, and seconds spent once before the first."""
        ranks = {g: correlation(self.truth[here], found[here]) for g, here in self.groups.items()}
        self.rows.append({"name": name, "label": label, "once": once, "spearman": ranks})

    def tell(self) -> None:
        """Print it; `all` is a label with its share of what was spent once."""
        names = "".join(f"{f'{g} ({int(h.sum())})':>22}" for g, h in self.groups.items())
        print(f"{'':28}{'ms a label':>12}{'times':>8}{'once, s':>9}{'times, all':>11}{names}")
        first = self.rows[0]["label"]
        for row in self.rows:
            every = row["label"] + row["once"] / self.documents
            cells = "".join(f"{_interval(row['spearman'][g]):>22}" for g in self.groups)
            print(
                f"{row['name']:28}{1e3 * row['label']:12.2f}{first / row['label']:8.1f}"
                f"{row['once']:9.1f}{first / every:11.1f}{cells}"
            )

    def goals(self) -> list[dict[str, Any]]:
        """Of the second row, linear labels."""
        exact, linear = self.rows[:2]
        found = [("an exact label / a linear one", SPEED, exact["label"] / linear["label"])]
        for group, (value, *_) in linear["spearman"].items():
            goal = MIXED if group == "mixed" else INSIDE
            found.append((f"rank correlation with exact, {group}", goal, value))
        return [
            {"name": name, "goal": goal, "measured": round(value, 3), "met": value >= goal}
            for name, goal, value in found
        ]


def correlation(truth: Floats, found: Floats) -> tuple[float, float, float]:
    """Spearman's rank correlation with its 95 % bootstrap interval."""
    rng, n = np.random.default_rng(0), len(truth)
    draws = rng.integers(0, n, (RESAMPLED, n))
    values = [agreement(truth[d], found[d])["spearman"] or 0.0 for d in draws]
    low, high = np.quantile(values, [0.025, 0.975])
    return agreement(truth, found)["spearman"] or 0.0, float(low), float(high)


def rounded(value: Any) -> Any:
    """The same with four digits a number, for reading."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _interval(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:.3f} [{low:.2f}, {high:.2f}]"
