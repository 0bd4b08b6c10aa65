"""Packing without attention across documents: every token is used and the plan order is exact.

    plan      d0 d0 d0 d1 d1 d2 d2 d2 d2 ...
    rows of   [d0 d0 d0 | d1]  [d1 | d2 d2 d2]  [d2 ...      length = 4, `|` between segments
    position   0  1  2    0     0    0  1  2     0

Documents are appended in order (next-fit); one that does not fit is cut at the end of the row and
goes on in the next row as a segment of its own. Positions restart in each segment. A label is the
token itself where its prediction counts (`Encoded.counts`) and the segment has a token before it,
else -100; labels are aligned with the tokens and shifted once, in `weighted_loss`.

The loss of a step is the weighted mean over all of its tokens, sum(w * nll) / sum(w), in nats per
token: a document of weight 2 counts as if it stood there twice.

A model is asked to keep segments apart in one of three ways, in this order of preference; which one
it honours is found by a trial forward, not by its name (`attention_mode`):
    positions   position ids that restart, no mask (GPT-2, NeoX, Llama, Qwen2, Mistral, ...)
    mask        an explicit block-diagonal causal mask [batch, 1, length, length]
    apart       one segment a row, padded (models without position ids)
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from foresift.pipeline.errors import ModelError

if TYPE_CHECKING:
    import torch

Mode = Literal["positions", "mask", "apart"]
MODES: tuple[Mode, ...] = ("positions", "mask", "apart")
IGNORED = -100


class Place(NamedTuple):
    """Which document: what the ledger says of it."""

    id: bytes
    round: int
    shard: int


@dataclass(frozen=True)
class Document:
    """A tokenised document."""

    ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.bool_]
    place: Place
    weight: float = 1.0


@dataclass(frozen=True)
class Row:
    """One row of packed segments; all arrays have one entry a token."""

    ids: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    pieces: list[tuple[int, Place, int]]
    """(number in the stream, document, tokens of it) in order."""


@dataclass
class _Open:
    """A row that is being filled."""

    parts: list[tuple[Document, int, int]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    used: int = 0

    def add(self, number: int, document: Document, start: int, stop: int) -> None:
        self.parts.append((document, start, stop))
        self.numbers.append(number)
        self.used += stop - start

    def close(self) -> Row:
        """The arrays of the row."""
        labels, lengths = [], [stop - start for _, start, stop in self.parts]
        for document, start, stop in self.parts:
            label = document.ids[start:stop].astype(np.int64)
            label[~document.counts[start:stop]] = IGNORED
            label[:1] = IGNORED
            labels.append(label)
        return Row(
            ids=np.concatenate([d.ids[a:b] for d, a, b in self.parts]),
            positions=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
            labels=np.concatenate(labels),
            weights=np.repeat(
                np.asarray([d.weight for d, _, _ in self.parts], np.float32), lengths
            ),
            pieces=[
                (number, document.place, n)
                for number, (document, _, _), n in zip(
                    self.numbers, self.parts, lengths, strict=True
                )
            ],
        )


def pack(documents: Iterable[Document], length: int, limit: int | None = None) -> Iterator[Row]:
    """Rows of `length` tokens (the last may be shorter), at most `limit` tokens in all."""
    row, left = _Open(), limit
    for number, document in enumerate(documents):
        start, end = 0, len(document.ids)
        if left is not None:
            end = min(end, left)
            left -= end
        while start < end:
            stop = min(end, start + length - row.used)
            row.add(number, document, start, stop)
            start = stop
            if row.used == length:
                yield row.close()
                row = _Open()
        if left == 0:
            break
    if row.used:
        yield row.close()


def collate(rows: list[Row], mode: Mode) -> dict[str, torch.Tensor]:
    """The model's inputs, `labels` and `weights`; what pads has label -100 and weight 0."""
    import torch

    rows = [piece for row in rows for piece in _segments(row)] if mode == "apart" else rows
    width = max(len(row.ids) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    positions = np.tile(np.arange(width, dtype=np.int64), (len(rows), 1))
    labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
    weights = np.zeros((len(rows), width), dtype=np.float32)
    real = np.zeros((len(rows), width), dtype=np.int64)
    for k, row in enumerate(rows):
        n = len(row.ids)
        ids[k, :n], positions[k, :n], real[k, :n] = row.ids, row.positions, 1
        positions[k, n:] = np.arange(width - n)
        labels[k, :n], weights[k, :n] = row.labels, row.weights
    batch = {"input_ids": ids, "labels": labels, "weights": weights}
    if mode == "apart":
        batch["attention_mask"] = real
    else:
        batch["position_ids"] = positions
    out = {name: torch.from_numpy(array) for name, array in batch.items()}
    if mode == "mask":
        out["attention_mask"] = block_mask(out["position_ids"])
    return out


def _segments(row: Row) -> Iterator[Row]:
    """Each segment of a row as a row of its own."""
    bounds = [*np.flatnonzero(row.positions == 0).tolist(), len(row.ids)]
    for start, stop in itertools.pairwise(bounds):
        cut = slice(start, stop)
        yield Row(row.ids[cut], row.positions[cut], row.labels[cut], row.weights[cut], [])


def block_mask(positions: torch.Tensor) -> torch.Tensor:
    """[batch, 1, length, length], added to the attention scores: 0 within a segment, else -max."""
    import torch

    segment = (positions == 0).cumsum(-1)
    same = segment[:, :, None] == segment[:, None, :]
    seen = torch.ones(same.shape[1:], dtype=torch.bool).tril()
    mask = torch.full(same.shape, torch.finfo(torch.float32).min)
    added: torch.Tensor = mask.masked_fill(same & seen, 0.0)[:, None]
    return added


def logits_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Logits [batch, length, vocabulary]; no key-value cache, which would hide the segments."""
    names = ("input_ids", "position_ids", "attention_mask")
    inputs = {name: batch[name] for name in names if name in batch}
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits


def weighted_loss(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    """Sum of weight * NLL (nats) over the labelled tokens, in float32."""
    import torch.nn.functional as F

    labels, weights = batch["labels"][:, 1:], batch["weights"][:, 1:]
    counted = labels != IGNORED
    nll = F.cross_entropy(logits[:, :-1][counted].float(), labels[counted], reduction="none")
    loss: torch.Tensor = (nll * weights[counted]).sum()
    return loss


def total_weight(rows: Iterable[Row]) -> float:
    """Sum of the weights of the tokens whose prediction counts."""
    return float(sum(row.weights[row.labels != IGNORED].sum(dtype=np.float64) for row in rows))


def attention_mode(model: Any, tolerance: float = 1e-3) -> Mode:
    """The first way in which this model's second segment does not see the first one."""
    for mode in MODES:
        with contextlib.suppress(TypeError, ValueError, IndexError, RuntimeError):
            if _keeps_apart(model, mode, tolerance):
                return mode
    raise ModelError(
        "documents cannot be kept apart in this model, neither by position ids nor by a mask",
        where=model.config.model_type,
    )


def _keeps_apart(model: Any, mode: Mode, tolerance: float) -> bool:
    """Whether two packed documents give the logits that each gives alone."""
    import torch

    device = next(model.parameters()).device
    rng = np.random.default_rng(0)
    top = model.get_input_embeddings().num_embeddings
    texts = [rng.integers(0, top, n).astype(np.int32) for n in (5, 4)]
    place = Place(b"", 0, 0)
    both = [Document(t, np.ones(len(t), dtype=np.bool_), place) for t in texts]
    with torch.no_grad():
        packed = collate(list(pack(both, 9)), mode)
        together = logits_of(model, {k: v.to(device) for k, v in packed.items()}).float()
        alone = [
            model(torch.from_numpy(t.astype(np.int64))[None].to(device), use_cache=False).logits
            for t in texts
        ]
    if mode == "apart":
        together = torch.cat([together[0, :5], together[1, :4]])[None]
    want = torch.cat(alone, dim=1).float()
    scale = want.abs().max().clamp_min(1e-6)
    worst = float((together - want).abs().max() / scale)
    return worst < tolerance
