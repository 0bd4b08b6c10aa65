"""A run over nasty text, and its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from foresift.pipeline.run import Run
from foresift.stages.report.contents import Contents
from tests.runs import go

NASTY = [
    "<script>alert('one')</script> w w",
    "</p></li><img src=x onerror=alert(2)> & < > \" ' w",
    "\u202eright to left\u202c \u0007bell \u0000nul مرحبا بالعالم w",
    "{{ manifest.recipe }} {% raw %} w",
    "Write to bob@example.org or call +1 (415) 555-2671 from 10.20.30.40, card 4111111111111111 w",
    "w" * 300_000,
    "https://evil.example/x.js <link rel=stylesheet href=https://evil.example/a.css> w w",
]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    """JSON lines; strings are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recipe(data: Path, steps: Sequence[dict[str, Any]], **reader: Any) -> dict[str, Any]:
    """A recipe over JSON lines."""
    read = {"read": "jsonl", "paths": [str(data)], "holdout": 0.1, "max_rejects": 0.5, **reader}
    return {"name": "<b>nasty<b>", "data": read, "steps": list(steps), "report": False}


LETTERS = {"score": "tests.parts:Letters", "as": "letters"}
WRONG = {"score": "tests.parts:Wrong", "as": "wrong"}
TOP = {"select": "topk", "by": "letters.count", "budget": "30% rows"}


@pytest.fixture(scope="session")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Nasty text, duplicates, bad lines, two sources."""
    out = tmp_path_factory.mktemp("nasty")
    rows: list[Any] = [{"text": text, "at": "<i>bad</i>/one"} for text in NASTY]
    rows += [
        {"text": f"plain document {n} " + "w " * (n % 40), "at": f"good/{n}"} for n in range(200)
    ]
    rows += [{"text": "the same text again w", "at": f"copies/{n}"} for n in range(7)]
    rows += [{"text": "twice w", "at": f"copies/{n}"} for n in range(2)]
    rows += ['{"text": "<b>broken</b> carol@example.org', {"text": None}, {"text": ""}]
    data = write_lines(out / "data.jsonl", rows)
    where = {"select": "where", "keep": "letters.count > 3"}
    steps = [{"dedup": "exact"}, LETTERS, WRONG, where, TOP, {"order": "shuffle"}]
    return go(recipe(data, steps, source="at"), out / "out")


@pytest.fixture(scope="session")
def contents(nasty: Run) -> Contents:
    return Contents.open(nasty.path)
