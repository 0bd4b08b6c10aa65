"""How much of a document's gradient lies where the gradients of what is kept lie.

    e(x)   = |Q Q' g(x)|^2 / |g(x)|^2, 0 to 1         g(x): gradient of the mean NLL of document x
    cosine = <g(x), m> / (|g(x)| |m|)                 m: mean of the retain gradients

Q [P, r] is an orthonormal basis of the `rank` directions in which the retain documents' gradients,
each of length 1, are largest (their leading singular vectors; fewer where they span fewer). Near 1:
unlearning x by its gradient must hurt what is kept, so decide on x up front. Near 0: x is cheap to
delete later. So utility = -e (larger = keep first).

Retain documents are those of `reference`, or as many drawn from the pool outside the sample: then a
near copy left there makes e large, as it should. e is taken exactly, by dot products with the
basis of all parameters at once (`gradients/ghost.py`). `projection` above 0 projects gradients on
that many random signs first (seeded), which needs less memory where `rank` copies of the model do
not fit; it adds about r / projection to e, and an error of about 1 / sqrt(projection).

Only a sample is asked (`_forget_sample.py`): outside it `entanglement` and `cosine` are NaN, and
`utility` is NaN too unless a `cluster` column is named, whose means stand in. NaN also without a
counted token, and where the gradient is zero. Facts: sample, measured, mean, rank, and `captured`,
the share of the retain gradients' squared lengths that the basis holds.

Known answer: g = (3, 4), Q = (1, 0)': e = 0.36. Errors: DataError where nothing is left to retain,
or its gradients are zero. Cost: 6 N FLOPs a token of the sample and of the retain documents, and a
dot product of every matrix and direction; memory: `retain` gradients, then `rank` of them.
Source: derived from GU (projected unlearning) and OFMU (the cosine).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from foresift.pipeline import references, sampling
from foresift.pipeline.errors import DataError, ModelError
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.gradients.directional import sample
from foresift.pipeline.references import Aims
from foresift.pipeline.store import Facts, publish, temporary
from foresift.pipeline.tables import Column, id_words
from foresift.scorers._forget_sample import TOKENS, Asked, AsksSample, Numbers
from foresift.scorers._gradient_features import counted, products, sample_gradients
from foresift.scorers._projection import Projection

Floats = npt.NDArray[np.float64]
#: eigenvalues below this share of the largest are rounding
FLAT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Entanglement(AsksSample):
    """Share of a document's gradient in the span of what is kept: deleting it later hurts that."""

    reference: Aims | None = None
    """What is kept: data sets, files or readers; null: documents of the pool out of the sample."""
    retain: int = 32
    """Documents whose gradients are kept in mind: the first of each reference, or drawn ones."""
    rank: int = 16
    """Directions of the basis, at most."""
    projection: int = 0
    """Random signs that gradients are projected on first; 0: none, which is exact."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "-entanglement, -1 to 0", "higher"),
        "entanglement": Column(pa.float32(), "share, 0 to 1, of sampled rows", "lower"),
        "cosine": Column(pa.float32(), "-1 to 1, of sampled rows"),
        "by_cluster": Column(pa.float32(), "mean entanglement of its cluster", "lower"),
    }

    def __post_init__(self) -> None:
        self.checked()
        if self.rank < 1 or self.retain < 1 or self.projection < 0:
            raise ValueError("rank and retain are at least 1, projection is not negative")

    @property
    def aims(self) -> Any:
        return self.reference

    @property
    def main(self) -> tuple[str, float]:
        return "entanglement", -1.0

    def measure(self, asked: Asked) -> tuple[Numbers, Facts]:
        path = asked.out / "pieces" / "basis.safetensors"
        _, told = asked.piece("basis", lambda: ({}, self._basis(asked, path)))
        directions = _loaded(path, asked.loaded.device)

        def ask(rows: npt.NDArray[np.int64]) -> Numbers:
            dots, norms = self._products(sample(asked.encoded, rows), asked, directions)
            with np.errstate(invalid="ignore", divide="ignore"):
                shares = np.minimum(np.square(dots[:, :-1]).sum(axis=1) / norms**2, 1.0)
                cosines = dots[:, -1] / norms
            known = norms > 0
            return {
                "entanglement": np.where(known, shares, math.nan),
                "cosine": np.where(known, cosines, math.nan),
            }

        numbers = asked.by_document(("entanglement", "cosine"), ask, "entanglement")
        tokens = told.pop("tokens")
        share = 1 + tokens / max(1, len(asked.encoded.ids))
        return numbers, {**told, "flops": asked.flops(3) * share}

    def estimate(self, parameters: int, pool: int, references: int) -> tuple[float, float]:
        kept = TOKENS * self.retain if self.reference is None else references
        return 6.0 * parameters * (self.asked_tokens(pool) + kept), 0.0

    def _products(
        self, encoded: Encoded, asked: Asked, directions: torch.Tensor
    ) -> tuple[Floats, Floats]:
        """[n, r + 1] dot products with the basis and the mean, and [n] norms."""
        if not self.projection:
            try:
                return products(encoded, asked.loaded, directions, norms=True)
            except ModelError:  # a layer that the ghost identities do not know
                pass
        dots, norms = np.zeros((len(encoded), len(directions))), np.zeros(len(encoded))
        for rows, gradients in self._gradients(encoded, asked):
            dots[rows] = (gradients @ directions.to(gradients).T).double().cpu().numpy()
            norms[rows] = gradients.norm(dim=1).double().cpu().numpy()
        return dots, norms

    def _gradients(self, encoded: Encoded, asked: Asked) -> Any:
        project = Projection(self.projection, self.seed) if self.projection else None
        for rows, _, found in sample_gradients(encoded, asked.loaded, counted(encoded)):
            yield rows, project(found) if project else found

    def _basis(self, asked: Asked, path: Path) -> Facts:
        """Write the basis, and the mean of the retain gradients below it; facts."""
        from safetensors.torch import save_file

        kept = [encode(t, asked.loaded.tokenizer, asked.spec) for t in self._retained(asked)]
        found = [g for encoded in kept for _, g in self._gradients(encoded, asked)]
        rows = torch.cat(found) if found else torch.empty(0, 1)
        norms = rows.norm(dim=1, keepdim=True)
        some = (norms[:, 0] > 0) & norms[:, 0].isfinite()
        if not bool(some.any()):
            raise DataError("the gradients of what is kept are zero or not finite", where="retain")
        rows = rows[some] / norms[some]
        q, captured = basis(rows, self.rank)
        mean = rows.mean(0, keepdim=True)
        mean = mean / mean.norm().clamp_min(torch.finfo(mean.dtype).tiny)
        partial = temporary(path)
        save_file({"rows": torch.cat([q, mean]).float().cpu().contiguous()}, partial)
        publish(partial, path)
        tokens = sum(len(e.ids) for e in kept)
        return {"rank": len(q), "retain": len(rows), "captured": captured, "tokens": tokens}

    def _retained(self, asked: Asked) -> list[pa.Table]:
        """What is kept: of each reference the first documents, or others of the pool."""
        if asked.look.references:
            loaded = [references.load(r, 1) for r in asked.look.references]
            return [table.slice(0, self.retain) for table in loaded]
        rng = asked.rng.at("retain")
        number = self.retain + len(asked)
        table = sampling.draw(asked.look.corpus, number, rng, distinct=True)
        mine = {word.tobytes() for word in asked.words}
        free = [k for k, word in enumerate(id_words(table["id"])) if word.tobytes() not in mine]
        if not free:
            raise DataError(
                f"the sample is the whole pool of {table.num_rows} documents, and nothing is left "
                "to retain; lower `sample`, or name a `reference`",
                where="retain",
            )
        draws = rng.uniform(table["id"])[free]
        chosen = np.array(free)[np.argsort(draws, kind="stable")[: self.retain]]
        return [table.take(pa.array(chosen))]


def basis(rows: torch.Tensor, rank: int) -> tuple[torch.Tensor, float]:
    """([r, P] leading right singular vectors of rows [n, P], share of the squares they hold).

    r <= rank and n; singular values that are rounding count as none. By the eigenvectors of the
    rows' inner products, in float64.
    """
    gram = rows.double() @ rows.double().T
    values, vectors = torch.linalg.eigh(gram)
    order = values.argsort(descending=True)[:rank]
    order = order[values[order] > FLAT * values.max()]
    turned = vectors[:, order].T @ rows.double()
    q = turned / values[order].sqrt()[:, None]
    return q.to(rows.dtype), float(values[order].sum() / values.clamp_min(0).sum())


def _loaded(path: Path, device: str) -> torch.Tensor:
    from safetensors.torch import load_file

    rows: torch.Tensor = load_file(path, device=device)["rows"]
    return rows
