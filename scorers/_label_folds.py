"""Out-of-fold probabilities of labels: logistic regression on words or on vectors, fold by fold.

    fold(document) = floor(u(seed, id) folds)       exact copies lie in one fold
    P[document]    = softmax(W x + b), of a model fitted to the samples of all other folds

    words    x_g = (1 + ln tf_g) (1 + ln((1 + n) / (1 + df_g))), over hashed words and pairs of
             words of the first CHARACTERS characters, brought to length 1; the FREQUENT ones that
             most documents have, two at least
    vectors  brought to length 1, times sqrt(width): components vary by about 1

Features see no label, so they are made of all documents at once. A label that no other fold has
gets probability 0, and where the others have a single label it gets 1. Samples come by id, so that
nothing depends on the order of rows. Memory: the features (8 bytes for each distinct n-gram of a
text) and [documents, labels] float32. Cost: `folds` fits, each some 50 passes over the features.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse  # type: ignore[import-untyped]

from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import content_texts
from foresift.scorers._dsir import Grams
from foresift.scorers._label_samples import Samples

Rows = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float32]
#: of the hashes of n-grams
BUCKETS = 1 << 18
CHARACTERS = 8_000
#: n-grams that are looked at: all (some 200,000) rank errors no better and take ten times as long
FREQUENT = 1 << 15
ITERATIONS = 200


@dataclass
class WordFeatures:
    """Collects the n-grams of a stream of tables, row by row."""

    _parts: list[Any] = field(default_factory=list)

    def reading(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The tables as they come, each looked at."""
        for table in tables:
            self._parts.append(_counts([t[:CHARACTERS] for t in content_texts(table)]))
            yield table

    def worded(self) -> npt.NDArray[np.bool_]:
        """[rows] whether a row has a word."""
        sizes = [np.diff(part.indptr) > 0 for part in self._parts]
        return np.concatenate([np.empty(0, dtype=np.bool_), *sizes])

    def of(self, rows: Rows) -> Any:
        """[d, n] sparse features of some rows: the n-grams that most of them have."""
        counts = sparse.vstack(self._parts, format="csr")[rows]
        seen = np.bincount(counts.indices, minlength=BUCKETS)
        often = np.sort(np.argsort(-seen, kind="stable")[:FREQUENT])
        often = often[seen[often] > 1]
        counts, seen = counts[:, often], seen[often]
        weight = 1 + np.log((1 + len(rows)) / (1 + seen))
        values = (1 + np.log(counts.data)) * weight[counts.indices]
        lengths = np.diff(counts.indptr)
        squares = np.zeros(len(rows))
        some = np.flatnonzero(lengths)
        squares[some] = np.add.reduceat(values**2, counts.indptr[some])
        counts.data = (values / np.repeat(np.sqrt(squares), lengths)).astype(np.float32)
        return counts


def _counts(texts: list[str]) -> Any:
    """[n, BUCKETS] how often each text has each n-gram; columns of a row ascend."""
    grams = Grams(texts, 2, BUCKETS)
    cells = [
        np.repeat(np.arange(len(texts)), lengths) * BUCKETS + buckets
        for buckets, lengths in grams.orders
    ]
    kinds, number = np.unique(np.concatenate(cells), return_counts=True)
    bounds = np.searchsorted(kinds, np.arange(len(texts) + 1) * BUCKETS)
    columns = (kinds % BUCKETS).astype(np.int32)
    parts = (number.astype(np.float32), columns, bounds.astype(np.int32))
    return sparse.csr_matrix(parts, shape=(len(texts), BUCKETS))


def dense_features(vectors: Matrix) -> Matrix:
    """Unit vectors as the classifier takes them."""
    return vectors * np.float32(np.sqrt(vectors.shape[1]))


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What the models of the folds said."""

    values: Matrix
    """[d, K] probabilities of documents."""
    learned: npt.NDArray[np.bool_]
    """[m] whether another fold has the sample's label, so that it could be judged."""
    unconverged: int
    """Fits that were not done after ITERATIONS."""


def folds_of(ids: pa.Array, folds: int, rng: Rng) -> Rows:
    """[d] the fold of each id."""
    return (rng.at("folds").uniform(ids) * folds).astype(np.int64)


def out_of_fold(features: Any, samples: Samples, folds: int, c: float, rng: Rng) -> OutOfFold:
    """Probabilities of all documents, each by a model that has not seen its fold.

    features   [d, width] of `samples.words`, dense or sparse
    c          inverse strength of the L2 penalty
    """
    width = len(samples.names)
    fold = folds_of(samples.ids, folds, rng)
    values = np.zeros((len(fold), width), dtype=np.float32)
    learned = np.zeros(len(samples), dtype=np.bool_)
    unconverged = 0
    of_sample = fold[samples.document]
    for number in np.unique(fold).tolist():
        test, train = np.flatnonzero(fold == number), np.flatnonzero(of_sample != number)
        present = np.unique(samples.label[train])
        mine = of_sample == number
        learned[mine] = np.isin(samples.label[mine], present)
        if len(present) < 2 or not learned[mine].any():
            values[np.ix_(test, present)] = 1.0 / max(len(present), 1)
            continue
        rows = features[samples.document[train]]
        found, done = _fitted(rows, samples.label[train], features[test], c)
        values[np.ix_(test, present)] = found
        unconverged += not done
    return OutOfFold(values, learned, unconverged)


def _fitted(features: Any, label: Rows, others: Any, c: float) -> tuple[Matrix, bool]:
    """Probabilities of the labels that are there, ascending, for other features."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of convergence: counted
        model.fit(features, label)
    return model.predict_proba(others).astype(np.float32), int(np.max(model.n_iter_)) < ITERATIONS
