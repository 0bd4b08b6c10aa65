"""How sharp a document's loss is around the model: what lies flat is hard to forget (CUPID).

    w(x) = l(theta + eta g / |g|) - l(theta)      g = grad l(x; theta), l: mean NLL of the document

in nats per token, over all parameters: one normalised ascent step on the document alone. Low
sharpness is what many others support too: templates and copies, which later unlearning does not
reach; a cluster of many copies and low sharpness is cheaper to thin out now. So utility is the
sharpness (larger = forgotten more easily = keep first). `gradient_norm` is |g|: large where a
document is still being fitted, so that deleting it moves the model more.

To first order w = eta |g|; what is above that is curvature. `eta` is a length in parameter space
(SAM's radius); sharpness of two models or of two eta is not to be compared.

Only a sample is asked (`_forget_sample.py`): outside it `sharpness` and `gradient_norm` are NaN,
and `utility` is NaN too unless a `cluster` column is named, whose means stand in. NaN also without
a counted token, and where the gradient is zero or not finite. Each document is alone in its
forwards, so nothing depends on the others. Facts: sample, measured, mean.

Known answer: l = h x^2 / 2, h = 4, x = 0.5, eta = 0.1: w = eta h x + h eta^2 / 2 = 0.22.
Cost: two forwards and a backward of each document of the sample, 8 to 10 N FLOPs a token.
Source: CUPID (sharpness and causal pathways in unlearning; shown on images, a hypothesis for text).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from foresift.pipeline.lm.batches import Batch, batches
from foresift.pipeline.lm.gradients.directional import shifted
from foresift.pipeline.lm.gradients.samples import norm, sample_losses, trainable
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column
from foresift.scorers._forget_sample import Asked, AsksSample, Numbers


@dataclass(frozen=True, kw_only=True)
class Sharpness(AsksSample):
    """Rise of a document's loss by one normalised ascent step: what is flat is hard to forget."""

    eta: float = 0.05
    """Length of the step in parameter space."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "sharpness, nats per token", "higher"),
        "sharpness": Column(pa.float32(), "nats per token, of sampled rows", "higher"),
        "gradient_norm": Column(pa.float32(), "nats per unit of weight, of sampled rows", "lower"),
        "by_cluster": Column(pa.float32(), "mean sharpness of its cluster", "higher"),
    }

    def __post_init__(self) -> None:
        self.checked()
        if not self.eta > 0:
            raise ValueError("eta must be positive")

    @property
    def main(self) -> tuple[str, float]:
        return "sharpness", 1.0

    def measure(self, asked: Asked) -> tuple[Numbers, Facts]:
        def ask(rows: npt.NDArray[np.int64]) -> Numbers:
            model = asked.loaded.model
            found = np.empty((2, len(rows)))
            for k, row in enumerate(rows):
                batch = next(batches(asked.encoded, np.array([row]), 1))
                loss = functools.partial(_loss, model, batch)
                found[:, k] = ascent(model, loss, self.eta)
            return {"sharpness": found[0], "gradient_norm": found[1]}

        numbers = asked.by_document(("sharpness", "gradient_norm"), ask, "sharpness")
        return numbers, {"eta": self.eta, "flops": asked.flops(4)}

    def estimate(self, parameters: int, pool: int, references: int) -> tuple[float, float]:
        return 8.0 * parameters * self.asked_tokens(pool), 0.0


def _loss(model: Any, batch: Batch) -> torch.Tensor:
    return sample_losses(model, batch)[0]


def ascent(model: Any, loss: Callable[[], torch.Tensor], eta: float) -> tuple[float, float]:
    """(rise of a loss by a step of length `eta` along its gradient, the gradient's norm).

    The weights are put back bit for bit. NaN where the gradient is zero or not finite.
    """
    parameters = trainable(model)
    with torch.enable_grad():
        before = loss()
        found = torch.autograd.grad(before, list(parameters.values()), materialize_grads=True)
    gradient = dict(zip(parameters, found, strict=True))
    length = norm(gradient)
    if not (math.isfinite(length) and length > 0):
        return math.nan, length
    with shifted(model, gradient, eta / length), torch.no_grad():
        after = loss()
    return float(after.double() - before.detach().double()), length
