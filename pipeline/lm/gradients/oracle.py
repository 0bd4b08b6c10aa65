"""Per-sample gradients by their definitions: what the fast kernels are measured against.

    g_i = grad of the mean NLL of document i                  a tensor [B, *shape] a parameter
    <d, g_i> = d/de loss_i(theta + e d) at e = 0              forward mode, without any gradient

`per_sample_gradients` works for every model, one backward a document; `vmap_gradients` is the same
in one vectorised pass, for models whose operations torch can vectorise (eager attention).

Cost: memory of B copies of the model; a forward and a backward of each document alone. `jvp_dots`:
3 to 5 forwards of the batch, no gradient memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.func import functional_call, grad, vmap

from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.lm.gradients.samples import (
    Direction,
    Parameters,
    derivative,
    device_of,
    known,
    losses_at,
    require_eager,
    sample_losses,
    tangents,
    trainable,
    wide,
)


def per_sample_gradients(model: Any, batch: Batch) -> Parameters:
    """[B, *shape] gradient of each document's mean loss, by one backward pass a document."""
    parameters = trainable(model)
    rows = []
    with torch.enable_grad():
        for i in range(len(batch.ids)):
            loss = sample_losses(model, _alone(batch, i)).sum()
            rows.append(
                torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
            )
    return {
        name: torch.stack(column)
        for name, column in zip(parameters, zip(*rows, strict=True), strict=True)
    }


def _alone(batch: Batch, i: int) -> Batch:
    width = max(1, int(batch.lengths[i]))
    one = slice(i, i + 1)
    return Batch(
        batch.documents[one], batch.ids[one, :width], batch.lengths[one], batch.counted[one, :width]
    )


def vmap_gradients(model: Any, batch: Batch) -> Parameters:
    """As `per_sample_gradients`, in one pass vectorised over the documents."""
    require_eager(model, "`per_sample_gradients`")
    parameters = {name: p.detach() for name, p in trainable(model).items()}
    device = device_of(model)
    ids = torch.as_tensor(batch.ids, device=device)
    counted = torch.as_tensor(batch.counted, device=device)

    def loss(at: Parameters, row: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": row[None], "use_cache": False}
        logp = wide(functional_call(model, at, (), inputs).logits[0, :-1]).log_softmax(-1)
        nll = -logp.gather(1, row[1:, None])[:, 0]
        return (nll * counts[1:]).sum() / counts.sum().clamp_min(1)

    found: Parameters = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, ids, counted)
    return found


def jvp_dots(model: Any, batch: Batch, direction: Direction) -> torch.Tensor:
    """[B] dot product of each document's gradient with the direction, in forward mode."""
    require_eager(model, "`ghost`, or the loss difference along the direction")
    parameters = {name: p.detach() for name, p in trainable(model).items()}
    along = tangents(parameters, known(model, direction))
    found: torch.Tensor = derivative(losses_at(model, batch), parameters, along)
    return found.detach()
