"""What similarities of gradients are made of, at one checkpoint.

    g        gradient of a document's mean NLL, over the trainable parameters
    adam     (b1 m + (1 - b1) g) / sqrt(b2 v + (1 - b2) g^2 + eps)            LESS's released code
             (b1 m + (1 - b1) g) / (1 - b1^s) / (sqrt((b2 v + (1 - b2) g^2) / (1 - b2^s)) + eps)
                                                                              Adam's own step s

    feature  S adam for less, S g for trak (see `gradient_similarity.py`), g otherwise

A direction or a feature is a row [P] over the parameters in the model's order, or [k] projected.
Dot products with directions and norms come from the ghost identities, a batch in one forward and
backward; features that are no linear function of g need g itself, one document in a backward.

Memory: `sample_gradients` holds at most NUMBERS numbers, or one gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.batches import Integers, batches
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.gradients import reference as references
from foresift.pipeline.lm.gradients.adamw import Moments
from foresift.pipeline.lm.gradients.ghost import ghost
from foresift.pipeline.lm.gradients.samples import Parameters, sample_losses, trainable
from foresift.pipeline.lm.model import Loaded
from foresift.pipeline.lm.signals import segment_sums
from foresift.scorers._projection import Projection, kernel_solve

Variant = Literal["less", "tracin", "cosin", "grad_dot", "trak"]
Floats = npt.NDArray[np.float64]
EPS = 1e-8
#: numbers and documents in one block of per-sample gradients
NUMBERS, DOCUMENTS = {"cpu": 1 << 26, "cuda": 1 << 29}, 64


@dataclass(frozen=True)
class Adam:
    """The step that Adam would take on a gradient, less the learning rate."""

    first: torch.Tensor
    second: torch.Tensor
    """[P] the moments before it."""
    steps: int
    betas: tuple[float, float]
    compat: bool

    @classmethod
    def of(cls, model: Any, moments: Moments, betas: tuple[float, float], compat: bool) -> Adam:
        """From moments by parameter name."""
        names = list(trainable(model))
        first, second = (
            torch.cat([m[n].flatten() for n in names]) for m in (moments.first, moments.second)
        )
        return cls(first, second, moments.steps, betas, compat)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, P] features of gradients [n, P]."""
        b1, b2 = self.betas
        m = b1 * self.first.to(rows) + (1 - b1) * rows
        v = b2 * self.second.to(rows) + (1 - b2) * rows.square()
        if self.compat:
            return m / (v + EPS).sqrt()
        s = self.steps + 1
        return m / (1 - b1**s) / ((v / (1 - b2**s)).sqrt() + EPS)


@dataclass(frozen=True)
class Similarity:
    """A variant: the mean feature of a reference, and its product with those of documents."""

    variant: Variant
    project: Projection | None = None
    """Of less and trak."""
    ridge: float = 0.01
    """Of trak."""

    @property
    def formed(self) -> bool:
        """Whether gradients are formed a document at a time."""
        return self.variant in ("less", "trak")

    def aim(self, encoded: Encoded, loaded: Loaded, name: str) -> torch.Tensor:
        """The mean feature of a reference: plain gradients, whatever those of the pool are."""
        if not self.formed:
            return mean_gradient(encoded, loaded, name, normalised=self.variant == "cosin")
        total, number = torch.zeros(1), 0
        for _, losses, found in self.features(encoded, loaded):
            norms = found.norm(dim=1, keepdim=True)
            by = norms if self.variant == "less" else doubt(losses)
            total = total.to(found) + torch.where(norms > 0, found / by, 0.0).sum(0)
            number += int((norms > 0).sum())
        if not number or not total.isfinite().all():
            raise DataError("its gradients are zero or not finite: they rank nothing", where=name)
        return total / number

    def whiten(self, rows: torch.Tensor, pool: Encoded, loaded: Loaded) -> torch.Tensor:
        """The mean features of trak's references, multiplied with the inverse kernel of the pool.

        The sign of phi is dropped here as in `aim`: it occurs twice.
        """
        blocks = self.features(pool, loaded)
        phi = torch.cat([found / doubt(losses) for _, losses, found in blocks])
        return kernel_solve(phi, rows, self.ridge).to(rows.dtype)

    def features(
        self, encoded: Encoded, loaded: Loaded, adam: Adam | None = None
    ) -> Iterator[tuple[Integers, torch.Tensor, torch.Tensor]]:
        """(documents, losses, features) a block at a time: gradients or Adam's steps, projected."""
        for rows, losses, found in sample_gradients(encoded, loaded, counted(encoded)):
            feature = adam(found) if adam else found
            yield rows, losses, self.project(feature) if self.project else feature

    def values(
        self, encoded: Encoded, loaded: Loaded, adam: Adam | None, aims: torch.Tensor
    ) -> Floats:
        """[n, R] similarity with each reference; NaN where a document has none."""
        if not self.formed:
            dots, norms = products(encoded, loaded, aims, norms=self.variant == "cosin")
            return _divided(dots, norms) if self.variant == "cosin" else dots
        found = np.full((len(encoded), len(aims)), np.nan)
        for rows, _, feature in self.features(encoded, loaded, adam):
            dots = (feature @ aims.to(feature).T).double().cpu().numpy()
            norms = feature.norm(dim=1).double().cpu().numpy()
            found[rows] = _divided(dots, norms) if self.variant == "less" else dots
        return found


def doubt(losses: torch.Tensor) -> torch.Tensor:
    """[n, 1] 1 - exp(-nll): how far a document is from being predicted for certain."""
    return -torch.expm1(-losses.double().clamp_min(1e-6)).to(losses)[:, None]


def _divided(dots: Floats, norms: Floats) -> Floats:
    """Dot products over norms; NaN where a norm is zero."""
    out = np.full(dots.shape, np.nan)
    np.divide(dots, norms[:, None], out=out, where=norms[:, None] > 0)
    return out


def counted(encoded: Encoded) -> Integers:
    """The documents that have a token to predict."""
    found: Integers = np.flatnonzero(segment_sums(encoded.counts, encoded.offsets))
    return found


def sample_gradients(
    encoded: Encoded, loaded: Loaded, rows: Integers
) -> Iterator[tuple[Integers, torch.Tensor, torch.Tensor]]:
    """(documents, their mean NLL [n], their gradients [n, P]), a block at a time.

    Each document is alone in its forward, so its gradient does not depend on the others.
    """
    parameters = list(trainable(loaded.model).values())
    width = sum(p.numel() for p in parameters)
    kind = torch.promote_types(parameters[0].dtype, torch.float32)
    numbers = NUMBERS["cpu" if loaded.device == "cpu" else "cuda"]
    size = max(1, min(DOCUMENTS, numbers // width))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        gradients = torch.empty(len(block), width, dtype=kind, device=parameters[0].device)
        losses = [
            _gradient(encoded, loaded.model, parameters, block[k : k + 1], gradients[k])
            for k in range(len(block))
        ]
        yield block, torch.stack(losses), gradients


def _gradient(
    encoded: Encoded, model: Any, parameters: list[torch.Tensor], row: Integers, out: torch.Tensor
) -> torch.Tensor:
    """Write one document's gradient to `out`; its loss."""
    with torch.enable_grad():
        loss = sample_losses(model, next(batches(encoded, row, 1)))[0]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    start = 0
    for p, g in zip(parameters, found, strict=True):
        here = out[start : start + p.numel()]
        here.zero_() if g is None else here.copy_(g.flatten())
        start += p.numel()
    return loss.detach()


def products(
    encoded: Encoded, loaded: Loaded, directions: torch.Tensor, *, norms: bool
) -> tuple[Floats, Floats]:
    """[n, R] dot products with directions [R, P], and [n] norms (NaN unless asked for)."""
    dots = np.full((len(encoded), len(directions)), np.nan)
    lengths = np.full(len(encoded), np.nan)
    size = references.BACKWARD_TOKENS["cpu" if loaded.device == "cpu" else "cuda"]
    named = [unflatten(loaded.model, d) for d in directions.to(loaded.device)]
    for batch in batches(encoded, counted(encoded), size):
        found = ghost(loaded.model, batch, named, norms)
        dots[batch.documents] = found.dots.cpu().numpy()
        if found.squared_norms is not None:
            lengths[batch.documents] = found.squared_norms.clamp_min(0).sqrt().cpu().numpy()
    return dots, lengths


def mean_gradient(
    encoded: Encoded, loaded: Loaded, name: str, *, normalised: bool = False
) -> torch.Tensor:
    """[P] mean of the documents' gradients, each of length 1 where `normalised`."""
    counts = segment_sums(encoded.counts, encoded.offsets)
    weights = references.document_weights(counts, "sample_mean")
    if normalised:
        _, norms = products(encoded, loaded, torch.empty(0, 0), norms=True)
        some = norms > 0
        factors = np.divide(1.0, norms, out=np.zeros(len(norms)), where=some)
        weights = (
            weights * factors * (np.count_nonzero(counts) / max(1, int(np.count_nonzero(some))))
        )
    aim = references.ReferenceSet(encoded, weights, name)
    if not weights.any():
        raise DataError("the gradient of the loss on it is zero: it ranks nothing", where=name)
    return flatten(references.gradient(aim, loaded)[1])


def flatten(direction: Parameters) -> torch.Tensor:
    """[P] a direction as one row."""
    return torch.cat([t.flatten() for t in direction.values()])


def unflatten(model: Any, row: torch.Tensor) -> Parameters:
    """A row [P] as a direction."""
    parameters = trainable(model)
    sizes = [p.numel() for p in parameters.values()]
    if len(row) != sum(sizes):
        raise ModelError(
            f"a direction of {len(row)} numbers for a model with {sum(sizes)} trainable parameters"
        )
    pieces = row.split(sizes)
    return {n: v.view(p.shape) for (n, p), v in zip(parameters.items(), pieces, strict=True)}
