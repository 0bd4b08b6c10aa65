"""Unlearning methods that are one loss under AdamW: loss = gamma * forgetting + alpha * kept.

`kept` is the mean NLL of the retain batch, or the KL of its next tokens from the reference. Fields
are the published knobs, with the defaults of OpenUnlearning where it has the method. Formulas:
`losses.py`. Cost a step: 6N a forget token, 6N a retain token, 2N a token read by the reference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch

from foresift.pipeline.unlearn import losses
from foresift.pipeline.unlearn.session import Session, Step

Tensor = torch.Tensor
Facts = dict[str, Any]
Need = Literal["retain", "reference", "templates"]
#: documents over which PDU measures the retain loss that it bounds
_BOUND_DOCUMENTS = 64


class Direct(ABC):
    """A method that edits the weights itself, in place of the loop of steps."""

    uses: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def apply(self, session: Session) -> Facts:
        """Change the model; say what was done."""


class Method(ABC):
    """A method that is a loss, minimised by AdamW."""

    uses: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def loss(self, step: Step) -> Tensor:
        """The loss of one step."""


class Amending(Method):
    """A method that also corrects what the optimizer proposes."""

    @abstractmethod
    def amend(self, step: Step, before: Tensor, change: Tensor, optimizer: Any) -> Tensor:
        """The change [P] to apply to the weights `before` [P], in place of the proposed one."""


@dataclass(frozen=True, kw_only=True)
class Weighed(Method):
    """A forgetting loss next to what keeps the rest."""

    gamma: float = 1.0
    """Weight of the forgetting loss."""
    alpha: float = 0.0
    """Weight of the retain loss; 0 = no retain documents are read."""
    keep: Literal["nll", "kl"] = "nll"
    """The retain loss: NLL of its tokens, or KL from the reference."""

    def __post_init__(self) -> None:
        if self.keep not in ("nll", "kl"):
            raise ValueError(f"keep={self.keep!r}: it is 'nll' or 'kl'")
        if self.gamma < 0 or self.alpha < 0:
            raise ValueError("gamma and alpha are at least 0")
        for name in ("beta", "dual_step"):
            if getattr(self, name, 1.0) <= 0:
                raise ValueError(f"{name} is above 0")

    @abstractmethod
    def forgetting(self, step: Step) -> Tensor:
        """The loss on the forget batch."""

    @final
    def loss(self, step: Step) -> Tensor:
        """The weighted sum of both."""
        total = self.gamma * self.forgetting(step)
        if self.alpha == 0:
            return total
        if self.keep == "nll":
            return total + self.alpha * step.retain.mean
        return total + self.alpha * losses.kl(step.retain.logits, step.retain_before.logits)


def needs(method: Method | Direct) -> frozenset[Need]:
    """What must be there besides the forget documents."""
    found = set(method.uses)
    if isinstance(method, Weighed) and method.alpha > 0:
        found |= {"retain"} if method.keep == "nll" else {"retain", "reference"}
    base = getattr(method, "base", None)
    if base is not None:
        found |= needs(base)
    return frozenset(found)


@dataclass(frozen=True, kw_only=True)
class GA(Weighed):
    """Gradient ascent on the forget documents."""

    def forgetting(self, step: Step) -> Tensor:
        """Minus their mean token NLL."""
        return losses.gradient_ascent(step.forget.sums, step.forget.lengths)


@dataclass(frozen=True, kw_only=True)
class GradDiff(GA):
    """Gradient ascent on forget, descent on retain documents."""

    alpha: float = 1.0


@dataclass(frozen=True, kw_only=True)
class NPO(Weighed):
    """Negative preference optimisation, by the sequence."""

    uses = frozenset({"reference"})
    alpha: float = 1.0
    beta: float = 0.1
    """Inverse temperature; the ascent ends once a sequence lost some 1 / beta nats."""

    def forgetting(self, step: Step) -> Tensor:
        """NPO against the reference."""
        return losses.npo(step.forget.sums, step.forget_before.sums, self.beta)


@dataclass(frozen=True, kw_only=True)
class SimNPO(Weighed):
    """NPO normalised by length, without a reference."""

    gamma: float = 0.125
    alpha: float = 1.0
    beta: float = 4.5
    delta: float = 0.0
    """NLL per token at which a document counts as half forgotten."""

    def forgetting(self, step: Step) -> Tensor:
        """SimNPO of the forget batch."""
        return losses.simnpo(step.forget.sums, step.forget.lengths, self.beta, self.delta)


@dataclass(frozen=True, kw_only=True)
class DPO(Weighed):
    """Preference for refusals (`templates`) over the answers to forget."""

    uses = frozenset({"reference", "templates"})
    alpha: float = 1.0
    beta: float = 0.1

    def forgetting(self, step: Step) -> Tensor:
        """DPO with the template as the winner."""
        return losses.dpo(
            step.templates.sums,
            step.templates_before.sums,
            step.forget.sums,
            step.forget_before.sums,
            self.beta,
        )


@dataclass(frozen=True, kw_only=True)
class PDU(Weighed):
    """Flat logits on forget documents, subject to a bound on the retain loss (primal-dual)."""

    uses = frozenset({"retain"})
    epsilon: float | None = None
    """The bound in nats; None = the loss on 64 retain documents before the first step."""
    dual_step: float = 1.0
    """Step size of the multiplier."""
    warmup: int = 0
    """Steps before the multiplier moves (published: 5 epochs)."""
    multiplier: float = 1.0
    """Of the bound, at the start."""

    def forgetting(self, step: Step) -> Tensor:
        """Flattening and the bounded retain loss; the multiplier then moves for the next step."""
        state, retain = step.session.state, step.retain.mean
        weight = state.setdefault("multiplier", self.multiplier)
        total: Tensor = losses.flattening(step.forget.logits) + weight * retain
        if step.number >= self.warmup:
            bound = self._bound(step)
            state["multiplier"] = losses.dual_update(
                weight, float(retain.detach()), bound, self.dual_step
            )
        return total

    def _bound(self, step: Step) -> float:
        if self.epsilon is not None:
            return self.epsilon
        session = step.session
        if "bound" not in session.state:
            probe = session.retain.batch(session.retain_rows(-1, _BOUND_DOCUMENTS))
            session.state["bound"] = float(session.read(probe, per_token=2).mean)
        return float(session.state["bound"])


@dataclass(frozen=True, kw_only=True)
class FLAT(Weighed):
    """Divergence between template and forget answers, from forget data only."""

    uses = frozenset({"templates"})
    divergence: Literal["tv", "kl", "js", "pearson"] = "tv"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence not in losses.DIVERGENCES:
            raise ValueError(f"divergence is one of {', '.join(losses.DIVERGENCES)}")

    def forgetting(self, step: Step) -> Tensor:
        """FLAT of mean token probabilities."""
        return losses.flat(step.templates.probability, step.forget.probability, self.divergence)


@dataclass(frozen=True, kw_only=True)
class CEU(Weighed):
    """Cross-entropy to the model's own distribution without the true token."""

    skip_first: bool = True
    """Leave out each document's first counted token."""

    def forgetting(self, step: Step) -> Tensor:
        """CE-U of the forget batch."""
        seen = step.forget
        kept = ~seen.first if self.skip_first and bool((~seen.first).any()) else seen.first | True
        return losses.unlikely_target(seen.logits[kept], seen.targets[kept])


@dataclass(frozen=True, kw_only=True)
class WGA(Weighed):
    """Gradient ascent weighted by the token's probability."""

    alpha: float = 1.0
    confident: float = 1.0
    """Exponent of p."""
    saturated: float = 0.0
    """Exponent of 1 - p."""

    def forgetting(self, step: Step) -> Tensor:
        """Weighted ascent by the token."""
        return losses.weighted_ascent(step.forget.nll, self.confident, self.saturated)


@dataclass(frozen=True, kw_only=True)
class SatImp(WGA):
    """WGA that also leaves out what is saturated."""

    gamma: float = 0.1
    confident: float = 5.0
    saturated: float = 1.0


@dataclass(frozen=True, kw_only=True)
class UNDIAL(Weighed):
    """Self-distillation to logits with the true token lowered."""

    uses = frozenset({"reference"})
    beta: float = 10.0
    """How far the true token's logit is lowered."""

    def forgetting(self, step: Step) -> Tensor:
        """Cross-entropy to the lowered reference."""
        seen = step.forget
        return losses.undial(seen.logits, step.forget_before.logits, seen.targets, self.beta)


@dataclass(frozen=True, kw_only=True)
class MaxEntropy(Weighed):
    """Most entropy on forget documents, descent on retain documents."""

    gamma: float = 0.1
    alpha: float = 1.0

    def forgetting(self, step: Step) -> Tensor:
        """Minus the entropy of the next token."""
        return -losses.entropy(step.forget.logits)


@dataclass(frozen=True, kw_only=True)
class RandomLabels(Weighed):
    """Descent on tokens drawn evenly in place of the true ones (FIT's mild class)."""

    alpha: float = 1.0

    def forgetting(self, step: Step) -> Tensor:
        """Cross-entropy to tokens that depend on (seed, step)."""
        logits = step.forget.logits
        draws = step.session.generator("labels", step.number).integers(
            logits.shape[1], size=len(logits)
        )
        wanted = torch.as_tensor(draws, device=logits.device)
        return torch.nn.functional.cross_entropy(logits, wanted)
