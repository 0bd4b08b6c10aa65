"""The held-out losses of all arms: table, chart, and one plain sentence.

With several repeats (other draws, other initial weights) the arms are compared in pairs, repeat by
repeat: mean difference d and the 95 % interval d ± t(0.975, n - 1) s / sqrt(n), s the standard
deviation of the n differences. With one repeat the standard errors are those over documents; what
another training run would give is not known, and the sentence does not pretend it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy.special import stdtrit  # type: ignore[import-untyped]

from foresift.pipeline.plan import MAIN
from foresift.pipeline.show import arms
from foresift.pipeline.store import Facts
from foresift.stages.report import charts


@dataclass(frozen=True)
class Point:
    """One arm after one round, over all repeats."""

    arm: str
    round: int
    tokens: float
    losses: tuple[float, ...]
    """One for each repeat."""
    stderr: float | None
    """One repeat: over documents; several: of the mean over repeats."""

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))

    @property
    def name(self) -> str:
        return arm_name(self.arm)


@dataclass(frozen=True)
class Difference:
    """Loss of a baseline less the loss of the selection: larger is better for the selection."""

    arm: str
    mean: float
    half: float | None
    """Half the width of the 95 % interval; None with a single repeat."""

    @property
    def name(self) -> str:
        return arm_name(self.arm)

    @property
    def interval(self) -> str:
        if self.half is None:
            return "–"
        low, high = self.mean - self.half, self.mean + self.half
        return f"[{_signed(low)}, {_signed(high)}]"

    @property
    def sign(self) -> int:
        """1 the selection is better, -1 worse, 0 it cannot be told."""
        if self.half is not None and abs(self.mean) <= self.half:
            return 0
        return int(np.sign(round(self.mean, 3)))


@dataclass(frozen=True)
class Evidence:
    """What the evaluations of a run say."""

    points: tuple[Point, ...]
    repeats: int
    data: str
    documents: int

    @property
    def last(self) -> list[Point]:
        """The arms after the last round, the selection first."""
        final = max(p.round for p in self.points)
        return sorted((p for p in self.points if p.round == final), key=lambda p: p.arm != MAIN)

    @property
    def differences(self) -> list[Difference]:
        """The selection against each baseline, after the last round."""
        mine = next((p for p in self.last if p.arm == MAIN), None)
        return [_difference(mine, p) for p in self.last if mine and p.arm != MAIN]

    @property
    def chart(self) -> Markup:
        """Loss against tokens trained."""
        order = list(dict.fromkeys(p.arm for p in self.points))
        series = []
        for number, arm in enumerate(sorted(order, key=lambda a: a != MAIN)):
            mine = [p for p in self.points if p.arm == arm]
            kind = "chosen" if arm == MAIN else f"base{min(number, 4)}"
            x, y = [p.tokens for p in mine], [p.loss for p in mine]
            series.append(charts.Line(arm_name(arm), kind, x, y, [p.stderr for p in mine]))
        label = "Held-out loss of each arm against the tokens it was trained on"
        return charts.lines(series, x_label="tokens trained", y_label="nats per token", label=label)


def evidence(manifest: Facts) -> Evidence | None:
    """The evaluations of a run, or None where there is no loss to speak of."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for each in arms(manifest):
        if each["loss"] is not None and math.isfinite(each["loss"]):
            groups.setdefault((each["arm"], each["round"]), []).append(each)
    if not groups:
        return None
    data = next((s["name"] for s in manifest["steps"] if s["verb"] == "evaluate"), "data")
    return Evidence(
        tuple(_point(*place, found) for place, found in groups.items()),
        max(len(found) for found in groups.values()),
        data,
        int(manifest["evaluations"][0].get("documents") or 0),
    )


def _point(arm: str, round: int, found: Sequence[dict[str, Any]]) -> Point:
    losses = tuple(float(f["loss"]) for f in found)
    stderr = found[0]["stderr"]
    if len(losses) > 1:
        stderr = float(np.std(losses, ddof=1) / math.sqrt(len(losses)))
    return Point(arm, round, float(np.mean([f["tokens"] for f in found])), losses, stderr)


def _difference(mine: Point, other: Point) -> Difference:
    n = min(len(mine.losses), len(other.losses))
    each = np.asarray(other.losses[:n]) - np.asarray(mine.losses[:n])
    half = None
    if n > 1:
        half = float(stdtrit(n - 1, 0.975) * each.std(ddof=1) / math.sqrt(n))
    return Difference(other.arm, float(each.mean()), half)


def sentence(found: Evidence) -> str:
    """The result in one or two plain sentences; a loss is called a loss."""
    last, differences = found.last, found.differences
    rounds = f"After {last[0].round} round{'s' if last[0].round > 1 else ''}"
    unit = " nats/token"
    if last[0].arm != MAIN:
        return f"{rounds} only baselines were measured."
    text = (
        f"{rounds} the model trained on the selection has a held-out loss of "
        f"{last[0].loss:.3f}{unit}"
    )
    tokens = {p.name: round(p.tokens) for p in last}
    if differences:
        others = [f"{p.name} text {p.loss:.3f}" for p in last[1:]]
        text += "; " + ", ".join(others)
    equal = len(set(tokens.values())) == 1
    if equal:
        each = " each" if differences else ""
        text += f", at {round(last[0].tokens):,} training tokens{each}"
    else:
        text += ", at " + ", ".join(f"{n:,} ({name})" for name, n in tokens.items())
        text += " training tokens (not equal)"
    return text + "." + (" " + _verdict(found, differences) if differences else "")


def _verdict(found: Evidence, differences: Sequence[Difference]) -> str:
    names = [f"{d.name} ({_signed(-d.mean)}{_interval(d)})" for d in differences]
    signs, once = {d.sign for d in differences}, found.repeats == 1
    if signs == {1}:
        text = "The selection " + ("is ahead of " if once else "wins against ")
        text += " and ".join(names)
    elif signs == {-1}:
        text = "The selection lost: its loss is higher than that of " + " and ".join(names)
    elif signs == {0}:
        text = "The selection cannot be told apart from " + " and ".join(names)
    else:
        words = {1: "is ahead of", 0: "cannot be told apart from", -1: "lost to"}
        verdicts = [f"{words[d.sign]} {n}" for d, n in zip(differences, names, strict=True)]
        text = "The selection " + ", ".join(verdicts)
    if once:
        return f"{text}; one training run each, so whether another would agree is not known."
    return f"{text}; mean of {found.repeats} repeats, 95 % intervals of the paired difference."


def _interval(difference: Difference) -> str:
    if difference.half is None:
        return ""
    low, high = -difference.mean - difference.half, -difference.mean + difference.half
    return f", 95 % interval {_signed(low)} to {_signed(high)}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def arm_name(arm: str) -> str:
    """The name of an arm as people say it."""
    return "length-matched random" if arm == "length_matched_random" else arm.replace("_", " ")
