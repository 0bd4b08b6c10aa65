"""Labels that are likely wrong, by spreading labels over the graph of nearest documents (ERASE).

    A[i, j]   = max(e_i . e_j, 0) where j is one of the k nearest of i or i of j
    Y         <- (1 - alpha) D^-1 A Y + alpha Y, `steps` times, from the given labels
    noise     = 1 - Y[i, y] / sum_c Y[i, c]
    quality   = (share of y - largest share of another label + 1) / 2
    suggested = argmax_c Y[i, c]
    flagged   = suggested != y and noise >= flag_at

e is the vector at length 1. Rows of Y are distributions, as D^-1 A is normalised by rows (the
released code scales columns, and rows then sum to anything). A document's own label has a weight
of alpha^steps and what comes back to it. Documents without a label take part and pass labels on.
Many steps smooth rare labels away: the noise of a rare label then says how rare it is.

`rounds` above 0 adds prototypes, the second half of ERASE's label correction, with vectors as they
are: each round c_k = mean vector of the documents whose likeliest label is k, then
Y <- softmax(beta Y + (1 - beta) |cos(e, c_k)|) and propagation as above. It keeps all labels of all
documents in memory and flattens Y, so that `noise` only ranks; `flag_at: 0` is the rule then.

Not judged, with NaN and `keep`: documents without a vector, or without a neighbour of positive
cosine. Facts: edges, and coding_gain, R - Rc in nats, of the given and of the suggested labels
(larger: labels part the vectors better; up to MOST_WIDE components and MOST_RATED labels). Errors:
fewer than two labels. Cost: neighbours as `density`, then steps x edges x labels.
Source: ERASE (Chen et al. 2024, arXiv 2312.08852), its label correction, on a graph of neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column
from foresift.pipeline.vectors import Documents, spooled, unit
from foresift.scorers import _label_graph as graphs
from foresift.scorers._documents import counted
from foresift.scorers._label_samples import (
    COLUMNS,
    Samples,
    Verdicts,
    checked_threshold,
    places,
    read,
    write,
)

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
#: labels for which prototypes are made
MOST = 1_000
#: of the coding rate: components of a vector, labels, documents, and eps (squared already)
MOST_WIDE, MOST_RATED, RATED, EPS = 512, 50, 20_000, 0.05


@dataclass(frozen=True, kw_only=True)
class LabelPropagation(FittedScorer):
    """Probability that a label is wrong, by labels spread over nearest documents (ERASE)."""

    label: str
    """Column of labels, numbers or strings."""
    vectors: str = "embedding.vector"
    """Column of vectors; they are brought to length 1."""
    k: int = 10
    """Nearest documents of each that make the graph."""
    alpha: float = 0.6
    """Share of its labels that a document keeps in a step."""
    steps: int = 5
    """How often labels are passed on."""
    rounds: int = 0
    """How often prototypes are asked after that."""
    beta: float = 0.6
    """Weight of the propagated labels against the prototypes."""
    flag_at: float = 0.5
    """Noise from which on a label is flagged."""
    re_annotate_at: float | None = 0.8
    """Share of the suggested label from which on it is proposed; null: never."""
    exact_up_to: int = 50_000
    """Documents up to which all are compared with all."""
    probes: int = 4
    """Beyond that: cells that are looked into."""
    seed: int = 0
    """Chooses cells."""

    reads_content: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = COLUMNS

    def __post_init__(self) -> None:
        if self.k < 1 or self.probes < 1 or self.steps < 1:
            raise ValueError("k, steps and probes must be at least 1")
        if self.rounds < 0 or self.exact_up_to < 0:
            raise ValueError("rounds and exact_up_to must not be negative")
        for name in ("alpha", "beta", "flag_at", "re_annotate_at"):
            checked_threshold(name, getattr(self, name))

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.label, self.vectors)))

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        path = out / "rows.arrow"
        table = spooled(tables, ["id", *self.needs], path)
        path.unlink(missing_ok=True)
        documents = Documents.of(table, self.vectors)
        samples = Samples.of(table, self.label, documents.vectors.valid)
        samples.several(self.label)
        node = places(documents.words, samples.words)[samples.document]
        rng = Rng(self.seed).at("label_propagation")
        near = graphs.nearest_others(documents, self.k, self.exact_up_to, self.probes, rng)
        matrix = graphs.graph(*near)
        shape = (len(documents), len(samples.names))
        shares = graphs.label_shares(node, samples.label, shape)
        spread = self._spread(matrix, shares, documents)
        verdicts = self._judged(spread, matrix, node, samples)
        facts, told = counted(documents), write(out, samples, verdicts, self.re_annotate_at)
        more = {"edges": int(matrix.nnz), "coding_gain": _gains(documents, node, samples, verdicts)}
        return {**facts, **told, **more, "warnings": facts["warnings"] + told["warnings"]}

    def _spread(self, matrix: Any, shares: Any, documents: Documents) -> Any:
        """Blocks of labels with what every document has of them, to be gone through once."""
        blocks = graphs.propagated(matrix, shares, self.alpha, self.steps)
        if not self.rounds:
            return blocks
        if shares.shape[1] > MOST:
            raise DataError(
                f"{shares.shape[1]} labels are too many for prototypes (at most {MOST}); "
                "set `rounds: 0`",
                where=self.label,
            )
        found = np.concatenate([values for _, values in blocks], axis=1)
        vectors = documents.unit(np.arange(len(documents))).astype(np.float64)
        for _ in range(self.rounds):
            mixed = self.beta * found + (1 - self.beta) * closeness(vectors, found)
            found = graphs.propagate(matrix, softmax(mixed), self.alpha, self.steps)
        return iter([(slice(0, shares.shape[1]), found)])

    def _judged(self, spread: Any, matrix: Any, node: Rows, samples: Samples) -> Verdicts:
        m = len(samples)
        own, best, most, second, total = np.zeros(m), np.full(m, -1), np.zeros(m), *np.zeros((2, m))
        for part, values in spread:
            mine = values[node]
            total += mine.sum(axis=1)
            inside = np.flatnonzero((samples.label >= part.start) & (samples.label < part.stop))
            column = samples.label[inside] - part.start
            own[inside] = mine[inside, column]
            ranked = np.argmax(mine, axis=1)
            top = mine[np.arange(m), ranked]
            better = top > most
            best[better], most[better] = ranked[better] + part.start, top[better]
            mine[inside, column] = 0
            second = np.maximum(second, mine.max(axis=1))
        held = own >= most * (1 - 1e-12)
        best[held] = samples.label[held]
        with np.errstate(invalid="ignore", divide="ignore"):
            own, most, second = (x / total for x in (own, most, second))
        alone = np.diff(matrix.indptr)[node] == 0
        noise = np.where(alone, np.nan, 1 - own)
        return Verdicts(
            noise=noise, quality=np.where(alone, np.nan, (own - second + 1) / 2),
            suggested=best.astype(np.int64), sure=most,
            flagged=(best != samples.label) & (noise >= self.flag_at),
        )  # fmt: skip

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        return read(out, batch, self.label)


def softmax(values: Floats) -> Floats:
    """Each row as a distribution."""
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    found: Floats = powers / powers.sum(axis=1, keepdims=True)
    return found


def closeness(vectors: Floats, shares: Floats) -> Floats:
    """[d, K] absolute cosines to the mean of each likeliest label; 0 where no document has it."""
    likeliest = np.where(shares.max(axis=1) > 0, shares.argmax(axis=1), shares.shape[1])
    sums = np.zeros((shares.shape[1] + 1, vectors.shape[1]))
    np.add.at(sums, likeliest, vectors)
    return np.abs(vectors @ np.nan_to_num(unit(sums[:-1])).T)


def _gains(
    documents: Documents, node: Rows, samples: Samples, verdicts: Verdicts
) -> dict[str, float] | None:
    """The gain in coding rate by the given labels and by the suggested ones."""
    if documents.vectors.width > MOST_WIDE or len(samples.names) > MOST_RATED:
        return None
    some = np.arange(0, len(samples), max(1, -(-len(samples) // RATED)))
    z = documents.unit(node[some]).astype(np.float64)
    kinds = {"given": samples.label, "suggested": verdicts.suggested}
    return {name: graphs.coding_gain(z, kind[some], EPS) for name, kind in kinds.items()}
