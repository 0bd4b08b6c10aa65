"""Executing one step: fill its directory, then declare it done with `stage.json`.

Decisions are sidecars with the rows of their shard, in its order; rows that are not alive are not
kept. A decision reads columns of the whole corpus at once, never text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.corpus import DECISION, Corpus
from foresift.pipeline.nouns import (
    Job,
    Order,
    Selector,
    Stage,
)
from foresift.pipeline.plan import Step
from foresift.pipeline.scoring import score
from foresift.pipeline.store import (
    Facts,
    ShardWriter,
    StepDir,
    finite,
    publish,
    temporary,
)
from foresift.pipeline.tables import ID


def execute(step: Step, job: Job, group: Sequence[Step] = ()) -> Facts:
    """Run a step (and the scores that share its forward) unless it is done; return its facts."""
    together = [s for s in (step, *group) if not s.done]
    for each in together:
        StepDir(each.path).open()
    if together:
        if step.verb == "score":
            for each, facts in zip(together, score(together, job), strict=True):
                _finish(each, facts, job)
        else:
            _finish(step, _RUN.get(step.verb, _stage)(step, job), job)
    return StepDir(step.path).facts()


def _finish(step: Step, facts: Mapping[str, Any], job: Job) -> None:
    for sentence in facts.get("warnings", []):
        job.log.warning("%s: %s", step.label, sentence)
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


def _select(step: Step, job: Job) -> Facts:
    part = cast(Selector, step.part)
    corpus = step.inputs.corpus
    assert corpus is not None
    table, places = corpus.table(["n_tokens", *step.reads], temporary(step.path / "columns"))
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
            "%s: the budget (%s) cannot be filled: %s were all that could be taken",
            step.label, choice.facts.get("limit"), choice.facts.get("spent"),
        )  # fmt: skip
    return {
        "rows": len(choice.kept),
        "kept": int(choice.kept.sum()),
        "dropped": int((~choice.kept).sum()),
        "kept_tokens": int(n_tokens[choice.kept].sum()),
        "pool_tokens": int(n_tokens.sum()),
        "reasons": reasons,
        **{k: finite(v) for k, v in choice.facts.items()},
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
    table, places = corpus.table(["n_tokens", *step.reads], temporary(step.path / "columns"))
    permutation = part.order(table, step.rng)
    times = np.bincount(permutation, minlength=table.num_rows)
    assert times.min(initial=1) > 0, f"{step.label}: a row has no place"
    assert part.repeats or times.max(initial=1) == 1, f"{step.label}: a row has two places"
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
    tokens = np.asarray(table["n_tokens"], dtype=np.int64)
    facts = {"rows": plan.num_rows, "n_tokens": int(tokens[permutation].sum())}
    return facts | ({"documents": table.num_rows} if part.repeats else {})


def _weights(corpus: Corpus, places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The weight that the last decision gave each alive row (1 where there was none)."""
    narrowing = [m.path for m in corpus.masks if m.want]
    if not narrowing:
        return np.ones(len(places), dtype=np.float32)
    column = {"last.weight": (narrowing[-1], "weight")}
    view = Corpus(corpus.base, {**corpus.columns, **column}, corpus.masks, corpus.holdout)
    weights: np.ndarray[Any, Any] = np.asarray(view.table(["last.weight"])[0]["last.weight"])
    return weights


_RUN = {"select": _select, "order": _order}
