"""FIT: requests that come one after another; what is redundant, how strong, and which layers.

    redundant    max cosine with what was forgotten before > tau, and leaving the chunk out of the
                 request changes the request's loss by at most epsilon
    importance   |d loss / d output of the input embedding|_2 of a document
    class        below the lower quantile: random labels; above the upper: NPO + KL; else NPO
    layers       |loss with the block left out - loss|, the K largest move

One of two summaries of the paper has `< tau` as the condition; redundancy makes sense with `>`.
tau and epsilon are of one summary. Vectors come from the caller, any sentence embedding will do.
Cost: 6N a token for importance (the graph ends at the embedding), 2N (L + 1) a token for layers.
F.D. and R.U. are measures of the audit (`pipeline/audit`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.unlearn.blocks import blocks, without
from foresift.pipeline.unlearn.documents import Documents, read

Floats = npt.NDArray[np.float64]
Class = Literal["random_labels", "npo", "npo_kl"]
#: how `run.unlearn` is asked for a class: (method, options)
SETTINGS: dict[Class, tuple[str, dict[str, Any]]] = {
    "random_labels": ("random_labels", {}),
    "npo": ("npo", {}),
    "npo_kl": ("npo", {"keep": "kl"}),
}


def redundant(
    chunks: npt.ArrayLike,
    history: npt.ArrayLike,
    loss_change: Callable[[int], float],
    *,
    tau: float = 0.85,
    epsilon: float = 0.01,
) -> npt.NDArray[np.bool_]:
    """[n] which chunks [n, d] need no unlearning; chunks that stay join the history [m, d].

    `loss_change(i)` is loss(request) - loss(request without chunk i); asked only above tau.
    """
    vectors = _unit(np.asarray(chunks, dtype=np.float64))
    known = list(_unit(np.asarray(history, dtype=np.float64).reshape(-1, vectors.shape[1])))
    found = np.zeros(len(vectors), dtype=np.bool_)
    for i, vector in enumerate(vectors):
        alike = max((float(vector @ other) for other in known), default=-1.0)
        found[i] = alike > tau and abs(loss_change(i)) <= epsilon
        if not found[i]:
            known.append(vector)
    return found


def _unit(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def importance(model: Any, given: Documents) -> Floats:
    """[n] norm of the gradient of each document's mean NLL at its embedded tokens."""
    embedding = model.get_input_embeddings()
    found = []
    for i in range(len(given)):
        kept: list[torch.Tensor] = []
        handle = embedding.register_forward_hook(lambda m, a, out, k=kept: _leaf(out, k))
        try:
            loss = read(model, given.batch([i])).mean
        finally:
            handle.remove()
        found.append(float(torch.autograd.grad(loss, kept[0])[0].norm()))
    return np.array(found)


def _leaf(output: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
    """The output as the start of the graph."""
    kept.append(output.detach().requires_grad_())
    return kept[0]


def classes(values: npt.ArrayLike, low: float = 1 / 3, high: float = 2 / 3) -> list[Class]:
    """How strongly each document is unlearned, by quantiles of its importance."""
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError("0 <= low <= high <= 1")
    a = np.asarray(values, dtype=np.float64)
    if len(a) == 0:
        return []
    if not np.isfinite(a).all():
        raise DataError("an importance is not finite", where="importance")
    below, above = np.quantile(a, [low, high])
    return ["random_labels" if v < below else "npo_kl" if v > above else "npo" for v in a]


def layer_scores(model: Any, given: Documents, size: int = 16) -> Floats:
    """[L] how much the mean loss changes with each block left out."""
    whole = _loss(model, given, size)
    found = []
    for block in blocks(model):
        with without(block):
            found.append(abs(_loss(model, given, size) - whole))
    return np.array(found)


def _loss(model: Any, given: Documents, size: int) -> float:
    with torch.no_grad():
        readings = [read(model, batch) for batch in given.batches(size)]
    total = sum(float(r.sums.sum()) for r in readings)
    return total / sum(int(r.lengths.sum()) for r in readings)


def top_layers(scores: Sequence[float] | Floats, count: int) -> tuple[int, ...]:
    """The blocks with the largest scores, ascending; equal scores: the first ones."""
    order = np.lexsort((np.arange(len(scores)), -np.asarray(scores)))
    return tuple(sorted(int(i) for i in order[:count]))
