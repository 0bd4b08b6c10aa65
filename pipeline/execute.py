"""Executing one step: fill its directory, then declare it done with `stage.json`.

Scores and decisions are sidecars with the rows of their shard, in its order; rows that are not
alive carry null. A score job maps over shards; a decision reads columns of the whole corpus.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline.corpus import DECISION, Corpus, Shard
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.nouns import (
    SMALL_BYTES,
    FittedScorer,
    Job,
    ModelScorer,
    Order,
    Resources,
    Selector,
    Stage,
)
from foresift.pipeline.parts import Part
from foresift.pipeline.plan import Step
from foresift.pipeline.store import (
    Facts,
    ShardWriter,
    StepDir,
    add_counts,
    publish,
    shard_facts,
    temporary,
    write_shard,
)
from foresift.pipeline.tables import ID

#: as SMALL_BYTES, for a model pass, which does a thousand times more for each byte
SMALL_MODEL_BYTES = 1 << 20


def execute(step: Step, job: Job, group: Sequence[Step] = ()) -> Facts:
    """Run a step (and the scores that share its forward) unless it is done; return its facts."""
    together = [s for s in (step, *group) if not s.done]
    for each in together:
        StepDir(each.path).open()
    if together:
        if step.verb == "score":
            _score(together, job)
        else:
            facts = _RUN.get(step.verb, _stage)(step, job)
            _finish(step, facts)
    return StepDir(step.path).facts()


def _finish(step: Step, facts: Mapping[str, Any]) -> None:
    kind = type(step.part)
    about = {
        "verb": step.verb,
        "part": f"{kind.__module__}:{kind.__qualname__}",
        "version": kind.version,
        "fingerprint": step.fingerprint,
        "fields": step.part.settings(),
    }
    StepDir(step.path).finish({**about, "facts": dict(facts)})


def _stage(step: Step, job: Job) -> Facts:
    return cast(Stage, step.part).run(step.inputs, StepDir(step.path), job)


# -- scores ------------------------------------------------------------------------------------


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
        sidecars = [_Sidecar(self.parts[i], self.outs[i], shard) for i in missing]
        needs = sorted({c for s in sidecars for c in cast(Any, s.part).needs})
        for table, rows in shard.stream(needs):
            for sidecar, found in zip(sidecars, self._score(table, sidecars), strict=True):
                sidecar.add(found, rows)
        for sidecar in sidecars:
            sidecar.publish()
        return {}

    def _score(self, table: pa.Table, sidecars: Sequence[_Sidecar]) -> list[Mapping[str, Any]]:
        if self.model is not None:
            from foresift.pipeline.lm.forward import score_table

            return list(
                score_table(table, self.model, [cast(ModelScorer, s.part) for s in sidecars])
            )
        found = []
        for s in sidecars:
            if isinstance(s.part, FittedScorer):
                found.append(s.part.score(table, s.out / "fitted"))
            else:
                found.append(cast(Any, s.part).score(table))
        return found


class _Sidecar:
    """Collects the scores of alive rows and writes them at their places."""

    def __init__(self, part: Part, out: Path, shard: Shard) -> None:
        self.part, self.out, self.shard = part, out, shard
        self.columns = cast(Any, part).columns
        self._rows: list[np.ndarray[Any, Any]] = []
        self._values: dict[str, list[pa.Array]] = {name: [] for name in self.columns}

    def add(self, found: Mapping[str, Any], rows: np.ndarray[Any, Any]) -> None:
        assert set(found) == set(self.columns), (
            f"{type(self.part).__name__} declares {sorted(self.columns)}, gave {sorted(found)}"
        )
        self._rows.append(rows)
        for name, column in self.columns.items():
            array = pa.array(found[name], column.dtype)
            assert len(array) == len(rows), f"{name}: {len(array)} values for {len(rows)} rows"
            self._values[name].append(array)

    def publish(self) -> None:
        """Write the shard, null where a row is not alive, with the counts a report needs."""
        shard = self.shard
        scored = np.concatenate([*self._rows, np.empty(0, dtype=np.int64)])
        place = np.full(shard.rows, -1, dtype=np.int64)
        place[scored] = np.arange(len(scored))
        taken = pa.array(place, mask=place < 0)
        out = {"id": shard.load(["id"])["id"]}
        nan = {}
        for name, column in self.columns.items():
            values = pa.chunked_array(self._values[name], column.dtype)
            nan[name] = _count_nan(values)
            out[name] = values.take(taken) if len(values) else pa.nulls(shard.rows, column.dtype)
        facts = {"alive": len(scored), "nan": nan}
        write_shard(StepDir(self.out).shard(shard.name), pa.table(out), facts)


def _count_nan(values: pa.ChunkedArray) -> int:
    if not pa.types.is_floating(values.type):
        return 0
    found: int = (pc.sum(pc.is_nan(values)).as_py() or 0) + values.null_count
    return found


def _score(steps: Sequence[Step], job: Job) -> None:
    corpus = steps[0].inputs.corpus
    assert corpus is not None
    for step in steps:
        if isinstance(step.part, FittedScorer):
            _fit(step, corpus)
    model = steps[0].inputs.model
    task = ScoreShard(tuple(s.part for s in steps), tuple(s.path for s in steps), model)
    shards = corpus.shards()
    left = [
        s for s in shards if not all(StepDir(step.path).shard(s.name).exists() for step in steps)
    ]
    label = steps[0].label.replace(steps[0].name, "+".join(s.name for s in steps))
    job.map(task, left, _resources(corpus, model), label, done=len(shards) - len(left))
    for step in steps:
        parts = StepDir(step.path).shards()
        _finish(step, add_counts(shard_facts(p) for p in parts))


def _fit(step: Step, corpus: Corpus) -> None:
    """Let a scorer look at every alive row once; what it learned appears whole or not at all."""
    part = cast(FittedScorer, step.part)
    fitted = step.path / "fitted"
    if fitted.exists():
        return
    partial = temporary(fitted)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tables = (t for s in corpus.shards() for t, _ in s.stream(part.needs))
    part.fit(tables, partial)
    partial.rename(fitted)


def _resources(corpus: Corpus, model: ModelSpec | None) -> Resources:
    size = int(StepDir(corpus.base).facts()["facts"].get("n_bytes", 0))
    if model is None:
        return Resources(small=size < SMALL_BYTES)
    from foresift.pipeline.lm.model import pick_device

    gpu = pick_device(model.device).startswith("cuda")
    return Resources(cpus=model.threads, gpus=1.0 if gpu else 0.0, small=size < SMALL_MODEL_BYTES)


# -- decisions and orders ----------------------------------------------------------------------


def _select(step: Step, job: Job) -> Facts:
    part = cast(Selector, step.part)
    corpus = step.inputs.corpus
    assert corpus is not None
    table, places = corpus.table(["n_tokens", *step.reads])
    choice = part.select(table, step.budget, step.rng)
    n_tokens = np.asarray(table["n_tokens"], dtype=np.int64)
    columns = {
        "kept": pa.array(choice.kept),
        "rank": pa.array(choice.rank),
        "weight": pa.array(choice.weight, pa.float32()),
        "reason": pa.array(choice.reason, pa.string()),
    }
    _write_decision(corpus, StepDir(step.path), columns, places)
    reasons = {r: int((choice.reason == r).sum()) for r in sorted(set(choice.reason.tolist()))}
    if choice.facts.get("short"):
        job.log.warning(
            "%s: the budget (%s) is larger than what is left (%s): all of it was taken",
            step.label, choice.facts.get("limit"), choice.facts.get("spent"),
        )  # fmt: skip
    return {
        "rows": len(choice.kept),
        "kept": int(choice.kept.sum()),
        "dropped": int((~choice.kept).sum()),
        "kept_tokens": int(n_tokens[choice.kept].sum()),
        "pool_tokens": int(n_tokens.sum()),
        "reasons": reasons,
        **{k: _finite(v) for k, v in choice.facts.items()},
    }


def _write_decision(
    corpus: Corpus, out: StepDir, columns: Mapping[str, pa.Array], places: np.ndarray[Any, Any]
) -> None:
    """Spread decisions about alive rows over full-length sidecars; rows not alive are not kept."""
    schema = pa.schema([("id", ID), *DECISION.items()])
    for number, shard in enumerate(corpus.shards()):
        path = out.shard(shard.name)
        if path.exists():
            continue
        here = np.flatnonzero(places[:, 0] == number)
        position = np.full(shard.rows, -1, dtype=np.int64)
        position[places[here, 1]] = here
        taken = pa.array(position, mask=position < 0)
        filled = {name: values.take(taken) for name, values in columns.items()}
        filled["kept"] = filled["kept"].fill_null(False)
        with ShardWriter(path, schema) as writer:
            writer.write(pa.table({"id": shard.load(["id"])["id"], **filled}))


def _order(step: Step, job: Job) -> Facts:
    part = cast(Order, step.part)
    corpus = step.inputs.corpus
    assert corpus is not None
    table, places = corpus.table(["n_tokens", *step.reads])
    permutation = part.order(table, step.rng)
    weights = _weights(corpus, places)
    plan = pa.table(
        {
            "id": table["id"].combine_chunks().take(pa.array(permutation)),
            "shard": pa.array(places[permutation, 0], pa.int32()),
            "row": pa.array(places[permutation, 1], pa.int64()),
            "weight": pa.array(weights[permutation], pa.float32()),
            "position": pa.array(np.arange(len(permutation)), pa.int64()),
            "round": pa.array(np.full(len(permutation), step.inputs.round), pa.int32()),
        }
    )
    path = step.path / "plan.parquet"
    partial = temporary(path)
    pq.write_table(plan, partial, compression="zstd")
    publish(partial, path)
    return {"rows": plan.num_rows, "n_tokens": int(pc.sum(table["n_tokens"]).as_py() or 0)}


def _weights(corpus: Corpus, places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The weight that the last decision gave each alive row (1 where there was none)."""
    narrowing = [m.path for m in corpus.masks if m.want]
    if not narrowing:
        return np.ones(len(places), dtype=np.float32)
    column = {"last.weight": (narrowing[-1], "weight")}
    view = Corpus(corpus.base, {**corpus.columns, **column}, corpus.masks, corpus.holdout)
    weights: np.ndarray[Any, Any] = np.asarray(view.table(["last.weight"])[0]["last.weight"])
    return weights


def _finite(value: Any) -> Any:
    """JSON has no NaN; a figure that does not exist is null."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


_RUN = {"select": _select, "order": _order}
