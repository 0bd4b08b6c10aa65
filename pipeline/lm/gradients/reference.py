"""The loss of a model on a reference set, and its gradient.

With S_i the summed NLL and c_i the counted tokens of reference document i, every reduction is a
weighted sum J = sum_i w_i S_i (nats per token):

    sample_mean                w_i = 1 / (n c_i)                    every document counts the same
    token_mean                 w_i = 1 / sum_j c_j                  every token counts the same
    batch_mean_of_token_mean   w_i = 1 / (B sum_{j in batch} c_j)   B batches of `batch` documents

The third is MATES's definition (batches in the order given). Several references are joined by
their weights: J = sum_r weight_r J_r, so one gradient serves them all. Documents without a counted
token have weight 0.

Cost: 2 P T for a loss, 6 P T for a gradient (P parameters, T tokens). Sources: MATES (Yu, Das,
Xiong 2024), oracle influence; core definitions as in `evaluate.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.batches import batches
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.forward import compute
from foresift.pipeline.lm.gradients.samples import sum_losses, trainable
from foresift.pipeline.lm.model import Loaded
from foresift.pipeline.lm.signals import segment_sums

Reduction = Literal["sample_mean", "token_mean", "batch_mean_of_token_mean"]
Floats = npt.NDArray[np.float64]
#: documents in a batch of `batch_mean_of_token_mean`
BATCH = 32
#: tokens in one forward and backward, padding included
BACKWARD_TOKENS = {"cpu": 2048, "cuda": 16384}


@dataclass(frozen=True)
class ReferenceSet:
    """Encoded documents with the weights that make their loss."""

    encoded: Encoded
    weights: Floats
    """[n] weight of each document's summed NLL."""
    name: str = "reference"

    @property
    def tokens(self) -> int:
        return len(self.encoded.ids)


def reference_set(
    encoded: Encoded, reduction: Reduction = "token_mean", name: str = "reference"
) -> ReferenceSet:
    """Weigh the documents of a reference; a DataError where nothing in it counts."""
    counts = segment_sums(encoded.counts, encoded.offsets)
    if np.count_nonzero(counts) < 2:
        raise DataError(
            f"{np.count_nonzero(counts)} of its {len(counts)} documents have a token to predict; "
            "a reference needs at least 2",
            where=name,
        )
    return ReferenceSet(encoded, document_weights(counts, reduction), name)


def document_weights(counts: Floats, reduction: Reduction, batch: int = BATCH) -> Floats:
    """[n] the weights w_i of the reduction, from the counted tokens of each document."""
    some = counts > 0
    weights: Floats
    if reduction == "token_mean":
        weights = some / counts.sum()
    elif reduction == "sample_mean":
        weights = some / np.maximum(counts, 1) / some.sum()
    else:
        groups = np.arange(len(counts)) // batch
        sums = np.bincount(groups, weights=counts)
        weights = some / np.maximum(sums[groups], 1) / np.count_nonzero(sums)
    return weights


def loss(reference: ReferenceSet, loaded: Loaded, batch_tokens: int = 0) -> float:
    """J under the model as it is now (nats per token)."""
    nll = compute(reference.encoded, loaded, ("nll",), batch_tokens).sum("nll")
    return float(nll @ reference.weights)


def gradient(
    reference: ReferenceSet, loaded: Loaded, batch_tokens: int = 0
) -> tuple[float, dict[str, torch.Tensor]]:
    """J and its gradient by parameter name, in float32 at least.

    A DataError where either is not finite, or the gradient is zero: it would rank nothing.
    """
    model, device = loaded.model, loaded.device
    parameters = trainable(model)
    total = {n: torch.zeros_like(p, dtype=_wide(p)) for n, p in parameters.items()}
    size = batch_tokens or BACKWARD_TOKENS["cpu" if device == "cpu" else "cuda"]
    value = 0.0
    weights = torch.from_numpy(reference.weights).to(device)
    for batch in batches(reference.encoded, np.flatnonzero(reference.weights), size):
        sums = sum_losses(model, batch)
        part = (sums * weights[torch.from_numpy(batch.documents)].to(sums.dtype)).sum()
        found = torch.autograd.grad(part, list(parameters.values()), allow_unused=True)
        for name, g in zip(parameters, found, strict=True):
            if g is not None:
                total[name] += g
        value += float(part.detach())
    _check(value, total, reference.name)
    return value, total


def _check(value: float, found: dict[str, torch.Tensor], name: str) -> None:
    squared = sum(float(g.double().square().sum()) for g in found.values())
    if not np.isfinite(value) or not np.isfinite(squared):
        raise DataError(
            f"the model's loss on it is {value:.4g} and its gradient is not finite; "
            "the model is broken or its precision too low",
            where=name,
        )
    if squared == 0:
        raise DataError("the gradient of the loss on it is zero: it ranks nothing", where=name)


def _wide(p: Any) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)


def combined(
    gradients: Sequence[tuple[dict[str, torch.Tensor], float]],
) -> dict[str, torch.Tensor]:
    """The weighted sum of several references' gradients."""
    out = {n: torch.zeros_like(g) for n, g in gradients[0][0].items()}
    for each, weight in gradients:
        for name, g in each.items():
            out[name] += weight * g
    return out
