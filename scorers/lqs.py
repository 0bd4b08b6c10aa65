"""How well a document teaches a model what a reference asks for, over a short training run.

A copy of the model is trained by T steps of plain SGD on documents of the pool. With g_{n,t} the
gradient of document n's mean NLL at step t and lambda_{t+1} the derivative of the reference losses
still to come (`_trajectory.py`),

    PDS   gamma_n = sum_t <lambda_{t+1}, g_{n,t}>                      t = 0, k, 2k, ... < T
    LQS   gamma_n = sum_t <lambda_{t+1}, g_{n,t}> / |g_{n,t'}|         t = k, 2k, ... < T

where k = `interval` and t' = min(t + k, T) is the step visited after t. With k = 1 these are the
papers' sums. LQS is (learnability |g_t| / |g_t'|) x (quality: the cosine) x (reliability |lambda|).
The last t' is T, whose parameters are there anyway: no term lacks its denominator or has another
unit. A gradient of zero contributes 0. J is the weighted sum of the references' losses; L_t is the
mean over `batch` documents of their mean NLL.

gamma is known for `proxies` documents of the pool; a ridge on hashed n-grams of tokens predicts it
for all. Columns: `utility` is the prediction, `label` the gamma of a proxy and NaN elsewhere. Unit
of LQS: nats per token per unit of weight; of PDS that squared; larger = keep first.

`compat` is the released code with its labels per document: eta stands before the sum, LQS visits
t = 0 too and divides the term of the last visited step by 1 (so it has another unit than the rest),
and labels are standardised and cut at 3 deviations. (As released, labels of one micro-batch were
mixed up among its documents; that is not reproduced.)

Errors: DataError where the inner run leaves the finite numbers; fewer than 20 labels; a reference
without documents. The scorer's model is loaded anew in float32 with eager attention: the Hessian
needs it. Cost (P parameters): 6 P (T + 1) a token of the references, 6 P a token of the proxies at
each visited step, and of the inner batches 36 P a token (two gradients; the Hessian-vector product
counts as four).
Source: DELT (2025), equations 6-14; PDS (Gu et al. 2025), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline import sampling
from foresift.pipeline.errors import DataError, placed
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.forward import cpu_threads
from foresift.pipeline.lm.gradients.reference import Reduction
from foresift.pipeline.lm.gradients.samples import Parameters
from foresift.pipeline.lm.model import load
from foresift.pipeline.lm.regress import Ridge, ngram_features
from foresift.pipeline.lm.signals import Window, segment_sums
from foresift.pipeline.nouns import Arrays, FittedModelScorer, Look
from foresift.pipeline.references import Aims
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts, shard_facts, write_shard
from foresift.pipeline.tables import ID, Column
from foresift.scorers._probing import Aim
from foresift.scorers._trajectory import Folder, LanguageModel, backward, bounds, forward

Floats = npt.NDArray[np.float64]
Variant = Literal["lqs", "pds"]
#: tokens of a document, where a cost is guessed before anything is read
TOKENS = 300
#: deviations at which `compat` cuts labels
CUT = 3.0


@dataclass(frozen=True, kw_only=True)
class Lqs(FittedModelScorer):
    """Learnability and quality of a document towards a reference, over a training run (DELT)."""

    reference: Aims
    """What to aim at: a data set's name, a file, a reader, or a list of them with weights."""
    variant: Variant = "lqs"
    """DELT's score, or that of PDS, which does not divide by the gradient's later norm."""
    steps: int = 100
    """Steps of the inner run."""
    learning_rate: float = 0.008
    """Of the inner run: plain SGD, constant, without decay or clipping."""
    batch: int = 16
    """Documents in an inner step."""
    interval: int = 10
    """Every so many inner steps the proxies' gradients are looked at."""
    proxies: str | int = 1024
    """Documents of the pool that get a label: a number, or a share of it."""
    reduction: Reduction = "token_mean"
    """How the losses of a reference's documents are averaged."""
    reference_documents: int = 1024
    """Documents of each reference that are used, the first ones."""
    compat: bool = False
    """Labels as the released code has them."""
    seed: int = 0
    """Seed of the draws of proxies and inner batches."""
    floor: float = 0.2
    """Rank correlation of predicted and true labels below which the run warns."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "nats per token per unit of weight", "higher"),
        "label": Column(pa.float64(), "nats per token per unit of weight", "higher"),
    }

    def __post_init__(self) -> None:
        sampling.share(self.proxies, "proxies")
        for name in ("batch", "interval", "learning_rate", "reference_documents"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive")
        if not visited(self.steps, self.interval, self.variant, self.compat):
            raise ValueError("steps must be more than interval, or no step is looked at")

    @property
    def aims(self) -> Any:
        return self.reference

    def fit(self, look: Look, out: Path) -> Facts:
        with placed("lqs"):
            return _Fit(self, look, out).run()

    def signals(self, out: Path) -> tuple[str, ...]:
        return ()

    def score(self, window: Window, out: Path) -> Arrays:
        utility = Ridge.load(out / "ridge").predict(ngram_features(window.encoded))
        utility[_counted(window.encoded) == 0] = np.nan
        labels = pq.read_table(out / "labels.parquet")
        place = pc.index_in(window.tokens.table["id"], labels["id"].combine_chunks())
        label = pc.fill_null(labels["label"].take(place), math.nan)
        return {"utility": utility, "label": np.asarray(label)}

    def estimate(self, parameters: int, pool: int, references: int) -> tuple[float, float]:
        budget = sampling.share(self.proxies, "proxies")
        labelled = budget.amount * (pool if budget.relative else TOKENS)
        inner = self.steps * self.batch * TOKENS
        return flops(self, parameters, references, inner, min(labelled, pool)), 0.0


def visited(steps: int, interval: int, variant: Variant, compat: bool) -> list[int]:
    """The inner steps at which proxies are looked at, ascending (without T)."""
    return list(range(0 if compat or variant == "pds" else interval, steps, interval))


def gammas(dots: Floats, norms: Floats, last: Floats) -> Floats:
    """[n] LQS labels from [V, n] dot products and norms at the visited steps, ascending.

    `last` is the denominator of the last visited step's term.
    """
    later = np.concatenate([norms[1:], last[None]])
    terms = np.divide(dots, later, out=np.zeros_like(dots), where=later > 0)
    return np.asarray(terms.sum(axis=0))


def labels(
    dots: Floats, norms: Floats, final: Floats, variant: Variant, rate: float, compat: bool
) -> Floats:
    """[n] labels from the visits; `final` holds the norms at theta_T. NaN stays and counts not."""
    last = np.ones_like(final) if compat else final
    found = dots.sum(axis=0) if variant == "pds" else gammas(dots, norms, last)
    return standardised(rate * found) if compat else found


def standardised(values: Floats) -> Floats:
    """Z-scores over the finite values, cut at `CUT` deviations; 0 where all are equal."""
    some = values[np.isfinite(values)]
    if len(some) == 0 or np.ptp(some) == 0:
        return np.where(np.isfinite(values), 0.0, np.nan)
    return np.asarray(np.clip((values - some.mean()) / some.std(), -CUT, CUT))


def flops(part: Lqs, parameters: int, aimed: float, inner: float, labelled: float) -> float:
    """Operations of a fit, from tokens of the references, of all inner batches, of the proxies."""
    looks = len(visited(part.steps, part.interval, part.variant, part.compat)) + _final(part)
    again = 2.0 - (len(bounds(part.steps)) - 1) / part.steps  # all but one of a segment twice
    gradients = aimed * (part.steps + 1) + inner * again + labelled * looks
    return parameters * (6.0 * gradients + 24.0 * inner)


def _final(part: Lqs) -> bool:
    """Whether the norms at theta_T are needed."""
    return part.variant == "lqs" and not part.compat


def _counted(encoded: Encoded) -> Floats:
    return segment_sums(encoded.counts, encoded.offsets)


def inner_batches(ids: pa.ChunkedArray, steps: int, batch: int, rng: Rng) -> list[Any]:
    """The rows of each step: the pool in an order keyed by (seed, pass), pass after pass."""
    passes = -(-steps * batch // len(ids))
    orders = [np.argsort(rng.at("pass", k).uniform(ids), kind="stable") for k in range(passes)]
    rows = np.concatenate(orders)[: steps * batch]
    return list(rows.reshape(steps, batch))


class _Fit:
    """One fit; whatever is on disk already is not redone."""

    def __init__(self, part: Lqs, look: Look, out: Path) -> None:
        self.part, self.look, self.out = part, look, out
        self.spec = replace(look.model, dtype="float32", attention="eager")
        self.rng = look.job.rng.at("lqs", part.seed)
        self.visits = visited(part.steps, part.interval, part.variant, part.compat)
        pool = sampling.alive(look.corpus)
        number = sampling.count(part.proxies, pool)
        if number < min(pool, 20) or pool == 0:
            raise DataError(f"{number} proxies of {pool} documents; at least 20 are needed")
        self.table = sampling.draw(look.corpus, number, self.rng.at("proxies"))
        self.done = 0

    def run(self) -> Facts:
        # a copy of our own to train, never the one that scorers share
        self.loaded = load.__wrapped__(self.spec)
        self.proxies = encode(self.table, self.loaded.tokenizer, self.spec)
        path = self.out / "labels.parquet"
        if not path.exists():
            with cpu_threads(self.spec.threads if self.loaded.device == "cpu" else 0):
                self._label(path)
        for name in ("theta", "lambda"):
            for t in bounds(self.part.steps):
                Folder(self.out).drop(name, t)
        told = {k: v for k, v in shard_facts(path).items() if k not in ("rows", "ids")}
        ridge = Ridge.fit(
            ngram_features(self.proxies), pq.read_table(path)["label"], ids=self.table["id"],
            where="lqs",
        )  # fmt: skip
        ridge.save(self.out / "ridge")
        self._judge(ridge.facts()["spearman"])
        return {"documents": self.table.num_rows, "model": ridge.facts(), **told}

    def _label(self, path: Path) -> None:
        """Run forth and back, and publish the labels."""
        part, problem, store = self.part, self._problem(), Folder(self.out, self.loaded.device)
        forward(problem, problem.start(), part.steps, part.learning_rate, store, self._tick)
        ends = {"before": 0, "after": part.steps}
        losses = {k: problem.loss(store.get("theta", t)) for k, t in ends.items()}
        looked = [*self.visits, *([part.steps] if _final(part) else [])]

        def visit(t: int, theta: Parameters, along: Parameters | None) -> None:
            file = self._visit(t)
            if file.exists() or t not in looked:
                return
            found = problem.project(theta, self.proxies, along, part.variant == "lqs")
            columns = dict(zip(("dot", "norm"), found, strict=True))
            write_shard(file, pa.table({"id": self.table["id"].cast(ID), **columns}))

        backward(problem, part.steps, part.learning_rate, store, visit, self._tick)
        tokens = (sum(a.tokens for a, _ in problem.aims), _tokens(problem), len(self.proxies.ids))
        size = sum(v.numel() for v in problem.start().values())
        facts = {"reference_loss": losses, "flops": flops(part, size, *tokens)}
        columns = {"id": self.table["id"].cast(ID), "label": self._labels()}
        write_shard(path, pa.table(columns), facts)

    def _problem(self) -> LanguageModel:
        part, tokenizer = self.part, self.loaded.tokenizer
        rng = self.rng.at("inner")
        table = sampling.draw(self.look.corpus, part.steps * part.batch, rng.at("pass", 0))
        aim = Aim(self.look.references, part.reduction, part.reference_documents)
        inner = inner_batches(table["id"], part.steps, part.batch, rng)
        return LanguageModel(
            self.loaded,
            encode(table, tokenizer, self.spec),
            inner,
            aim.sets(self.loaded, self.spec),
        )

    def _labels(self) -> Floats:
        tables = [pq.read_table(self._visit(t)) for t in self.visits]
        dots, norms = (np.stack([np.asarray(t[k]) for t in tables]) for k in ("dot", "norm"))
        final = np.zeros(dots.shape[1])
        if _final(self.part):
            final = np.asarray(pq.read_table(self._visit(self.part.steps))["norm"])
        dots[:, _counted(self.proxies) == 0] = np.nan
        part = self.part
        return labels(dots, norms, final, part.variant, part.learning_rate, part.compat)

    def _visit(self, t: int) -> Path:
        return self.out / f"visit-{t:04d}.parquet"

    def _tick(self) -> None:
        self.done += 1
        self.look.job.progress(self.done, 2 * self.part.steps, "inner run")

    def _judge(self, found: float | None) -> None:
        if found is None or found < self.part.floor:
            self.look.job.log.warning(
                "lqs: on documents it did not see, the ridge's rank correlation with the labels is "
                "%s, below the floor of %.2f: its ranking is little better than chance. Label more "
                "documents (proxies: %s)",
                "undefined" if found is None else f"{found:.2f}", self.part.floor,
                self.part.proxies,
            )  # fmt: skip


def _tokens(problem: LanguageModel) -> int:
    """Tokens of all inner batches."""
    return int(sum(problem.pool.lengths[rows].sum() for rows in problem.inner))
