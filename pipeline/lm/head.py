"""The output layer in tiles: softmax statistics of many tokens without their logits in memory.

The [tokens, vocabulary] matrix is computed tile by tile (ROWS x COLUMNS), and each tile is reduced
while it lies in cache. With the tile's softmax p, its largest logit m, its s = sum exp(z - m) =
1 / max p, its q = sum p (z - m) and u = sum p (z - m)^2 - q^2, tiles merge exactly: with M = max m
and w = exp(m - M),

    S = sum w s        Q = sum w s (q + m - M)
    nll = log S + M - z_target      entropy = log S - Q / S
    top_prob = 1 / S                margin = (1 - exp(second - M)) / S
    log_variance = sum w s (u + (q + m - M - Q / S)^2) / S

The gradient of a document's mean NLL with respect to the output matrix is G = B' H / T, where H
[T, d] are the hidden states and B [T, V] = softmax - one_hot. Its norm is taken tile by tile from
B' H, or for T < d from the identity |B' H|^2 = sum (B B')_ts (H H')_ts. With tied embeddings this
is the gradient through the output use of the matrix alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from foresift.pipeline.errors import ModelError

FLOAT = torch.float32
#: rows and columns of a tile: 2 MB of float32 in a CPU's cache; on a GPU enough to keep it busy
TILE = {"cpu": (512, 1024), "cuda": (2048, 32768)}
_GROUPS = 32


@dataclass(frozen=True)
class Head:
    """logits = softcap(scale * (H W' + bias)) in float32, whatever the precision of W."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float = 1.0
    softcap: float = 0.0

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a tile on this device."""
        return TILE["cpu" if self.weight.device.type == "cpu" else "cuda"]

    def logits(self, hidden: torch.Tensor, start: int, stop: int, out: torch.Tensor) -> Any:
        """Float32 logits of the tokens `start:stop` of the vocabulary, in the memory of `out`."""
        weight = self.weight[start:stop].T
        z = out[: len(hidden) * (stop - start)].view(len(hidden), stop - start)
        if weight.dtype == torch.float32:
            torch.mm(hidden, weight, out=z)
        else:
            z.copy_(hidden @ weight)
        if self.bias is not None:
            z.add_(self.bias[start:stop].float())
        if self.scale != 1.0:
            z.mul_(self.scale)
        if self.softcap:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z


def find_head(model: Any, where: str = "") -> Head:
    """The output layer of a model, checked against the model's own logits."""
    layer = model.get_output_embeddings()
    if layer is None or getattr(layer, "weight", None) is None:
        raise ModelError("the model has no output layer to score with", where=where)
    config = model.config.get_text_config()
    head = Head(
        weight=layer.weight.detach(),
        bias=None if getattr(layer, "bias", None) is None else layer.bias.detach(),
        scale=_number(config, "logit_scale", 1.0) / _number(config, "logits_scaling", 1.0),
        softcap=_number(config, "final_logit_softcapping", 0.0),
    )
    _check(model, head, where)
    return head


def _number(config: Any, name: str, default: float) -> float:
    value = getattr(config, name, None)
    return default if value is None else float(value)


@torch.inference_mode()
def _check(model: Any, head: Head, where: str) -> None:
    vocabulary = len(head.weight)
    ids = torch.arange(8, device=head.weight.device)[None] * 7919 % vocabulary
    expected = model(input_ids=ids, use_cache=False).logits[0].float()
    hidden = last_hidden(model, ids)[0]
    found = head.logits(hidden, 0, vocabulary, hidden.new_empty(expected.numel(), dtype=FLOAT))
    if not bool(expected.isfinite().all()):
        raise ModelError(f"{type(model).__name__} gives logits that are not finite", where=where)
    slack = 1e-4 if head.weight.dtype == FLOAT else 2e-2
    if not torch.allclose(found, expected, rtol=slack, atol=slack * float(expected.abs().max())):
        raise ModelError(
            f"{type(model).__name__} does something to its logits beyond an output matrix, a scale "
            "and a soft cap; foresift would score it wrongly",
            where=where,
        )


def last_hidden(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[B, L, d] final hidden states, as the output layer sees them; no attention mask is needed."""
    hidden: torch.Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


def statistics(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, names: Collection[str]
) -> dict[str, torch.Tensor]:
    """[rows] of each named token signal, and of `log_norm` (the log-sum-exp of the logits)."""
    rows, _ = head.tile
    pieces = [
        _merge(_sweep(head, hidden[i : i + rows], targets[i : i + rows], names), names)
        for i in range(0, len(hidden), rows)
    ]
    empty = {name: hidden.new_empty(0, dtype=FLOAT) for name in (*names, "log_norm")}
    return {n: torch.cat([p[n] for p in pieces]) for n in pieces[0]} if pieces else empty


def _sweep(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, names: Collection[str]
) -> dict[str, torch.Tensor]:
    """The statistics of each tile of these rows: [tiles, rows] each."""
    vocabulary, columns = len(head.weight), head.tile[1]
    space = hidden.new_empty(len(hidden) * min(columns, vocabulary), dtype=FLOAT)
    spare = torch.empty_like(space)
    found: dict[str, list[torch.Tensor]] = {}
    for start in range(0, vocabulary, columns):
        stop = min(start + columns, vocabulary)
        z = head.logits(hidden, start, stop, space)
        place = targets - start
        inside = (place >= 0) & (place < stop - start)
        at = z.gather(1, place.clamp(0, stop - start - 1)[:, None])[:, 0]
        tile = {"target": torch.where(inside, at, -math.inf)}
        if "margin" in names:
            tile["top"], tile["second"] = _top_two(z)
        else:
            tile["top"] = z.amax(1)
        z.sub_(tile["top"][:, None])  # the largest is now 0, so its probability is 1 / sum
        p = torch.softmax(z, 1, out=spare[: z.numel()].view_as(z))
        tile["sum"] = 1 / p.amax(1)
        if "entropy" in names or "log_variance" in names:
            tile["mean"] = p.mul_(z).sum(1)
        if "log_variance" in names:
            tile["square"] = p.mul_(z).sum(1)
        for name, values in tile.items():
            found.setdefault(name, []).append(values)
    return {name: torch.stack(values) for name, values in found.items()}


def _top_two(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two largest of each row: maxima of strided groups, then the best group looked into."""
    size = z.shape[1] // _GROUPS
    if size == 0:
        return _two(z.clone())[:2]
    groups = z[:, : size * _GROUPS].unflatten(1, (_GROUPS, size))
    _, others, best = _two(groups.amax(1))
    members = groups.gather(2, best[:, None].expand(-1, _GROUPS, 1))[:, :, 0]
    top, second, _ = _two(torch.cat([members, z[:, size * _GROUPS :]], 1))
    return top, torch.maximum(second, others)


def _two(few: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two largest of each row and the place of the first, which is overwritten."""
    place = few.argmax(1, keepdim=True)
    top = few.gather(1, place)[:, 0]
    return top, few.scatter_(1, place, -math.inf).amax(1), place


def _merge(tiles: dict[str, torch.Tensor], names: Collection[str]) -> dict[str, torch.Tensor]:
    """Merge the tiles (formulas above), in float64: it is little work."""
    m, s = tiles["top"].double(), tiles["sum"].double()
    top = m.amax(0)
    w = torch.exp(m - top)
    total = (w * s).sum(0)
    log_norm = total.log() + top
    merged = {"log_norm": log_norm}
    if "nll" in names:
        merged["nll"] = log_norm - tiles["target"].double().amax(0)
    if "mean" in tiles:
        own = tiles["mean"].double()
        mean = (w * s * (own + m - top)).sum(0) / total
    if "entropy" in names:
        merged["entropy"] = (total.log() - mean).clamp_min(0)
    if "log_variance" in names:
        inside = (tiles["square"].double() - own.square()).clamp_min(0)
        between = (own + m - top - mean).square()
        merged["log_variance"] = (w * s * (inside + between)).sum(0) / total
    if "top_prob" in names:
        merged["top_prob"] = 1 / total
    if "margin" in names:
        two = torch.cat([m, tiles["second"].double()]).topk(2, dim=0).values
        merged["margin"] = (1 - torch.exp(two[1] - top)) / total
    return {name: values.to(FLOAT) for name, values in merged.items()}


def gradient_norms(
    head: Head,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    log_norm: torch.Tensor,
    counts: list[int],
) -> torch.Tensor:
    """[documents] norm of each document's gradient; `counts` cuts the rows into documents."""
    squares = hidden.new_zeros(len(counts), dtype=torch.float64)
    blocks: list[list[int]] = [[]]
    held = 0
    for number, count in enumerate(counts):
        if held and held + count > head.tile[0]:
            blocks.append([])
            held = 0
        blocks[-1].append(number)
        held += count
    start = 0
    for block in blocks:
        stop = start + sum(counts[i] for i in block)
        if stop > start:
            part = slice(start, stop)
            sizes = [counts[i] for i in block]
            squares[block] = _squares(head, hidden[part], targets[part], log_norm[part], sizes)
        start = stop
    return squares.sqrt().to(FLOAT) / torch.tensor(counts, device=hidden.device)


def _squares(
    head: Head,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    log_norm: torch.Tensor,
    counts: list[int],
) -> torch.Tensor:
    """[documents] |B' H|^2 of some documents that stand in memory together."""
    vocabulary, columns = len(head.weight), head.tile[1]
    exact = hidden.to(FLOAT)
    documents = exact.split(counts)
    grams = [h @ h.T if len(h) < h.shape[1] else None for h in documents]
    squares = hidden.new_zeros(len(counts), dtype=torch.float64)
    space = hidden.new_empty(len(hidden) * min(columns, vocabulary), dtype=FLOAT)
    for start in range(0, vocabulary, columns):
        stop = min(start + columns, vocabulary)
        b = head.logits(hidden, start, stop, space).sub_(log_norm[:, None]).exp_()
        rows = ((targets >= start) & (targets < stop)).nonzero()[:, 0]
        b[rows, targets[rows] - start] -= 1
        if head.softcap or head.scale != 1.0:
            b = _through(head, hidden, start, stop, b)
        for i, (errors, h, gram) in enumerate(zip(b.split(counts), documents, grams, strict=True)):
            if gram is not None:
                squares[i] += ((errors @ errors.T) * gram).sum()
            else:
                squares[i] += (errors.T @ h).square().sum()
    return squares


def _through(head: Head, hidden: torch.Tensor, start: int, stop: int, b: Any) -> Any:
    """Carry the error back through the soft cap and the scale."""
    b = b * head.scale
    if head.softcap:
        z = head.logits(hidden, start, stop, torch.empty_like(b).view(-1))
        b *= 1 - (z / head.softcap).square()
    return b
