"""Greedy picks made lazily: the same picks as the plain loops over all candidates.

    KCentre     argmax_i w_i min_{j picked} distance(i, j)
    Coverage    argmax_j sum_i max(0, sim(i, j) - max_{p picked} sim(i, p)) + bonus_j

Both quantities can only fall as picks are added (the second is submodular), so that an old value is
an upper bound, and only candidates whose bound stands above the best fresh value are looked at
again (Minoux 1978). `more` goes on from where it stopped; it is given the vectors or similarities
anew each time, so that they need not lie in memory between two calls. Equal values go to the
candidate of smaller number. Products are in float32; distances from cosines are rounded to 2^-20,
and gains to five decimals, so that rounding errors do not decide between equals.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Literal

import numpy as np

from foresift.pipeline.vectors import Matrix, Rows
from foresift.stages.selectors._ranking import Floats

Distance = Literal["cosine", "euclidean"]
Picks = tuple[list[int], list[float]]
Enough = Callable[[int], bool]

#: candidates that are kept fresh at every pick
FRONT = 2048
GRID = 2.0**20
#: two documents that only cover each other gain the same, but for rounding errors
DECIMALS = 5
#: a squared distance below this share of the squared lengths is a rounding error
SAME = 1e-6
#: bytes of one block of distances
BLOCK_BYTES = 64 << 20


def distances(a: Matrix, b: Matrix, kind: Distance) -> Matrix:
    """[len(a), len(b)]: 1 - cos for vectors of length 1, or the Euclidean distance of points."""
    product: Matrix = a @ b.T
    if kind == "cosine":
        np.subtract(1, product, out=product)
        product *= np.float32(GRID)
        np.rint(product, out=product)
        product /= np.float32(GRID)
        np.maximum(product, 0, out=product)
        return product
    squares = np.einsum("ij,ij->i", a, a)[:, None] + np.einsum("ij,ij->i", b, b)
    found: Matrix = squares - 2 * product
    found[found <= SAME * squares] = 0
    np.sqrt(found, out=found)
    return found


class KCentre:
    """Weighted k-centre over candidates that stand by weight, largest first."""

    def __init__(self, weight: Floats, distance: Distance) -> None:
        n = len(weight)
        self.weight = weight
        self.distance: Distance = distance
        self.picks: list[int] = []
        self.bound = np.full(n, np.inf)
        """[n] w times the distance to the nearest of the first `seen` picks; -1: picked."""
        self.near = np.full(n, np.inf, dtype=np.float32)
        self.seen = np.zeros(n, dtype=np.int64)

    def more(self, vectors: Matrix, enough: Enough) -> Picks:
        """The next picks and their values, until `enough` of one is true or none is left."""
        start, values = len(self.picks), []
        if not self.picks and len(self.weight):
            values.append(np.inf)
            self._take(0)
        if not values or not enough(0):
            front = _Front(self, vectors)
            while len(self.picks) < len(self.weight):
                pick, value = front.best()
                values.append(value)
                self._take(pick)
                front.add(pick)
                if enough(pick):
                    break
            front.write_back()
        return self.picks[start:], values

    def _take(self, pick: int) -> None:
        self.picks.append(pick)
        self.bound[pick] = -1.0


class _Front:
    """The candidates of largest bound, kept fresh; the others wait until those fall below them."""

    def __init__(self, state: KCentre, vectors: Matrix) -> None:
        self.state, self.vectors = state, vectors
        self.choose()

    def choose(self) -> None:
        """Take the candidates of largest bound and bring them up to date."""
        state = self.state
        self.rows, self.level, self.rival = _largest(state.bound, FRONT)
        self.part = self.vectors if len(self.rows) == len(self.vectors) else None
        if self.part is None:
            self.part = self.vectors[self.rows]
        self.near = state.near[self.rows]
        self.weight = state.weight[self.rows]
        self.gone = state.bound[self.rows] < 0
        missing = state.picks[int(state.seen[self.rows].min(initial=len(state.picks))) :]
        step = max(1, BLOCK_BYTES // (8 * max(1, len(self.rows))))
        for at in range(0, len(missing), step):
            self._look(missing[at : at + step])
        self._value()

    def _look(self, picks: list[int]) -> None:
        assert self.part is not None
        found = distances(self.part, self.vectors[picks], self.state.distance)
        np.minimum(self.near, found.min(axis=1), out=self.near)

    def _value(self) -> None:
        self.value = self.weight * self.near
        self.value[self.gone] = -1.0

    def add(self, pick: int) -> None:
        """Bring the front up to date with one more pick."""
        self.gone[np.searchsorted(self.rows, pick)] = True
        self._look([pick])
        self._value()

    def best(self) -> tuple[int, float]:
        """The candidate of largest value and that value."""
        while True:
            at = int(np.argmax(self.value))
            pick, value = int(self.rows[at]), float(self.value[at])
            if value > self.level or (value == self.level and pick < self.rival):
                return pick, value
            self.write_back()
            self.choose()

    def write_back(self) -> None:
        """Give what is known to the state."""
        state = self.state
        state.near[self.rows], state.bound[self.rows] = self.near, self.value
        state.seen[self.rows] = len(state.picks)


def _largest(values: Floats, count: int) -> tuple[Rows, float, int]:
    """The `count` largest, ascending by number; then the best of the others and its number."""
    n = len(values)
    if n <= count:
        return np.arange(n), -2.0, n
    bar = np.partition(values, n - count)[n - count]
    inside = values > bar
    equal = np.flatnonzero(values == bar)
    inside[equal[: count - int(inside.sum())]] = True
    others = np.where(inside, -2.0, values)
    rival = int(np.argmax(others))
    return np.flatnonzero(inside), float(others[rival]), rival


class Similar:
    """For each candidate the rows that it is similar to, and how much."""

    def __init__(self, similarity: Matrix, neighbour: Rows | None = None) -> None:
        """All of [n, n]; or [n, K] where `neighbour` gives the number of each (-1: none).

        A row is similar to itself by 1 and to others by max(0, similarity).
        """
        n = len(similarity)
        self.full = np.maximum(similarity, 0) if neighbour is None else None
        if self.full is not None:
            np.fill_diagonal(self.full, 1)
        if neighbour is None:
            return
        own = np.arange(n, dtype=np.int32)
        which = (neighbour >= 0) & (similarity > 0)
        rows = np.concatenate([own, np.nonzero(which)[0].astype(np.int32)])
        columns = np.concatenate([own, neighbour[which].astype(np.int32)])
        values = np.concatenate([np.ones(n, dtype=np.float32), similarity[which]])
        narrow = columns.astype(np.uint16) if n <= 1 << 16 else columns  # a radix sort
        order = np.argsort(narrow, kind="stable")
        self.rows, self.values = rows[order], values[order]
        self.bounds = np.searchsorted(columns[order], np.arange(n + 1)).tolist()

    def gain(self, candidate: int, best: Matrix) -> float:
        """What a candidate adds to the sum of the rows' best similarities."""
        if self.full is not None:
            more = self.full[candidate] - best
        else:
            part = slice(self.bounds[candidate], self.bounds[candidate + 1])
            more = self.values[part] - best[self.rows[part]]
        return round(float(np.maximum(more, 0, out=more).sum(dtype=np.float64)), DECIMALS)

    def add(self, candidate: int, best: Matrix) -> None:
        """Raise the best similarities to those of a candidate."""
        if self.full is not None:
            np.maximum(best, self.full[candidate], out=best)
            return
        part = slice(self.bounds[candidate], self.bounds[candidate + 1])
        rows = self.rows[part]
        best[rows] = np.maximum(best[rows], self.values[part])


class Coverage:
    """Facility location over n rows that are all candidates."""

    def __init__(self, bonus: Floats) -> None:
        n = len(bonus)
        self.bonus = bonus
        self.best = np.zeros(n, dtype=np.float32)
        """[n] similarity to the most similar pick."""
        self.bound = np.full(n, np.inf)
        self.seen = np.full(n, -1, dtype=np.int64)
        self.picks: list[int] = []
        self.gone = np.zeros(n, dtype=np.bool_)

    def more(
        self, similar: Similar, enough: Enough, sample: Callable[[int], Rows] | None = None
    ) -> Picks:
        """The next picks and their gains; `sample` gives the candidates looked at for pick i."""
        start, values = len(self.picks), []
        heap = [(-float(self.bound[i]), int(i)) for i in np.flatnonzero(~self.gone)]
        heapq.heapify(heap)
        while len(self.picks) < len(self.gone):
            if sample is not None:
                some = sample(len(self.picks))
                some = some[~self.gone[some]]
                if not len(some):
                    some = np.flatnonzero(~self.gone)
                heap = [(-float(self.bound[i]), int(i)) for i in some]
                heapq.heapify(heap)
            pick = self._next(heap, similar)
            values.append(float(self.bound[pick]))
            self.gone[pick] = True
            self.picks.append(pick)
            similar.add(pick, self.best)
            if enough(pick):
                break
        return self.picks[start:], values

    def _next(self, heap: list[tuple[float, int]], similar: Similar) -> int:
        """The candidate of largest gain in the heap, taken from it."""
        now = len(self.picks)
        while True:
            pick = heap[0][1]
            if self.seen[pick] == now:
                heapq.heappop(heap)
                return pick
            self.bound[pick] = similar.gain(pick, self.best) + self.bonus[pick]
            self.seen[pick] = now
            heapq.heapreplace(heap, (-float(self.bound[pick]), pick))
