"""What a request was found to mean: the rows of the run's data sets that are to go, and why.

base, shard, row   where it lies: number in `History.bases`, shard and row in it
id, source         of the document
key                number of the key in the request that led here
reason             document, text, key, entity, licence, personal: what the key itself names;
                   exact, near, substring, semantic: a copy of such a document
similarity         to the document it is a copy of, 1 for what is named or exact
of                 that document; its own id where it is named itself
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.tables import ID
from foresift.stages.forget.request import Request

FOUND = pa.schema(
    [
        ("base", pa.int32()),
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("id", ID),
        ("source", pa.string()),
        ("key", pa.int32()),
        ("reason", pa.string()),
        ("similarity", pa.float32()),
        ("of", ID),
    ]
)
NAMED = ("document", "text", "key", "entity", "licence", "personal")
COPIES = ("exact", "near", "substring", "semantic")


@dataclass(frozen=True)
class Resolved:
    """The rows that a request means: one line for each row, sorted by (base, shard, row)."""

    request: Request
    rows: pa.Table
    suspects: pa.Table
    """Semantic copies, and rows that share boilerplate only (substring): shown to who decides, in
    the plan only when asked for (same columns)."""
    unmatched: Sequence[int] = ()
    """Numbers of keys that nothing matched."""
    warnings: Sequence[str] = ()

    @property
    def ids(self) -> pa.Array:
        """The documents, each once, ascending."""
        found = pc.unique(self.rows["id"])
        return found.take(pc.sort_indices(found))
