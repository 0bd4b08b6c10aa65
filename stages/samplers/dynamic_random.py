"""Dynamic random pruning: each epoch visits a fresh uniform subset.

    floor((1 - r) n) documents, drawn without replacement by (seed, epoch), in random order

Every loss counts once; losses are not looked at. What every other epoch plan has to beat at the
same number of documents visited: over E epochs a document is met (1 - r) E times on average, where
a fixed subset never meets r n of them. The same epochs as `seta` with one group and a window of 1.
Cost: one permutation an epoch; no state besides the setting. Source: the baseline of InfoBatch (Qin
et al. 2024) and of SeTa.
"""

from __future__ import annotations

from dataclasses import dataclass

from foresift.pipeline.errors import DataError
from foresift.pipeline.online import EpochPlan, Epochs, Floats, Rows, State
from foresift.stages.samplers._epochs import Setting, Weights, check_share, equal_weights, kept


@dataclass(frozen=True, kw_only=True)
class DynamicRandom(EpochPlan):
    """Visit a fresh random subset in each epoch."""

    prune: float = 0.5
    """r, the share of the documents that an epoch leaves out; from 0 to 1."""

    def __post_init__(self) -> None:
        check_share("prune", self.prune)

    def open(self, n: int, epochs: int, seed: int) -> Epochs:
        size = kept(n, self.prune)
        setting = Setting.of(self, n, epochs, seed)
        if size < 1:
            raise DataError(f"{n} documents less {self.prune:g} of them is none", where="prune")
        return _Subsets(setting, size)


class _Subsets(Epochs):
    def __init__(self, setting: Setting, size: int) -> None:
        self._setting = setting
        self._size = size

    def epoch(self, number: int) -> tuple[Rows, Weights]:
        rows = self._setting.generator(number).permutation(self._setting.n)[: self._size]
        return rows, equal_weights(self._size)

    def update(self, positions: Rows, losses: Floats) -> None:
        return None

    def forecast(self) -> list[float]:
        return [float(self._size)] * self._setting.epochs

    def state_dict(self) -> State:
        return self._setting.state()

    def load_state_dict(self, state: State) -> None:
        self._setting.check(state)
