"""Stability mask: drop tokens whose step would shift the model's predictions too far.

Only the output layer W [V, d] is modelled. For a token a with probabilities p [V] from the hidden
state h [d], let v = e_a - p. A step of plain gradient descent on it goes along G = A v h' (A = 1 in
supervised training), moves its own logits along u = G h = A |h|^2 v, and so

    m_H = eta <g, G> + eta^2 / 2 * A [(v.u)^2 - (sum p u^2 - (sum p u)^2)]       objective change
    m_F = eta^2 / 2 * (v.u)^2 = eta^2 / 2 * A^2 |v|^4 |h|^4                      policy shift

The bracket is the second derivative of A p_new(a) / p(a). With S_k = sum p^k, all of it follows
from p_a, S_2, S_3 and |h|^2:

    |v|^2 = 1 - 2 p_a + S_2      sum p v = p_a - S_2      sum p v^2 = S_3 + p_a - 2 p_a^2

The power sums are taken over the whole vocabulary, tile by tile; no backward and no
[tokens, V] matrix. m_F is a monotone function of the gradient norm |v| |h| of the output layer.

A token is kept where m_F < tau_f and |m_H| < tau_h (`one_sided`: 0 <= m_H < tau_h). Thresholds grow
with eta^2 and |h|^2 and must be set anew for another model: `facts` has quantiles of both to set
them by. `reject` takes a share of the batch instead, the largest m_F, which does not depend on eta.

Units: m_H and m_F are changes of the objective, without a unit. Cost: one product of the counted
hidden states with the output layer. Errors: an output layer that is not known, or has a soft cap.
Source: CAPO (2025, arXiv 2510.00819), reduced to supervised training and its SGD model; its
thresholds were set for Adam and an eta of 1.5e-5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.head import Head
from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.online import Masker, TokenSelector
from foresift.stages.samplers._tokens import (
    Floats,
    Mask,
    TokenMasker,
    checked,
    keep_largest_of_batch,
)

_HERE = "stability_mask"
_QUANTILES = (0.5, 0.9, 0.98, 1.0)


@dataclass(frozen=True, kw_only=True)
class StabilityMask(TokenSelector):
    """Drop tokens whose gradient step would move the output distribution too far (CAPO)."""

    tau_f: float = 1e-4
    """Largest policy shift m_F that is kept, above 0."""
    tau_h: float = 1e-2
    """Largest objective change |m_H| that is kept, above 0."""
    one_sided: bool = False
    """True also drops tokens whose modelled objective change is negative."""
    reject: float | None = None
    """Share of counted tokens of each batch to drop, largest m_F first, in [0, 1); the thresholds
    are then not used."""
    learning_rate: float = 0.0
    """eta; 0: the first rate of the live model's optimizer, read at each step."""

    def __post_init__(self) -> None:
        if not (self.tau_f > 0 and self.tau_h > 0):
            raise ValueError("tau_f and tau_h must be above 0")
        if self.reject is not None and not 0 <= self.reject < 1:
            raise ValueError("reject must be at least 0 and below 1")
        if not 0 <= self.learning_rate < float("inf"):
            raise ValueError("learning_rate must be a finite number of at least 0")

    @property
    def signals(self) -> tuple[str, ...]:
        return ()

    @property
    def hidden(self) -> bool:
        return True

    def open(self, live: LiveModel) -> Masker:
        return _Stability(self, live)


def shifts(
    chosen: Floats, square: Floats, cube: Floats, length: Floats, eta: float, advantage: float = 1.0
) -> tuple[Floats, Floats]:
    """(m_H, m_F) from p_a, sum p^2, sum p^3 and |h|^2 of each token."""
    v = np.maximum(1 - 2 * chosen + square, 0)  # 0 up to rounding where p_a is 1
    along = advantage * length * v
    spread = (cube + chosen - 2 * chosen**2) - (chosen - square) ** 2
    bracket = along**2 - (advantage * length) ** 2 * spread
    m_h = eta * advantage**2 * length * v + eta**2 / 2 * advantage * bracket
    return m_h, eta**2 / 2 * along**2


@torch.no_grad()
def power_sums(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(p_a, sum p^2, sum p^3) in float64 of tokens predicted from [n, d] hidden states."""
    rows, columns = head.tile
    vocabulary = len(head.weight)
    space = torch.empty(min(rows, len(hidden)) * min(columns, vocabulary), device=hidden.device)
    found = []
    for start in range(0, len(hidden), rows):
        states, wanted = hidden[start : start + rows], targets[start : start + rows]
        top = torch.full((len(states),), -torch.inf, dtype=torch.float64, device=hidden.device)
        sums = torch.zeros(3, len(states), dtype=torch.float64, device=hidden.device)
        target = torch.zeros_like(top)
        for first in range(0, vocabulary, columns):
            last = min(first + columns, vocabulary)
            z = head.logits(states, first, last, space)
            inside = (wanted >= first) & (wanted < last)
            place = (wanted - first).clamp(0, last - first - 1)
            target += torch.where(inside, z.gather(1, place[:, None])[:, 0].double(), 0.0)
            highest = z.amax(1)
            e = (z - highest[:, None]).exp_()
            tile = torch.stack([e.sum(1), (e * e).sum(1), (e * e * e).sum(1)]).double()
            power = torch.arange(1, 4, device=hidden.device, dtype=torch.float64)[:, None]
            both = torch.maximum(top, highest.double())
            sums *= (power * (top - both)).exp()
            sums += tile * (power * (highest.double() - both)).exp()
            top = both
        chosen = (target - top).exp()[None] / sums[:1]
        found.append(torch.cat([chosen, sums[1:] / sums[:1] ** power[1:]]))
    whole = torch.cat(found, 1) if found else torch.zeros(3, 0, dtype=torch.float64)
    return whole[0], whole[1], whole[2]


class _Stability(TokenMasker):
    def __init__(self, part: StabilityMask, live: LiveModel) -> None:
        super().__init__()
        self.part, self.live = part, live
        if live.head is None:
            raise ModelError(live.reason, where=_HERE)
        if live.head.softcap:
            raise ModelError(
                "the closed form holds for no output layer with a soft cap", where=_HERE
            )
        if not part.learning_rate and part.reject is None and live.optimizer is None:
            raise ModelError("no optimizer to read the rate of", where=f"{_HERE}.learning_rate")

    def _rate(self) -> float:
        if self.part.learning_rate or self.live.optimizer is None:
            return self.part.learning_rate or 1.0  # `reject` does not depend on it
        return float(self.live.optimizer.param_groups[0]["lr"])

    def measure(self, seen: Seen) -> tuple[Floats, Floats]:
        """(m_H, m_F) of the counted tokens."""
        head = self.live.head
        assert head is not None
        assert seen.hidden is not None
        flat = torch.from_numpy(np.flatnonzero(seen.counted.numpy())).to(seen.hidden.device)
        hidden = seen.hidden.flatten(0, 1)[flat - 1]
        targets = seen.ids.to(hidden.device).flatten()[flat]
        chosen, square, cube = (x.cpu().numpy() for x in power_sums(head, hidden, targets))
        length = hidden.double().square().sum(1).cpu().numpy() * head.scale**2
        m_h, m_f = shifts(chosen, square, cube, length, self._rate())
        return checked(m_h, seen, f"{_HERE} m_H"), checked(m_f, seen, f"{_HERE} m_F")

    def keep(self, seen: Seen, step: int) -> Mask:
        part = self.part
        m_h, m_f = self.measure(seen)
        if len(m_f):
            for name, values in (("m_h", np.abs(m_h)), ("m_f", m_f)):
                at = np.quantile(values, _QUANTILES).tolist()
                self.facts[name] = dict(zip(map(str, _QUANTILES), at, strict=True))
        if part.reject is not None:
            offsets, ids = seen.signals.offsets, seen.candidates.ids
            return keep_largest_of_batch(-m_f, offsets, ids, 1 - part.reject)
        kept: Mask = (np.abs(m_h) < part.tau_h) & (m_f < part.tau_f)
        return kept & (m_h >= 0) if part.one_sided else kept
