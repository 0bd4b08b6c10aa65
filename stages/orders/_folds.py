"""Ranks and folds, as the score orders share them: which rank stands at which position.

    folded(n, L)        0 L 2L ..., 1 L+1 ..., ..., L-1 2L-1 ...    fold l: the ranks r = l mod L
    zigzagged(n, L)     the same, with the odd folds from high to low
    zoned(n, S, rho)    0 1 2 ... n-1, but in a zone around each inner section boundary the ranks
                        are arranged by a function of the zone's size

A boundary lies at round(n s / S) for s = 1 .. S-1; its zone is the ranks from boundary - w to
boundary + w, the upper end excluded, w = round(rho n). A zone begins no earlier than the one before
it ends, and ends at n. `round` takes a half to the even number, as Python's does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import scores
from foresift.pipeline.tables import id_words

Rows = npt.NDArray[np.int64]


def ranked(table: pa.Table, by: str) -> Rows:
    """Row numbers from low to high score, ties by id; rows without a score (null, NaN) last."""
    words = id_words(table["id"])
    return np.lexsort((words[:, 1], words[:, 0], scores(table, by)))


def folded(n: int, folds: int, first: int = 0) -> Rows:
    """Ranks in folds, each from low to high; the fold of rank `first` stands first."""
    fold = (np.arange(n) - first) % folds
    return np.argsort(fold, kind="stable")


def zigzagged(n: int, folds: int) -> Rows:
    """Ranks in folds, from low to high and from high to low by turns."""
    rank = np.arange(n)
    fold = rank % folds
    return np.lexsort((np.where(fold % 2 == 1, -rank, rank), fold))


def zoned(n: int, sections: int, radius: float, arrange: Callable[[int], Rows]) -> Rows:
    """Ranks from low to high, arranged anew around the inner boundaries of sections."""
    order = np.arange(n)
    done, width = 0, round(n * radius)
    for section in range(1, sections):
        if done == n:
            break
        boundary = round(n * section / sections)
        start, stop = max(boundary - width, done), min(boundary + width, n)
        order[start:stop] = start + arrange(stop - start)
        done = stop
    return order


def check_folds(folds: int) -> None:
    """Refuse a number of folds below 1."""
    if folds < 1:
        raise ValueError("folds must be at least 1")


def check_zones(sections: int, radius: float, folds: int) -> None:
    """Refuse what is no number of sections, no share of rows or no number of folds."""
    check_folds(folds)
    if sections < 1:
        raise ValueError("sections must be at least 1")
    if not 0 <= radius <= 0.5:
        raise ValueError("radius is a share of the rows, from 0 to 0.5")
