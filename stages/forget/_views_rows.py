"""A view: rows of a set under the names that a tool reads, in the file that it reads.

    form jsonl   one object a line          json    one array          lines   one object a line, in
    form txt     documents, blank lines             a file that is called .json, as TOFU's are
                 between them

A view of a set has its rows in its order, all of them but for the halves of retain and what has no
paraphrase. A row without a question is asked as the first half of its words (`question`, `prompt`),
the rest is the answer (`answer`, `gt`); a row without a text is its question, a space and its
answer.

Two traps of the readers: an empty file has no columns, so an empty view is not written (it is
listed with 0 rows); and a column in which every string is an ISO date is read as times, so the
first of such strings gets a space at its end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foresift.pipeline.store import write_text
from foresift.stages.forget import _language as language
from foresift.stages.forget.folder import text_of

JsonRow = dict[str, Any]
#: what readers of JSON take for a date or a time
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d(?::?\d\d){0,2}(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?)?")


@dataclass(frozen=True)
class View:
    """One file of a view."""

    path: str
    of: str
    """The set (or `probes`) whose rows these are."""
    ids: Sequence[str]
    """The document of each row."""
    rows: Sequence[JsonRow]
    form: Literal["jsonl", "json", "lines", "txt"] = "jsonl"

    def told(self) -> JsonRow:
        """As it is listed in `views.json`."""
        columns = list(self.rows[0]) if self.rows and self.form != "txt" else []
        return {
            "of": self.of, "rows": len(self.rows), "columns": columns, "form": self.form,
            "ids": list(self.ids),
        }  # fmt: skip

    def write(self, folder: Path) -> None:
        """Write the file, unless it would be empty."""
        if not self.rows:
            return
        rows = undated(self.rows)
        if self.form == "txt":
            text = "\n\n".join(_block(row["text"]) for row in rows) + "\n"
        elif self.form == "json":
            text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
        else:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(folder / self.path, text)


def view(
    path: str, of: str, rows: Iterable[Mapping[str, Any]], make: Any, form: Any = "jsonl"
) -> View:
    """A view of rows with an `id`, each made into what the tool reads by `make`."""
    rows = list(rows)
    return View(path, of, [row["id"] for row in rows], [make(row) for row in rows], form)


def as_text(row: Mapping[str, Any]) -> JsonRow:
    """{text}"""
    return {"text": text_of(row)}


def as_qa(row: Mapping[str, Any]) -> JsonRow:
    """{question, answer}"""
    if row.get("text") is not None:
        question, answer = language.halves(row["text"])
        return {"question": question, "answer": answer}
    return {"question": row["question"], "answer": row["answer"]}


def as_verbatim(row: Mapping[str, Any]) -> JsonRow:
    """{prompt, gt}"""
    found = as_qa(row)
    return {"prompt": found["question"], "gt": found["answer"]}


def as_asked(probe: Mapping[str, Any]) -> JsonRow:
    """{question, answer} of a probe."""
    return {"question": probe["query"], "answer": probe["answer"]}


def as_probe(probe: Mapping[str, Any]) -> JsonRow:
    """RWKU's fields of a probe."""
    return {name: probe[name] for name in ("subject", "query", "answer", "level", "type")}


def undated(rows: Sequence[JsonRow]) -> list[JsonRow]:
    """The rows, so that no column is taken for one of dates."""
    found = [dict(row) for row in rows]
    for name in found[0]:
        values = [row[name] for row in found]
        if all(isinstance(v, str) and _DATE.fullmatch(v) for v in values):
            found[0][name] += " "
    return found


def _block(text: str) -> str:
    """A document without blank lines inside, so that one ends it."""
    return re.sub(r"\n\s*\n", "\n", text.strip())
