"""Gradient match: train on the rows whose gradients point where a reference's loss falls.

    utility = <d, grad l(x)>        d = grad J, or P grad J with `precondition`

l(x) is the mean loss of row x and J the loss of the reference, both of the model as it is now. A
step of plain gradient descent on x lowers J by lr times the utility, to first order; with P, the
scale that Adam gives each weight, the same holds of Adam's step but for the scale of all rows
together. Larger is kept first; below 0 a row works against the reference.

The dot product needs no gradient of x: it is the slope of x's loss along d,

    (l(x; theta + e d) - l(x; theta - e d)) / 2e            `central`, error O(e^2)
    (l(x; theta + e d) - l(x; theta)) / e                   else, error O(e), a forward less

with |e d| = `step` |theta|. The weights are put back bit for bit. The gradient of the reference is
taken every `every` steps, and is part of the state in between.

Candidates are judged one by one: what two alike candidates do together is not looked at (GREATS
goes on to choose greedily with such a term).

The reference is a parquet file with `input_ids`, and `labels` where some tokens do not count
(-100). Cost: two forwards without gradients, or one beside the pass itself; a forward and backward
over the reference every `every` steps; twice the weights of memory. Source: Wang et al. 2024
(NeurIPS), GREATS; first-order influence as in TracIn (Pruthi et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.gradients.directional import step_size
from foresift.pipeline.lm.gradients.reference import Reduction
from foresift.pipeline.lm.gradients.samples import trainable
from foresift.pipeline.online import BatchMethod, Floats, State
from foresift.stages.samplers import _directions as directions
from foresift.stages.samplers._rows import RowChooser, row_means

if TYPE_CHECKING:
    from foresift.pipeline.lm.live import LiveModel, Seen

#: relative step, by the precision of the weights: larger where rounding is
STEPS = {torch.float64: 1e-5, torch.float32: 3e-4}
COARSE = 3e-3
_PREFIX = "direction."


@dataclass(frozen=True, kw_only=True)
class GradientMatch(BatchMethod):
    """Rows whose gradient points where the loss of a reference falls (GREATS, first order)."""

    reference: str
    """Parquet file of rows of token ids: `input_ids`, and `labels` where some do not count."""
    every: int = 1
    """Steps for which one gradient of the reference serves."""
    precondition: bool = False
    """Whether the gradient is scaled as the optimizer scales its steps (Adam, AdamW)."""
    reduction: Reduction = "token_mean"
    """How the losses of the reference's rows make one."""
    central: bool = True
    """Two forwards and a smaller error, or one."""
    step: float = 0.0
    """Length of the step over that of the weights; 0: by precision, 3e-4 in float32."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError("every must be 1 at least")
        if not (math.isfinite(self.step) and self.step >= 0):
            raise ValueError("step must be a number from 0 on")

    @property
    def signals(self) -> tuple[str, ...]:
        return () if self.central else ("nll",)

    def open(self, live: LiveModel) -> GradientMatchChooser:
        return GradientMatchChooser(self, live)


class GradientMatchChooser(RowChooser):
    """The direction that serves at present."""

    def __init__(self, part: GradientMatch, live: LiveModel) -> None:
        live.whole("gradient_match")
        self.part, self.live = part, live
        vocabulary = int(live.model.get_input_embeddings().weight.shape[0])
        self.rows = directions.read_reference(part.reference, part.reduction, vocabulary)
        self.direction: directions.Tensors | None = None
        self.gradients = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"reference_tokens": self.rows.tokens, "reference_gradients": self.gradients}

    def values(self, seen: Seen) -> Floats:
        if self.direction is None:
            self.direction = self._found()
        dtype = next(iter(trainable(self.live.model).values())).dtype
        relative = self.part.step or STEPS.get(dtype, COARSE)
        size = step_size(self.live.model, self.direction, relative)
        ahead = directions.losses_at(self.live, seen.candidates, self.direction, size)
        if self.part.central:
            behind = directions.losses_at(self.live, seen.candidates, self.direction, -size)
            return (ahead - behind) / (2 * size)
        return (ahead - row_means(seen.signals, "nll")) / size

    def _found(self) -> directions.Tensors:
        gradient = directions.reference_gradient(self.live, self.rows)
        if self.part.precondition:
            return directions.preconditioned(self.live, gradient, "gradient_match")
        return gradient

    def utility(self, measured: Mapping[str, torch.Tensor], step: int) -> Floats:
        self.gradients += step % self.part.every == 0
        if (step + 1) % self.part.every == 0:
            self.direction = None  # the next step has weights of its own
        return super().utility(measured, step)

    def state_dict(self) -> State:
        held = {_PREFIX + n: d.clone() for n, d in (self.direction or {}).items()}
        return {"gradients": self.gradients, **held}

    def load_state_dict(self, state: State) -> None:
        held = {n.removeprefix(_PREFIX): v for n, v in state.items() if n.startswith(_PREFIX)}
        known = trainable(self.live.model)
        for name, values in held.items():
            if name not in known or known[name].shape != values.shape:
                raise DataError(
                    f"the state has a direction for {name} {list(values.shape)}, which is no "
                    "trained parameter of this model",
                    where="gradient_match",
                )
        moved = {n: v.to(known[n].device) for n, v in held.items()}
        self.direction = moved or None
        self.gradients = int(state["gradients"])
