"""The stability gap of a training: losses of held-out documents, closely after it begins.

    stability.parquet    step, source, loss     nats per token, of `documents` held-out documents of
                                                each source (the first component of its key path)

Other data begin with a training, so it counts as a switch: losses are measured before its first
step, after each of the next 100, and then after every 50th (`pipeline/stability.py`). The facts
say, of each source, the loss before, at worst and last, and the largest rise between two
measurements at most 10 and 100 steps apart within the first 100 (WF of the negated loss): a fall
that is made up for later is seen here alone.

The rows are drawn by (seed, id) and cut to `length` tokens. They stand in each checkpoint, so a
training that goes on leaves the same file. Cost: a forward of the probes at each measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from foresift.pipeline import sampling
from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import DataError
from foresift.pipeline.labels import labels
from foresift.pipeline.lm.batches import batches
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.model import Loaded, ModelSpec
from foresift.pipeline.online import IGNORED
from foresift.pipeline.rng import Rng
from foresift.pipeline.stability import StabilityGuard, wf
from foresift.pipeline.store import Facts, write_shard

FILE = "stability.parquet"
SCHEMA = pa.schema([("step", pa.int32()), ("source", pa.string()), ("loss", pa.float64())])
#: steps after the beginning of which each is measured, and steps between measurements from then on
CLOSE, EVERY = 100, 50
WINDOWS = (10, 100)


class Probe:
    """Measures held-out documents while a model is trained."""

    def __init__(
        self, corpus: Corpus, documents: int, loaded: Loaded, spec: ModelSpec, rng: Rng
    ) -> None:
        probes = {
            source: _batch(table, loaded, spec)
            for source, table in held_out(corpus, documents, rng)
        }
        probes = {source: batch for source, batch in probes.items() if batch}
        if not probes:
            raise DataError(
                "no document is held out to measure; read with a `holdout`, or set `probe: 0`",
                where="probe",
            )
        self.model = loaded.model
        self.guard = StabilityGuard(probes, steps=CLOSE, every=EVERY, bound=math.inf)

    def begin(self) -> None:
        """Before the first step."""
        self.guard.switch(self.model, 0)

    def after(self, step: int) -> None:
        """After a step."""
        self.guard.after_step(self.model, step)

    def write(self, folder: Path) -> None:
        """What was measured so far."""
        guard = self.guard
        rows = [
            (step, source, guard.losses[source][place])
            for place, step in enumerate(guard.steps)
            for source in sorted(guard.losses)
        ]
        columns = zip(*rows, strict=True)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
        write_shard(folder / FILE, pa.table(arrays, schema=SCHEMA))

    def restore(self, folder: Path) -> None:
        """Go on from what was measured up to a checkpoint."""
        table, guard = pq.read_table(folder / FILE), self.guard
        steps = np.unique(np.asarray(table["step"]))
        names = np.asarray(table["source"].to_pylist())
        every = np.asarray(table["loss"])
        losses = {source: every[names == source] for source in guard.probes}
        state = {"plan": guard.plan, "steps": steps, "losses": losses}
        guard.load_state_dict({**state, "switches": [0], "warned": []})

    def facts(self) -> Facts:
        """Of each source: before, worst, last, and the largest rises in the first steps."""
        close = int(np.searchsorted(self.guard.steps, CLOSE, side="right"))
        found = {}
        for source, values in self.guard.losses.items():
            losses = np.array(values)
            told = {"before": losses[0], "worst": losses.max(), "last": losses[-1]}
            for window in WINDOWS:
                told[f"largest_rise_{window}"] = wf(-losses[:close], window)
            found[source] = {name: float(value) for name, value in told.items()}
        return found


def held_out(corpus: Corpus, documents: int, rng: Rng) -> Iterator[tuple[str, pa.Table]]:
    """So many held-out documents of each source, drawn by id; sources in their order."""
    apart = replace(corpus, masks=(), holdout=not corpus.holdout)
    sources: set[str] = set()
    for shard in apart.shards():
        alive = pa.array(np.flatnonzero(shard.alive()))
        sources |= set(labels(shard.load(["source"]).take(alive), "source", 1)[0])
    number = documents * (len(sources) + 1)
    table = sampling.draw(
        apart, number, rng.at("probe"), ["source"], by="source", depth=1, distinct=True
    )
    if not table.num_rows:
        return
    names, codes = labels(table, "source", 1)
    draws = rng.at("probe").uniform(table["id"])
    for code, name in enumerate(names):
        mine = np.flatnonzero(codes == code)
        mine = mine[np.argsort(draws[mine], kind="stable")][:documents]
        yield name, table.take(pa.array(mine))


def _batch(table: pa.Table, loaded: Loaded, spec: ModelSpec) -> dict[str, torch.Tensor]:
    """One batch with labels; nothing where no document has a token to predict."""
    encoded = encode(table, loaded.tokenizer, spec)
    rows = np.flatnonzero(encoded.lengths)
    for batch in batches(encoded, rows, max(1, int(encoded.lengths.max()) * len(rows))):
        ids = torch.from_numpy(batch.ids)
        counted = torch.from_numpy(batch.counted)
        if counted.any():
            return {"input_ids": ids, "labels": ids.masked_fill(~counted, IGNORED)}
    return {}
