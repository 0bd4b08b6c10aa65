"""Smaller forget sets: clusters of near copies, the MU-coreset, and the worst case.

    cluster    documents joined through "is a copy of" (Resolved.rows, `of`), numbered by their
               smallest id
    coreset    m = ceil(share n) of the n documents, every n/m-th of the list by (cluster, draw)
               from a random start: clusters are represented in proportion; weight n / m each
    worst      without losses the documents with most rows and copies in the run; with losses (of
               the *unlearned* model) those whose loss stayed lowest: one outer round of
               w <- project(w - rate (loss + 2 gamma w), m) from w = m / n over clusters, because
               a near copy of a chosen document that is not forgotten makes it trivially hard

A coreset of 5 % can stand for the whole only where documents share what is to be forgotten:
independent secrets (a number each) cannot be covered by others.

Sources: MU-Coreset; Fan et al. 2024 (worst-case forget sets). Cost: O(n log n).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foresift.pipeline.rng import Rng
from foresift.stages.forget._rows import Row

Floats = npt.NDArray[np.float64]


def clusters(ids: Sequence[bytes], pairs: Sequence[tuple[bytes, bytes]]) -> dict[bytes, int]:
    """The cluster of each document, numbered in the order of their smallest ids."""
    root = {id_: id_ for id_ in ids}

    def find(id_: bytes) -> bytes:
        root.setdefault(id_, id_)
        while root[id_] != id_:
            root[id_] = root[root[id_]]
            id_ = root[id_]
        return id_

    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        root[high] = low
    number: dict[bytes, int] = {}
    return {id_: number.setdefault(find(id_), len(number)) for id_ in sorted(ids)}


def coreset(
    rows: Sequence[Row], cluster: Mapping[bytes, int], draws: Mapping[bytes, float],
    share: float, rng: Rng,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of the set `coreset`, by id."""
    if not rows:
        return []
    n = len(rows)
    m = max(1, math.ceil(share * n - 1e-9))
    listed = sorted(rows, key=lambda r: (cluster[r.id], draws[r.id], r.id))
    start = float(rng.generator().random())
    chosen = [listed[int((k + start) * n / m)] for k in range(m)]
    return [row.json(weight=n / m) for row in sorted(chosen, key=lambda r: r.id)]


def worst_case(
    rows: Sequence[Row], cluster: Mapping[bytes, int], copies: Mapping[bytes, int],
    share: float, losses: Mapping[bytes, float] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of the set `worst_case`, the worst first; whole clusters where losses are given."""
    m = max(1, math.ceil(share * len(rows) - 1e-9)) if rows else 0
    if losses is None:
        sizes: dict[int, int] = {}
        for row in rows:
            sizes[cluster[row.id]] = sizes.get(cluster[row.id], 0) + copies[row.id]
        ranked = sorted(rows, key=lambda r: (-sizes[cluster[r.id]], cluster[r.id], r.id))
        return [row.json(copies=sizes[cluster[row.id]]) for row in ranked[:m]]
    weight = worst_weights(rows, cluster, losses, m)
    ranked = sorted(rows, key=lambda r: (-weight[cluster[r.id]], cluster[r.id], r.id))
    return [row.json(w=float(weight[cluster[row.id]])) for row in ranked[:m]]


def worst_weights(
    rows: Sequence[Row], cluster: Mapping[bytes, int], losses: Mapping[bytes, float], m: int,
    rate: float = 1.0, gamma: float = 0.0,
) -> Floats:  # fmt: skip
    """[clusters] the selection after one outer round; clusters without a loss count as average."""
    number = 1 + max((cluster[row.id] for row in rows), default=-1)
    total, count = np.zeros(number), np.zeros(number)
    for row in rows:
        if row.id in losses:
            total[cluster[row.id]] += losses[row.id]
            count[cluster[row.id]] += 1
    known = count > 0
    mean = np.divide(total, count, where=known, out=np.zeros(number))
    mean[~known] = mean[known].mean() if known.any() else 0.0
    from foresift.pipeline.unlearn.worst_case import project

    m = min(m, number)
    w = np.full(number, m / number)
    return project(w - rate * (mean + 2 * gamma * w), m)[0]
