"""A random share of each sample's tokens: the baseline that a token selector has to beat.

Each counted token draws a uniform number keyed by (seed, id, step), and the largest
ceil(share * n - 1e-9) of a sample are kept. Nothing is carried from step to step, so an
interrupted run draws on as if it had not been. Cost: none; no signal is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.online import Masker, TokenSelector
from foresift.pipeline.rng import Rng
from foresift.stages.samplers._tokens import Mask, TokenMasker, keep_largest, share_field


@dataclass(frozen=True, kw_only=True)
class RandomTokens(TokenSelector):
    """Train on a random share of each sample's tokens."""

    share: float = 0.6
    """Share of each sample's counted tokens that is kept, in (0, 1]."""
    seed: int = 0
    """Seed of the draws."""
    redraw: bool = True
    """True draws anew at each step; False keeps one mask for a row throughout training."""

    def __post_init__(self) -> None:
        share_field(self.share)

    @property
    def signals(self) -> tuple[str, ...]:
        return ()

    def open(self, live: LiveModel) -> Masker:
        return _Random(self)


class _Random(TokenMasker):
    def __init__(self, part: RandomTokens) -> None:
        super().__init__()
        self.part, self.rng = part, Rng(part.seed).at("random_tokens")

    def keep(self, seen: Seen, step: int) -> Mask:
        offsets = seen.signals.offsets
        draws = np.empty(int(offsets[-1]))
        for row, name in enumerate(seen.candidates.ids):
            rng = self.rng.at(name, *([step] if self.part.redraw else []))
            start, stop = offsets[row], offsets[row + 1]
            draws[start:stop] = rng.generator().random(int(stop - start))
        return keep_largest(draws, offsets, self.part.share)
