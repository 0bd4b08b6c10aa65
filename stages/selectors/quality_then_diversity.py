"""The best first, unless too close to a better one that was kept.

    visit documents by s, largest first; keep i  <=>  max_{j kept before} cos(i, j) <= threshold

until the kept ones fill the budget. s is the product of the columns `by` (complexity times quality
in DEITA). Only kept documents count: one that was dropped drops nobody, in whatever blocks the
products are made (the released code is exact for batches of 1 only). Cosines within 1e-5 of the
threshold are computed again in float64, and one above it by no more than 5e-8, the rounding of
float32, is not above it. Equal scores go to the smaller id.

Exact copies count as one document with the cost of all, and stand side by side: `dedup: exact` is
what removes them. Never kept: "close to a better row"; "not reached" (the budget was full, the row
was not looked at), "no score", "no embedding". Rows are ranked as far as the budget goes, so that a
choice can be cut again at a smaller budget only, with the result of selecting anew.

Cost: visited x kept x d, by products of blocks. Memory: the kept vectors and one block. Source:
DEITA (Liu et al. 2024, arXiv 2312.15685).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.nouns import Budget, Choice, Rng, Selector
from foresift.pipeline.vectors import Documents, Matrix, Rows
from foresift.stages.selectors._pool import Pool, Scale

BLOCK = 256
#: kept vectors that are compared with at once
PART = 1 << 14
NEAR, ROUNDING = 1e-5, 5e-8


@dataclass(frozen=True, kw_only=True)
class QualityThenDiversity(Selector):
    """Keep the best rows that are not close to a better one (DEITA)."""

    by: list[str]
    """Columns of scores, multiplied with one another; larger = keep first."""
    embedding: str
    """Column of vectors, such as `embedding.vector`; brought to length 1 here."""
    threshold: float = 0.9
    """Largest cosine to a kept row, above -1 to 1 (DEITA: 0.9); 1 drops nothing."""
    scale: Scale = "raw"
    """`raw` multiplies numbers of at least 0 as they are; `rank` brings each column to (0, 1) by
    rank first."""

    def __post_init__(self) -> None:
        if not self.by:
            raise ValueError("by needs at least one column")
        if not -1 < self.threshold <= 1:
            raise ValueError("threshold must be a cosine above -1, at most 1")

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.by, self.embedding)

    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        pool = Pool.of(table, self.embedding, self.by, self.scale, budget)
        assert budget is not None
        ranked = np.argsort(-pool.weight, kind="stable")
        kept, close = filtered(pool.documents, ranked, pool.cost, pool.limit, self.threshold)
        choice = pool.choice(table, budget, kept, {"close to a better row": close})
        facts = {
            "documents": len(ranked),
            "visited": len(kept) + len(close),
            "close": len(close),
        }
        return replace(choice, facts={**choice.facts, **facts})


def filtered(
    documents: Documents, ranked: Rows, cost: Rows, limit: float, threshold: float
) -> tuple[Rows, Rows]:
    """The kept documents until their cost reaches the limit, and those dropped on the way."""
    kept: list[int] = []
    close: list[int] = []
    vectors = np.empty((BLOCK, documents.vectors.width), dtype=np.float32)
    spent = 0
    for start in range(0, len(ranked), BLOCK):
        if spent >= limit:
            break
        block = ranked[start : start + BLOCK]
        part = documents.unit(block)
        far = np.ones(len(block), dtype=np.bool_)
        for at in range(0, len(kept), PART):
            far &= ~_above(part, vectors[at : min(at + PART, len(kept))], threshold).any(axis=1)
        among = _above(part, part, threshold)
        new: list[int] = []
        for place, document in enumerate(block.tolist()):
            if spent >= limit:
                break
            if far[place] and not among[place, new].any():
                new.append(place)
                spent += int(cost[document])
            else:
                close.append(document)
        vectors = _appended(vectors, len(kept), part[new])
        kept.extend(block[new].tolist())
    return np.array(kept, dtype=np.int64), np.array(close, dtype=np.int64)


def _above(a: Matrix, b: Matrix, threshold: float) -> npt.NDArray[np.bool_]:
    """[len(a), len(b)] whether the cosine is above the threshold."""
    if threshold == 1:
        return np.zeros((len(a), len(b)), dtype=np.bool_)
    cosines = a @ b.T
    found: npt.NDArray[np.bool_] = cosines > threshold
    left, right = np.nonzero(np.abs(cosines - np.float32(threshold)) < NEAR)
    exact = np.einsum("ij,ij->i", a[left].astype(np.float64), b[right].astype(np.float64))
    found[left, right] = exact > threshold + ROUNDING
    return found


def _appended(vectors: Matrix, count: int, new: Matrix) -> Matrix:
    """The first `count` vectors and the new ones, in an array that has room for more."""
    if count + len(new) > len(vectors):
        larger = np.empty((2 * len(vectors) + len(new), vectors.shape[1]), dtype=np.float32)
        larger[:count] = vectors[:count]
        vectors = larger
    vectors[count : count + len(new)] = new
    return vectors
