"""UDS as its formula reads, from full logits: the baseline that `online_cost.py` compares with.

Each row's logits [L, V] are made, their singular values taken, and their sketch by two Fourier
transforms of which most is thrown away:

    |Z|_*        svd of [L, V]
    s            Re F_T [ D_1 Re[ (Z D_2) F_V ] at d1 columns ] at d2 rows, scaled so that
                 E |s|^2 = |Z|_F^2

with the signs and frequencies of the fast one, so that both must give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from foresift.pipeline.online import Chooser
from foresift.stages.samplers.uds import UDS, UDSChooser


@dataclass(frozen=True, kw_only=True)
class Naive(UDS):
    """UDS from full logits."""

    @property
    def hidden(self) -> bool:
        return False

    def open(self, live: Any) -> Chooser:
        return _Naive(self, live)


class _Naive(UDSChooser):
    """Shares the memory and the distances; measures by itself."""

    def measure(self, seen: Any) -> Mapping[str, torch.Tensor]:
        live = self.kernel.live
        with torch.no_grad(), live.scoring():
            logits = live.logits(seen.ids)
        found = [
            self._row(z[:length]) for z, length in zip(logits, seen.lengths.tolist(), strict=True)
        ]
        norms = torch.stack([norm for norm, _ in found]).double().cpu()
        norms[~seen.counted.any(1)] = torch.nan
        return {"intra": norms, "sketch": torch.stack([s for _, s in found]).float().cpu()}

    def _row(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(|Z|_*, s) of one row's logits."""
        masks, device = self.kernel.masks, z.device
        norm = torch.linalg.svdvals(z).sum()
        wide = torch.fft.fft(z * masks.token_signs.to(device), dim=1).real
        columns = wide[:, masks.token_frequencies.to(device)]
        columns = columns * self._scale(masks.token_frequencies, masks.vocabulary).to(device)
        signed = columns * masks.position_signs[: len(z)].to(device)[:, None]
        padded = torch.zeros(masks.length, signed.shape[1], device=device)
        padded[: len(z)] = signed
        rows = torch.fft.fft(padded, dim=0).real[masks.position_frequencies.to(device)]
        rows = rows * self._scale(masks.position_frequencies, masks.length).to(device)[:, None]
        return norm, rows.flatten()

    def _scale(self, frequencies: torch.Tensor, size: int) -> torch.Tensor:
        mirror = (frequencies == 0) | (2 * frequencies == size)
        scale = torch.full((len(frequencies),), math.sqrt(2 / len(frequencies)))
        return torch.where(mirror, scale / math.sqrt(2), scale)
