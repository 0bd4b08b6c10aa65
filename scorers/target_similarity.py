"""How much likelier a document is under a target than under the pool, or how near it lies.

    method dsir   log_weight = sum over its hashed n-grams b of log phat_b - log qhat_b     nats
                  per_ngram  = log_weight / number of n-grams
                  utility    = log_weight
    method knn    neighbour  = mean cosine to the k nearest documents of the target     [-1, 1]
                  utility    = neighbour

p and q are the distributions of uni- and bigrams of lower-cased words in B buckets (`_dsir.py`), of
the target and of all alive rows of the pool, each copy counted (the paper's code fits q on the head
of each shard). A sum over n-grams grows with length, either way; the paper wants it so, and
`per_ngram` is another score. Several references make one target by their weights,
p = sum_r weight_r p_r; their cosines are averaged so. A pool that is the target has 0 everywhere.
To draw as the paper does, select with `gumbel_topk` by `utility`, `temperature: 1`.

The paper does not smooth (`smoothing: 0`). A target that is not large then ranks by length: each
n-gram that it never has costs some 7 to 12 nats, so short documents win. For 300 questions of GSM8K
(3 n-grams a bucket) and a pool of 700 others, 1500 articles and 1500 instructions, 46 % of the best
500 are questions without smoothing, 99.8 % with Laplace's, 99.6 % by the pool; for 10 questions 0,
7 and 94 %; for 1000 all 99.8 %. It is not free: 30 short instructions of Alpaca find 90 % so, and
all without, where shortness is what is wanted.

Vectors of pool and reference must come from one model: the reference is scored like the pool, by
`{score: [embedding], data: NAME}`, before and, where training goes on between, in each round.

NaN utility: no word, or fewer than `min_tokens`; no vector. Null: columns of the other method.
Facts: documents and n-grams, KL(target || pool) in nats, the share of the pool's n-grams whose
bucket no target has. Errors: a target of one document; a target without words or vectors.
Cost: dsir reads the pool's text twice, some 2 M words/s, and no model; knn n m d for m documents
of the target, whose vectors lie in memory. Source: DSIR (Xie et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from foresift.pipeline import references as texts_of
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import AimedScorer, Arrays, Reference
from foresift.pipeline.references import Aims
from foresift.pipeline.store import Facts, read_json, write_json
from foresift.pipeline.tables import Column, content_texts
from foresift.pipeline.vectors import Documents, Vectors
from foresift.scorers._dsir import Counts, Floats, Grams, log_ratio, shares
from foresift.scorers._nearest import mean_cosine

#: n-grams a bucket below which those that a target never has decide, unless smoothed
DENSE = 10
LEAST = 2


@dataclass(frozen=True, kw_only=True)
class TargetSimilarity(AimedScorer):
    """How much likelier a document is under a target than under the pool (DSIR), or how near."""

    reference: Aims
    """The target: a data set's name, a file, a reader, or a list of them with weights."""
    method: Literal["dsir", "knn"] = "dsir"
    """By hashed n-grams of the text, or by the nearest vectors."""
    buckets: int = 10_000
    """Of the n-grams' hashes (dsir)."""
    ngrams: int = 2
    """Longest n-grams, in words (dsir)."""
    smoothing: float = 1.0
    """n-grams added to each bucket, on average, before shares are taken (dsir; the paper: 0)."""
    prior: Literal["pool", "uniform"] = "pool"
    """How they are spread: as the pool's n-grams are, or evenly (Laplace; the paper's code)."""
    min_tokens: int = 0
    """Words below which a document has no utility (dsir; the paper takes 100, which is most of what
    chats are made of)."""
    embedding: str = "embedding.vector"
    """Column of vectors, of the pool and of the reference (knn)."""
    k: int = 4
    """Nearest documents of the target that are averaged; all, where there are fewer (knn)."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "nats (dsir) or cosine (knn)", "higher"),
        "log_weight": Column(pa.float64(), "nats", "higher"),
        "per_ngram": Column(pa.float64(), "nats per n-gram", "higher"),
        "neighbour": Column(pa.float64(), "cosine", "higher"),
    }

    def __post_init__(self) -> None:
        for name, least in {"buckets": 1, "ngrams": 1, "min_tokens": 0, "k": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is at least {least}")
        if not (np.isfinite(self.smoothing) and self.smoothing >= 0):
            raise ValueError("smoothing is a number, not negative")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.embedding,) if self.method == "knn" else ()

    @property
    def reads_content(self) -> bool:  # type: ignore[override]
        return self.method == "dsir"

    @property
    def aims(self) -> Any:
        return self.reference

    @property
    def aim_needs(self) -> tuple[str, ...]:
        return self.needs

    def fit(
        self, tables: Iterable[pa.Table], references: tuple[Reference, ...], out: Path
    ) -> Facts:
        weights = np.array([r.weight for r in references]) / sum(r.weight for r in references)
        write_json(out / "weights.json", {"weights": weights.tolist()})
        if self.method == "knn":
            return self._fit_vectors(references, out)
        pool, rows = self._count(tables)
        targets = {r.name: self._target(r) for r in references}
        prior = shares(pool) if self.prior == "pool" else None
        each = [shares(counts, self.smoothing, prior) for counts, _ in targets.values()]
        target = np.average(each, axis=0, weights=weights)
        ratio = log_ratio(target, shares(pool, self.smoothing, prior))
        np.save(out / "log_ratio.npy", ratio, allow_pickle=False)
        seen = np.sum([counts for counts, _ in targets.values()], axis=0) > 0
        size = int(pool.sum())
        facts: Facts = {
            "documents": {"pool": rows, **{name: n for name, (_, n) in targets.items()}},
            "ngrams": {"pool": size, **{name: int(c.sum()) for name, (c, _) in targets.items()}},
            "kl": float(np.sum(target * ratio)) if size else None,
            "unseen": float(pool[~seen].sum()) / size if size else None,
        }
        small = [n for n, (c, _) in targets.items() if c.sum() < DENSE * self.buckets]
        if small and not self.smoothing:
            facts["warnings"] = [self._warning(name, facts) for name in small]
        return facts

    def _count(self, tables: Iterable[pa.Table]) -> tuple[Counts, int]:
        """[B] n-grams in each bucket, and how many documents they came from."""
        total, rows = np.zeros(self.buckets, dtype=np.int64), 0
        for table in tables:
            total += self._grams(table).counts()
            rows += table.num_rows
        return total, rows

    def _grams(self, table: pa.Table) -> Grams:
        return Grams(content_texts(table), self.ngrams, self.buckets)

    def _target(self, reference: Reference) -> tuple[Counts, int]:
        counts, rows = self._count(texts_of.tables(reference.corpus))
        _enough(rows, reference.name)
        if not counts.any():
            raise DataError("no document of the reference has a word", where=reference.name)
        return counts, rows

    def _warning(self, name: str, facts: Facts) -> str:
        return (
            f"{facts['ngrams'][name]} n-grams of {name} are few for {self.buckets} buckets, and "
            f"`smoothing` is 0: {facts['unseen']:.0%} of the pool's n-grams lie where no target "
            "has one, each costs several nats, and short documents win. Set `smoothing: 1`, or "
            "give more documents"
        )

    def _fit_vectors(self, references: Sequence[Reference], out: Path) -> Facts:
        told: Facts = {"documents": {}}
        for number, reference in enumerate(references):
            vectors = self._vectors(reference)
            np.save(out / f"target-{number}.npy", vectors, allow_pickle=False)
            told["documents"][reference.name] = len(vectors)
        return told

    def _vectors(self, reference: Reference) -> Any:
        """[m, d] the vectors of a reference's distinct documents, in the order of their ids."""
        corpus, name = reference.corpus, self.embedding
        if name not in corpus.columns:
            step = name.partition(".")[0]
            raise DataError(
                f"the reference has no column {name!r}: give it as a data set with a name, and "
                f"score it as the pool is, before: {{score: [{step}], data: {reference.name}}}",
                where=reference.name,
            )
        shards = [t for s in corpus.shards() for t, _ in s.stream([name], content=False)]
        _enough(sum(t.num_rows for t in shards), reference.name)
        found = Documents.of(pa.concat_tables(shards), name)
        if not len(found):
            raise DataError(f"no document has a vector in {name!r}", where=reference.name)
        return found.unit(np.arange(len(found)))

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        nothing = pa.nulls(batch.num_rows, pa.float64())
        if self.method == "knn":
            found = self._near(batch, out)
            blank = {"log_weight": nothing, "per_ngram": nothing}
            return {"utility": found, "neighbour": found, **blank}
        grams = self._grams(batch)
        total = grams.sums(np.load(out / "log_ratio.npy", allow_pickle=False))
        with np.errstate(invalid="ignore"):
            mean = total / grams.lengths
        utility = np.where(grams.words < max(1, self.min_tokens), np.nan, total)
        return {"utility": utility, "log_weight": total, "per_ngram": mean, "neighbour": nothing}

    def _near(self, batch: pa.Table, out: Path) -> Floats:
        weights = read_json(out / "weights.json")["weights"]
        vectors, total = Vectors.of(batch, self.embedding), np.zeros(batch.num_rows)
        mine = vectors.unit(np.arange(batch.num_rows))
        for number, weight in enumerate(weights):
            target = np.load(out / f"target-{number}.npy", allow_pickle=False)
            if vectors.valid.any() and target.shape[1] != vectors.width:
                raise DataError(
                    f"vectors of {vectors.width} numbers, where the reference has "
                    f"{target.shape[1]}: score both by one model",
                    where=self.embedding,
                )
            total += weight * mean_cosine(mine, target, self.k)
        return total


def _enough(rows: int, name: str) -> None:
    if rows < LEAST:
        raise DataError(
            f"a target set of {rows} document{'s' * (rows != 1)} that are not held out says too "
            f"little of what is wanted; at least {LEAST} are needed",
            where=name,
        )
