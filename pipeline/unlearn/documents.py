"""Token sequences as batches, and what one forward of the model says of them.

    counted tokens of a sequence x with a prompt of s tokens:  x_t for t >= max(1, s)
    nll_t = -log p(x_t | x_<t)           sums_i = sum of document i's nll_t, in nats
    mean  = sum_i sums_i / sum_i lengths_i         every counted token weighs the same

Sequences are kept sorted by their tokens, so that nothing depends on the order in which they were
given. DataError for a sequence without a counted token, longer than the model's positions, or with
a token that the model does not know. Cost of `read`: one forward, all counted logits in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.lm.gradients.samples import device_of, wide

Tokens = Sequence[int]


@dataclass(frozen=True)
class Documents:
    """Some token sequences; the first `starts[i]` tokens of sequence i are context only."""

    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, chosen: Sequence[int] | np.ndarray[Any, Any]) -> Batch:
        """These sequences as a right-padded rectangle."""
        numbers = np.asarray(chosen, dtype=np.int64)
        rows = [self.rows[i] for i in numbers]
        lengths = np.array([len(r) for r in rows], dtype=np.int64)
        ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
        place = np.arange(ids.shape[1])
        begin = np.array([max(1, self.starts[i]) for i in numbers])
        counted = (place >= begin[:, None]) & (place < lengths[:, None])
        return Batch(numbers, ids, lengths, counted)

    def batches(self, size: int) -> list[Batch]:
        """All sequences in their order, `size` at a time."""
        return [
            self.batch(range(at, min(at + size, len(self)))) for at in range(0, len(self), size)
        ]


def documents(
    rows: Sequence[Tokens], prompts: int | Sequence[int] = 0, *, where: str = "documents"
) -> tuple[Documents, np.ndarray[Any, Any]]:
    """The sequences sorted by their tokens, and where each of them stood."""
    starts = [prompts] * len(rows) if isinstance(prompts, int) else list(prompts)
    if len(starts) != len(rows):
        raise DataError(f"{len(starts)} prompt lengths for {len(rows)} sequences", where=where)
    whole = [tuple(int(t) for t in row) for row in rows]
    for number, (row, start) in enumerate(zip(whole, starts, strict=True)):
        if len(row) <= max(1, start):
            raise DataError(
                f"sequence {number} has {len(row)} tokens and a prompt of {start}: none is left to"
                " predict",
                where=where,
            )
    order = sorted(range(len(whole)), key=lambda i: (whole[i], starts[i], i))
    found = Documents(tuple(whole[i] for i in order), tuple(starts[i] for i in order))
    return found, np.array(order, dtype=np.int64)


def fits(given: Documents, model: Any, where: str) -> None:
    """DataError where the model does not know a token or has no position for it."""
    known = model.get_input_embeddings().num_embeddings
    room = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for number, row in enumerate(given.rows):
        if min(row) < 0 or max(row) >= known:
            worst = max(row) if max(row) >= known else min(row)
            raise DataError(f"token {worst} of a sequence is not among {known}", where=where)
        if room is not None and len(row) > room:
            raise DataError(
                f"sequence {number} (sorted) has {len(row)} tokens, the model reads {room}",
                where=where,
            )


@dataclass(frozen=True, eq=False)
class Reading:
    """The counted tokens of a batch under one model."""

    logits: torch.Tensor
    """[T, V] float32, of the positions that predict a counted token."""
    targets: torch.Tensor
    """[T] those tokens."""
    rows: torch.Tensor
    """[T] the place of each token's document in the batch."""
    lengths: torch.Tensor
    """[B] counted tokens of each document."""

    @cached_property
    def nll(self) -> torch.Tensor:
        """[T] nats."""
        return torch.nn.functional.cross_entropy(self.logits, self.targets, reduction="none")

    @cached_property
    def sums(self) -> torch.Tensor:
        """[B] summed NLL of each document."""
        return self._add(self.nll)

    @cached_property
    def mean(self) -> torch.Tensor:
        """The mean NLL of the counted tokens."""
        return self.sums.sum() / self.lengths.sum()

    @cached_property
    def probability(self) -> torch.Tensor:
        """[B] mean probability of each document's tokens."""
        return self._add(torch.exp(-self.nll)) / self.lengths

    @cached_property
    def first(self) -> torch.Tensor:
        """[T] whether the token is the first counted one of its document."""
        before = torch.cat([self.rows.new_full((1,), -1), self.rows[:-1]])
        return self.rows != before

    def _add(self, values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(len(self.lengths)).index_add(0, self.rows, values)


def read(model: Any, batch: Batch) -> Reading:
    """One forward, differentiable where gradients are on."""
    device = device_of(model)
    logits = model(input_ids=torch.as_tensor(batch.ids, device=device), use_cache=False).logits
    positions, targets = (torch.as_tensor(a, device=device) for a in batch.shift())
    rows = positions // batch.ids.shape[1]
    lengths = torch.as_tensor(batch.counted.sum(1), device=device)
    return Reading(wide(logits.flatten(0, 1)[positions]), targets, rows, lengths)


def document_losses(model: Any, given: Documents, size: int = 16) -> torch.Tensor:
    """[n] mean NLL of each document's counted tokens, without gradients."""
    with torch.no_grad():
        found = [read(model, batch) for batch in given.batches(size)]
        return torch.cat([r.sums / r.lengths for r in found])
