"""Dot products and norms of per-sample matrices that are given as sums of outer products.

    G = sum_t rows_t (x) columns_t                    [m, n] for each sample, never held for all
    <G, U>   = sum_t rows_t' U columns_t                                        T m n
    <G, G'>  = sum_ts (rows_t . rows'_s) (columns_t . columns'_s)               T S (m + n)

Token ids as rows stand for unit vectors: rows_t' U is then a look-up, and rows_t . rows'_s is
[i_t = i_s], or an element of rows'_s. A tied matrix is the sum of its uses, so its squared norm
has the cross terms 2 <G_embedding, G_head>. Where T^2 > m n the matrices themselves are smaller
than the Gram matrices and are formed, a few samples at a time; with several directions too, since
then T m n + D m n beats D T m n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from foresift.pipeline.lm.gradients.samples import wide

#: elements of the largest intermediate array
LIMIT = 1 << 24


@dataclass(frozen=True)
class Outer:
    """A matrix for each sample, as a sum of outer products over the positions."""

    rows: torch.Tensor
    """[B, T, m], or [B, T] ids of unit vectors."""
    columns: torch.Tensor
    """[B, T, n]"""

    def __getitem__(self, part: slice) -> Outer:
        return Outer(self.rows[part], self.columns[part])


#: a sum of outer products, or the gradient of a vector itself: [B, n]
Term = Outer | torch.Tensor


def exact(term: Term) -> Term:
    """The term in the precision that sums are taken in."""
    if isinstance(term, torch.Tensor):
        return wide(term)
    rows = wide(term.rows) if term.rows.is_floating_point() else term.rows
    return Outer(rows, wide(term.columns))


def dots(term: Term, directions: Sequence[torch.Tensor]) -> torch.Tensor:
    """[B, D] dot product of each sample's gradient with each direction."""
    if isinstance(term, torch.Tensor):
        return term @ torch.stack(list(directions)).to(term).T
    shaped = [u.to(term.columns) for u in directions]
    if len(shaped) > 1 and term.rows.is_floating_point():
        flat = torch.stack(shaped).flatten(1).T
        parts = _parts(len(term.columns), len(flat))
        return torch.cat([_matrix(term[p], shaped[0].shape).flatten(1) @ flat for p in parts])
    return torch.stack([_through(term, u) for u in shaped], 1)


def _through(term: Outer, direction: torch.Tensor) -> torch.Tensor:
    if term.rows.is_floating_point():
        return ((term.rows @ direction) * term.columns).sum((1, 2))
    return (direction[term.rows] * term.columns).sum((1, 2))


def squares(terms: Sequence[Term], shape: torch.Size) -> torch.Tensor:
    """[B] squared norm of each sample's gradient of one parameter: the sum of all its terms."""
    flat = [t for t in terms if isinstance(t, torch.Tensor)]
    if flat:
        return torch.stack(flat).sum(0).square().sum(1)
    outers = [t for t in terms if isinstance(t, Outer)]
    positions = sum(t.columns.shape[1] for t in outers)
    formed = positions**2 > shape.numel()
    size = shape.numel() if formed else max(t.columns.shape[1] for t in outers) ** 2
    found = []
    for part in _parts(len(outers[0].columns), size):
        here = [t[part] for t in outers]
        if formed:
            found.append(torch.stack([_matrix(t, shape) for t in here]).sum(0).square().sum((1, 2)))
        else:
            found.append(_pairs(here))
    return torch.cat(found)


def _pairs(terms: Sequence[Outer]) -> torch.Tensor:
    """[B] squared norm of a sum: each term with itself, and twice each pair."""
    total = terms[0].columns.new_zeros(len(terms[0].columns))
    for i, a in enumerate(terms):
        total = total + inner(a, a)
        for b in terms[i + 1 :]:
            total = total + 2 * inner(a, b)
    return total


def inner(a: Outer, b: Outer) -> torch.Tensor:
    """[B] dot product of two terms' matrices, through their Gram matrices."""
    return (_gram(a.rows, b.rows) * (a.columns @ b.columns.mT)).sum((1, 2))


def _gram(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[B, T, S] dot products of rows; ids are unit vectors."""
    if a.is_floating_point() and b.is_floating_point():
        return a @ b.mT
    if a.is_floating_point():
        return _gram(b, a).mT
    if b.is_floating_point():
        return b.gather(2, a[:, None, :].expand(-1, b.shape[1], -1)).mT
    return a[:, :, None] == b[:, None, :]


def _matrix(term: Outer, shape: torch.Size) -> torch.Tensor:
    """[B, m, n] the matrices themselves."""
    if term.rows.is_floating_point():
        return term.rows.mT @ term.columns
    places = term.rows[:, :, None].expand_as(term.columns)
    zeros = term.columns.new_zeros(len(term.columns), *shape)
    return zeros.scatter_add(1, places, term.columns)


def _parts(count: int, size: int) -> Iterator[slice]:
    step = max(1, LIMIT // size)
    for start in range(0, count, step):
        yield slice(start, start + step)
