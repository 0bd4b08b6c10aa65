"""Directional loss differences: dot products with a gradient that is never computed.

The derivative of a document's mean NLL l(x; theta) along a direction d is <d, grad l(x; theta)>,
and it is two plain forwards away:

    central   (l(x; theta + e d) - l(x; theta - e d)) / 2e      error O(e^2)
    forward   (l(x; theta + e d) - l(x; theta)) / e             error O(e), one forward where the
                                                                loss is in the pass already

for any attention kernel and any precision. The step e is relative: |e d| = r |theta|. Too small an
r drowns in rounding, too large an r bends; `choose_step` tries a few on a sample and takes the one
whose forward and central slopes agree best with those of its neighbours.

Slopes are in nats per token per unit of d. Cost: 2 P T a forward (P parameters, T tokens), P extra
numbers of memory.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.forward import compute
from foresift.pipeline.lm.gradients.samples import Direction, norm, trainable
from foresift.pipeline.lm.model import Loaded
from foresift.pipeline.lm.signals import Signals

Floats = npt.NDArray[np.float64]
#: relative steps that are tried, by the precision of the weights
STEPS = {torch.float32: (1e-4, 3e-4, 1e-3), torch.float64: (1e-6, 1e-5, 1e-4)}
COARSE = (1e-3, 3e-3, 1e-2)
#: share of the slopes' spread that the step's error may have
TOLERANCE = 0.1


@dataclass(frozen=True)
class Step:
    """How far to go along a direction."""

    relative: float
    """r = |e d| / |theta|."""
    size: float
    """e."""
    central: bool
    error: float
    """Root mean squared disagreement with the neighbouring steps, in standard deviations."""

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def step_size(model: Any, direction: Direction, relative: float) -> float:
    """e with |e d| = r |theta|."""
    length = norm(direction)
    if not (np.isfinite(length) and length > 0):
        raise ModelError(f"a direction of length {length} leads nowhere", where="direction")
    return relative * norm(trainable(model)) / length


@contextlib.contextmanager
def shifted(model: Any, direction: Direction, size: float) -> Iterator[None]:
    """The model at theta + size * d; the weights are put back bit for bit.

    Written past autograd, so that a graph that was made before can still be gone back afterwards.
    """
    parameters = {n: p for n, p in trainable(model).items() if n in direction}
    before = {n: p.detach().clone() for n, p in parameters.items()}
    try:
        with torch.no_grad():
            for name, p in parameters.items():
                d = direction[name].to(p.device)
                wide = torch.promote_types(p.dtype, d.dtype)
                p.data.copy_(before[name].to(wide) + size * d.to(wide))
        yield
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.data.copy_(before[name])


def losses(encoded: Encoded, loaded: Loaded, batch_tokens: int = 0) -> Floats:
    """[n] mean NLL of each document over its counted tokens; NaN where there are none."""
    return means(compute(encoded, loaded, ("nll",), batch_tokens))


def means(found: Signals) -> Floats:
    """[n] mean NLL in float64 (a difference of losses is smaller than what float32 rounds off)."""
    counts = found.counts
    out = np.full(len(counts), np.nan)
    np.divide(found.sum("nll"), counts, out=out, where=counts > 0)
    return out


def slopes(
    encoded: Encoded,
    loaded: Loaded,
    direction: Direction,
    step: Step,
    base: Floats | None = None,
    batch_tokens: int = 0,
) -> Floats:
    """[n] <d, grad l(x)> of each document; `base` holds l(x; theta) where it is known already."""
    with shifted(loaded.model, direction, step.size):
        ahead = losses(encoded, loaded, batch_tokens)
    if not step.central:
        base = losses(encoded, loaded, batch_tokens) if base is None else base
        return (ahead - base) / step.size
    with shifted(loaded.model, direction, -step.size):
        behind = losses(encoded, loaded, batch_tokens)
    return (ahead - behind) / (2 * step.size)


def choose_step(
    encoded: Encoded,
    loaded: Loaded,
    direction: Direction,
    *,
    central: bool | None = None,
    batch_tokens: int = 0,
) -> Step:
    """The step whose slopes are the most trustworthy on a sample of documents.

    The true slopes are taken to be the central ones of the step that agrees best with the next
    larger one. A forward difference is chosen where it is within TOLERANCE of them (or asked for),
    else a central one. Cost: 7 forwards over the sample.
    """
    dtype = next(iter(trainable(loaded.model).values())).dtype
    grid = STEPS.get(dtype, COARSE)
    sizes = [step_size(loaded.model, direction, r) for r in grid]
    base = losses(encoded, loaded, batch_tokens)
    if not np.isfinite(base).any():
        raise DataError(
            f"none of {len(base)} documents of the pool has a finite loss: nothing to settle the "
            "step of the loss differences on",
            where="probing",
        )
    ahead: list[Floats] = []
    behind: list[Floats] = []
    for size in sizes:
        for sign, into in ((1, ahead), (-1, behind)):
            with shifted(loaded.model, direction, sign * size):
                into.append(losses(encoded, loaded, batch_tokens))
    middle = [(a - b) / (2 * e) for a, b, e in zip(ahead, behind, sizes, strict=True)]
    spread = float(np.nanstd(middle[1])) or 1.0
    gaps = [_rms(x - y) / spread for x, y in itertools.pairwise(middle)]
    best = int(np.argmin(gaps))
    truth = middle[best]
    one = [_rms((a - base) / e - truth) / spread for a, e in zip(ahead, sizes, strict=True)]
    nearest = int(np.argmin(one))
    if central is False or (central is None and one[nearest] <= TOLERANCE):
        return Step(grid[nearest], sizes[nearest], False, one[nearest])
    return Step(grid[best], sizes[best], True, gaps[best])


def _rms(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(finite)))) if len(finite) else float("inf")


def sample(encoded: Encoded, rows: Sequence[int] | npt.NDArray[np.int64]) -> Encoded:
    """Some documents of an encoded table."""
    lengths = encoded.lengths[rows]
    pieces = [slice(int(encoded.offsets[i]), int(encoded.offsets[i + 1])) for i in rows]
    return Encoded(
        ids=np.concatenate([encoded.ids[p] for p in pieces] or [encoded.ids[:0]]),
        counts=np.concatenate([encoded.counts[p] for p in pieces] or [encoded.counts[:0]]),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        cut=encoded.cut[rows],
    )
