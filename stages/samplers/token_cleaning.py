"""Token cleaning: tokens that a reference model predicts better than the base, by one threshold.

    score_j = L_base(x_j) - L_ref(x_j)      nats; kept where score_j >= threshold

The base is the model before fine-tuning and the reference the same after tuning on a part of high
quality: what tuning taught is informative, what it did not is noise. The released code takes the
60 % largest of the whole corpus; `global_threshold` gives that number from two tables of losses,
and the part then keeps or drops a token by itself, whatever batch it is in. Ties at the threshold
are all kept. Without a threshold the share is taken of the tokens chosen from together.

With a base and a reference that stay fixed this is the released fixed-model variant. In the
self-evolving one a part of the data is trained on after another, and the reference is the model
after the part before: open it anew for each part, with that model. Without `base` the live model's
loss stands in for it, which is `rho1` with a threshold.

Cost: one forward for each of base and reference that is not a table. Memory: those models. Errors:
a loss that is not finite; a cache of other tokens. Source: Pang et al. 2025 (Token Cleaning).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.online import Masker, TokenSelector
from foresift.stages.samplers import _history
from foresift.stages.samplers._tokens import (
    Floats,
    Mask,
    TokenMasker,
    checked,
    keep_largest_of_batch,
    quota,
    share_field,
)


@dataclass(frozen=True, kw_only=True)
class TokenCleaning(TokenSelector):
    """Keep tokens that a tuned reference predicts better than the base model (Token Cleaning)."""

    reference: str
    """The reference model (folder or hub id), or a table of its losses (`.parquet`)."""
    base: str = ""
    """The same of the base model; empty: the live model."""
    threshold: float | None = None
    """Nats from which a token is kept (see `global_threshold`); none: the share of each batch."""
    share: float = 0.6
    """Share of counted tokens that is kept where there is no threshold, in (0, 1]."""

    def __post_init__(self) -> None:
        share_field(self.share)
        if not self.reference:
            raise ValueError("reference must name a model or a table")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError("threshold must be a finite number")

    @property
    def signals(self) -> tuple[str, ...]:
        return () if self.base else ("nll",)

    def open(self, live: LiveModel) -> Masker:
        return _TokenCleaning(self, live)


def global_threshold(base: Path, reference: Path, share: float = 0.6) -> float:
    """The smallest score among the share of largest ones, over the rows of two tables of losses."""
    share_field(share)
    first, second = _history.Table(base), _history.Table(reference)
    if first.rows.keys() != second.rows.keys():
        raise DataError(f"other rows than {base}", where=str(reference))
    pieces = []
    for name in first.rows:
        one, two = first.of(name), second.of(name)
        if len(one) != len(two):
            raise DataError(f"row {name} has other tokens than in {base}", where=str(reference))
        pieces.append(one.astype(np.float64) - two)
    scores: Floats = np.concatenate([np.empty(0), *pieces])
    if not len(scores) or not np.isfinite(scores).all():
        raise DataError("no losses, or some that are not finite", where=f"{base}, {reference}")
    kept = int(quota(share, np.array(len(scores))))
    return float(np.partition(scores, len(scores) - kept)[len(scores) - kept])


class _TokenCleaning(TokenMasker):
    def __init__(self, part: TokenCleaning, live: LiveModel) -> None:
        super().__init__()
        self.part = part
        self.past = _history.reference(part.reference, live, "token_cleaning.reference")
        self.base = (
            _history.reference(part.base, live, "token_cleaning.base") if part.base else None
        )

    def keep(self, seen: Seen, step: int) -> Mask:
        raw = self.base.losses(seen, step) if self.base else seen.signals.token["nll"]
        score = checked(raw, seen, "token_cleaning base")
        score = score - checked(self.past.losses(seen, step), seen, "token_cleaning reference")
        if self.part.threshold is not None:
            kept: Mask = score >= self.part.threshold
            return kept
        ids = seen.candidates.ids
        return keep_largest_of_batch(score, seen.signals.offsets, ids, self.part.share)
