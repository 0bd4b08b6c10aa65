"""Rounds: what each one could choose from, what it chose, and what it cost.

    probing     fitting a scorer: reference gradients, labels, an influence model
    scoring     forwards over the pool; what the scores of one group share is counted once
    training    6 x parameters x tokens

Of the first repeat. Units: seconds, and floating-point operations as steps tell them in their facts
(`flops`: `fit`, `shared`, `own`, `train`); a step that runs no model tells none. Seconds are those
of this run: a step that was there before has none. How the preference changed from one round to the
next is in `preferences.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from foresift.pipeline.errors import ForesiftError
from foresift.pipeline.plan import MAIN
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.store import Facts
from foresift.stages.report.contents import Contents
from foresift.stages.report.evidence import arm_name
from foresift.stages.report.preferences import Preference, preferences


@dataclass(frozen=True)
class Spent:
    """What one kind of work cost; None where nothing of the kind was done or told."""

    seconds: float | None
    cached: bool
    """Whether all of it was done before this run, so that its seconds are not known."""
    flops: float | None


@dataclass(frozen=True)
class Costs:
    """What some steps cost by kind of work."""

    probing: Spent
    scoring: Spent
    training: Spent

    @property
    def kinds(self) -> tuple[Spent, Spent, Spent]:
        return self.probing, self.scoring, self.training

    @property
    def flops(self) -> float | None:
        """Of all three; None where none told."""
        told = [kind.flops for kind in self.kinds if kind.flops is not None]
        return sum(told) if told else None

    @property
    def ratio(self) -> float | None:
        """All FLOPs for one of training."""
        return self.flops / self.training.flops if self.flops and self.training.flops else None


@dataclass(frozen=True)
class Round:
    """One round: documents it could choose from, what it chose, what it cost."""

    number: int
    documents: int | None
    chosen: int | None
    tokens: int | None
    costs: Costs


@dataclass(frozen=True)
class Rounds:
    """All rounds, the columns they ranked by, and the cost of every line."""

    rounds: list[Round]
    preferences: list[Preference]
    before: Costs
    """Of the steps before the rounds, which all lines start from."""
    lines: list[tuple[str, Costs]]
    """Each line of work in its rounds."""

    @property
    def changes(self) -> list[Preference]:
        return [p for p in self.preferences if p.change]


def rounds(contents: Contents) -> Rounds | None:
    """The section; None where the recipe has no rounds."""
    steps = contents.line(MAIN)
    numbers = sorted({s["round"] for s in steps if s["round"]})
    if not numbers:
        return None
    name, by, lowest = _chooser(contents)
    selects = {s["round"]: s for s in contents.first_of("select") if _chose(contents, s, name)}
    found = [p for column in by for p in preferences(contents, column, lowest, selects)]
    lines = dict.fromkeys(s["line"] for s in contents.manifest["steps"])
    return Rounds(
        [_round(n, [s for s in steps if s["round"] == n], selects.get(n)) for n in numbers],
        sorted(found, key=lambda p: p.round),
        costs([s for s in steps if not s["round"]]),
        [(arm_name(n), costs([s for s in contents.line(n) if s["round"]])) for n in lines],
    )


def _chooser(contents: Contents) -> tuple[str, list[str], bool]:
    """Name of the rounds' budgeted `select`, columns it ranks by, whether low is first."""
    try:
        _, specs = Recipe.read(contents.path / "recipe.yaml").round_specs()
    except ForesiftError:  # a part of somebody else's that is gone
        return "", [], False
    found = [s for s in specs if s.verb == "select" and s.budget and s.data == "data"]
    if not found:
        return "", [], False
    name, part = found[-1].parts[0]
    by = getattr(part, "by", None) or []
    numbers = {column.name for column in contents.scored}  # a selector may go by labels as well
    ranked = [c for c in ([by] if isinstance(by, str) else by) if c in numbers]
    return name, ranked, bool(getattr(part, "lowest", False))


def _chose(contents: Contents, step: Facts, name: str) -> bool:
    """Whether a step is the `select` of a round by its name, and of the corpus itself."""
    found = step["round"] and step["name"] == name
    return bool(found and contents.lies_beside(contents.directory(step)))


def _round(number: int, steps: Sequence[Facts], select: Facts | None) -> Round:
    facts = select["facts"] if select else {}
    documents, chosen, tokens = (facts.get(name) for name in ("rows", "kept", "kept_tokens"))
    return Round(number, documents, chosen, tokens, costs(steps))


def costs(steps: Sequence[Facts]) -> Costs:
    """Seconds and FLOPs of the steps of one line by kind of work."""
    scores = [s for s in steps if s["verb"] == "score"]
    trains = [s for s in steps if s["verb"] == "train"]
    fits = [s for s in scores if "fit_seconds" in s]
    told = [flops for s in scores if (flops := _flops(s))]
    fit = sum(f.get("fit", 0.0) for f in told) if told else None
    own = sum(f.get("own", 0.0) for f in told) + _shared(scores) if told else None
    train = [flops["train"] for s in trains if "train" in (flops := _flops(s))]
    probing = _seconds(fits, "fit_seconds")
    whole = _seconds(scores, "seconds")
    if whole is not None:
        whole = max(0.0, whole - (probing or 0.0))
    return Costs(
        Spent(probing, bool(fits) and probing is None, fit),
        Spent(whole, bool(scores) and whole is None, own),
        Spent(_seconds(trains, "seconds"), _cached(trains), float(sum(train)) if train else None),
    )


def _cached(steps: Sequence[Facts]) -> bool:
    return bool(steps) and all(s["cached"] for s in steps)


def _seconds(steps: Sequence[Facts], key: str) -> float | None:
    """Seconds spent in this run; None where all of it was there already."""
    spent = [float(s[key]) for s in steps if not s["cached"]]
    return sum(spent) if spent else None


def _shared(scores: Iterable[Facts]) -> float:
    """Forwards that scores of one group share: the largest, once a group."""
    groups: dict[tuple[Any, ...], float] = {}
    for step in scores:
        key = (step["line"], step["repeat"], step["round"], step["facts"].get("group"))
        groups[key] = max(groups.get(key, 0.0), _flops(step).get("shared", 0.0))
    return sum(groups.values())


def _flops(step: Facts) -> dict[str, float]:
    """What a step tells of its operations; nothing where it ran no model."""
    found = step["facts"].get("flops")
    return found if isinstance(found, dict) else {}
