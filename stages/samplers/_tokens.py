"""What token selectors share: the largest of a sample or batch, labels from a mask, its audit.

Scores and masks are flat over the counted tokens, row after row, as `Seen.signals` has them. A
sample with n counted tokens keeps ceil(share * n - 1e-9): 0.07 * 100 is 7.000000000000001 in
floating point and shall be 7. Ties go to the lowest position.

Labels come back in the candidates' own shape and padding; a label changes only where a counted
token is dropped, so a row without a counted token keeps its labels as they are.

What the trainer does with the labels is its own matter. A mean over the kept tokens of the batch
weights long rows more than a mean of the means of rows.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.live import Seen
from foresift.pipeline.online import IGNORED, Masker

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]


class TokenMasker(Masker):
    """A masker that decides on the counted tokens; `facts` audits its latest mask."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}

    @abstractmethod
    def keep(self, seen: Seen, step: int) -> Mask:
        """[counted tokens] whether each counts in the loss; may add to `facts`."""

    def labels(self, seen: Seen, step: int) -> torch.Tensor:
        self.facts = {}
        kept = self.keep(seen, step)
        self.facts = audit(kept, seen.signals.offsets) | self.facts
        return masked_labels(seen, kept)


def share_field(share: float, name: str = "share") -> None:
    """Refuse a share that is not in (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1")


def quota(share: float, counts: Integers) -> Integers:
    """How many of so many tokens a share keeps."""
    found: Integers = np.ceil(share * counts - 1e-9).astype(np.int64)
    return found


def keep_largest(scores: Floats, offsets: Integers, share: float) -> Mask:
    """The largest scores of each sample."""
    counts = np.diff(offsets)
    sample = np.repeat(np.arange(len(counts)), counts)
    place = np.empty(len(scores), dtype=np.int64)
    place[np.lexsort((-scores, sample))] = np.arange(len(scores))  # stable: ties by position
    kept: Mask = place - np.repeat(offsets[:-1], counts) < np.repeat(quota(share, counts), counts)
    return kept


def keep_largest_of_batch(
    scores: Floats, offsets: Integers, ids: tuple[str, ...], share: float
) -> Mask:
    """The largest scores of all samples together; ties by id, then by position."""
    counts = np.diff(offsets)
    names = np.unique(np.array(ids, dtype=np.str_), return_inverse=True)[1].ravel()
    position = np.arange(len(scores)) - np.repeat(offsets[:-1], counts)
    order = np.lexsort((position, np.repeat(names, counts), -scores))
    kept = np.zeros(len(scores), dtype=np.bool_)
    kept[order[: int(quota(share, np.array(len(scores))))]] = True
    return kept


def checked(values: Floats, seen: Seen, what: str) -> npt.NDArray[np.float64]:
    """One finite number for each counted token, in float64; else an error that names the row."""
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row = int(np.searchsorted(seen.signals.offsets, bad[0], side="right")) - 1
        place = int(bad[0] - seen.signals.offsets[row])
        raise DataError(
            f"{len(bad)} of {len(values)} are not finite, first {values[bad[0]]} at counted token "
            f"{place} of row {seen.candidates.ids[row]}",
            where=what,
        )
    return values.astype(np.float64)


def _order(seen: Seen) -> torch.Tensor:
    """[B, T] column of the candidates from which each token was taken, pads last."""
    real = seen.candidates.attention_mask.cpu().bool()
    return (~real).int().argsort(dim=1, stable=True)[:, : seen.counted.shape[1]]


def masked_labels(seen: Seen, kept: Mask) -> torch.Tensor:
    """[B, L] the candidates' labels, IGNORED where a counted token is not kept."""
    labels = seen.candidates.labels
    drop = seen.counted.clone()
    drop[seen.counted] = torch.from_numpy(~kept)
    gone = torch.zeros(labels.shape, dtype=torch.bool).scatter_(1, _order(seen), drop)
    return labels.masked_fill(gone.to(labels.device), IGNORED)


def span_starts(seen: Seen) -> torch.Tensor:
    """[B, T] where the run of labelled tokens around each token begins.

    So many tokens stand before it and are its prompt: for a later turn all turns before. Counting
    the tokens without a label would also count those between two answers.
    """
    labels = seen.candidates.labels.cpu().gather(1, _order(seen))
    at = torch.arange(labels.shape[1])
    inside = (labels != IGNORED) & (at < seen.lengths[:, None])
    begins = inside.clone()
    begins[:, 1:] &= ~inside[:, :-1]
    return torch.where(begins, at, 0).cummax(dim=1).values


def audit(kept: Mask, offsets: Integers) -> dict[str, Any]:
    """What a mask left: tokens, shares by sample, samples with nothing to train on."""
    counts = np.diff(offsets)
    before = np.concatenate([[0], np.cumsum(kept)])
    left = before[offsets[1:]] - before[offsets[:-1]]
    some = counts > 0
    shares = left[some] / counts[some]
    return {
        "tokens": len(kept),
        "kept": int(kept.sum()),
        "share_min": float(shares.min()) if len(shares) else None,
        "share_mean": float(shares.mean()) if len(shares) else None,
        "samples_without_tokens": int((~some).sum()),
        "samples_emptied": int((left[some] == 0).sum()),
    }
