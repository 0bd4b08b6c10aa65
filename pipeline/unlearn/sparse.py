"""Ignore-top-k: an update without its largest entries, and erasure by such updates.

    u' = u with the floor(k P) entries of largest |u| set to 0         (ties: the first ones go)

`SparseRetain` fine-tunes on retain documents alone with updates of this form: what was learned in
a few large moves fades, the rest is kept up. Source: the follow-up of outlandish knowledge
(arXiv 2504.09522) for the rule; its use for erasure is a reading of ours.
Cost: 6N a retain token and a sort of P values a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from foresift.pipeline.unlearn.methods import Amending
from foresift.pipeline.unlearn.session import Step


def ignore_top_k(update: torch.Tensor, share: float) -> torch.Tensor:
    """The update with the `share` of its entries that are largest in magnitude set to 0."""
    if not 0.0 <= share <= 1.0:
        raise ValueError("share lies in 0 .. 1")
    found = update.clone().reshape(-1)
    order = torch.argsort(found.abs(), descending=True, stable=True)
    found[order[: int(share * len(found) + 1e-9)]] = 0.0
    return found.view_as(update)


@dataclass(frozen=True, kw_only=True)
class SparseRetain(Amending):
    """Descent on retain documents with sparse updates; forget documents are not read."""

    uses = frozenset({"retain"})
    share: float = 0.08
    """Of the update's entries that are dropped, the largest first."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise ValueError("share lies in 0 .. 1, 1 excluded")

    def loss(self, step: Step) -> torch.Tensor:
        """The mean NLL of the retain batch."""
        return step.retain.mean

    def amend(
        self, step: Step, before: torch.Tensor, change: torch.Tensor, optimizer: Any
    ) -> torch.Tensor:
        """The change without its largest entries."""
        return ignore_top_k(change, self.share)
