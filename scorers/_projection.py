"""A random projection of gradients that keeps their dot products, and is never stored.

    projected = S g / sqrt(k)      S [k, P] of signs +1 and -1      E <S a, S b> / k = <a, b>

Var <S a, S b> / k = (|a|^2 |b|^2 + <a, b>^2 - 2 sum_p a_p^2 b_p^2) / k, so the error of a cosine is
about 1 / sqrt(k) whatever P is (Johnson-Lindenstrauss).

The signs of coordinate p are the bits of 64-bit words, lowest first. Word j of p is output number
p W + j of the SplitMix64 generator that starts at a mix of the seed, with W = ceil(k / 64): any
block of S can be made at any time, on any device, and is the same whatever the block. A block is
held while all rows are multiplied with it, so it pays to project many rows at once.

Cost: P W words of 64 bits, about ten operations each, once for all rows; 2 k P operations a row.
Memory: one block of signs (BLOCK numbers).
Sources: Achlioptas 2003 (signs); Steele, Lea and Flood 2014 (SplitMix64); LESS (Xia et al. 2024)
and TRAK (Park et al. 2023) for gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

#: signs in one block
BLOCK = {"cpu": 1 << 22, "cuda": 1 << 26}
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """The same 64 bits as torch's int64 holds them."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_GOLDEN, _FIRST, _SECOND = (
    _signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The SplitMix64 finaliser of int64 words (products wrap around)."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, by: int) -> torch.Tensor:
    """x >> by with zeros from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)


@dataclass(frozen=True)
class Projection:
    """Random signs for gradients of any length; `Projection(k, seed)(rows)`."""

    dimension: int
    """k, of the result."""
    seed: int = 0

    def __call__(self, rows: torch.Tensor, block: int = 0) -> torch.Tensor:
        """[n, k] the rows of [n, P] projected; `block` coordinates at a time changes speed only."""
        size = block or max(1, BLOCK[rows.device.type] // self.dimension)
        total = rows.new_zeros(len(rows), self.dimension, dtype=torch.float64)
        for start, stop in _blocks(rows.shape[1], size):
            total += rows[:, start:stop] @ self.signs(start, stop, rows)
        return (total / math.sqrt(self.dimension)).to(rows.dtype)

    def signs(self, start: int, stop: int, like: torch.Tensor) -> torch.Tensor:
        """[stop - start, k] the signs of some coordinates, of the type and on the device of `like`.

        A byte is looked up in a table of its eight signs.
        """
        words = -(-self.dimension // 64)
        key = _mix(torch.tensor([_signed(self.seed)], device=like.device))
        numbers = torch.arange(start * words + 1, stop * words + 1, device=like.device)
        mixed = _mix(key + numbers * _GOLDEN).view(stop - start, words)
        octets = mixed.view(torch.uint8).int()
        bits = torch.arange(256, device=like.device)[:, None] >> torch.arange(8, device=like.device)
        table = ((bits & 1) * 2 - 1).to(like.dtype)
        found: torch.Tensor = torch.nn.functional.embedding(octets, table).flatten(1)
        return found[:, : self.dimension]


def _blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, size):
        yield start, min(start + size, count)


def kernel_solve(features: torch.Tensor, targets: torch.Tensor, ridge: float) -> torch.Tensor:
    """[R, k] (F'F / n + l I)^-1 applied to each row of targets [R, k], in float64.

    F is [n, k] and l = ridge * mean eigenvalue of F'F / n. With fewer documents than dimensions
    the inverse is taken of F F' instead: it costs min(n, k)^3.
    """
    f, t = features.double(), targets.double()
    n, k = f.shape
    shift = ridge * float(f.square().sum()) / (n * k)
    if n >= k:
        kernel = f.T @ f / n + shift * torch.eye(k, dtype=f.dtype, device=f.device)
        return _solve(kernel, t.T).T
    kernel = f @ f.T / n + shift * torch.eye(n, dtype=f.dtype, device=f.device)
    return (t - _solve(kernel, f @ t.T).T @ f / n) / shift


def _solve(kernel: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_solve(right, torch.linalg.cholesky(kernel))
