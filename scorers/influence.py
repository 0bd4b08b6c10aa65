"""Influence: by how much one update on a document would lower the loss on a reference (MATES).

    utility = J(theta) - J(theta'_x)      nats per token of the reference; larger = keep first

theta'_x is the model after one AdamW step on x alone, from the moments of its checkpoint. The
references' losses are joined by their weights, J = sum_r weight_r J_r.

    labels   linear   <P grad J, grad l_x>, clipped: one or two forwards of x (default)
             exact    the step is taken, J evaluated, the state restored: 2 P R a document
    method   ridge    labels of a share of the pool, extrapolated by ridge on hashed uni- and
                      bigrams of tokens: the pool is tokenised, and passed through no model
             encoder  the same by a fine-tuned HF encoder with a regression head (MATES: BERT)
             direct   linear labels of the whole pool, for one or two forwards that share the
                      forward at theta with the other scores of the step; nothing is extrapolated

Where the probes are the whole pool nothing is extrapolated: linear labels become `direct`, exact
ones are the scores. The rank correlation of
predictions and labels on documents that the fit did not see is among the step's facts; below
`floor` the run warns. Documents whose label is not finite, and documents without a counted token
whatever is predicted of them, are counted and never selected.

Columns: `utility`, and `by_reference`, one utility a reference where `each` is set, else null.
Errors: a reference that shares documents with the pool, has fewer than two documents or no
gradient; an optimizer state that does not fit the model. Without moments beside the checkpoint P is
the learning rate alone (the inner product of gradients), and the run says so.

Cost (P parameters, R tokens of references, N of the pool, share s probed): 6 P R once, then
ridge 4 P s N, direct 4 P N with the shared forward; `exact` is hundreds of times dearer a label.
Source: MATES (Yu, Das, Xiong 2024). Its released code stores J(theta'_x) itself and takes
`reduction: batch_mean_of_token_mean`, labels `exact`, method `encoder`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline import sampling
from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.encoder import Encoder, decode
from foresift.pipeline.lm.gradients import probes
from foresift.pipeline.lm.gradients.adamw import AdamW
from foresift.pipeline.lm.gradients.reference import Reduction
from foresift.pipeline.lm.regress import Ridge, ngram_features
from foresift.pipeline.lm.regressor import EncoderSpec
from foresift.pipeline.lm.signals import Window
from foresift.pipeline.nouns import Arrays, FittedModelScorer, Look
from foresift.pipeline.references import Aims
from foresift.pipeline.store import Facts, read_json
from foresift.pipeline.tables import Column
from foresift.scorers._influence import SAMPLE, SETTLING, Fit
from foresift.scorers._probing import labels_of

#: documents that are labelled where `probes` is a share of a pool
LEAST = 40
#: tokens of a document, where a cost is guessed before anything is read
TOKENS = 300
BERT = "google-bert/bert-base-uncased"


@dataclass(frozen=True, kw_only=True)
class Influence(FittedModelScorer):
    """By how much one update on a document would lower the loss on a reference (MATES)."""

    reference: Aims
    """What to aim at: a data set's name, a file, a reader, or a list of them with weights."""
    method: Literal["ridge", "encoder", "direct"] = "ridge"
    """How the pool is scored: extrapolated from labels, or every document labelled."""
    labels: Literal["linear", "exact"] = "linear"
    """How a document is labelled: to first order, or by taking the step."""
    probes: str | int = "5%"
    """Documents of the pool that are labelled: a number, or a share of it but at least 40."""
    probe_tokens: int = 64
    """Tokens of a document that a label reads; 0: as many as the model does."""
    each: bool = False
    """Whether each reference gets utilities of its own (one more forward a label for each)."""
    reduction: Reduction = "token_mean"
    """How the losses of a reference's documents are averaged."""
    reference_documents: int = 64
    """Documents of each reference that are used, the first ones (MATES: 1024)."""
    learning_rate: float = 1e-3
    """Of the probing step. Linear utilities are in proportion to it; with exact labels it should
    not be above the last rate of training, or the step overshoots."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of the optimizer that made the moments."""
    eps: float = 1e-8
    """Likewise."""
    weight_decay: float = 0.1
    """Likewise; it ranks nothing."""
    clip: float = 1.0
    """Largest norm of a document's gradient; 0: never clipped."""
    precondition: bool = True
    """Whether the checkpoint's moments are used; without, plain inner products of gradients."""
    remember: bool = True
    """Whether labels of earlier rounds go on teaching the influence model, each round's at zero
    mean and unit spread (MATES fine-tunes its model continuously; its code starts it anew)."""
    hidden: bool = False
    """Whether ridge also reads the mean hidden state, for a forward over the pool; those of earlier
    rounds are another model's, so nothing is remembered then."""
    encoder: dict[str, Any] = field(default_factory=lambda: {"init": BERT})
    """The encoder of `method: encoder` (`init`: a folder or a hub id) and how it is trained:
    `epochs`, `batch`, `learning_rate`, `segments`, ... as in `pipeline/lm/regressor.py`."""
    floor: float = 0.2
    """Rank correlation of extrapolated and true labels below which the run warns."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "nats per token of the reference", "higher"),
        "by_reference": Column(pa.list_(pa.float32()), "nats per token of each reference"),
    }

    def __post_init__(self) -> None:
        sampling.share(self.probes, "probes")
        EncoderSpec.parse(self.encoder, "encoder")
        if self.method == "encoder" and self.each:
            raise ValueError("an encoder predicts one number: leave `each` out, or use ridge")
        if self.method == "direct" and self.labels == "exact":
            raise ValueError("direct scores are linear; for exact labels of all, probes: 100%")
        for name in ("learning_rate", "eps", "reference_documents"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.clip < 0 or self.probe_tokens < 0 or self.probe_tokens == 1:
            raise ValueError("clip is not negative; probe_tokens is 0 or at least 2")

    @property
    def aims(self) -> Any:
        return self.reference

    @property
    def rule(self) -> AdamW:
        return AdamW(self.learning_rate, self.betas, self.eps, self.weight_decay, self.clip)

    def fit(self, look: Look, out: Path) -> Facts:
        pool = sampling.alive(look.corpus)
        if pool == 0:
            raise DataError("the pool is empty: nothing is left to score", where="influence")
        number = pool if self.method == "direct" else sampling.count(self.probes, pool)
        if sampling.share(self.probes, "probes").relative:  # a share of a small pool is no sample
            number = max(number, min(pool, LEAST))
        if self.method != "direct" and number < min(pool, 20):
            raise DataError(
                f"{number} probes of {pool} documents; an influence model needs at least 20 labels",
                where="influence.probes",
            )
        return Fit(self, look, out, pool, number).run()

    def signals(self, out: Path) -> tuple[str, ...]:
        plan = read_json(out / "method.json")
        if plan["method"] == "direct":
            return probes.load(out).signals
        return ("hidden_mean",) if self.hidden else ()

    def passes(self, out: Path) -> float:
        direct = read_json(out / "method.json")["method"] == "direct"
        return float(probes.load(out).forwards) if direct else 0.0

    @property
    def shares(self) -> bool:
        return self.method == "direct" or self.hidden

    def estimate(self, parameters: int, pool: int, references: int) -> tuple[float, float]:
        aimed = min(references, self.reference_documents * TOKENS)
        each = min(self.probe_tokens or TOKENS, TOKENS)
        fixed = 6.0 * aimed + 2.0 * SETTLING * SAMPLE * each
        if self.method == "direct":
            return parameters * fixed, 2.0
        budget, documents = sampling.share(self.probes, "probes"), pool / TOKENS
        labelled = min(documents, budget.amount * (documents if budget.relative else 1))
        label = 6.0 * each + 2.0 * aimed if self.labels == "exact" else 4.0 * each
        return parameters * (fixed + label * labelled), float(self.hidden)

    def score(self, window: Window, out: Path) -> Arrays:
        about = read_json(out / "method.json")
        if about["method"] == "direct":
            probe = probes.load(out, window.loaded.device)
            size = window.spec.batch_tokens
            values = probes.linear(probe, window.encoded, window.loaded, window.signals, size)
        elif about["method"] == "labels":
            values = labels_of(window.tokens.table["id"], out)
        else:
            values = self._predict(window, out) * about["spread"] + about["mean"]
            values[np.diff(window.tokens.offsets) == 0] = np.nan  # a label would have been, too
        weights = np.asarray(about["weights"])
        joined = values @ weights if values.shape[1] == len(weights) else values[:, 0]
        utility = joined.astype(np.float32)
        return {"utility": utility, "by_reference": _each(values, self.each)}

    def _predict(self, window: Window, out: Path) -> npt.NDArray[np.float64]:
        if self.method == "encoder":
            texts = decode(window.encoded, window.loaded.tokenizer)
            return _encoder(out / "encoder").predict(texts).astype(np.float64)[:, None]
        dense = window.signals.document["hidden_mean"] if self.hidden else None
        found = _ridge(out / "ridge").predict(ngram_features(window.encoded), dense)
        return found.astype(np.float64)


@functools.lru_cache(maxsize=2)
def _encoder(folder: Path) -> Encoder:
    return Encoder.load(folder)


@functools.lru_cache(maxsize=4)
def _ridge(folder: Path) -> Ridge:
    return Ridge.load(folder)


def _each(values: npt.NDArray[np.float64], wanted: bool) -> pa.Array:
    kind = pa.list_(pa.float32())
    if not wanted:
        return pa.nulls(len(values), kind)
    return pa.array(list(values.astype(np.float32)), kind)
