"""Relation: how much less a document helps when others like it were trained before it.

    u_i = alpha f_i mean_{j < i} (1 - e_i . e_j / tau) = alpha f_i - (alpha / tau) f_i s_i

u_i is what document i of a rollout added to the fall of the reference loss, f_i its influence by
itself (the column `by`), e_i its embedding at length 1 and s_i its mean cosine with the documents
before it. Both factors are learned by least squares on rollouts, u against f and f s; alpha is in
units of what the first picks, which have nobody before them, make of their f. A tau of `LOOSE`
means that no redundancy was found.

Columns: `alpha` and `tau`, the same on every row; the selector `relational` reads them by name.
Facts: how well u is explained with and without the relation (R2 on the rollouts' later picks).
Errors: fewer than 20 usable picks after the first. Cost: rollouts x length x (6 P T + 2 P R).
Source: Group-MATES (Yu et al. 2025), which learns f and e together with alpha and tau in a language
model; here f and e are given, so that two numbers are left. Its inference code leaves both at 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline import sampling
from foresift.pipeline.choice import scores
from foresift.pipeline.errors import DataError
from foresift.pipeline.estimate import count_parameters
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.forward import cpu_threads
from foresift.pipeline.lm.gradients.adamw import AdamW
from foresift.pipeline.lm.gradients.reference import Reduction
from foresift.pipeline.lm.gradients.rollouts import increments
from foresift.pipeline.lm.model import load
from foresift.pipeline.lm.signals import Window
from foresift.pipeline.nouns import Arrays, FittedModelScorer, Look
from foresift.pipeline.references import Aims
from foresift.pipeline.store import Facts, read_json, write_json, write_shard
from foresift.pipeline.tables import Column
from foresift.scorers._probing import Aim, moments_of, shorter

Floats = npt.NDArray[np.float64]
#: tau where redundancy was not found: the relation is then 1 within a millionth
LOOSE = 1e6
FEWEST = 20


@dataclass(frozen=True, kw_only=True)
class Relation(FittedModelScorer):
    """Learn from rollouts how much influence falls with similar documents before (Group-MATES)."""

    reference: Aims
    """What is aimed at: as for `influence`."""
    by: str = "influence.utility"
    """Column of each document's influence by itself."""
    embedding: str = "embedding.vector"
    """Column of embeddings; they are brought to length 1."""
    rollouts: int = 32
    """How many rollouts are trained."""
    length: int = 10
    """Documents in a rollout."""
    document_tokens: int = 256
    """Tokens of a document that a step reads; 0: as many as the model does."""
    reduction: Reduction = "token_mean"
    """How the losses of a reference's documents are averaged."""
    reference_documents: int = 128
    """Documents of each reference that are used, the first ones."""
    learning_rate: float = 1e-3
    """Of the steps."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of the optimizer that made the moments."""
    clip: float = 1.0
    """Largest norm of a document's gradient; 0: never clipped."""
    floor: float = 0.05
    """R2 of the relation below which the run warns."""

    columns: ClassVar[Mapping[str, Column]] = {
        "alpha": Column(pa.float32(), "factor on the influence"),
        "tau": Column(pa.float32(), "cosine at which nothing is left"),
    }

    def __post_init__(self) -> None:
        if self.rollouts < 1 or self.length < 2 or self.rollouts * (self.length - 1) < FEWEST:
            raise ValueError(
                f"rollouts of at least 2 documents, with {FEWEST} picks after the first"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by, self.embedding)

    @property
    def aims(self) -> Any:
        return self.reference

    def fit(self, look: Look, out: Path) -> Facts:
        number = self.rollouts * self.length
        table = sampling.draw(look.corpus, number, look.job.rng.at("rollouts"), self.needs)
        loaded = load(look.model)
        encoded = encode(table, loaded.tokenizer, shorter(look.model, self.document_tokens))
        rule = AdamW(self.learning_rate, self.betas, clip=self.clip)
        aims = Aim(look.references, self.reduction, self.reference_documents)
        places = _rollouts(table, encoded.lengths > 1, self.length, look)
        with cpu_threads(look.model.threads if loaded.device == "cpu" else 0):
            sets, moments = aims.sets(loaded, look.model), moments_of(look.model, loaded, True)
            found = []
            for number, rows in enumerate(places):
                look.job.progress(number, len(places), "rollouts")
                path = out / "rollouts" / f"part-{number:05d}.parquet"
                if not path.exists():
                    added = increments([rows], encoded, sets, loaded, rule, moments)[0]
                    write_shard(path, pa.table({"row": rows, "added": added}))
                found.append(np.asarray(pq.read_table(path)["added"]))
        learned = learn(found, _ordered(table, self, places))
        told = learned["r2"]["related"]
        if told is None or told < self.floor:
            look.job.log.warning(
                "relation: alpha and tau explain %s of what documents added in rollouts, below the "
                "floor of %.2f: they are little better than a guess. Train more rollouts, or use a "
                "better influence (its own column is `by`)",
                "nothing" if told is None else f"{told:.3f}", self.floor,
            )  # fmt: skip
        write_json(out / "relation.json", learned)
        tokens = sum(int(encoded.lengths[rows].sum()) for rows in places)
        read = sum(s.tokens for s, _ in sets) * sum(map(len, places))
        flops = count_parameters(look.model) * (6.0 * tokens + 2.0 * read)
        return {**learned, "rollouts": len(places), "flops": flops}

    def signals(self, out: Path) -> tuple[str, ...]:
        return ()

    def estimate(self, parameters: int, pool: int, references: int) -> tuple[float, float]:
        steps = self.rollouts * self.length
        return steps * parameters * (6.0 * (self.document_tokens or 256) + 2.0 * references), 0.0

    def score(self, window: Window, out: Path) -> Arrays:
        learned = read_json(out / "relation.json")
        rows = len(window.tokens)
        return {n: np.full(rows, learned[n], dtype=np.float32) for n in ("alpha", "tau")}


def _rollouts(table: pa.Table, usable: Any, length: int, look: Look) -> list[list[int]]:
    """The drawn documents in random order, cut into rollouts; a last short one is left out."""
    order = np.argsort(look.job.rng.at("order").uniform(table["id"]), kind="stable")
    rows = [int(i) for i in order if usable[i]]
    return [rows[i : i + length] for i in range(0, len(rows) - length + 1, length)]


def _ordered(
    table: pa.Table, part: Relation, places: list[list[int]]
) -> list[tuple[Floats, Floats]]:
    """(f, s) of each rollout's documents, in its order."""
    influence = scores(table, part.by)
    width = max((len(v) for v in table[part.embedding].to_pylist() if v), default=0)
    blank = [float("nan")] * width
    vectors = np.array([v or blank for v in table[part.embedding].to_pylist()], dtype=np.float64)
    vectors = vectors.reshape(len(influence), width)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found = []
    for rows in places:
        e = vectors[rows]
        before = np.cumsum(e, axis=0) - e
        count = np.maximum(np.arange(len(rows)), 1)
        found.append((influence[rows], (e * before).sum(1) / count))
    return found


def learn(added: list[Floats], known: list[tuple[Floats, Floats]]) -> Facts:
    """alpha and tau by least squares from u of each rollout, and its (f, s)."""
    first = np.array([[u[0], f[0]] for u, (f, _) in zip(added, known, strict=True)])
    later = [np.stack([u[1:], f[1:], s[1:]]) for u, (f, s) in zip(added, known, strict=True)]
    picks = np.concatenate([np.empty((3, 0)), *later], axis=1)
    good = np.isfinite(picks).all(axis=0)
    u, f, s = picks[:, good]
    if len(u) < FEWEST:
        raise DataError(
            f"{len(u)} usable picks after the first of a rollout; at least {FEWEST} are needed",
            where="relation",
        )
    heads = first[np.isfinite(first).all(axis=1)]
    unit = _slope(heads[:, 1:], heads[:, 0])[0] if len(heads) else 1.0
    alone = _slope(f[:, None], u)
    both = _slope(np.stack([f, -f * s], axis=1), u)
    alpha = float(both[0] / unit) if unit > 0 else 1.0
    tau = float(both[0] / both[1]) if both[1] > 0 and both[0] > 0 else LOOSE
    fits = {"alone": f * alone[0], "related": f * both[0] - f * s * both[1]}
    return {
        "alpha": alpha, "tau": min(tau, LOOSE), "picks": len(u),
        "r2": {name: _r2(u, guess) for name, guess in fits.items()},
    }  # fmt: skip


def _slope(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.linalg.lstsq(x, y, rcond=None)[0]
    return found


def _r2(y: npt.NDArray[Any], guess: npt.NDArray[Any]) -> float | None:
    spread = float(np.sum((y - y.mean()) ** 2))
    return 1.0 - float(np.sum((y - guess) ** 2)) / spread if spread else None
