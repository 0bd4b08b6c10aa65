"""Semantic copies: rows whose vectors point where those of some documents point.

    cosine(v - m, w - m)     v, w unit vectors of the score `embedding`, m the mean of all of them

Hidden states of a language model lie in a narrow cone, where any two texts have a large cosine;
without the mean, what is like each other stands out. Documents without a vector are left out: those
that a decision dropped before the score, the holdout, and other data sets than the one selected.

Cost: two passes over the column. Memory: one shard's vectors and those of at most SEEDS documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.ledger import among
from foresift.pipeline.tables import id_words
from foresift.pipeline.vectors import Floats, Rows, Vectors
from foresift.stages.forget.history import History

#: the column, documents that are compared with at most, and rows that are named at most
COLUMN, SEEDS, MOST = "embedding.vector", 4096, 100


class Like(NamedTuple):
    """A row that is like a document."""

    shard: int
    row: int
    similarity: float
    of: bytes


def semantic(history: History, ids: pa.Array, least: float, most: int = MOST) -> list[Like]:
    """The rows most like the documents of `ids` and none of them; [] where no vectors are."""
    mean, seeds, names = _seeds(history, ids)
    if not len(seeds):
        return []
    wanted, found = id_words(ids), list[Like]()
    for number, rows, vectors, here in _vectors(history):
        other = ~among(here, wanted)
        cosines = _unit(vectors[other] - mean) @ seeds.T
        best = cosines.argmax(axis=1)
        value = cosines[np.arange(len(best)), best]
        close = np.flatnonzero(value >= least)
        found += [
            Like(number, int(rows[other][i]), min(float(value[i]), 1.0), names[int(best[i])])
            for i in close
        ]
        found = sorted(found, key=lambda one: (-one.similarity, one.shard, one.row))[:most]
    return found


def _seeds(history: History, ids: pa.Array) -> tuple[Floats, Floats, list[bytes]]:
    """The mean of all vectors, the centred ones of the documents asked for, and their ids."""
    total: Floats = np.zeros(1)
    count = 0
    vectors: dict[bytes, npt.NDArray[np.float64]] = {}
    wanted = id_words(ids)
    for _, _, here, names in _vectors(history):
        total = total + here.sum(axis=0)
        count += len(here)
        for at in np.flatnonzero(among(names, wanted)).tolist():
            if len(vectors) < SEEDS:
                vectors.setdefault(names[at].as_py(), here[at])
    mean = total / max(count, 1)
    if not vectors:
        return mean, np.empty((0, len(mean))), []
    return mean, _unit(np.stack(list(vectors.values())) - mean), list(vectors)


def _vectors(history: History) -> Iterator[tuple[int, Rows, Floats, pa.Array]]:
    """(shard number, rows, unit vectors, ids) of each shard of the data set selected from."""
    place = history.score(COLUMN)
    if place is None:
        return
    for number, shard in enumerate(history.bases[0].shards()):
        table = shard.sidecar(place[0], ["id", place[1]])
        vectors = Vectors.of(table, place[1])
        rows = np.flatnonzero(vectors.valid)
        if len(rows):
            ids = table["id"].combine_chunks().take(pa.array(rows))
            yield number, rows, vectors.unit(rows).astype(np.float64), ids


def _unit(vectors: Floats) -> Floats:
    """Rows over their lengths; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = vectors / np.where(lengths > 1e-9, lengths, np.inf)
    return scaled
