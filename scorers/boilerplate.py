"""Boilerplate: lines that come again in other documents, and lines like those of menus and notices.

    recurring    share of the characters in lines that at least `recurs` distinct documents have
    navigation   share in other lines whose p(content) is below `least`       (`_junk_lines.py`)
    boilerplate  recurring + navigation                   0 to 1; utility = 1 - boilerplate
    content      mean p(content) of the lines, by their characters

A line is compared in lower case, with every run of digits as one 0 and every run of other signs as
one space; one without a letter never recurs. With `by`, a column of labels (or of key paths, cut at
`depth`), lines recur within a site and not across sites: that is where templates live. Copies of a
document (one id) count once in a site, so it is no deduplication: remove copies first, or a page
and its near copies make each other boilerplate.

The model was fitted on news pages. Poems, lists, tables, code and chats are made of short lines and
look like menus to it: for such sources turn it off with `least: 0` and keep `recurring`. A text
without a line has NaN in all columns.

Findings: recurring_line (value: documents that have it), navigation_line (value: p(content)), one
for each stretch of neighbouring lines of the same reason; the value is the smallest of them. Facts:
documents, distinct lines, those that recur. Memory: 16 bytes a distinct line, and some 120
a document (its id, so that copies count once). Cost: some 5 MB/s to fit and 2 to score.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.labels import labels
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column, content_texts
from foresift.scorers._counting import Counts
from foresift.scorers._junk_lines import Lines

Keys = npt.NDArray[np.uint64]
_SIGNS, _DIGITS = re.compile(r"[\W_]+"), re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class Boilerplate(FittedScorer):
    """Share of a document in lines that recur across documents or look like menus and notices."""

    recurs: int = 3
    """Distinct documents that have a line, from which it is taken as a template's."""
    least: float = 0.5
    """Probability of being content below which a line is navigation; 0: none is."""
    by: str = ""
    """Column of labels within which lines recur, such as `source`; empty: the whole corpus."""
    depth: int = 0
    """Components of a key path that make the label; 0: all of it."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "share of other characters, 0 to 1", "higher"),
        "boilerplate": Column(pa.float64(), "share of characters, 0 to 1", "lower"),
        "recurring": Column(pa.float64(), "share of characters, 0 to 1", "lower"),
        "navigation": Column(pa.float64(), "share of characters, 0 to 1", "lower"),
        "content": Column(pa.float64(), "mean probability, 0 to 1", "higher"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        if self.recurs < 2 or self.depth < 0:
            raise ValueError("recurs is at least 2, and depth not negative")
        if not 0 <= self.least <= 1:
            raise ValueError("least is a probability")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,) if self.by else ()

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        counts, seen = Counts(), set[bytes]()
        for table in tables:
            rows = zip(table["id"].to_pylist(), self._salts(table), self._keys(table), strict=True)
            for row_id, salt, (_, lines) in rows:
                key = row_id + salt.encode()  # a copy on another site counts there
                if key not in seen:
                    seen.add(key)
                    counts.add(np.unique(lines[lines > 0]))
        keys, documents = counts.total()
        often = documents >= self.recurs
        np.save(out / "lines.npy", keys[often], allow_pickle=False)
        np.save(out / "documents.npy", documents[often], allow_pickle=False)
        return {"documents": len(seen), "lines": len(keys), "recurring": int(often.sum())}

    def _keys(self, table: pa.Table) -> Iterator[tuple[Lines, Keys]]:
        """The lines of each row and their hashes, 0 where a line has no letter."""
        for text, salt in zip(content_texts(table), self._salts(table), strict=True):
            lines = Lines.of(text)
            found = [_hash(line, salt) for line in lines.texts]
            yield lines, np.array(found, dtype=np.uint64)

    def _salts(self, table: pa.Table) -> list[str]:
        """What keeps the lines of sites apart: the label of each row."""
        if not self.by:
            return [""] * table.num_rows
        names, codes = labels(table, self.by, self.depth)
        return [names[c] if c >= 0 else "" for c in codes.tolist()]

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        known = np.load(out / "lines.npy", allow_pickle=False)
        documents = np.load(out / "documents.npy", allow_pickle=False)
        shares = np.full((batch.num_rows, 3), np.nan)
        findings = Findings(batch.num_rows)
        for row, (lines, keys) in enumerate(self._keys(batch)):
            if not len(keys):
                continue
            place = np.minimum(np.searchsorted(known, keys), max(len(known) - 1, 0))
            again = known[place] == keys if len(known) else np.zeros(len(keys), np.bool_)
            chance, sizes = lines.content(), lines.sizes
            menu = (chance < self.least) & ~again
            weights = sizes / sizes.sum()
            shares[row] = weights @ again, weights @ menu, weights @ chance
            if again.any():
                _add(findings, row, "recurring_line", again, lines, documents[place])
            _add(findings, row, "navigation_line", menu, lines, chance)
        both = np.minimum(shares[:, 0] + shares[:, 1], 1.0)
        return {
            "utility": 1.0 - both, "boilerplate": both, "recurring": shares[:, 0],
            "navigation": shares[:, 1], "content": shares[:, 2], "findings": findings.array(),
        }  # fmt: skip


def _hash(line: str, salt: str) -> int:
    plain = _SIGNS.sub(" ", _DIGITS.sub("0", line.lower())).strip()
    if not any(c.isalpha() for c in plain):
        return 0
    return xxhash.xxh3_64_intdigest(f"{salt}\x00{plain}".encode()) or 1


def _add(
    findings: Findings, row: int, reason: str, which: npt.NDArray[np.bool_], lines: Lines,
    values: npt.NDArray[np.generic],
) -> None:  # fmt: skip
    """One finding for each stretch of neighbouring lines."""
    turns = np.flatnonzero(np.diff(which.astype(np.int8), prepend=0, append=0))
    for first, behind in zip(turns[::2].tolist(), turns[1::2].tolist(), strict=True):
        start, stop = lines.spans[first][0], lines.spans[behind - 1][1]
        findings.add(row, reason, start, stop, float(np.min(values[first:behind])))  # type: ignore[type-var]
