"""Fitting `influence`: the probe, the labels, the influence model, each a file once it is done.

prepared.json                the references' losses, the step, the norm's formula
directions.safetensors       the direction of linear labels, with probe.json
probes.parquet, labels/      the documents drawn, and their labels (`_probing.py`)
ridge/ or encoder/           the influence model
method.json                  how the pool is scored; written last
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline import sampling
from foresift.pipeline.errors import DataError
from foresift.pipeline.estimate import count_parameters
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.encoder import Encoder, decode
from foresift.pipeline.lm.forward import cpu_threads
from foresift.pipeline.lm.gradients import probes
from foresift.pipeline.lm.gradients.directional import sample as rows_of
from foresift.pipeline.lm.model import load
from foresift.pipeline.lm.regress import Ridge, ngram_features
from foresift.pipeline.lm.regressor import EncoderSpec, load_regressor
from foresift.pipeline.lm.signals import segment_sums
from foresift.pipeline.nouns import Look
from foresift.pipeline.store import Facts, publish, read_json, temporary, write_json
from foresift.scorers._probing import (
    Aim,
    Floats,
    Label,
    check_weights,
    chunks,
    moments_of,
    part,
    read_labels,
    resources,
    shorter,
)

if TYPE_CHECKING:
    from foresift.scorers.influence import Influence

KNOWN = "known.parquet"
#: documents on which the step size and the norm's formula are settled
SAMPLE = 8
#: forwards over that sample: seven for the step, six's worth for a forward and backward with norms
SETTLING = 13


def centre(labels: Floats) -> tuple[Floats, Floats]:
    """[D] mean and deviation of the labels that are finite; (0, 0) where there are none."""
    some = labels[np.isfinite(labels).all(axis=1)]
    if not len(some):
        return np.zeros(labels.shape[1]), np.zeros(labels.shape[1])
    return some.mean(axis=0), some.std(axis=0)


def remembered(table: pa.Table, labels: Floats, look: Look) -> pa.Table:
    """`id`, content and standardised labels of this round, then those known before it."""
    kind = pa.list_(pa.float64())
    own = table.append_column("label", pa.array(list(labels), kind))
    path = look.previous / KNOWN if look.previous else None
    if path is None or not path.exists():  # it was scored directly, say
        return own
    before = pq.read_table(path)
    width = len(before["label"][0]) if before.num_rows else 0
    same = before.column_names == own.column_names and width == labels.shape[1]
    return pa.concat_tables([own, before.cast(own.schema)]) if same else own


class Fit:
    """One fit: probe, labels, influence model; whatever is on disk already is not redone."""

    def __init__(self, influence: Influence, look: Look, out: Path, pool: int, number: int) -> None:
        self.part, self.look, self.out, self.number = influence, look, out, number
        self.direct = number >= pool and influence.labels == "linear"
        self.labelled = number >= pool and influence.labels == "exact"
        self.spec = look.model if self.direct else shorter(look.model, influence.probe_tokens)
        self.loaded = load(look.model)
        check_weights(self.loaded, look.model.init)
        self.encoder = EncoderSpec.parse(influence.encoder, "encoder")
        self.aim = Aim(look.references, influence.reduction, influence.reference_documents)

    def run(self) -> Facts:
        if self.part.method == "encoder" and not (self.direct or self.labelled):
            load_regressor(self.encoder)  # one that does not load is found before labels are taken
        with cpu_threads(self.look.model.threads if self.loaded.device == "cpu" else 0):
            about = self._prepare()
        method = "direct" if self.direct else "labels" if self.labelled else self.part.method
        facts: Facts = {"method": method, "probes": self.number, **about}
        if not self.direct:
            self._label()
        told: Facts = {"method": method, "weights": about["weights"]}
        if not (self.direct or self.labelled):
            learned, scale = self._extrapolate()
            facts, told = facts | learned, told | scale
        write_json(self.out / "method.json", told)
        return {**facts, "flops": self._flops(about)}

    def _prepare(self) -> Facts:
        """Draw the probes, take the references' gradient, settle the step: facts about them."""
        path = self.out / "prepared.json"
        if path.exists():
            return read_json(path)
        drawn = max(SAMPLE, 0 if self.direct else self.number)
        table = sampling.draw(self.look.corpus, drawn, self.look.job.rng.at("probes"))
        target = self.out / "probes.parquet"
        pq.write_table(table.slice(0, drawn if not self.direct else 0), temporary(target))
        publish(temporary(target), target)
        encoded = encode(table, self.loaded.tokenizer, self.spec)
        moments = moments_of(self.look.model, self.loaded, self.part.precondition)
        sets = self.aim.sets(self.loaded, self.look.model)
        few = self._sample(encoded)
        each = self.part.each or self.part.labels == "exact"
        probe, losses = probes.prepare(
            sets, self.loaded, self.part.rule, moments, few, each=each
        )  # fmt: skip
        probes.save(probe, self.out)
        about = {
            "reference_loss": losses, "weights": list(probe.weights),
            "reference_tokens": sum(s.tokens for s, _ in sets),
            "preconditioned": moments is not None,
            "probe_tokens": len(encoded.ids),
            "whole_tokens": len(encode(table, self.loaded.tokenizer, self.look.model).ids),
            "sample_tokens": len(few.ids), **probe.facts(),
        }  # fmt: skip
        self._warn(probe, moments is None)
        write_json(path, about)
        return about

    def _sample(self, encoded: Encoded) -> Encoded:
        """Some of the documents drawn, evenly spaced, of those that have something to predict."""
        some = np.flatnonzero(segment_sums(encoded.counts, encoded.offsets))
        if not len(some):
            raise DataError(
                f"none of {len(encoded)} documents drawn has a token to predict among its first "
                f"{self.spec.max_length}; raise probe_tokens and the model's max_length",
                where="influence.probe_tokens",
            )
        spaced = np.linspace(0, len(some) - 1, min(SAMPLE, len(some))).astype(int)
        return rows_of(encoded, some[spaced])

    def _warn(self, probe: probes.Probe, bare: bool) -> None:
        log = self.look.job.log
        if bare and self.part.precondition:
            log.warning(
                "influence: %s has no optimizer state: gradients are compared as they are, without "
                "AdamW's preconditioning", self.look.model.init,
            )  # fmt: skip
        for step in probe.steps:
            if step.error > 0.5:
                log.warning(
                    "influence: loss differences along the reference gradient are %.0f %% noise at "
                    "every step size tried; use float32 weights", 100 * step.error,
                )  # fmt: skip

    def _label(self) -> None:
        kind = self.part.labels
        numbers = list(chunks(self.number, kind))
        task = Label(
            self.look.model, self.part.probe_tokens, self.aim, self.part.rule, kind, self.out,
            self.part.precondition, self.part.hidden,
        )  # fmt: skip
        self.look.job.map_shards(
            task, numbers, [part(self.out, k) for k in numbers],
            resources(self.look.model, self.loaded), f"{kind} labels",
        )  # fmt: skip

    def _extrapolate(self) -> tuple[Facts, Facts]:
        """Fit the influence model: facts about it, and how its predictions become utilities."""
        count = len(chunks(self.number, self.part.labels))
        labels = read_labels(self.out, "label", count)
        if self.part.method == "encoder":
            labels = labels @ np.array(probes.load(self.out).weights)[:, None]
        mean, spread = centre(labels)
        table = pq.read_table(self.out / "probes.parquet")
        known = remembered(table, (labels - mean) / np.where(spread > 0, spread, 1.0), self.look)
        pq.write_table(known, temporary(self.out / KNOWN))
        publish(temporary(self.out / KNOWN), self.out / KNOWN)
        if self.part.hidden or not self.part.remember:
            known = known.slice(0, table.num_rows)
        facts = self._model(known, table.num_rows, count)
        self._judge(facts["spearman"])
        told = {"mean": mean.tolist(), "spread": spread.tolist()}
        return {"model": {**facts, "remembered": known.num_rows - table.num_rows}}, told

    def _model(self, known: pa.Table, own: int, count: int) -> Facts:
        encoded = encode(known, self.loaded.tokenizer, self.look.model)
        targets = np.array(known["label"].to_pylist(), dtype=np.float64)
        if self.part.method == "encoder":
            texts = decode(encoded, self.loaded.tokenizer)
            fitted = Encoder.fit(
                texts, targets[:, 0], self.encoder, ids=known["id"], where="influence"
            )
            fitted.save(self.out / "encoder")
            return fitted.facts()
        dense = read_labels(self.out, "hidden", count) if self.part.hidden else None
        ridge = Ridge.fit(
            ngram_features(encoded), targets, dense, ids=known["id"], where="influence", judged=own
        )  # fmt: skip
        ridge.save(self.out / "ridge")
        return ridge.facts()

    def _judge(self, found: Any) -> None:
        worst = min(
            (s for s in np.atleast_1d(np.asarray(found, dtype=object)) if s is not None),
            default=None,
        )
        if worst is None or worst < self.part.floor:
            self.look.job.log.warning(
                "influence: on documents it did not see, the influence model's rank correlation "
                "with the labels is %s, below the floor of %.2f: its choice is little better than "
                "chance. Label more documents (probes: %s), or score them all (method: direct)",
                "undefined" if worst is None else f"{worst:.2f}", self.part.floor, self.part.probes,
            )  # fmt: skip

    def _flops(self, about: Facts) -> float:
        parameters, tokens = count_parameters(self.look.model), about["reference_tokens"]
        total = 6.0 * tokens + 2.0 * SETTLING * about["sample_tokens"] * len(about["steps"])
        if not self.direct:
            label = 2.0 * (1 + probes.load(self.out).forwards) * about["probe_tokens"]
            if self.part.labels == "exact":
                chunks_of = len(chunks(self.number, "exact"))  # each evaluates the reference once
                label = 6.0 * about["probe_tokens"] + 2.0 * tokens * (self.number + chunks_of)
            total += label
            if self.part.hidden:
                total += 2.0 * about["whole_tokens"]
        return float(parameters * total)
