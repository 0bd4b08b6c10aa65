"""Secrets: keys, tokens and passwords, by their prefixes, check characters, names and entropy.

    count        secrets, which do not overlap
    verified     those of them that prove themselves: a CRC-32 (GitHub, npm), a header (JWT)
    share        characters in them / characters
    max_entropy  of the secret with the most bits a character (Shannon); NaN where there is none
    findings     reason = kind, first and last character, value = confidence

Kinds, and what each must look like: pipeline/credentials.py. A GitHub token whose CRC is wrong
counts with confidence 0.5: it may be of a form that is not known yet. Measured on ordinary web
text and code (Pile): 30 MB/s on one core.

What fails: keys of services without a form of their own and without a telling name beside them
(`Authorization: Bearer ...`); values with a space in them, and without quotation marks those with a
comma, semicolon or bracket; forms that are newer than this list. A value is never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline import credentials
from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import Arrays, Scorer
from foresift.pipeline.tables import Column, content_texts


@dataclass(frozen=True, kw_only=True)
class Secrets(Scorer):
    """Keys, tokens and passwords in a text: how many, how sure, and where."""

    min_confidence: float = 0.5
    """Least confidence of what counts, 0 to 1."""

    columns: ClassVar[Mapping[str, Column]] = {
        "count": Column(pa.int32(), "secrets", "lower"),
        "verified": Column(pa.int32(), "secrets that prove themselves", "lower"),
        "share": Column(pa.float32(), "fraction of characters, 0 to 1", "lower"),
        "max_entropy": Column(pa.float32(), "bits a character"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise ValueError("min_confidence is between 0 and 1")

    def score(self, batch: pa.Table) -> Arrays:
        texts = content_texts(batch)
        found = Findings(len(texts))
        counts = np.zeros((2, len(texts)), dtype=np.int32)
        share = np.zeros(len(texts), dtype=np.float32)
        most = np.full(len(texts), np.nan, dtype=np.float32)
        for row, text in enumerate(texts):
            hits = [h for h in credentials.find(text) if h.confidence >= self.min_confidence]
            counts[:, row] = len(hits), sum(hit.checked for hit in hits)
            share[row] = sum(h.stop - h.start for h in hits) / max(len(text), 1)
            for hit in hits:
                bits = credentials.entropy(text[hit.start : hit.stop])
                most[row] = np.fmax(most[row], bits)
                found.add(row, hit.kind, hit.start, hit.stop, hit.confidence)
        return {
            "count": counts[0],
            "verified": counts[1],
            "share": share,
            "max_entropy": most,
            "findings": found.array(),
        }
