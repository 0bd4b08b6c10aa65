"""Rho-1: tokens whose loss exceeds a reference model's, because they can still be learned.

    excess_j = L_cur(x_j) - L_ref(x_j)      nats; the largest ceil(share * n) are kept

The reference was trained on data of high quality. What is noise is high in both and scores about 0;
what is learned already scores about 0 or below. `scope: batch` takes the share of the tokens that
are chosen from together (those of one process and one micro-batch), so that a sample may lose all
of its tokens; `sample` takes it of each sample.

Cost: one forward for the live losses, shared, and one of the reference (a table: none). Memory: the
reference model. Both must use one tokenizer. Errors: a loss that is not finite; a cache of other
tokens. Source: Lin et al. 2024 (selective language modelling); the share for a model of 1B
parameters is 0.6, and 0.7 for 7B. No training code was released with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.online import Masker, TokenSelector
from foresift.stages.samplers import _history
from foresift.stages.samplers._tokens import (
    Mask,
    TokenMasker,
    checked,
    keep_largest,
    keep_largest_of_batch,
    share_field,
)


@dataclass(frozen=True, kw_only=True)
class Rho1(TokenSelector):
    """Keep tokens whose loss exceeds that of a reference model the most (Rho-1)."""

    reference: str
    """The reference model (folder or hub id), or a table of its losses (`.parquet`)."""
    share: float = 0.6
    """Share of counted tokens that is kept, in (0, 1]."""
    scope: Literal["batch", "sample"] = "batch"
    """What the share is taken of."""

    def __post_init__(self) -> None:
        share_field(self.share)
        if not self.reference:
            raise ValueError("reference must name a model or a table")

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll",)

    def open(self, live: LiveModel) -> Masker:
        return _Rho1(self, live)


class _Rho1(TokenMasker):
    def __init__(self, part: Rho1, live: LiveModel) -> None:
        super().__init__()
        self.part = part
        self.past = _history.reference(part.reference, live, "rho1.reference")

    def keep(self, seen: Seen, step: int) -> Mask:
        offsets = seen.signals.offsets
        current = checked(seen.signals.token["nll"], seen, "rho1 loss")
        excess = current - checked(self.past.losses(seen, step), seen, "rho1 reference")
        if len(excess):
            self.facts["excess_nats"] = float(excess.mean())
        if self.part.scope == "sample":
            return keep_largest(excess, offsets, self.part.share)
        return keep_largest_of_batch(excess, offsets, seen.candidates.ids, self.part.share)
