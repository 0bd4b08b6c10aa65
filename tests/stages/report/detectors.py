"""A detector that only the tests of the report use: it looks for words with known places."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import Column, FittedScorer, Scorer
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import content_texts


@dataclass(frozen=True, kw_only=True)
class Words(Scorer):
    """Finds the words `bad` and `worse`, and documents without any vowel."""

    columns: ClassVar[Mapping[str, Column]] = {
        "noise": Column(pa.float32(), "share of words", "lower"),
        "utility": Column(pa.float32(), "-noise", "higher"),
        "language": Column(pa.string(), "of the document"),
        "path": Column(pa.string(), "another for each document"),
        "findings": FOUND,
    }
    word: str = "bad"
    """What is looked for."""

    def score(self, batch: pa.Table) -> dict[str, Any]:
        texts = content_texts(batch)
        told = Findings(len(texts))
        noise = np.zeros(len(texts))
        for row, text in enumerate(texts):
            hits = [*re.finditer(rf"\b({self.word}|worse)\b", text)]
            for hit in hits:
                told.add(row, hit[0], hit.start(), hit.end(), 0.5)
            if not re.search("[aeiou]", text):
                told.add(row, "no_vowel")
            noise[row] = len(hits) / max(1, len(text.split()))
        return {
            "noise": noise, "utility": -noise, "findings": told.array(),
            "language": ["de" if "und" in t.split() else "en" for t in texts],
            "path": [t[:40] for t in texts],
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rated(FittedScorer):
    """Tells a rate of noise in its facts, and has no column of it."""

    columns: ClassVar[Mapping[str, Column]] = {"one": Column(pa.float32(), "always one")}

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        rows = sum(t.num_rows for t in tables)
        return {
            "noise_rate": 0.25,
            "noise_rate_low": 0.2,
            "noise_rate_high": 0.3,
            "rows_seen": rows,
        }

    def score(self, batch: pa.Table, out: Path) -> dict[str, Any]:
        return {"one": np.ones(batch.num_rows)}
