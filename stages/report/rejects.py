"""The rows that were no documents: counts by reason, and the first of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass

from foresift.stages.report.contents import Contents
from foresift.stages.report.mask import excerpt

SHOWN = 20
#: a place in a line, which would make every reason a reason of its own
_PLACE = re.compile(r"\s*\([^()]*\d[^()]*\)\s*$")


@dataclass(frozen=True)
class Reject:
    """One bad row."""

    file: str
    line: str
    reason: str
    excerpt: str


@dataclass(frozen=True)
class Rejects:
    """All bad rows of the corpus."""

    reasons: list[tuple[str, int]]
    first: list[Reject]

    @property
    def count(self) -> int:
        return sum(n for _, n in self.reasons)


def rejects(contents: Contents) -> Rejects:
    """Count `rejects.jsonl` of the corpus line by line."""
    path = contents.base / "rejects.jsonl"
    counts: Counter[str] = Counter()
    first: list[Reject] = []
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as handle:
            for line in handle:
                row = json.loads(line)
                reason = excerpt(str(row.get("reason", "")))
                counts[_PLACE.sub("", reason)] += 1
                if len(first) < SHOWN:
                    shown = excerpt(str(row.get("excerpt", "")), 160)
                    first.append(
                        Reject(str(row.get("file", "")), str(row.get("line", "")), reason, shown)
                    )
    return Rejects(counts.most_common(), first)
