"""Scorers that only the tests of the report use: empty values, findings, vectors, clusters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import Column, Scorer
from foresift.pipeline.tables import content_texts
from foresift.pipeline.vectors import vector_column


@dataclass(frozen=True, kw_only=True)
class Gaps(Scorer):
    """Words of a document: every fourth number is left empty, every fourth is NaN."""

    columns: ClassVar[Mapping[str, Column]] = {"some": Column(pa.float32(), "words", "higher")}

    def score(self, batch: pa.Table) -> dict[str, Any]:
        words = np.asarray([len(t.split()) for t in content_texts(batch)])
        values = np.where(words % 4 == 1, np.nan, words).astype(np.float32)
        return {"some": pa.array(values, mask=words % 4 == 0, from_pandas=False)}


@dataclass(frozen=True, kw_only=True)
class Marks(Scorer):
    """Finds every `w` that stands alone, and documents of one word."""

    columns: ClassVar[Mapping[str, Column]] = {"findings": FOUND}

    def score(self, batch: pa.Table) -> dict[str, Any]:
        found = Findings(batch.num_rows)
        for row, text in enumerate(content_texts(batch)):
            at = f" {text} ".find(" w ")
            if at >= 0:
                found.add(row, "single <w>", at, at + 1)
            if len(text.split()) == 1:
                found.add(row, "one word", value=1.0)
        return {"findings": found.array()}


@dataclass(frozen=True, kw_only=True)
class Placed(Scorer):
    """A vector that turns with the length of the text, and the quarter it points to."""

    columns: ClassVar[Mapping[str, Column]] = {
        "vector": Column(pa.list_(pa.float32()), "direction"),
        "cluster": Column(pa.int32(), "number of a cluster"),
    }
    most: int = 1 << 30
    """Longer texts have no vector."""

    def score(self, batch: pa.Table) -> dict[str, Any]:
        lengths = np.asarray([len(t) for t in content_texts(batch)])
        turn = lengths / 20.0
        vectors = np.stack([np.cos(turn), np.sin(turn), np.full(len(turn), 0.1)], axis=1)
        vectors[lengths > self.most] = np.nan
        return {"vector": vector_column(vectors), "cluster": (lengths % 4).astype(np.int32)}
