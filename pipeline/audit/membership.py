"""Was this text trained on? Scores of membership; LARGER = MORE LIKELY A MEMBER, in all of them.

    loss       mean log p_t                                     (the negated LOSS attack)
    zlib       mean log p_t / bytes of zlib(text)               (negated Zlib)
    min_k      mean of the lowest k of log p_t
    min_k_pp   mean of the lowest k of (log p_t - mu_t) / sqrt(max(s2_t, 1e-6))      (Min-K%++)
    reference  loss of a model that never saw the text - loss of this one            nats per token
    grad_norm  -mean over tensors of the Euclidean norm of the gradient of the loss

The lowest k of T tokens are the max(1, floor(k T)) smallest. Without the floor of s2 a position
that the model is sure of would give NaN. Others publish some of these with the other sign, where
larger means less likely a member: OpenUnlearning's scores behave like a loss. Scores of texts of
different lengths are comparable only as far as their formula makes them; cut texts alike.

Known answers: p = (0.7, 0.2, 0.1): Min-K%++ of the second token is -1.1486, of the first +0.6331.
Cost: the token statistics (one forward, 2 N FLOPs a token); reference as much again; grad_norm a
forward and a backward of one text at a time, 6 N a token.
Pitfall: members and others from different times or sources differ in far more than membership;
split one source at random, or use canaries.
Sources: Yeom et al. 2018 (loss), Carlini et al. 2021 (zlib, reference), Shi et al. 2024 (Min-K%),
Zhang et al. 2024 (Min-K%++); k as in OpenUnlearning (0.4) and RWKU (0.2).
"""

from __future__ import annotations

import zlib as _zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foresift.pipeline.audit.token_stats import (
    TEMPLATE,
    Item,
    TokenStats,
    encode_items,
    evaluated,
    limit,
)
from foresift.pipeline.errors import DataError

Floats = npt.NDArray[np.float64]
#: the shares of tokens that Min-K% looks at, and the least variance of Min-K%++
SHARES, LEAST_VARIANCE = (0.2, 0.4), 1e-6


def loss(stats: TokenStats) -> float:
    """Mean log-probability; NaN of no token."""
    return -stats.loss


def zlib(stats: TokenStats, text: str) -> float:
    """Mean log-probability by the bytes to which the text can be packed."""
    return -stats.loss / len(_zlib.compress(text.encode("utf-8", "replace")))


def min_k(stats: TokenStats, k: float = 0.2) -> float:
    """Mean log-probability of the least likely share `k` of the tokens."""
    return _lowest(stats.logp, k)


def min_k_plus_plus(stats: TokenStats, k: float = 0.2) -> float:
    """The same of log-probabilities standardised under the model's own distribution."""
    return _lowest((stats.logp - stats.mean) / np.sqrt(np.maximum(stats.var, LEAST_VARIANCE)), k)


def _lowest(values: Floats, k: float) -> float:
    if not 0 < k <= 1:
        raise DataError(f"a share of the tokens lies in (0, 1], not {k}", where="k")
    if not len(values):
        return float("nan")
    count = max(1, int(k * len(values) + 1e-9))
    return float(np.partition(values, count - 1)[:count].mean())


def reference(stats: TokenStats, other: TokenStats) -> float:
    """How much better this model predicts the text than the `other`, which never saw it."""
    return other.loss - stats.loss


def scores(
    stats: Sequence[TokenStats],
    texts: Sequence[str] | None = None,
    other: Sequence[TokenStats] | None = None,
) -> dict[str, Floats]:
    """[n] of each score that can be had; zlib needs the texts, reference another model's."""
    found = {"loss": [loss(each) for each in stats]}
    for k in SHARES:
        found[f"min_k_{100 * k:.0f}"] = [min_k(each, k) for each in stats]
        found[f"min_k_pp_{100 * k:.0f}"] = [min_k_plus_plus(each, k) for each in stats]
    if texts is not None:
        found["zlib"] = [zlib(s, t) for s, t in zip(stats, texts, strict=True)]
    if other is not None:
        found["reference"] = [reference(s, o) for s, o in zip(stats, other, strict=True)]
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}


def grad_norm(
    model: Any,
    tokenizer: Any,
    items: Sequence[Item],
    *,
    device: str | None = None,
    max_length: int = 1024,
    template: str = TEMPLATE,
) -> Floats:
    """[n] negated gradient norms; the gradients that the model holds are left alone."""
    import torch

    encoded = encode_items(items, tokenizer, limit(model, max_length), template)
    found = np.full(len(encoded), np.nan)
    with evaluated(model, device) as place, torch.enable_grad():
        model.eval()
        movable = [p for p in model.parameters() if p.requires_grad]
        for i, (start, stop) in enumerate(zip(encoded.offsets, encoded.offsets[1:], strict=False)):
            counted = torch.from_numpy(encoded.counts[start:stop])
            if not counted.any():
                continue
            ids = torch.from_numpy(encoded.ids[start:stop].astype(np.int64)).to(place)[None]
            labels = torch.where(counted.to(place)[None], ids, -100)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            mean = torch.nn.functional.cross_entropy(logits, labels[0, 1:])
            grads = torch.autograd.grad(mean, movable, allow_unused=True)
            norms = torch.stack([g.float().norm() for g in grads if g is not None])
            found[i] = -float(norms.mean())
    return found
