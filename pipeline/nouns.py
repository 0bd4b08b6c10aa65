"""The nouns: one abstract method each. Scorers measure, selectors choose, stages move.

    Scorer        score(batch) -> {column: array}                  numbers beside rows
    FittedScorer  fit(tables, out), score(batch, out)              looks at the corpus first
    AimedScorer   fit(tables, references, out), score(batch, out)  ... and at references
    ModelScorer   score(tokens, signals) -> {column: array}        reads the shared model pass
    FittedModelScorer  fit(look, out), score(window, out)          asks the model, references first
    Selector      select(table, budget, rng) -> Choice             columns in, decision out
    Order         order(table, rng) -> permutation                 arranges what was chosen
    Stage         run(inputs, out, job) -> Facts                   directories in, a directory out

Every scorer is pure: the same row gives the same numbers in any batch, order or process.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import Budget, Choice
from foresift.pipeline.corpus import Corpus, Shard
from foresift.pipeline.job import SMALL_BYTES, Engine, Job, Progress, Resources, silent
from foresift.pipeline.parts import Part
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts, StepDir
from foresift.pipeline.tables import Column

if TYPE_CHECKING:
    from foresift.pipeline.lm.model import ModelSpec
    from foresift.pipeline.lm.signals import Signals, Tokens, Window

Arrays = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scorer(Part):
    """Adds numbers to rows; never drops, reorders or rewrites."""

    columns: ClassVar[Mapping[str, Column]]

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns read besides `id` and the content."""
        return ()

    @abstractmethod
    def score(self, batch: pa.Table) -> Arrays:
        """One value a row for each declared column; `batch` has `id`, the content and `needs`."""


@dataclass(frozen=True, kw_only=True)
class FittedScorer(Part):
    """A scorer that must look first. What it learned lies in `out` and nowhere else."""

    columns: ClassVar[Mapping[str, Column]]

    reads_content: ClassVar[bool] = True
    """False where the columns in `needs` are all that is read."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns read besides `id` and the content."""
        return ()

    @abstractmethod
    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts | None:
        """Look at every alive row once, in order, and write what was learned under `out`.

        Facts become part of the step's; the sentences in `warnings` among them are shown.
        """

    @abstractmethod
    def score(self, batch: pa.Table, out: Path) -> Arrays:
        """As Scorer.score, given what `fit` wrote."""


@dataclass(frozen=True, kw_only=True)
class ModelScorer(Part):
    """A scorer that reads the model; a step computes the union of all `signals` in one forward."""

    columns: ClassVar[Mapping[str, Column]]

    reads_content: ClassVar[bool] = False
    """True: `tokens` brings the content (in its table), the token ids and the tokenizer too."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns read besides `id` and the content (they come in `tokens.table`)."""
        return ()

    @property
    @abstractmethod
    def signals(self) -> tuple[str, ...]:
        """Names from `pipeline/lm/signals.py`."""

    @abstractmethod
    def score(self, tokens: Tokens, signals: Signals) -> Arrays:
        """One value a row for each declared column."""


@dataclass(frozen=True)
class Reference:
    """Documents that stand for what the model should become better at."""

    name: str
    corpus: Corpus
    """Its alive rows; what was held out of it is for evaluation only."""
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class AimedScorer(Part):
    """A fitted scorer that compares rows with references, without a model."""

    columns: ClassVar[Mapping[str, Column]]
    reads_content: ClassVar[bool] = True
    """False where the columns in `needs` are all that is read."""
    apart: ClassVar[bool] = True
    """False where the pool may hold documents of the references: finding them is the purpose."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns read besides `id` and the content."""
        return ()

    @property
    @abstractmethod
    def aims(self) -> Any:
        """The references as the recipe gives them (see `references.py`)."""

    @property
    def aim_needs(self) -> tuple[str, ...]:
        """Columns of the references that are read, given by earlier steps with their `data:`."""
        return ()

    @abstractmethod
    def fit(
        self, tables: Iterable[pa.Table], references: tuple[Reference, ...], out: Path
    ) -> Facts | None:
        """As FittedScorer.fit, with the references to look at."""

    @abstractmethod
    def score(self, batch: pa.Table, out: Path) -> Arrays:
        """As Scorer.score, given what `fit` wrote."""


@dataclass(frozen=True)
class Look:
    """What a fitted model scorer may look at before it scores."""

    corpus: Corpus
    """The pool: the alive rows that will be scored."""
    references: tuple[Reference, ...]
    model: ModelSpec
    job: Job
    previous: Path | None = None
    """What the same score learned in the round before."""


@dataclass(frozen=True, kw_only=True)
class FittedModelScorer(Part):
    """A scorer that asks the model about the pool and about references before it scores.

    Whatever `fit` publishes under `out` (whole files only: `write_shard`, `write_json`) is still
    there when a killed run goes on, so long work is cut into files and what is there is not redone.
    """

    columns: ClassVar[Mapping[str, Column]]

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns read besides `id` and the content."""
        return ()

    @property
    def aims(self) -> Any:
        """The references as the recipe gives them (see `references.py`); None: it has none."""
        return None

    @abstractmethod
    def fit(self, look: Look, out: Path) -> Facts:
        """Ask and learn; the facts become part of the step's. `flops` among them is counted."""

    @abstractmethod
    def signals(self, out: Path) -> tuple[str, ...]:
        """Names from `pipeline/lm/signals.py` that `score` reads, given what `fit` wrote."""

    @abstractmethod
    def score(self, window: Window, out: Path) -> Arrays:
        """One value a row for each declared column, given what `fit` wrote."""

    def passes(self, out: Path) -> float:
        """Forwards over the corpus that `score` makes on its own, besides the shared one."""
        return 0.0

    @property
    def shares(self) -> bool:
        """Whether one of the forwards of `score` is the one that scores of a step share."""
        return False

    def estimate(self, parameters: int, pool: int, references: int) -> tuple[float, float]:
        """(FLOPs of `fit`, forwards over the pool in `score`), from numbers of tokens."""
        return 0.0, float(self.shares)


@dataclass(frozen=True, kw_only=True)
class Selector(Part):
    """Chooses rows by columns; never reads text, never loads a model."""

    budgeted: ClassVar[bool] = True
    """Whether the recipe must give a `budget`."""

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Columns read besides `id` and the budget's cost."""

    @abstractmethod
    def select(self, table: pa.Table, budget: Budget | None, rng: Rng) -> Choice:
        """Decide on every row of `table` (the alive rows of the whole corpus)."""


@dataclass(frozen=True, kw_only=True)
class Order(Part):
    """Arranges chosen rows."""

    repeats: ClassVar[bool] = False
    """True declares a schedule in which rows come again; every row still comes at least once."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns read besides `id`."""
        return ()

    @abstractmethod
    def order(self, table: pa.Table, rng: Rng) -> npt.NDArray[np.int64]:
        """Position -> row number of `table`: a permutation, unless `repeats`."""


@dataclass(frozen=True)
class Inputs:
    """What a stage is given."""

    corpus: Corpus | None = None
    """The alive rows and their columns; None for a reader."""
    plan: StepDir | None = None
    """The directory of an `order` step: `plan.parquet` lists (id, shard, row, weight, position)."""
    model: ModelSpec | None = None
    """The checkpoint to start from or to score with."""
    round: int = 0
    references: tuple[Reference, ...] = ()
    """What a fitted model scorer aims at."""
    previous: Path | None = None
    """The directory of the same score in the round before."""


@dataclass(frozen=True, kw_only=True)
class Stage(Part):
    """Moves a data set from directories to a directory: read, dedup, train, export."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that must be there before."""
        return ()

    @abstractmethod
    def run(self, inputs: Inputs, out: StepDir, job: Job) -> Facts:
        """Do the work; the facts returned become `stage.json`."""


__all__ = [
    "SMALL_BYTES", "AimedScorer", "Arrays", "Budget", "Choice", "Column", "Corpus", "Engine",
    "Facts", "FittedModelScorer", "FittedScorer", "Inputs", "Job", "Look", "ModelScorer", "Order",
    "Part", "Progress", "Reference", "Resources", "Rng", "Scorer", "Selector", "Shard", "Stage",
    "StepDir", "silent",
]  # fmt: skip
