"""Length-bucketed batches with a token budget, and the one place where logits are shifted.

Documents are sorted by length, so that padding is rare, and cut into batches of at most
`batch_tokens` tokens, padding included. Padding stands on the right: under causal attention no
real token sees it, positions count from zero as they should, and without an attention mask the
kernel keeps its fast causal path. Results go back to row order through the flat offsets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foresift.pipeline.lm.encode import Encoded

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Some documents as one right-padded rectangle."""

    documents: Integers
    """[B] row numbers in the window."""
    ids: Integers
    """[B, L] token ids, zero where padded."""
    lengths: Integers
    """[B] real tokens."""
    counted: npt.NDArray[np.bool_]
    """[B, L] whether the prediction of this token counts."""

    def shift(self) -> tuple[Integers, Integers]:
        """(flat positions that predict, their targets): position i predicts token i + 1."""
        tokens = np.flatnonzero(self.counted)
        return tokens - 1, self.ids.ravel()[tokens]


def plan(lengths: Integers, batch_tokens: int) -> list[Integers]:
    """Row numbers of each batch, longest documents first; empty documents are in none.

    A batch has rows x longest <= batch_tokens; a document longer than that is alone.
    """
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    order = order[: int(np.count_nonzero(lengths))]
    batches, start = [], 0
    while start < len(order):
        rows = max(1, batch_tokens // int(lengths[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def batches(encoded: Encoded, rows: Integers, batch_tokens: int) -> Iterator[Batch]:
    """The batches of the documents `rows` of a window."""
    lengths = encoded.lengths
    for chosen in plan(lengths[rows], batch_tokens):
        yield _pad(encoded, rows[chosen], lengths[rows[chosen]])


def _pad(encoded: Encoded, documents: Integers, lengths: Integers) -> Batch:
    width = int(lengths.max())
    real = np.arange(width) < lengths[:, None]
    source = segments(encoded.offsets[documents], lengths)
    ids = np.zeros(real.shape, dtype=np.int64)
    counted = np.zeros(real.shape, dtype=np.bool_)
    ids[real] = encoded.ids[source]
    counted[real] = encoded.counts[source]
    return Batch(documents, ids, lengths, counted)


def segments(starts: Integers, lengths: Integers) -> Integers:
    """The numbers starts[i], ..., starts[i] + lengths[i] - 1 for each i, one after another."""
    before = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
