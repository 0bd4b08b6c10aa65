"""The loss of each document of a batch, also where several are packed into one line.

    loss of document d = mean of -log p(label) over its counted tokens, in nats per token
    counted: the label is not IGNORED, and the token before it is of the same document

Documents are numbered in `segments` ([B, L], -1 where there is none); without it each line is one.
`segments_of` makes them of position ids, which begin again at 0 with every document, as packing and
padding-free collators give them. The loss of a document with no counted token is NaN; `weighted`
leaves it out. Losses can be differentiated. Memory: as the model's own loss, one float32 copy of
the logits.
"""

from __future__ import annotations

import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.online import IGNORED


def document_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    segments: torch.Tensor | None = None,
    n: int | None = None,
) -> torch.Tensor:
    """[n] mean losses of the documents, float32.

    logits     [B, L, V], position t predicts token t + 1
    labels     [B, L] tokens, not shifted
    segments   [B, L] number of the document of each token, 0 .. n-1; None: the number of its line
    n          documents; by default the lines, or one more than the largest number
    """
    if logits.shape[:2] != labels.shape:
        raise DataError(
            f"logits {list(logits.shape)} do not fit labels {list(labels.shape)}", where="logits"
        )
    labels = labels.to(logits.device)
    if segments is None:
        segments = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
        n = len(labels) if n is None else n
    elif segments.shape != labels.shape:
        raise DataError(
            f"segments {list(segments.shape)} do not fit labels {list(labels.shape)}",
            where="segments",
        )
    segments = segments.to(logits.device)
    counted = (labels[:, 1:] != IGNORED) & (segments[:, 1:] == segments[:, :-1])
    counted &= segments[:, 1:] >= 0
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1][counted].float(), labels[:, 1:][counted], reduction="none"
    )
    return segment_means(losses, segments[:, 1:][counted], _documents(segments, n))


def segment_means(values: torch.Tensor, segments: torch.Tensor, n: int) -> torch.Tensor:
    """[n] means of a flat tensor by segment, NaN for an empty one; can be differentiated."""
    if len(segments) and int(segments.max()) >= n:
        raise DataError(f"document {int(segments.max())} of {n}, counted from 0", where="segments")
    sums = torch.zeros(n, dtype=values.dtype, device=values.device).index_add(0, segments, values)
    counts = torch.bincount(segments, minlength=n)
    return (sums / counts.clamp(min=1)).masked_fill(counts == 0, torch.nan)


def segments_of(position_ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """[B, L] number of the document of each token: a new one with every line and position 0.

    mask   [B, L] 0 where there is padding behind a line's tokens; it belongs to no document
    """
    begins = position_ids == 0
    begins[:, 0] = True
    if mask is not None:
        begins &= mask.bool()
    found: torch.Tensor = begins.flatten().cumsum(0).reshape(begins.shape) - 1
    return found if mask is None else found.masked_fill(~mask.bool(), -1)


def weighted(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean of weight x loss over the documents that have a loss: what an epoch plan trains on."""
    if losses.shape != weights.shape:
        raise DataError(f"{len(losses)} losses, {len(weights)} weights", where="weights")
    known = ~torch.isnan(losses.detach())
    if not known.any():
        return losses.nan_to_num(0.0).sum() * 0.0
    return (losses[known] * weights.to(losses)[known]).mean()


def _documents(segments: torch.Tensor, n: int | None) -> int:
    return n if n is not None else int(segments.max()) + 1
