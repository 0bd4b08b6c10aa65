"""Scoring: one job over the shards, one sidecar a scorer.

A sidecar has the rows of its shard, in its order; rows that are not alive carry null. Scores that
read the same model share one forward. A fitted scorer looks at every alive row first, a fitted
model scorer asks the model about some of them and about its references.

What a model pass costs is among the facts, in floating-point operations (P parameters, T tokens):

    flops.shared = 2 P T       the forward that scores of one group share (0 where none is needed)
    flops.own    = 2 P T f     f further forwards of this score alone
    flops.fit                  what fitting says it took
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.corpus import Corpus, Shard
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.nouns import (
    SMALL_BYTES,
    AimedScorer,
    FittedModelScorer,
    FittedScorer,
    Job,
    Look,
    Resources,
)
from foresift.pipeline.parts import Part
from foresift.pipeline.plan import Step
from foresift.pipeline.references import check_apart
from foresift.pipeline.store import (
    Facts,
    StepDir,
    add_counts,
    finite,
    read_json,
    shard_facts,
    temporary,
    write_json,
    write_shard,
)

#: where a scorer keeps what it learned, below its step's directory, and what it says of it
FITTED, FACTS = "fitted", "facts.json"
NOTHING: Mapping[str, Any] = {}
#: as SMALL_BYTES, for a model pass, which does a thousand times more for each byte
SMALL_MODEL_BYTES = 1 << 20


@dataclass(frozen=True)
class ScoreShard:
    """Scores one shard with several scorers at once; models share one forward."""

    parts: tuple[Part, ...]
    outs: tuple[Path, ...]
    model: ModelSpec | None

    def __call__(self, shard: Shard) -> Facts:
        """Write the sidecars that are missing."""
        missing = [
            i for i, out in enumerate(self.outs) if not StepDir(out).shard(shard.name).exists()
        ]
        sidecars = [Sidecar(self.parts[i], self.outs[i]) for i in missing]
        needs = sorted({c for s in sidecars for c in cast(Any, s.part).needs})
        tokens = 0
        content = self.model is not None or any(_reads_content(s.part) for s in sidecars)
        for table, rows in shard.stream(needs, content=content):
            scored, read = self._score(table, sidecars)
            tokens += read
            for sidecar, found in zip(sidecars, scored, strict=True):
                sidecar.add(found, rows)
        more = {} if self.model is None else {"model_tokens": tokens}
        for sidecar in sidecars:
            sidecar.publish(shard.name, shard.load(["id"])["id"], shard.ids, more)
        return {}

    def _score(
        self, table: pa.Table, sidecars: Sequence[Sidecar]
    ) -> tuple[Sequence[Mapping[str, Any]], int]:
        """The columns of each scorer, and the tokens that the model read."""
        if self.model is not None:
            from foresift.pipeline.lm.forward import score_window

            scorers = [cast(Any, s.part) for s in sidecars]
            found, seen = score_window(table, self.model, scorers, [s.fitted for s in sidecars])
            return found, int(seen.tokens.lengths.sum())
        plain = []
        for s in sidecars:
            if isinstance(s.part, (FittedScorer, AimedScorer)):
                plain.append(s.part.score(table, s.fitted))
            else:
                plain.append(cast(Any, s.part).score(table))
        return plain, 0


def _reads_content(part: Part) -> bool:
    return bool(getattr(part, "reads_content", True))


def stored(values: Any, dtype: pa.DataType) -> pa.Array:
    """What a scorer gave as it is stored; an array of that type goes through as it is."""
    whole = isinstance(values, pa.Array) and values.type.equals(dtype)
    return values if whole else pa.array(values, dtype)


class Sidecar:
    """Collects the scores of alive rows and writes them at their places."""

    def __init__(self, part: Any, out: Path) -> None:
        self.part, self.out, self.columns = part, out, part.columns
        self._rows: list[np.ndarray[Any, Any]] = []
        self._values: dict[str, list[pa.Array]] = {name: [] for name in self.columns}

    @property
    def fitted(self) -> Path:
        """The folder of what a fitted scorer learned."""
        return self.out / FITTED

    def add(self, found: Mapping[str, Any], rows: np.ndarray[Any, Any]) -> None:
        assert set(found) == set(self.columns), (
            f"{type(self.part).__name__} declares {sorted(self.columns)}, gave {sorted(found)}"
        )
        self._rows.append(rows)
        for name, column in self.columns.items():
            array = stored(found[name], column.dtype)
            assert len(array) == len(rows), f"{name}: {len(array)} values for {len(rows)} rows"
            self._values[name].append(array)

    def publish(
        self, name: str, ids: pa.ChunkedArray, digest: str, more: Mapping[str, Any] = NOTHING
    ) -> None:
        """Write the sidecar of a shard, null where a row is not alive, with counts for reports."""
        scored = np.concatenate([*self._rows, np.empty(0, dtype=np.int64)])
        place = np.full(len(ids), -1, dtype=np.int64)
        place[scored] = np.arange(len(scored))
        taken = pa.array(place, mask=place < 0)
        out, nan = {"id": ids}, {}
        for column, about in self.columns.items():
            values = pa.chunked_array(self._values[column], about.dtype)
            nan[column] = _count_nan(values)
            out[column] = values.take(taken) if len(values) else pa.nulls(len(ids), about.dtype)
        facts = {"alive": len(scored), "nan": nan, **more}
        # in one chunk, so that the bytes do not depend on the batches the scores came in
        written = write_shard(StepDir(self.out).shard(name), pa.table(out).combine_chunks(), facts)
        assert written["ids"] == digest, f"{name}: the ids changed while it was scored"


def _count_nan(values: pa.ChunkedArray) -> int:
    if not pa.types.is_floating(values.type):
        return 0
    found: int = (pc.sum(pc.is_nan(values)).as_py() or 0) + values.null_count
    return found


def score(steps: Sequence[Step], job: Job) -> list[Facts]:
    """Fill the directories of scores over the same rows; the facts of each."""
    corpus = steps[0].inputs.corpus
    assert corpus is not None
    for step in steps:
        if isinstance(step.part, (FittedScorer, AimedScorer)):
            _fit(step, corpus, job)
        elif isinstance(step.part, FittedModelScorer):
            _ask(step, corpus, replace(job, rng=step.rng))
    model = steps[0].inputs.model
    task = ScoreShard(tuple(s.part for s in steps), tuple(s.path for s in steps), model)
    shards = corpus.shards()
    left = [
        s for s in shards if not all(StepDir(step.path).shard(s.name).exists() for step in steps)
    ]
    label = "with " + ", ".join(s.name for s in steps[1:]) if len(steps) > 1 else ""
    job.map(task, left, _resources(corpus, model), label, done=len(shards) - len(left))
    return [_facts(step) for step in steps]


def _facts(step: Step) -> Facts:
    """Counts over the shards, what fitting said, and what the model pass took."""
    facts = add_counts(shard_facts(p) for p in StepDir(step.path).shards())
    if step.inputs.model is None:
        told = step.path / FITTED / FACTS
        return facts | (read_json(told) if told.exists() else {})
    from foresift.pipeline.estimate import count_parameters

    part, fitted = cast(Any, step.part), step.path / FITTED
    asked = isinstance(part, FittedModelScorer)
    passed = 2.0 * count_parameters(step.inputs.model) * facts.get("model_tokens", 0)
    needed = part.signals(fitted) if asked else part.signals
    flops = {"shared": passed if needed else 0.0}
    if asked:
        facts |= read_json(fitted / FACTS)
        flops |= {"own": passed * part.passes(fitted), "fit": float(facts.pop("flops", 0.0))}
    return {**facts, "flops": flops, "group": step.group}


def _ask(step: Step, corpus: Corpus, job: Job) -> None:
    """Let a scorer ask the model; the facts are written last, so a killed run goes on asking."""
    fitted, model = step.path / FITTED, step.inputs.model
    if (fitted / FACTS).exists():
        return
    assert model is not None
    part = cast(FittedModelScorer, step.part)
    before = step.inputs.previous
    previous = before / FITTED if before else None
    look = Look(corpus, step.inputs.references, model, job, previous)
    check_apart(look.corpus, look.references)
    fitted.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    facts = part.fit(look, fitted)
    write_json(fitted / FACTS, finite(facts))
    job.seconds["fit"] = job.seconds.get("fit", 0.0) + time.perf_counter() - began


def _fit(step: Step, corpus: Corpus, job: Job) -> None:
    """Let a scorer look at every alive row once; what it learned appears whole or not at all."""
    part, references = step.part, step.inputs.references
    fitted = step.path / FITTED
    if fitted.exists():
        return
    partial = temporary(fitted)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    content = _reads_content(part)
    needs = cast(Any, part).needs
    tables = (t for s in corpus.shards() for t, _ in s.stream(needs, content=content))
    began = time.perf_counter()
    if isinstance(part, AimedScorer):
        if part.apart:
            check_apart(corpus, references)
        facts = part.fit(tables, references, partial)
    else:
        facts = cast(FittedScorer, part).fit(tables, partial)
    write_json(partial / FACTS, finite(facts or {}))
    partial.rename(fitted)
    job.seconds["fit"] = job.seconds.get("fit", 0.0) + time.perf_counter() - began


def _resources(corpus: Corpus, model: ModelSpec | None) -> Resources:
    size = int(StepDir(corpus.base).facts()["facts"].get("n_bytes", 0))
    if model is None:
        return Resources(small=size < SMALL_BYTES)
    from foresift.pipeline.lm.model import pick_device

    gpu = pick_device(model.device).startswith("cuda")
    return Resources(cpus=model.threads, gpus=1.0 if gpu else 0.0, small=size < SMALL_MODEL_BYTES)
