"""A schedule that was made for a forecast, followed by a training whose epochs turn out otherwise.

Each epoch gets the stretch of the schedule that was forecast for it. With planned epochs of 5, 4, 5
steps and one of 2 in the middle, the steps of that one stand at 5 and 7 of the schedule, and the
last epoch begins at 9, as planned. An epoch that was forecast to have no step stands still.
"""

from __future__ import annotations

from collections.abc import Sequence


class Pace:
    """Where in a schedule made for planned epochs a training stands that has others."""

    def __init__(self, planned: Sequence[int]) -> None:
        self.planned, self.found = list(planned), list[int]()

    def learn(self, epoch: int, steps: int) -> None:
        """The steps of an epoch that has begun; epochs passed over had none."""
        self.found += [0] * (epoch - len(self.found))
        if len(self.found) == epoch:
            self.found.append(steps)

    @property
    def steps(self) -> int:
        """Steps of the training, as far as they are known now."""
        return sum(self.found) + sum(self.planned[len(self.found) :])

    def at(self, step: int) -> float:
        """The step of the schedule that a step has; the same where epochs are as planned."""
        place = 0
        for planned, found in zip(self.planned, self.found, strict=False):
            if step < found:
                return place + step * planned / found
            place, step = place + planned, step - found
        return place + step
