"""Labelling a sample of the pool in chunks: each chunk is a task, and a file once it is done.

probes.parquet             the drawn documents: id and content, in corpus order
labels/part-00000.parquet  id, label (one number a direction), hidden (where asked for)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline import references
from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.forward import compute, cpu_threads
from foresift.pipeline.lm.gradients import probes
from foresift.pipeline.lm.gradients.adamw import AdamW, Moments, load_moments
from foresift.pipeline.lm.gradients.reference import Reduction, ReferenceSet, reference_set
from foresift.pipeline.lm.model import Loaded, ModelSpec, load
from foresift.pipeline.nouns import Facts, Reference, Resources
from foresift.pipeline.store import write_shard
from foresift.pipeline.tables import ID

Floats = npt.NDArray[np.float64]
#: documents in one chunk of labels: by linear probes, and by exact ones
CHUNK = {"linear": 64, "exact": 4}


@dataclass(frozen=True)
class Aim:
    """How references become losses: which documents of them, and how they are averaged."""

    references: tuple[Reference, ...]
    reduction: Reduction
    documents: int
    """Of each reference, at most so many (the first ones)."""

    def sets(self, loaded: Loaded, spec: ModelSpec) -> list[tuple[ReferenceSet, float]]:
        """The encoded references with their weights."""
        found = []
        for each in self.references:
            table = references.load(each).slice(0, self.documents)
            encoded = encode(table, loaded.tokenizer, spec)
            found.append((reference_set(encoded, self.reduction, each.name), each.weight))
        return found


@dataclass(frozen=True)
class Label:
    """Labels one chunk of the probed documents."""

    spec: ModelSpec
    tokens: int
    """Of a document, at most so many (0: as many as the model reads)."""
    aim: Aim
    rule: AdamW
    kind: str
    folder: Path
    precondition: bool
    hidden: bool

    def __call__(self, chunk: int) -> Facts:
        """Write `labels/part-<chunk>.parquet`."""
        size = CHUNK[self.kind]
        table = pq.read_table(self.folder / "probes.parquet").slice(chunk * size, size)
        loaded = load(self.spec)
        with cpu_threads(self.spec.threads if loaded.device == "cpu" else 0):
            labels, hidden = self._labels(table, loaded)
        columns = {"id": table["id"].cast(ID), "label": _vectors(labels)}
        if hidden is not None:
            columns["hidden"] = _vectors(hidden)
        return write_shard(part(self.folder, chunk), pa.table(columns))

    def _labels(self, table: pa.Table, loaded: Loaded) -> tuple[Floats, Floats | None]:
        encoded = encode(table, loaded.tokenizer, shorter(self.spec, self.tokens))
        size = self.spec.batch_tokens
        if self.kind == "exact":
            sets = [s for s, _ in self.aim.sets(loaded, self.spec)]
            moments = moments_of(self.spec, loaded, self.precondition)
            labels = probes.exact(sets, encoded, loaded, self.rule, moments, size)
        else:
            probe = probes.load(self.folder, loaded.device)
            labels = probes.linear(probe, encoded, loaded, None, size)
        if not self.hidden:
            return labels, None
        # as `score` will see them: of the whole document, however little of it a label reads
        whole = encode(table, loaded.tokenizer, self.spec)
        means = compute(whole, loaded, ("hidden_mean",), size).document["hidden_mean"]
        return labels, np.asarray(means)


def check_weights(loaded: Loaded, where: str) -> None:
    """A ModelError where a weight is not finite: every step along a gradient would be NaN."""
    for name, parameter in loaded.model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ModelError(f"the weights of {name} are not all finite numbers", where=where)


def moments_of(spec: ModelSpec, loaded: Loaded, precondition: bool) -> Moments | None:
    """The optimizer's moments beside the checkpoint, where they are wanted and there."""
    return load_moments(spec, loaded.model) if precondition else None


def shorter(spec: ModelSpec, tokens: int) -> ModelSpec:
    """The same model, reading at most so many tokens of a document (0: as many as ever)."""
    return replace(spec, max_length=min(tokens, spec.max_length)) if tokens else spec


def part(folder: Path, chunk: int) -> Path:
    """Where a chunk's labels lie."""
    return folder / "labels" / f"part-{chunk:05d}.parquet"


def chunks(documents: int, kind: str) -> Sequence[int]:
    """The numbers of the chunks of so many documents."""
    return range(-(-documents // CHUNK[kind]))


def read_labels(folder: Path, name: str, count: int) -> Floats:
    """[n, D] the labels (or hidden means) of all chunks, in order."""
    tables = [pq.read_table(part(folder, k), columns=[name]) for k in range(count)]
    rows = pa.concat_tables(tables)[name].combine_chunks()
    values: Floats = np.asarray(rows.flatten(), dtype=np.float64).reshape(len(rows), -1)
    return values


def labels_of(ids: pa.Array | pa.ChunkedArray, folder: Path) -> Floats:
    """[n, D] the labels of documents by id; NaN for one that has none."""
    files = sorted((folder / "labels").glob("part-*.parquet"))
    known = pa.concat_tables([pq.read_table(f, columns=["id", "label"]) for f in files])
    rows = np.asarray(known["label"].combine_chunks().flatten(), dtype=np.float64)
    place = np.asarray(pc.index_in(ids, known["id"].combine_chunks()).cast(pa.float64()))
    found = np.full((len(ids), len(rows) // max(known.num_rows, 1)), np.nan)
    some = ~np.isnan(place)
    found[some] = rows.reshape(known.num_rows, -1)[place[some].astype(np.int64)]
    return found


def _vectors(values: Floats) -> pa.Array:
    width = values.shape[1]
    flat = pa.array(np.ascontiguousarray(values).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, width).cast(pa.list_(flat.type))


def resources(spec: ModelSpec, loaded: Loaded) -> Resources:
    """What a labelling worker holds."""
    return Resources(cpus=spec.threads, gpus=1.0 if loaded.device.startswith("cuda") else 0.0)
