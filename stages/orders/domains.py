"""Rows grouped by domain, and the domains at random, in a given order, or as a chain.

    u_d = mean over the rows of domain d of v / |v|,  over its length     v: the row's embedding
    similar      d_1 = the domain of most rows;  d_{k+1} = argmax over those left of u_d . u_{d_k}
    dissimilar   the same with argmin
    random       by a draw of (seed, label)
    given        as `domains` lists them

Cosines are rounded to 9 digits; ties go to the smaller label. A missing label is a domain of its
own. A domain without a direction (no embeddings, or they cancel) stands after the chain, by label.
Rows of a domain are shuffled by U(seed, id) or stand by a column. A permutation. Memory holds one
vector a domain; cost: one pass over the embeddings and, for D domains of width w, D^2 w.

When to use which: in continual pre-training on 159 domains (Yildiz et al. 2024) random order forgot
less and transferred better; similar-first specialised better and forgot heavily where the topic
switched. So `random` across topics where knowledge shall be retained, and a `similar` chain only
inside a last stage that specialises, then with rehearsal (the study had none; see `rehearsal`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.errors import DataError
from foresift.pipeline.labels import label_text
from foresift.pipeline.nouns import Order, Rng
from foresift.pipeline.tables import id_words
from foresift.pipeline.vectors import BLOCK, Vectors, unit
from foresift.stages.orders._domains import SHUFFLE, Rows, domains, inner_order

Floats = npt.NDArray[np.float64]
Label = bool | int | float | str | None
CHAINS = ("similar", "dissimilar")


@dataclass(frozen=True, kw_only=True)
class Domains(Order):
    """Arrange rows domain by domain: at random, as given, or by similarity of their embeddings."""

    by: str
    """Column of labels: numbers or strings."""
    arrange: Literal["similar", "dissimilar", "random", "given"] = "random"
    """How domains follow each other; the chains need `embedding`, `given` needs `domains`."""
    embedding: str | None = None
    """Column of vectors from which a domain's direction is taken, such as `embedding.vector`."""
    domains: tuple[Label, ...] = ()
    """All labels in the order in which they shall come (null: the rows without one)."""
    within: str = SHUFFLE
    """Rows of a domain: `shuffle`, or a column of scores, low first, rows without one last."""

    def __post_init__(self) -> None:
        if (self.embedding is not None) != (self.arrange in CHAINS):
            raise ValueError("embedding goes with similar and dissimilar, and both need it")
        if bool(self.domains) != (self.arrange == "given"):
            raise ValueError("domains goes with given, which needs it")
        if len(set(self.domains)) < len(self.domains):
            raise ValueError("domains names a label twice")

    @property
    def needs(self) -> tuple[str, ...]:
        vectors = () if self.embedding is None else (self.embedding,)
        return (self.by, *vectors, *(() if self.within == SHUFFLE else (self.within,)))

    def order(self, table: pa.Table, rng: Rng) -> npt.NDArray[np.int64]:
        domain, labels = domains(table, self.by)
        rows = inner_order(table, self.within, rng)
        place = np.argsort(self._sequence(table, domain, labels, rng))
        return rows[np.argsort(place[domain[rows]], kind="stable")]

    def _sequence(self, table: pa.Table, domain: Rows, labels: list[str | None], rng: Rng) -> Rows:
        """The numbers of the domains in the order in which they come."""
        if self.arrange == "given":
            given = [None if label is None else label_text(label) for label in self.domains]
            missing = [label for label in labels if label not in given]
            if missing:
                raise DataError(
                    f"{len(missing)} labels are not among the given domains, such as "
                    f"{missing[0]!r}; name each (null for rows without a label)",
                    where=self.by,
                )
            return np.argsort([given.index(label) for label in labels])
        if self.embedding is None:
            keys = [rng.at("domain", repr(label)).key for label in labels]
            return np.argsort(np.array(keys, dtype=np.uint64), kind="stable")
        found = directions(table, self.embedding, domain, len(labels))
        sizes = np.bincount(domain, minlength=len(labels))
        return chain(found, sizes, 1.0 if self.arrange == "similar" else -1.0)


def directions(table: pa.Table, name: str, domain: Rows, count: int) -> Floats:
    """[count, width] the mean direction of each domain, of length 1; NaN where there is none."""
    vectors = Vectors.of(table, name)
    words = id_words(table["id"])
    rows = np.lexsort((words[:, 1], words[:, 0], domain))  # sums must not depend on row order
    rows = rows[vectors.valid[rows]]
    total = np.zeros((count, vectors.width))
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        first = np.flatnonzero(np.diff(domain[part], prepend=-1))
        sums = np.add.reduceat(vectors.unit(part).astype(np.float64), first, axis=0)
        total[domain[part[first]]] += sums
    mean = total / np.maximum(np.bincount(domain[rows], minlength=count), 1)[:, None]
    mean[np.linalg.norm(mean, axis=1) < 1e-6] = 0  # what rounding leaves of a sum that cancels
    return unit(mean)


def chain(directions: Floats, sizes: Rows, sign: float) -> Rows:
    """Domains from the largest on, each the nearest (sign 1) or farthest (-1) of those left."""
    left = ~np.isnan(directions).any(axis=1) & (directions.shape[1] > 0)
    lost = np.flatnonzero(~left)
    order: list[int] = []
    value = sizes.astype(np.float64)
    while left.any():
        order.append(int(np.argmax(np.where(left, value, -np.inf))))
        left[order[-1]] = False
        value = sign * np.round(directions @ directions[order[-1]], 9)
    return np.concatenate([np.array(order, dtype=np.int64), lost])
