"""What the scores over vectors share: the documents of a corpus with their vectors on disk.

A document is an id: exact copies are seen once. Documents without a direction (no vector, one that
is not finite or of length 0) are left out, counted, and get no score.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from foresift.pipeline.errors import DataError
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import ID
from foresift.pipeline.vectors import Documents, Matrix, Rows, Vectors, spooled

#: share of rows without a direction above which a run warns
FEW = 0.01


def documents_of(tables: Iterable[pa.Table], embedding: str, out: Path) -> Documents:
    """The documents of a stream of tables; their vectors wait in a nameless file."""
    path = out / "vectors.arrow"
    table = spooled(tables, ["id", embedding], path)
    path.unlink(missing_ok=True)
    documents = Documents.of(table, embedding)
    if not len(documents):
        vectors = documents.vectors
        raise DataError(
            f"no document has a direction: of {vectors.rows} rows, {vectors.missing} have no "
            f"finite vector and {vectors.zero} one of length 0",
            where=embedding,
        )
    return documents


def counted(documents: Documents) -> Facts:
    """Documents, rows without a direction, and a warning where these are many."""
    vectors = documents.vectors
    lost = vectors.missing + vectors.zero
    facts: Facts = {"documents": len(documents), "missing": vectors.missing, "zero": vectors.zero}
    few = lost <= FEW * vectors.rows
    said = f"{lost} of {vectors.rows} rows have no vector with a direction and get no score"
    return {**facts, "warnings": [] if few else [said]}


def some(documents: Documents, which: Rows) -> Documents:
    """Those documents alone; `which` ascends."""
    return replace(documents, words=documents.words[which], rows=documents.rows[which])


def ids(documents: Documents) -> pa.Array:
    """The ids as a column."""
    return pa.Array.from_buffers(
        ID, len(documents), [None, pa.py_buffer(documents.words.tobytes())]
    )


def unit_rows(batch: pa.Table, embedding: str) -> Matrix:
    """[rows, width] vectors of length 1, NaN where there is none; width 0 where none is."""
    vectors = Vectors.of(batch, embedding)
    return vectors.unit(range(vectors.rows))
