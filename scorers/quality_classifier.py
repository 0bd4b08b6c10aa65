"""A small classifier of quality, learned from documents that somebody kept or threw away.

    x_b      ln(1 + times the hashed n-gram b comes), x brought to length 1        [buckets]
    binary   utility = w . x + c,  probability = 1 / (1 + exp(-utility))     logistic regression
    grade    utility = w . x + c = a grade, as given;  grade = round(min(max(utility, 0), 5))  ridge

The labels come from references (`kept` and `junk`), from a column of the pool (`label`: a row
whose label is null is only scored), or both. Copies are one document; where copies carry several
labels their mean is taken, and above a half is kept. **A document that the classifier was fitted on
is scored out of fold**: by one of `folds` models that has not seen it, its fold drawn from
(seed, id); so `utility` can be compared between labelled and other rows, and the figures in the
facts are honest.

Both sides weigh the same however many documents they have, so `probability` is one at equal
shares. Predictions lean to the middle: cut by predicted values, not by the scale of the labels.
round is half to even, so "grade >= 3" is utility > 2.5, which is another cut than utility >= 3.
What it learns is what tells the two sides apart, of which source and topic are often the easier
part: take both sides from one source, or it becomes a detector of sources.

NaN: a text without words. Facts: documents of each side, out-of-fold area under the ROC curve and
accuracy (binary), or correlation and error (grade); a warning below 0.6. Errors: a side with fewer
than 10 documents or than folds; labels that are no numbers (grade). Cost: 0.7 M words/s, and
seconds to fit 5,000 documents. Source: FineWeb-Edu's recipe (labels of a large judge, a small model
over frozen features; Penedo et al. 2024) with hashed n-grams in the place of an encoder, as in
DCLM's fastText filter (Li et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline import references as texts_of
from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.errors import DataError
from foresift.pipeline.labels import labels, numbers
from foresift.pipeline.nouns import AimedScorer, Arrays, Reference
from foresift.pipeline.references import Aims
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import ID, Column, content_texts, id_words
from foresift.scorers._dsir import Grams

Floats = npt.NDArray[np.float64]
LEAST, POOR = 10, 0.6
HIGHEST = 5


@dataclass(frozen=True, kw_only=True)
class QualityClassifier(AimedScorer):
    """A learned score of quality: hashed n-grams, a linear model, out of fold where it learned."""

    kept: Aims | None = None
    """References: documents that are good."""
    junk: Aims | None = None
    """References: documents that are not."""
    label: str = ""
    """Column of the pool with labels, null where there is none; none if empty."""
    good: str = "true"
    """The label that means good (binary): true, 1, ham; every other means junk."""
    kind: Literal["binary", "grade"] = "binary"
    """Two sides, or numbers from 0 to 5."""
    ngrams: int = 2
    """Longest n-grams, in words."""
    buckets: int = 1 << 17
    """Of the n-grams' hashes."""
    strength: float = 10.0
    """Inverse of the penalty on weights."""
    folds: int = 5
    """Parts that labelled documents are cut into."""
    seed: int = 0
    """Draws the folds."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "log odds, or grade", "higher"),
        "probability": Column(pa.float64(), "of being good, 0 to 1", "higher"),
        "grade": Column(pa.int64(), "0 to 5", "higher"),
        "fitted": Column(pa.bool_(), "it carried a label and is scored out of fold"),
    }

    def __post_init__(self) -> None:
        if (self.kept is None) != (self.junk is None):
            raise ValueError("kept and junk need each other")
        if self.kept is None and not self.label:
            raise ValueError("give labels: kept and junk, or label")
        if self.kind == "grade" and (self.kept is not None or not self.label):
            raise ValueError("grades come from a label column, and from nowhere else")
        if self.ngrams < 1 or self.buckets < 2 or self.folds < 2 or not self.strength > 0:
            raise ValueError("ngrams >= 1, buckets >= 2, folds >= 2, strength > 0")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.label,) if self.label else ()

    @property
    def aims(self) -> Any:
        return None if self.kept is None else [*_listed(self.kept), *_listed(self.junk)]

    def fit(
        self, tables: Iterable[pa.Table], references: tuple[Reference, ...], out: Path
    ) -> Facts:
        ids, targets, features = self._examples(tables, references)
        fold = (Rng(self.seed).at("folds").uniform(_ids(ids)) * self.folds).astype(np.int64)
        self._check(targets)
        out_of_fold, models = np.full(len(targets), np.nan), []
        for k in range(self.folds):
            model = self._model(features[fold != k], targets[fold != k])
            out_of_fold[fold == k] = features[fold == k] @ model[:-1] + model[-1]
            models.append(model)
        models.append(self._model(features, targets))
        np.save(out / "models.npy", np.array(models, dtype=np.float64), allow_pickle=False)
        write_by_id(out, ids, {"fold": fold})
        return self._facts(targets, out_of_fold)

    def _examples(
        self, tables: Iterable[pa.Table], references: Sequence[Reference]
    ) -> tuple[npt.NDArray[np.uint64], Floats, Any]:
        """Distinct labelled documents in the order of their ids: ids, targets, features."""
        from scipy import sparse  # type: ignore[import-untyped]

        found = [*self._labelled(tables), *self._referred(references)]
        words = np.concatenate([np.empty((0, 2), np.uint64), *(w for w, _, _ in found)])
        values = np.concatenate([np.empty(0), *(v for _, v, _ in found)])
        order = np.lexsort((values, words[:, 1], words[:, 0]))
        ids, first, same = np.unique(
            words[order], axis=0, return_index=True, return_inverse=True
        )  # fmt: skip
        sums = np.bincount(same.reshape(-1), values[order], len(ids))
        targets = sums / np.bincount(same.reshape(-1), minlength=len(ids))
        if self.kind == "binary":
            targets = (targets > 0.5).astype(np.float64)
        matrix = sparse.vstack([f for _, _, f in found]) if found else self._features([])
        return ids, targets, matrix.tocsr()[order[first]]

    def _labelled(self, tables: Iterable[pa.Table]) -> Iterator[tuple[Any, Floats, Any]]:
        for table in tables if self.label else ():
            values = self._values(table)
            rows = pa.array(np.flatnonzero(np.isfinite(values)))
            some = table.take(rows)
            if some.num_rows:
                yield id_words(some["id"]), values[rows], self._features(content_texts(some))

    def _values(self, table: pa.Table) -> Floats:
        """What the label says of each row; NaN where there is none."""
        if self.kind == "binary":
            names, codes = labels(table, self.label)
            good = np.array([*(float(name == self.good) for name in names), np.nan])
            found: Floats = good[codes]
            return found
        return numbers(table, self.label, "grades")

    def _referred(self, references: Sequence[Reference]) -> Iterator[tuple[Any, Floats, Any]]:
        good = len(_listed(self.kept)) if references else 0
        for number, reference in enumerate(references):
            for table in texts_of.tables(reference.corpus):
                values = np.full(table.num_rows, float(number < good))
                yield id_words(table["id"]), values, self._features(content_texts(table))

    def _features(self, texts: Sequence[str]) -> Any:
        """[texts, buckets] sparse rows of length 1; a text without words has a row of zeros."""
        from scipy import sparse

        grams = Grams(texts, self.ngrams, self.buckets)
        rows = [np.repeat(np.arange(len(texts)), counts) for _, counts in grams.orders]
        places = [buckets for buckets, _ in grams.orders]
        cells, times = np.unique(
            np.concatenate(rows) * self.buckets + np.concatenate(places), return_counts=True
        )
        row, column, values = cells // self.buckets, cells % self.buckets, np.log1p(times)
        norms = np.sqrt(np.bincount(row, values**2, len(texts)))
        shape = (len(texts), self.buckets)
        return sparse.csr_matrix((values / norms[row], (row, column)), shape=shape)

    def _model(self, features: Any, targets: Floats) -> Floats:
        """[buckets + 1] weights and the constant."""
        from sklearn.linear_model import LogisticRegression, Ridge  # type: ignore[import-untyped]

        if self.kind == "grade":
            line = Ridge(alpha=1 / self.strength, solver="sparse_cg", tol=1e-6)
        else:
            line = LogisticRegression(C=self.strength, class_weight="balanced", max_iter=1000)
        line.fit(features, targets)
        return np.append(np.ravel(line.coef_), np.ravel(line.intercept_))

    def _check(self, targets: Floats) -> None:
        least = max(LEAST, self.folds)
        sides = {"good": targets > 0, "junk": targets == 0}
        counts = (
            {n: int(s.sum()) for n, s in sides.items()}
            if self.kind == "binary"
            else {"labelled": len(targets)}
        )
        for name, count in counts.items():
            if count < least:
                raise DataError(
                    f"{count} {name} documents to learn from; at least {least} are needed",
                    where=self.label or "kept, junk",
                )

    def _facts(self, targets: Floats, found: Floats) -> Facts:
        if self.kind == "grade":
            error = float(np.sqrt(np.mean((found - targets) ** 2)))
            flat = not (targets.std() and found.std())
            return {
                "documents": len(targets), "rmse": error,
                "correlation": None if flat else float(np.corrcoef(targets, found)[0, 1]),
            }  # fmt: skip
        good = targets > 0
        area = _area(found[good], found[~good])
        told: Facts = {
            "documents": {"good": int(good.sum()), "junk": int((~good).sum())},
            "auroc": area, "accuracy": float(((found > 0) == good).mean()),
        }  # fmt: skip
        if area < POOR:
            told["warnings"] = [
                f"out of fold the classifier tells good from junk with an area under the ROC curve "
                f"of {area:.2f} (0.5 is chance): give more labels, or clearer ones"
            ]
        return told

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        models = np.load(out / "models.npy", allow_pickle=False)
        features, fold = self._features(content_texts(batch)), read_by_id(out, batch["id"])["fold"]
        raw = features @ models[:, :-1].T + models[:, -1]
        mine = raw[np.arange(batch.num_rows), np.where(fold < 0, self.folds, fold)]
        utility = np.where(np.diff(features.indptr) > 0, mine, np.nan)
        graded = self.kind == "grade"
        with np.errstate(over="ignore"):
            chance = 1 / (1 + np.exp(-utility))
        return {
            "utility": utility,
            "probability": np.full(batch.num_rows, np.nan) if graded else chance,
            "grade": [None if not graded or u != u else int_score(u) for u in utility.tolist()],
            "fitted": fold >= 0,
        }


def int_score(value: float) -> int:
    """A grade as a whole number from 0 to 5, half to even."""
    return round(min(max(value, 0.0), float(HIGHEST)))


def _area(good: Floats, junk: Floats) -> float:
    """The share of pairs (good, junk) in which the good one has the larger score, ties half."""
    below = np.searchsorted(np.sort(junk), good, side="left")
    upto = np.searchsorted(np.sort(junk), good, side="right")
    return float((below + upto).sum() / 2 / max(len(good) * len(junk), 1))


def _listed(aims: Any) -> list[Any]:
    return [] if aims is None else aims if isinstance(aims, list) else [aims]


def _ids(words: npt.NDArray[np.uint64]) -> pa.Array:
    return pa.Array.from_buffers(ID, len(words), [None, pa.py_buffer(words.tobytes())])
