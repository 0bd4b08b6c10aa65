"""Exact probes of K documents at a time, tried against the loop, for benchmarks/influence.py.

    gradients    K documents, one pass of vmap(grad)
    updates      AdamW on tensors with K rows
    reference    its loss under the K parameter sets, one vmap of functional calls a batch

Same operations as `probes.exact`, other order; it holds K times the parameters and needs eager
attention. Whether that is faster depends on how well one parameter set fills the processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.func import functional_call, vmap

from foresift.pipeline.lm.batches import Batch, batches
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.gradients.adamw import AdamW, Moments, update
from foresift.pipeline.lm.gradients.oracle import vmap_gradients
from foresift.pipeline.lm.gradients.reference import ReferenceSet, loss
from foresift.pipeline.lm.gradients.samples import Parameters, trainable
from foresift.pipeline.lm.model import Loaded

Floats = npt.NDArray[np.float64]


def exact(
    aim: ReferenceSet, encoded: Encoded, loaded: Loaded, rule: AdamW, moments: Moments, size: int,
    batch_tokens: int = 2048,
) -> Floats:  # fmt: skip
    """[n] as `probes.exact`, `size` documents at a time; the model must have eager attention.

    A reference batch holds `batch_tokens` tokens over all parameter sets together.
    """
    found, before = np.full(len(encoded), np.nan), loss(aim, loaded)
    order = np.argsort(-encoded.lengths, kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batch = next(batches(encoded, rows, 1 << 30))
        moved = _moved(loaded.model, batch, rule, moments)
        share = max(1, batch_tokens // len(rows))
        found[batch.documents] = before - _losses(aim, loaded, moved, len(rows), share)
    return found


@torch.no_grad()
def _moved(model: Any, batch: Batch, rule: AdamW, moments: Moments) -> Parameters:
    """[K, *shape] the parameters after one step on each document."""
    gradients = vmap_gradients(model, batch)
    squares = [g.double().flatten(1).square().sum(1) for g in gradients.values()]
    norms = torch.stack(squares).sum(0).sqrt()
    factors = (rule.clip / norms).clamp_max(1.0).float() if rule.clip else torch.ones(len(norms))
    out = {}
    for name, p in trainable(model).items():
        g = gradients[name] * factors.view(-1, *[1] * p.dim())
        first, second = moments.first[name], moments.second[name]
        out[name] = update(p, g, first, second, moments.steps, rule, decay=p.dim() >= 2)
    return out


@torch.no_grad()
def _losses(
    aim: ReferenceSet, loaded: Loaded, moved: Parameters, size: int, batch_tokens: int
) -> Floats:
    """[K] the reference loss under each parameter set."""
    total = np.zeros(size)
    for batch in batches(aim.encoded, np.flatnonzero(aim.weights), batch_tokens):
        ids = torch.from_numpy(batch.ids)
        positions, targets = (torch.from_numpy(a) for a in batch.shift())

        def nll(
            parameters: Parameters, ids: torch.Tensor = ids, at: torch.Tensor = positions,
            targets: torch.Tensor = targets,
        ) -> torch.Tensor:  # fmt: skip
            inputs = {"input_ids": ids, "use_cache": False}
            logits = functional_call(loaded.model, parameters, (), inputs).logits
            chosen = logits.flatten(0, 1).index_select(0, at)
            return torch.nn.functional.cross_entropy(chosen, targets, reduction="none")

        weights = aim.weights[batch.documents][positions.numpy() // batch.ids.shape[1]]
        total += vmap(nll)(moved).double().numpy() @ weights
    return total
