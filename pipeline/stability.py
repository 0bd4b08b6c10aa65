"""The stability gap: how far a model falls on old tasks right after the data changes, and a guard.

    min-ACC of task j    least accuracy since j was first learned, at steps that did not learn j
    WC-ACC               mean of (accuracy now of the task that is learned, min-ACC of all others)
    WF^w, WP^w           largest fall, largest rise between two evaluations at most w apart; >= 0

A fall is deepest within some tens of steps after a switch (of stage, of domain mix) and is made up
for later, so evaluations far apart do not see it. The guard therefore measures the loss of fixed
probe batches before the first step after a switch, after each of the next `steps`, and after every
`every`-th from then on. It warns, once a switch and probe, when the loss rises by more than `bound`
nats per token between two measurements at most `window` apart (WF^w of the negated loss).

    guard = StabilityGuard(probe, bound=0.2)
    guard.switch(model, step)                          # before the first step on other data
    for step in ...:                                   # step = optimizer steps done so far
        ...;  optimizer.step();  guard.after_step(model, step)

A probe is a batch that the model takes, with labels; a mapping of such batches by name is several.
Dropout is off while it is measured, the module that data-parallel wrappers hold is asked itself,
and random states are left alone: guarded or not, training is the same. Each process measures by
itself. Cost: a forward without gradients of every probe each time; keep probes at a few rows.

Source: the stability gap and its continual evaluation metrics (De Lange et al. 2023). They define
min-ACC since the end of a task; a task that comes again is left out here while it is learned.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.live import unwrap
from foresift.pipeline.online import Floats, State, Stateful
from foresift.pipeline.parts import digest


def min_acc(accuracies: npt.ArrayLike, learning: npt.ArrayLike) -> Floats:
    """[tasks] least accuracy of each since it was first learned, while it was not learned.

    accuracies   [evaluations, tasks]
    learning     [evaluations] number of the task that is learned then

    NaN where a task was never learned, or not evaluated apart from its learning since.
    """
    values, now = np.asarray(accuracies, dtype=np.float64), np.asarray(learning)
    if values.ndim != 2 or now.shape != values.shape[:1]:
        raise DataError(
            f"accuracies {list(values.shape)} need [evaluations, tasks], learning"
            f" {list(now.shape)} [evaluations]",
            where="accuracies",
        )
    mine = now[:, None] == np.arange(values.shape[1])
    counts = np.maximum.accumulate(mine, axis=0) & ~mine
    least = np.where(counts, values, np.inf).min(axis=0, initial=np.inf)
    return np.where(counts.any(axis=0), least, np.nan)


def wc_acc(current: float, minima: npt.ArrayLike) -> float:
    """Worst-case accuracy: the task that is learned as it is now, all others at their minimum."""
    return float(np.mean([current, *np.asarray(minima, dtype=np.float64).ravel()]))


def wf(series: npt.ArrayLike, window: int) -> float:
    """Windowed forgetting: the largest fall between two evaluations at most `window` apart."""
    values = _series(series, window)
    highest: deque[tuple[int, float]] = deque()  # falling values, each the largest after the last
    fall = 0.0
    for place, value in enumerate(values.tolist()):
        while highest and highest[0][0] < place - window:
            highest.popleft()
        if highest:
            fall = max(fall, highest[0][1] - value)
        while highest and highest[-1][1] <= value:
            highest.pop()
        highest.append((place, value))
    return fall


def wp(series: npt.ArrayLike, window: int) -> float:
    """Windowed plasticity: the largest rise between two evaluations at most `window` apart."""
    return wf(-_series(series, window), window)


def _series(series: npt.ArrayLike, window: int) -> Floats:
    values = np.asarray(series, dtype=np.float64)
    if values.ndim != 1 or np.isnan(values).any():
        raise DataError("one number an evaluation is needed, none of them NaN", where="series")
    if window < 1:
        raise DataError(f"must be at least 1, got {window}", where="window")
    return values


class StabilityGuard(Stateful):
    """Measures probe batches closely after a switch, and warns when their loss rises."""

    def __init__(
        self,
        probe: Mapping[str, Any],
        *,
        steps: int = 100,
        every: int = 50,
        bound: float = 0.1,
        window: int = 100,
    ) -> None:
        """Begin, with no switch yet.

        probe    a batch with input_ids and labels, or several by name
        steps    optimizer steps after a switch of which each is measured
        every    steps from one measurement to the next, after those
        bound    rise of a probe's loss that is warned of, in nats per token
        window   measurements that a rise may take
        """
        for name, value, least in (("steps", steps, 0), ("every", every, 1), ("window", window, 1)):
            if value < least:
                raise DataError(f"must be at least {least}, got {value}", where=name)
        if not bound > 0:
            raise DataError(f"must be above 0, got {bound}", where="bound")
        self.probes: dict[str, Mapping[str, Any]] = (
            {"probe": probe} if "input_ids" in probe else dict(probe)
        )
        for name, batch in self.probes.items():
            lacks = [key for key in ("input_ids", "labels") if key not in batch]
            if lacks:
                raise DataError(f"the batch has no {' and no '.join(lacks)}", where=name)
        self.dense, self.every, self.bound, self.window = steps, every, bound, window
        self.steps: list[int] = []
        self.losses: dict[str, list[float]] = {name: [] for name in self.probes}
        self.switches: list[int] = []  # places of the measurements that switches began with
        self.warned: list[str] = []
        batches = [
            [name, torch.as_tensor(batch[key]).cpu().tolist()]
            for name, batch in sorted(self.probes.items()) for key in ("input_ids", "labels")
        ]  # fmt: skip
        self.plan = digest([steps, every, float(bound), window, batches])

    def switch(self, model: Any, step: int) -> None:
        """Other data from here on: measure what the model is before its first step on them."""
        self.switches.append(len(self.steps))
        self.warned = []
        self._measure(model, step)

    def after_step(self, model: Any, step: int) -> None:
        """Told how many optimizer steps are done; measures where it is time to."""
        if not self.switches:
            raise DataError("call switch(model, step) before the first step", where="stability")
        since = step - self.steps[self.switches[-1]]
        if step <= self.steps[-1] or not (since <= self.dense or since % self.every == 0):
            return
        self._measure(model, step)
        for name, losses in self.losses.items():
            recent = losses[self.switches[-1] :][-self.window - 1 :]
            rise = recent[-1] - min(recent[:-1])
            if name not in self.warned and not rise <= self.bound:  # NaN is no small rise
                self.warned.append(name)
                warnings.warn(
                    f"the loss of {name} is {recent[-1]:.3f} nats per token after step {step},"
                    f" {rise:.3f} above what it was since the switch at step"
                    f" {self.steps[self.switches[-1]]} (bound {self.bound:g}): warm up, rehearse"
                    " earlier data, or lower the learning rate after a switch",
                    stacklevel=2,
                )

    def _measure(self, model: Any, step: int) -> None:
        asked = unwrap(model)
        device = next(asked.parameters()).device
        before = [(module, module.training) for module in asked.modules()]
        asked.eval()
        try:
            with torch.no_grad():
                found = {
                    name: float(asked(**{k: v.to(device) for k, v in batch.items()}).loss)
                    for name, batch in self.probes.items()
                }
        finally:
            for module, training in before:
                module.training = training
        self.steps.append(int(step))
        for name, loss in found.items():
            self.losses[name].append(loss)

    def report(self) -> dict[str, dict[str, float]]:
        """Of each probe: losses since the last switch, and the largest fall and rise of them."""
        found = {}
        for name, losses in self.losses.items():
            since = losses[self.switches[-1] :] if self.switches else []
            known = -np.array([loss for loss in since if not np.isnan(loss)])
            found[name] = {
                "before": since[0] if since else np.nan,
                "worst": float(-known.min()) if len(known) else np.nan,
                "last": since[-1] if since else np.nan,
                "largest_rise": wf(known, self.window),
                "largest_fall": wp(known, self.window),
                "measurements": len(since),
            }
        return found

    def state_dict(self) -> State:
        losses = {name: np.array(values) for name, values in self.losses.items()}
        return {
            "plan": self.plan, "steps": np.array(self.steps, dtype=np.int64), "losses": losses,
            "switches": list(self.switches), "warned": list(self.warned),
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        if state.get("plan") != self.plan:
            raise DataError(
                f"the state belongs to guard {state.get('plan')}, this one is {self.plan}; probes,"
                " steps, every, bound and window must be those it was saved with",
                where="state",
            )
        self.steps = [int(step) for step in state["steps"]]
        self.losses = {name: [float(x) for x in state["losses"][name]] for name in self.probes}
        self.switches = [int(place) for place in state["switches"]]
        self.warned = list(state["warned"])
