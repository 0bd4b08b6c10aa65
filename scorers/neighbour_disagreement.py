"""Labels that are likely wrong because the nearest documents have another one (TACRED's IS, ES).

extrinsic (ES): for each document its k nearest with labels that are trusted

    noise     = 1 - vote(i, y)          vote(i, c): share of the neighbours that have label c
    suggested = argmax_c vote(i, c)     y where it is among the most frequent
    flagged   = suggested != y and noise >= flag_at

`trusted` is a column of booleans, the small set that was annotated again; without one all other
documents vote, leave one out. With `negative` only documents of that label are judged, unless
`positives`. Trusted documents have noise 0.

intrinsic (IS): positives (labels other than `negative`) are clean, some negatives are not. F are
the positives that are predicted `negative` by a model that has not seen them (column `predicted`,
or a logistic regression on the vectors in folds). For each negative j

    r_j       how many of F have j among their k nearest negatives
    e_j       = |F| o_j / |negatives|, o_j: how many negatives have j among theirs
    noise     = r_j / (r_j + e_j + 1),   excess = r_j - e_j
    suggested = the most frequent label of those r_j
    flagged   = r_j >= 1 and noise >= flag_at

`flag_at: 0` flags the paper's union of neighbours; e_j is what a hub, which everything finds, would
have by chance, and `excess` ranks by it over all negatives. The paper gains 4 points of F1 by
eliminating what IS flags, none by re-annotating it, and 4 and more by either with ES. Labels are
uniform over what copies of a document say; exact copies are no neighbours of each other. Not
judged, with NaN and `keep`: documents without a vector.

Errors: fewer than two labels; no trusted document; `negative` that no document has. Cost: n^2 d
multiplications up to `exact_up_to` documents, then within cells; with `trusted` n |trusted| d, with
IS negatives^2 d likewise and |F| x negatives x d. Source: Parekh, Anand and Awekar 2023 (arXiv
2311.12298); k is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse  # type: ignore[import-untyped]

from foresift.pipeline.errors import DataError
from foresift.pipeline.labels import label_text, labels
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column, id_words
from foresift.pipeline.vectors import Documents, spooled
from foresift.scorers._documents import counted, some
from foresift.scorers._label_folds import dense_features, out_of_fold
from foresift.scorers._label_graph import label_shares, nearest_among, nearest_others, votes
from foresift.scorers._label_samples import (
    COLUMNS,
    Samples,
    Verdicts,
    checked_threshold,
    places,
    read,
    write,
)

Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class NeighbourDisagreement(FittedScorer):
    """Share of the nearest documents whose label is another one; intrinsic or extrinsic."""

    label: str
    """Column of labels, numbers or strings."""
    vectors: str = "embedding.vector"
    """Column of vectors; they are brought to length 1."""
    strategy: Literal["extrinsic", "intrinsic"] = "extrinsic"
    """Neighbours that vote, or negatives near positives that a model takes for negatives."""
    k: int = 10
    """Nearest documents that are asked (intrinsic: negatives that a positive finds)."""
    trusted: str = ""
    """Column of booleans, whose labels vote (extrinsic); empty: all other documents do."""
    negative: str | int | None = None
    """Label for none of the others; needed by intrinsic."""
    positives: bool = False
    """Whether, where there is a `negative`, the others are judged too (extrinsic)."""
    predicted: str = ""
    """Column of out-of-fold predictions (intrinsic); empty: a logistic regression gives them."""
    flag_at: float = 0.5
    """Noise from which on a label is flagged."""
    re_annotate_at: float | None = 0.8
    """Share of the votes for the suggested label from which on it is proposed; null: never."""
    exact_up_to: int = 50_000
    """Documents up to which all are compared with all (extrinsic without `trusted`)."""
    probes: int = 4
    """Beyond that: cells that are looked into."""
    seed: int = 0
    """Chooses cells and folds."""

    reads_content: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = {
        **COLUMNS,
        "excess": Column(pa.float32(), "documents against the label, over what is expected"),
    }

    def __post_init__(self) -> None:
        if self.k < 1 or self.probes < 1:
            raise ValueError("k and probes must be at least 1")
        if self.exact_up_to < 0:
            raise ValueError("exact_up_to must not be negative")
        intrinsic = self.strategy == "intrinsic"
        if intrinsic and self.negative is None:
            raise ValueError("intrinsic needs `negative`, the label for none of the others")
        if intrinsic and (self.trusted or self.positives):
            raise ValueError("trusted and positives belong to extrinsic")
        if self.predicted and not intrinsic:
            raise ValueError("predicted belongs to intrinsic")
        checked_threshold("flag_at", self.flag_at)
        checked_threshold("re_annotate_at", self.re_annotate_at)

    @property
    def needs(self) -> tuple[str, ...]:
        named = (self.label, self.vectors, self.trusted, self.predicted)
        return tuple(dict.fromkeys(name for name in named if name))

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        path = out / "rows.arrow"
        table = spooled(tables, ["id", *self.needs], path)
        path.unlink(missing_ok=True)
        _, code = labels(table, self.label)
        documents = Documents.of(table, self.vectors, np.flatnonzero(code >= 0))
        samples = Samples.of(table, self.label, documents.vectors.valid)
        samples.several(self.label)
        judge = self._intrinsic if self.strategy == "intrinsic" else self._extrinsic
        verdicts, more = judge(table, documents, samples)
        facts, told = counted(documents), write(out, samples, verdicts, self.re_annotate_at)
        return {**facts, **told, **more, "warnings": facts["warnings"] + told["warnings"]}

    @property
    def _rng(self) -> Rng:
        return Rng(self.seed).at("neighbour_disagreement")

    def _negative(self, samples: Samples) -> int:
        name = label_text(self.negative)
        if name not in samples.names:
            raise DataError(f"no document has the label {name!r}", where=self.label)
        return list(samples.names).index(name)

    def _extrinsic(
        self, table: pa.Table, documents: Documents, samples: Samples
    ) -> tuple[Verdicts, Facts]:
        clean = self._clean(table, documents)
        shape = (len(documents), len(samples.names))
        judged = ~clean[samples.document]
        if self.trusted:
            queries, base = np.flatnonzero(~clean), np.flatnonzero(clean)
            number = np.full((len(documents), min(self.k, len(base))), -1, dtype=np.int64)
            number[queries] = nearest_among(documents, queries, base, self.k)[0]
        else:
            number = nearest_others(documents, self.k, self.exact_up_to, self.probes, self._rng)[0]
        if self.negative is not None and not self.positives:
            judged &= samples.label == self._negative(samples)
        vote = votes(number, label_shares(samples.document, samples.label, shape))
        own, best, sure = tally(vote, samples.document, samples.label)
        asked = (number >= 0).sum(axis=1)[samples.document]
        noise = np.where(judged, np.where(asked > 0, 1 - own, np.nan), 0.0)
        best = np.where(judged, best, samples.label)
        prior = samples.counts[samples.label] / len(samples)
        return Verdicts(
            noise=noise, quality=1 - noise, suggested=best, sure=sure,
            flagged=(best != samples.label) & (noise >= self.flag_at),
            more={"excess": np.where(judged, (prior - own) * asked, 0.0).astype(np.float32)},
        ), {"trusted": int(clean.sum())}  # fmt: skip

    def _clean(self, table: pa.Table, documents: Documents) -> Bools:
        """[d] whether a document's label is trusted: that of any of its copies is."""
        if not self.trusted:
            return np.zeros(len(documents), dtype=np.bool_)
        column = table[self.trusted]
        if not (pa.types.is_boolean(column.type) or pa.types.is_null(column.type)):
            raise DataError(f"trusted is true or false, not {column.type}", where=self.trusted)
        rows = pc.fill_null(column.cast(pa.bool_()), False).to_numpy()
        labelled = labels(table, self.label)[1] >= 0
        known = np.unique(id_words(table["id"])[rows & labelled], axis=0)
        place = places(documents.words, known)
        found: Bools = np.zeros(len(documents), dtype=np.bool_)
        found[place[place >= 0]] = True
        if not found.any():
            raise DataError("no document with a vector and a label is trusted", where=self.trusted)
        return found

    def _intrinsic(
        self, table: pa.Table, documents: Documents, samples: Samples
    ) -> tuple[Verdicts, Facts]:
        negative, m = self._negative(samples), len(samples)
        is_negative = samples.label == negative
        positive, negatives = np.flatnonzero(~is_negative), np.flatnonzero(is_negative)
        missed = self._predicted(table, documents, samples)[positive] == negative
        lost, base = positive[missed], samples.document[negatives]
        number = nearest_among(documents, samples.document[lost], base, self.k)[0]
        place = np.full(len(documents), -1, dtype=np.int64)
        place[base] = negatives
        finder, found = np.nonzero(number >= 0)
        target = place[number[finder, found]]
        r = np.bincount(target, minlength=m)
        expected = np.zeros(m)
        expected[negatives] = self._occurrences(some(documents, base)) * len(lost) / len(base)
        best, sure = _likeliest(target, samples.label[lost[finder]], samples)
        noise = r / (r + expected + 1)
        return Verdicts(
            noise=noise, quality=1 - noise, suggested=best, sure=sure,
            flagged=(r > 0) & (noise >= self.flag_at),
            more={"excess": (r - expected).astype(np.float32)},
        ), {"false_negatives": int(missed.sum()), "positives": len(positive)}  # fmt: skip

    def _occurrences(self, negatives: Documents) -> Rows:
        """[n] how often each of some documents is among the k nearest of the others."""
        number = nearest_others(negatives, self.k, self.exact_up_to, self.probes, self._rng)[0]
        found: Rows = np.bincount(number[number >= 0], minlength=len(negatives))
        return found

    def _predicted(self, table: pa.Table, documents: Documents, samples: Samples) -> Rows:
        """[m] number of the label that was predicted for each sample, -1 for another one."""
        if self.predicted:
            names, code = labels(table, self.predicted)
            place = {name: i for i, name in enumerate(samples.names)}
            number = np.array([*(place.get(n, -1) for n in names), -1], dtype=np.int64)
            found: Rows = number[code[samples.first]]
            return found
        features = dense_features(documents.unit(np.arange(len(documents))))
        folds = min(FOLDS, len(documents))
        values = out_of_fold(features, samples, folds, 1.0, self._rng).values
        guessed: Rows = values.argmax(axis=1)[samples.document].astype(np.int64)
        return guessed

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        return read(out, batch, self.label)


def tally(
    vote: Any, document: Rows, label: Rows
) -> tuple[npt.NDArray[np.float64], Rows, npt.NDArray[np.float64]]:
    """For each sample: votes for its label, the label with most of them (ties: its own), and these.

    -1 and 0 where nobody voted.
    """
    vote = vote.tocsr()
    vote.sort_indices()
    row = np.repeat(np.arange(vote.shape[0]), np.diff(vote.indptr))
    order = np.lexsort((vote.indices, -np.round(vote.data, 12), row))
    first = np.flatnonzero(np.diff(row[order], prepend=-1))
    best = np.full(vote.shape[0], -1, dtype=np.int64)
    most = np.zeros(vote.shape[0])
    best[row[order[first]]] = vote.indices[order[first]]
    most[row[order[first]]] = vote.data[order[first]]
    own = np.asarray(vote[document, label]).ravel()
    held = own >= most[document] - 1e-12
    sure = most[document]
    return own, np.where(held & (sure > 0), label, best[document]), sure


def _likeliest(target: Rows, label: Rows, samples: Samples) -> tuple[Rows, npt.NDArray[np.float64]]:
    """[m] the most frequent label of those that point to each sample (-1: none), and its share."""
    shape = (len(samples), len(samples.names))
    counts = sparse.csr_matrix((np.ones(len(target)), (target, label)), shape=shape)
    total = np.asarray(counts.sum(axis=1)).ravel()
    _, best, most = tally(counts, np.arange(len(samples)), samples.label)
    found = np.where(total > 0, best, -1)
    return found, most / np.maximum(total, 1)
