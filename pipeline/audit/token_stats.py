"""What a model thinks of each token of a text: the raw material of most measures of memorisation.

With p the distribution from which token t is predicted, given all tokens before it,

    logp  [T] log p_t                                nats; larger = expected
    mean  [T] mu = sum_v p_v log p_v                 nats: the negative entropy of p
    var   [T] s2 = sum_v p_v (log p_v)^2 - mu^2      nats^2, >= 0
    hit   [T] whether the likeliest token (the lowest id among equals) is the token that is there

A text is what `items` holds:

    a string            [start] text [end]; everything after the start counts, as in `lm/encode.py`
    (prompt, response)  [start] prompt response [end]; the response and its end count
    token ids           as they stand; everything after the first counts

The output layer is computed in tiles (`lm/head.py`): with the largest logit m of a tile, the sum s
of exp(z - m), and the mean q and variance u of z - m under the tile's own softmax, tiles merge by

    S = sum w s, w = exp(m - M)        g = w s / S        a = sum g (q + m - M)
    log p_t = z_t - M - log S          mu = a - log S     s2 = sum g (u + (q + m - M - a)^2)

in float64, so no large numbers are subtracted. A model that does more to its logits than a matrix,
a bias, a scale and a soft cap is asked for its full logits instead. Batches are bucketed by length;
results do not depend on them beyond rounding.

Known answer: p = (0.7, 0.2, 0.1): mu = -0.8018, s2 = 0.4944.
Cost: one forward, 2 N FLOPs a token. Memory: one tile of logits beside the activations.
Errors: ModelError for logits that are not finite; DataError for items of mixed kinds.
Source: the quantities of Min-K%++ (Zhang et al. 2024).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm import head as heads
from foresift.pipeline.lm.batches import Batch, batches
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.model import ModelSpec

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Item = str | tuple[str, str] | Sequence[int] | npt.NDArray[Any]
Told = Callable[[int, int], None]
#: tokens of one forward on a CPU and on a GPU, padding included
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
#: what stands before a response, as in `ModelSpec.template`
TEMPLATE = "{prompt}\n"


@dataclass(frozen=True, eq=False)
class TokenStats:
    """The T counted tokens of one text."""

    logp: Floats
    """[T] log-probability of each token."""
    mean: Floats
    """[T] expected log-probability under the model itself."""
    var: Floats
    """[T] variance of the log-probability under the model itself."""
    hit: Flags
    """[T] whether the model's first choice is the token that is there."""

    def __len__(self) -> int:
        return len(self.logp)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, nats per token; NaN of no token."""
        return float(-self.logp.mean()) if len(self.logp) else float("nan")


def token_stats(
    model: Any,
    tokenizer: Any,
    items: Sequence[Item],
    *,
    device: str | None = None,
    max_length: int = 1024,
    batch_tokens: int = 0,
    template: str = TEMPLATE,
    end: bool = True,
    told: Told | None = None,
) -> list[TokenStats]:
    """The statistics of each item, in order; `told(done, total)` hears of every batch.

    `device` None: where the model is. `end`: whether the end of a text counts.
    `max_length` is never more than the positions that the model has.
    """
    encoded = encode_items(items, tokenizer, limit(model, max_length), template, end)
    with evaluated(model, device) as place, torch.inference_mode():
        budget = batch_tokens or BATCH_TOKENS["cpu" if place == "cpu" else "cuda"]
        head = _head(model)
        found: list[TokenStats] = [_NOTHING] * len(encoded)
        counted = np.array([encoded.counts[a:b].any() for a, b in _bounds(encoded)], dtype=bool)
        done, total = int((~counted).sum()), len(encoded)
        for batch in batches(encoded, np.flatnonzero(counted), budget):
            flat = _batch(model, head, batch, place)
            cuts = np.cumsum(batch.counted.sum(1))[:-1]
            pieces = [np.split(each, cuts) for each in flat]
            for row, logp, mean, var, hit in zip(batch.documents, *pieces, strict=True):
                found[row] = TokenStats(logp, mean, var, hit.astype(bool))
            done += len(batch.documents)
            if told:
                told(done, total)
    return found


_NOTHING = TokenStats(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool))


def _bounds(encoded: Encoded) -> Iterator[tuple[int, int]]:
    return zip(encoded.offsets[:-1].tolist(), encoded.offsets[1:].tolist(), strict=True)


def encode_items(
    items: Sequence[Item],
    tokenizer: Any,
    max_length: int,
    template: str = TEMPLATE,
    end: bool = True,
) -> Encoded:
    """Token ids of the items, and which of them count."""
    kinds = {_kind(item) for item in items}
    if len(kinds) > 1:
        raise DataError(f"items of one kind are needed, not {' and '.join(sorted(kinds))}")
    if kinds <= {"token ids"}:
        return _as_they_stand(items, max_length)  # type: ignore[arg-type]
    spec = ModelSpec(init="given", max_length=max(2, max_length), template=template)
    if kinds == {"text"}:
        found = encode(pa.table({"text": list(items)}), tokenizer, spec)
    else:
        prompts, responses = zip(*items, strict=True)
        found = encode(pa.table({"prompt": prompts, "response": responses}), tokenizer, spec)
    if not end:
        last = found.offsets[1:][(found.lengths > 0) & ~found.cut] - 1
        found.counts[last[found.ids[last] == tokenizer.eos_token_id]] = False
    return found


def _kind(item: Item) -> str:
    if isinstance(item, str):
        return "text"
    if isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
        return "prompt and response"
    return "token ids"


def _as_they_stand(items: Sequence[Sequence[int]], max_length: int) -> Encoded:
    cut = np.array([len(item) > max_length for item in items], dtype=bool)
    rows = [np.asarray(item[:max_length], dtype=np.int32) for item in items]
    counts = [np.arange(len(row)) > 0 for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    none = np.empty(0, dtype=np.int32)
    flags = np.concatenate([*counts, none.astype(bool)])
    return Encoded(np.concatenate([*rows, none]), flags, offsets, cut)


def limit(model: Any, max_length: int) -> int:
    """`max_length`, or the positions that the model has where these are fewer."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(config, "max_position_embeddings", None)
    return min(max_length, positions) if isinstance(positions, int) else max_length


@contextlib.contextmanager
def evaluated(model: Any, device: str | None = None) -> Iterator[str]:
    """The model without dropout, on the device (whose name is given), for as long as this lasts."""
    training = model.training
    if device is not None:
        model.to(device)
    try:
        yield str(next(model.parameters()).device)
    finally:
        if training:
            model.train()


def _head(model: Any) -> heads.Head | None:
    """The output layer where logits are it and no more; None where the model must be asked."""
    model.eval()
    try:
        return heads.find_head(model)
    except (ModelError, AttributeError):
        return None


def _batch(
    model: Any, head: heads.Head | None, batch: Batch, device: str
) -> list[npt.NDArray[Any]]:
    """logp, mean, var and hit of the counted tokens of a batch, row after row."""
    ids = torch.from_numpy(batch.ids).to(device)
    places, targets = (torch.from_numpy(each).to(device) for each in batch.shift())
    if head is None:
        rows, tiles = model(input_ids=ids, use_cache=False).logits, _whole
    else:
        rows, tiles = heads.last_hidden(model, ids), functools.partial(_tiles, head)
    rows = rows.flatten(0, 1)[places]
    size = 512 if device == "cpu" else 2048
    parts = [slice(i, i + size) for i in range(0, len(places), size)]
    pieces = [statistics(tiles(rows[part]), targets[part]) for part in parts]
    flat = [torch.cat(each).cpu().numpy() for each in zip(*pieces, strict=True)]
    if not np.isfinite(flat[0]).all():
        name = getattr(getattr(model, "config", None), "name_or_path", "") or "model"
        raise ModelError("gives logits that are not finite", where=name)
    return flat


def _whole(logits: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    yield 0, logits.float()


def _tiles(head: heads.Head, hidden: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    vocabulary, columns = len(head.weight), head.tile[1]
    space = hidden.new_empty(len(hidden) * min(columns, vocabulary), dtype=torch.float32)
    for start in range(0, vocabulary, columns):
        yield start, head.logits(hidden, start, min(start + columns, vocabulary), space)


def statistics(
    tiles: Iterator[tuple[int, torch.Tensor]], targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """logp, mean, var (float64) and hit of rows; their logits come as (start, [rows, columns])."""
    tops, sums, means, spreads, firsts, seen = [], [], [], [], [], []
    for start, z in tiles:
        top = z.amax(dim=1)
        first = (z == top[:, None]).int().argmax(dim=1)
        place = (targets - start).clamp(0, z.shape[1] - 1)
        inside = (targets >= start) & (targets < start + z.shape[1])
        seen.append(torch.where(inside, z.gather(1, place[:, None])[:, 0], -torch.inf))
        a = (z - top[:, None]).clamp_min(-1e4)  # a token ruled out adds nothing, and no NaN
        e = a.exp()
        total = e.sum(1)
        mean = (e * a).sum(1) / total
        spreads.append((e * (a - mean[:, None]).square()).sum(1) / total)
        tops.append(top)
        sums.append(total)
        means.append(mean)
        firsts.append(first + start)
    m, s, q, u = (torch.stack(each).double() for each in (tops, sums, means, spreads))
    best = m.amax(dim=0)
    tile = (m == best).int().argmax(dim=0)
    choice = torch.stack(firsts).gather(0, tile[None])[0]
    w = (m - best).exp() * s
    total = w.sum(0)
    g, shifted = w / total, q + m - best
    mean = (g * shifted).sum(0)
    var = (g * (u + (shifted - mean).square())).sum(0)
    logp = torch.stack(seen).double().amax(0) - best - total.log()
    return logp, mean - total.log(), var, choice == targets


def loss_of(
    model: Any, tokenizer: Any = None, **options: Any
) -> Callable[[Sequence[Item]], Floats]:
    """The query access that REMIND needs: items -> [n] mean negative log-likelihoods."""

    def losses(items: Sequence[Item]) -> Floats:
        return np.array([each.loss for each in token_stats(model, tokenizer, items, **options)])

    return losses


def start_of(tokenizer: Any) -> list[int]:
    """The start token that texts are read with, where there is one (`lm/encode.py`)."""
    if tokenizer is None:
        return []
    start = tokenizer.bos_token_id
    start = tokenizer.eos_token_id if start is None else start
    return [] if start is None else [start]


def words_of(items: Sequence[Item], tokenizer: Any, max_length: int) -> list[list[int]]:
    """The token ids of texts alone, without start and end; ids as they stand."""
    if items and _kind(items[0]) == "text":
        found = tokenizer(list(items), add_special_tokens=False)["input_ids"]
        return [list(ids[:max_length]) for ids in found]
    return [[int(t) for t in item[:max_length]] for item in items]
