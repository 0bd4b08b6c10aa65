"""SSD (Foster et al. 2024): dampen the weights that matter more to forget than to all documents.

    I(S)_j = mean over documents i of S of g_ij^2        g_i = gradient of document i's mean NLL
    where I_f > a I_d:   w_j <- w_j * min((lambda I_d / I_f)^exponent, 1)

Gradients are taken by the document: the square of a batch's gradient is no Fisher information.
`importance="variance"` is VILA's max(0, E[g^2] - E[g]^2), 0 where all documents share a gradient.
I_d runs over a sample of forget and retain documents together, as published over all of D. So the
ratio I_f / I_d stays below 1 / (share of D that is to forget): with a tenth or more to forget, the
published a = 10 chooses nothing. Documents known by heart have small gradients, too. Unlike
the published code embeddings, output layer and norms are left alone: dampening them wipes tokens.

Cost: 6N a token of the forget documents and of the sample; memory of two models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.unlearn.blocks import matrices
from foresift.pipeline.unlearn.methods import Direct, Facts
from foresift.pipeline.unlearn.session import Session, gradient

Tensor = torch.Tensor
Kind = Literal["square", "variance"]


def importance(gradients: Iterable[Tensor], kind: Kind = "square") -> Tensor:
    """[P] importance from the gradients [P] of single documents, one at a time."""
    count, first, second = 0, torch.zeros(()), torch.zeros(())
    for g in gradients:
        count, first, second = count + 1, first + g, second + g.square()
    mean, square = first / max(count, 1), second / max(count, 1)
    return square if kind == "square" else (square - mean.square()).clamp_min(0.0)


def dampening(
    forget: Tensor, whole: Tensor, threshold: float, strength: float = 1.0, exponent: float = 1.0
) -> Tensor:
    """[P] the factor of each weight; `threshold` is a, `strength` lambda."""
    chosen = forget > threshold * whole
    ratio = (strength * whole / torch.where(chosen, forget, torch.ones_like(forget))) ** exponent
    return torch.where(chosen, ratio.clamp_max(1.0), torch.ones_like(forget))


@dataclass(frozen=True, kw_only=True)
class SSD(Direct):
    """Selective synaptic dampening, without a gradient step."""

    uses = frozenset({"retain"})
    threshold: float = 10.0
    """a: how many times larger the forget importance must be."""
    strength: float = 1.0
    """lambda: larger dampens less."""
    exponent: float = 1.0
    importance: Kind = "square"
    """`square`: Fisher; `variance`: VILA's correction."""
    sample: int = 256
    """Documents of forget and retain over which I_d is taken; 0 = all."""
    everything: bool = False
    """Whether embeddings, output layer and norms are dampened as well, as published."""

    def __post_init__(self) -> None:
        if self.threshold <= 0 or self.strength <= 0 or self.exponent <= 0 or self.sample < 0:
            raise ValueError("threshold, strength and exponent are above 0, sample at least 0")
        if self.importance not in ("square", "variance"):
            raise ValueError("importance is 'square' or 'variance'")

    def apply(self, session: Session) -> Facts:
        """Dampen once; says how many weights were chosen and by how much."""
        allowed = set(session.parameters) if self.everything else matrices(session.model)
        session.parameters = {n: p for n, p in session.parameters.items() if n in allowed}
        forget = self._over(session, session.forget.batches(1))
        whole = self._over(session, self._sample(session))
        factors = dampening(forget, whole, self.threshold, self.strength, self.exponent)
        start = 0
        with torch.no_grad():
            for p in session.moving:
                p.mul_(factors[start : start + p.numel()].view_as(p))
                start += p.numel()
        lowered = int((factors < 1.0).sum())
        return {
            "dampened": lowered,
            "dampened_share": lowered / session.meter.size,
            "dampened_share_of_eligible": lowered / len(factors),
            "mean_factor": float(factors[factors < 1.0].mean()) if lowered else 1.0,
        }

    def _over(self, session: Session, batches: Iterable[Batch]) -> Tensor:
        alone = (gradient(session.read(batch).mean, session) for batch in batches)
        return importance(alone, self.importance)

    def _sample(self, session: Session) -> Iterable[Batch]:
        forget, total = len(session.forget), len(session.forget) + len(session.retain)
        size = min(self.sample or total, total)
        drawn = sorted(session.generator("ssd").choice(total, size=size, replace=False))
        for i in drawn:
            yield session.forget.batch([i]) if i < forget else session.retain.batch([i - forget])
