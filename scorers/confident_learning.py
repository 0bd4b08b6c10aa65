"""Labels that are likely wrong, by confident learning from out-of-fold probabilities.

    P[i, k]    probability of label k for document i by a model that has not seen it
    noise      = 1 - P[i, y]                      that the given label y is wrong
    quality    = self_confidence, normalised_margin or confidence_weighted_entropy, 0 to 1
    suggested  = argmax_k P[i, k]                 mostly y itself where y is not flagged
    flagged    by `filter`, from the joint of given and true labels (`_label_confident.py`)
    proposal   = keep where not flagged, re_annotate where P[i, suggested] >= re_annotate_at, else
                 eliminate

P comes from a logistic regression on words or on a column of vectors, in folds by hash of the id
(`_label_folds.py`), or from a column `probabilities` (K numbers a row, in the order of the labels
or of `classes`), which must be out of fold: a model flags nothing of what it was fitted to. Near
copies in different folds vouch for one another: deduplicate before. `adjust` takes noise and
quality (not flags) from P[i, k] - t_k + max t, brought to the sum 1: rare labels are then not low.

Not judged, with NaN and `keep`: no word or vector, probabilities that are not finite, a label that
no other fold has. Facts: noise_rate with a 95 % bootstrap interval over documents, thresholds,
transition P(given | true), confusions, accuracy out of fold. Errors: fewer than two labels; more
than MOST of them where a model is to be fitted; probabilities that are none. Cost: `folds` fits,
for 25,000 tweets and 3 labels some 10 s on one core. Source: Northcutt et al. 2021 (JAIR 70); flags
and scores are those of cleanlab 2.9.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.errors import DataError
from foresift.pipeline.labels import label_text
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column
from foresift.pipeline.vectors import Vectors, spooled
from foresift.scorers import _label_confident as confident
from foresift.scorers import _label_folds as folding
from foresift.scorers._label_confident import Filter, Probabilities, Quality
from foresift.scorers._label_samples import (
    COLUMNS,
    Samples,
    Verdicts,
    aligned,
    checked_threshold,
    read,
    write,
)

WORDS = "words"
#: labels that a logistic regression is fitted to
MOST = 1_000
#: how far from 1 given probabilities may sum
OFF = 1e-3


@dataclass(frozen=True, kw_only=True)
class ConfidentLearning(FittedScorer):
    """Probability that a label is wrong, by the confident joint of out-of-fold probabilities."""

    label: str
    """Column of labels, numbers or strings."""
    features: str = WORDS
    """What labels are learned from: `words`, or a column of vectors."""
    probabilities: str = ""
    """Column of out-of-fold probabilities; nothing is fitted then."""
    classes: tuple[str | int, ...] = ()
    """The label of each place in `probabilities`; empty: the labels in ascending order."""
    folds: int = 5
    """Parts of the documents; each is judged by a model of the others."""
    c: float = 3.0
    """Inverse strength of the L2 penalty of the logistic regression."""
    filter: Filter = "prune_by_noise_rate"
    """Rule by which labels are flagged."""
    quality: Quality = "normalised_margin"
    """What the column `quality` is."""
    adjust: bool = False
    """Whether noise and quality allow for how sure the model is of each label as such."""
    re_annotate_at: float | None = 0.8
    """Probability of the suggested label from which on it is proposed; null: never."""
    seed: int = 0
    """Chooses the folds, and the resamples of the interval."""

    columns: ClassVar[Mapping[str, Column]] = COLUMNS

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError("folds must be at least 2")
        if not (np.isfinite(self.c) and self.c > 0):
            raise ValueError("c must be positive")
        if self.classes and not self.probabilities:
            raise ValueError("classes name the places of `probabilities`, which is not given")
        if len(set(self._classes)) < len(self.classes):
            raise ValueError("classes must be distinct")
        checked_threshold("re_annotate_at", self.re_annotate_at)

    @property
    def _classes(self) -> list[str]:
        return [label_text(c) for c in self.classes]

    @property
    def _beside(self) -> str:
        """The column that is read besides the labels, if any."""
        return self.probabilities or ("" if self.features == WORDS else self.features)

    @property
    def reads_content(self) -> bool:  # type: ignore[override]
        return not self._beside

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for n in (self.label, self._beside) if n))

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        words, path = folding.WordFeatures(), out / "rows.arrow"
        stream = tables if self._beside else words.reading(tables)
        table = spooled(stream, ["id", *self.needs], path)
        path.unlink(missing_ok=True)
        vectors = Vectors.of(table, self._beside) if self._beside else None
        usable = words.worded() if vectors is None else vectors.valid
        samples = Samples.of(table, self.label, usable)
        samples.several(self.label)
        notes = _without(int((~usable).sum()), self._beside or "the text")
        if vectors is not None and self.probabilities:
            samples = aligned(samples, self._classes, vectors.width, self.probabilities, self.label)
            values = _checked(vectors.raw(samples.rows), self.probabilities)
            learned, folds = np.ones(len(samples), dtype=np.bool_), 0
        else:
            features = (
                words.of(samples.rows)
                if vectors is None
                else folding.dense_features(vectors.unit(samples.rows))
            )
            values, learned, folds, told = self._out_of_fold(samples, features)
            notes += told
        facts = self._judge(out, samples, values, learned)
        return {**facts, "folds": folds, "warnings": notes + facts["warnings"]}

    def _out_of_fold(
        self, samples: Samples, features: object
    ) -> tuple[folding.Matrix, npt.NDArray[np.bool_], int, list[str]]:
        """[d, K] probabilities, which samples they judge, the folds, and warnings."""
        if len(samples.names) > MOST:
            raise DataError(
                f"{len(samples.names)} labels are too many for a logistic regression (at most "
                f"{MOST}); give `probabilities`, or take neighbour_disagreement",
                where=self.label,
            )
        folds, notes = min(self.folds, len(samples.words)), []
        if folds < self.folds:
            notes.append(f"{folds} documents make {folds} folds at most, not {self.folds}")
        found = folding.out_of_fold(features, samples, folds, self.c, self._rng)
        if found.unconverged:
            notes.append(f"{found.unconverged} of {folds} fits did not converge; lower `c`")
        if not found.learned.any():
            raise DataError(
                "no label has documents in two folds, so nothing is known of any", where=self.label
            )
        return found.values, found.learned, folds, notes

    @property
    def _rng(self) -> Rng:
        return Rng(self.seed).at("confident_learning")

    def _judge(
        self,
        out: Path,
        samples: Samples,
        values: folding.Matrix,
        learned: npt.NDArray[np.bool_],
    ) -> Facts:
        """Write what was found of each sample; what there is to say of all."""
        whole = np.flatnonzero(learned)
        p = Probabilities(values, samples.document[whole], samples.label[whole])
        joint = confident.joint(p)
        scores = confident.qualities(p)
        flagged = confident.flagged(p, joint, self.filter, scores)
        rate, low, high = confident.noise_rate(joint, p.label, len(samples.names), self._rng)
        if self.adjust:
            scores = confident.qualities(confident.adjusted(p, joint))
        sure = values[p.document, joint.best].astype(np.float64)
        verdicts = Verdicts(
            noise=1 - scores["self_confidence"], quality=scores[self.quality],
            suggested=joint.best, sure=sure, flagged=flagged,
        )  # fmt: skip
        return {
            **write(out, samples, verdicts.spread(whole, len(samples)), self.re_annotate_at),
            "noise_rate": rate, "noise_rate_low": low, "noise_rate_high": high,
            "accuracy": float((joint.best == p.label).mean()),
            **confident.described(joint, samples.names),
        }  # fmt: skip

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        return read(out, batch, self.label)


def _without(rows: int, name: str) -> list[str]:
    return [f"{rows} rows have nothing to judge them by in {name}, and are kept"] if rows else []


def _checked(values: folding.Matrix, column: str) -> folding.Matrix:
    """DataError where a row is no distribution."""
    sums = values.astype(np.float64).sum(axis=1)
    bad = (values < 0).any(axis=1) | (np.abs(sums - 1) > OFF)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(values)} rows are no probabilities: negative, or not of "
            "sum 1",
            where=column,
        )
    return values
