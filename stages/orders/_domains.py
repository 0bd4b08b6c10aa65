"""Domains of rows: the values of a column of labels, numbered in their own order.

Numbers do not depend on the order of rows. Missing labels (null, NaN) are one domain, the last.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import scores
from foresift.pipeline.labels import labels
from foresift.pipeline.nouns import Rng
from foresift.pipeline.tables import id_words

Rows = npt.NDArray[np.int64]
SHUFFLE = "shuffle"


def domains(table: pa.Table, name: str) -> tuple[Rows, list[str | None]]:
    """[rows] number of each row's domain, and the labels by number (None: without a label)."""
    known, code = labels(table, name)
    found = np.where(code < 0, len(known), code).astype(np.int64)
    return found, [*known, None] if (code < 0).any() else [*known]


def inner_order(table: pa.Table, within: str, rng: Rng) -> Rows:
    """All rows, at random (`shuffle`) or by a column of scores (low first, missing ones last)."""
    shuffled = within == SHUFFLE
    key = rng.uniform(table["id"]) if shuffled else scores(table, within)
    words = id_words(table["id"])
    return np.lexsort((words[:, 1], words[:, 0], key))
