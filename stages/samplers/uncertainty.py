"""Uncertainty: train on the rows of whose tokens the model is least sure at this moment.

With p_t the distribution from which counted token t is predicted, means over the row's T tokens:

    entropy             (1 / T) sum_t -sum_v p_t(v) log p_t(v)      nats
    margin              -(1 / T) sum_t (p_t(first) - p_t(second))   -1 to 0
    least_confidence    1 - (1 / T) sum_t p_t(first)                0 to 1

Larger is kept first, in each of them. The tokens themselves do not enter, only the model's view of
what might come. A row without a counted token is NaN.

Cost: one forward without gradients. Source: Settles 2009, Active learning literature survey,
section 3.1; for sequences Settles and Craven 2008 (token entropy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from foresift.pipeline.online import BatchMethod, Chooser, Floats
from foresift.stages.samplers._rows import RowChooser, row_means

if TYPE_CHECKING:
    from foresift.pipeline.lm.live import LiveModel, Seen

Measure = Literal["entropy", "margin", "least_confidence"]
_SIGNALS = {"entropy": "entropy", "margin": "margin", "least_confidence": "top_prob"}


@dataclass(frozen=True, kw_only=True)
class Uncertainty(BatchMethod):
    """Rows of whose tokens the model is least sure as it is now."""

    measure: Measure = "entropy"
    """Mean entropy, small lead of the likeliest token over the second, or its small probability."""

    @property
    def signals(self) -> tuple[str, ...]:
        return (_SIGNALS[self.measure],)

    def open(self, live: LiveModel) -> Chooser:
        return _UncertaintyChooser(self.measure)


class _UncertaintyChooser(RowChooser):
    def __init__(self, kind: Measure) -> None:
        self.kind = kind

    def values(self, seen: Seen) -> Floats:
        mean = row_means(seen.signals, _SIGNALS[self.kind])
        return {"entropy": mean, "margin": -mean, "least_confidence": 1 - mean}[self.kind]
