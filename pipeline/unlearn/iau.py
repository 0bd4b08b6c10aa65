"""IAU's move: one Adam step along grad l_r - grad l_f, over all forget documents.

    g = grad(mean NLL of D_r) - grad(mean NLL of D_f),      theta <- theta - Adam(g)

Adam's first step is lr * g / (|g| + eps) entry by entry: it is the sign of g that counts. D_r is a
sample. The gradient restriction that IAU adds while training is not part of it.
Cost: 6N a token of the forget documents and of the sample, for each step (1 by default).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from foresift.pipeline.lm.batches import Batch
from foresift.pipeline.unlearn.methods import Direct, Facts
from foresift.pipeline.unlearn.session import Session, flat, gradient


@dataclass(frozen=True, kw_only=True)
class IAU(Direct):
    """One Adam step down the retain and up the forget loss."""

    uses = frozenset({"retain"})
    sample: int = 256
    """Retain documents read; 0 = all."""
    alpha: float = 1.0
    """Weight of the retain gradient."""

    def __post_init__(self) -> None:
        if self.sample < 0 or self.alpha < 0:
            raise ValueError("sample and alpha are at least 0")

    def apply(self, session: Session) -> Facts:
        """As many steps as the run asks for."""
        optimizer = torch.optim.Adam(session.moving, lr=session.learning_rate)
        cosine = 0.0
        for number in range(session.steps):
            rows = session.retain_rows(number, self.sample or len(session.retain))
            kept = [rows[i : i + session.batch] for i in range(0, len(rows), session.batch)]
            retain = mean_gradient(session, (session.retain.batch(k) for k in kept))
            forget = mean_gradient(session, session.forget.batches(session.batch))
            cosine = float(torch.cosine_similarity(forget, retain, dim=0))
            step(optimizer, session, self.alpha * retain - forget)
        return {"cosine": cosine}


def mean_gradient(session: Session, batches: Iterable[Batch]) -> torch.Tensor:
    """[P] the gradient of the mean token NLL over all batches."""
    total, tokens = torch.zeros_like(flat(session.moving)), 0
    for batch in batches:
        count = int(batch.counted.sum())
        total += count * gradient(session.read(batch).mean, session)
        tokens += count
    return total / max(tokens, 1)


def step(optimizer: torch.optim.Optimizer, session: Session, along: torch.Tensor) -> None:
    """One step of the optimizer with this [P] gradient."""
    start = 0
    for p in session.moving:
        p.grad = along[start : start + p.numel()].view_as(p).clone()
        start += p.numel()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
