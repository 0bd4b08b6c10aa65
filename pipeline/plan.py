"""Plan: a recipe resolved into steps with fingerprints, columns in and out, and directories.

Planning reads no text and touches no GPU. Because a step's directory follows from its fingerprint,
and its fingerprint from its parents', the whole graph is known before anything runs:

    fingerprint = digest(part + version + fields, parents' fingerprints, model digest, random key)

What a step depends on is what it reads: the shards, the decisions that left its rows alive, the
columns it names, the plan it follows and the model it starts from. Nothing else recomputes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from foresift.pipeline.choice import Budget
from foresift.pipeline.corpus import Corpus
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.nouns import Inputs
from foresift.pipeline.parts import Part, digest
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import StepDir

MAIN = "selected"


@dataclass(frozen=True)
class Step:
    """One unit of the plan: a part, what it reads, and the directory it will fill."""

    verb: str
    name: str
    part: Part
    where: str
    path: Path
    fingerprint: str
    inputs: Inputs
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    rng: Rng
    line: str = MAIN
    repeat: int = 0
    round: int = 0
    budget: Budget | None = None
    group: str = ""
    """Scores of one group share one pass over the text, or one forward of the model."""

    @property
    def done(self) -> bool:
        """Whether its directory is complete."""
        return StepDir(self.path).done

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        place = f"round {self.round} " if self.round else ""
        again = f" #{self.repeat + 1}" if self.repeat else ""
        arm = again if self.line == MAIN else f" ({self.line}{again})"
        return f"{place}{self.verb} {self.name}{arm}"


@dataclass(frozen=True)
class Decided:
    """What happened to the corpus in one round (0: before the rounds): decisions, then an order."""

    round: int
    decisions: tuple[Path, ...]
    order: Path | None


@dataclass
class Model:
    """A checkpoint by its specification, the digest of what it came from, and its training."""

    spec: ModelSpec
    digest: str
    trained: tuple[Path, ...] = ()
    """The training steps that led to it, one after another."""


@dataclass
class Line:
    """The state of one line of work: the selection, or a baseline beside it."""

    name: str
    rng: Rng
    views: dict[str, Corpus]
    models: dict[str, Model]
    latest: str = "init"
    orders: dict[str, StepDir] = field(default_factory=dict)
    decisions: list[Path] = field(default_factory=list)
    history: list[Decided] = field(default_factory=list)
    repeat: int = 0

    def fork(self, name: str, rng: Rng, repeat: int) -> Line:
        """A line that goes its own way from here."""
        return replace(
            self, name=name, rng=rng, repeat=repeat, views=dict(self.views),
            models=dict(self.models),
            orders=dict(self.orders), decisions=[], history=list(self.history),
        )  # fmt: skip

    def decided(self, round: int, order: StepDir | None) -> None:
        """Close a round."""
        self.history.append(Decided(round, tuple(self.decisions), order.path if order else None))
        self.decisions = []


@dataclass(frozen=True)
class Evaluation:
    """A measurement of one line's checkpoint after one round."""

    line: str
    repeat: int
    round: int
    path: Path
    trained: tuple[Path, ...]


@dataclass(frozen=True)
class Plan:
    """The steps of a recipe in an order in which they can run."""

    recipe: Recipe
    out: Path
    steps: tuple[Step, ...]
    lines: tuple[Line, ...]
    evaluations: tuple[Evaluation, ...]
    """Every measurement on the holdout."""

    @property
    def fingerprint(self) -> str:
        """Of the whole: the fingerprints of its steps."""
        return digest([s.fingerprint for s in self.steps])
