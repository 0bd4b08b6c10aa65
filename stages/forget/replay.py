"""Exact deletion: train again, without the documents, from the last clean checkpoint.

The recipe of a run is planned again; its fingerprints must be those of the run. Each training that
saw a forgotten document loses its result and the checkpoints from that step on; the trainer then
goes on from the newest clean checkpoint along the plan as it is now, which gives the weights of a
training from the beginning without the documents, under the same schedule of the learning rate.
That is the one of a training from the beginning where a budget of tokens sets the length; where the
plan sets it, it is that of the longer plan (`steps_planned`). A training that began with a tainted
checkpoint begins anew. Measurements of tainted models are made again.

`selections`: what a tainted model chose in later rounds stays (`keep`), less the documents, or is
chosen again with the new model (`redo`). Kept choices were made by a model that saw the documents.

What is replaced lies among the originals until `purge`; `undo` brings it back. A replay that was
killed goes on: with `forget replay`, or as the steps that are missing with `foresift run`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from foresift.pipeline import checkpoints
from foresift.pipeline.engines import open_engine
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Progress, silent
from foresift.pipeline.plan import Plan, Step
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import Run, run
from foresift.pipeline.store import Facts, StepDir, write_json
from foresift.pipeline.tombstones import taint
from foresift.stages.forget._apply_settle import aside
from foresift.stages.forget._apply_store import Op, State, Store, link
from foresift.stages.forget.apply import refuse_purging
from foresift.stages.forget.taint import training_of

Selections = Literal["keep", "redo"]


def replay(
    path: Path,
    request: str = "",
    selections: Selections = "keep",
    *,
    engine: str = "auto",
    workers: int = 0,
    progress: Progress = silent,
) -> Facts:
    """Train the tainted trainings of a run again; returns what it cost and where it began."""
    if selections not in ("keep", "redo"):
        raise DataError(f"`keep` or `redo`, not {selections!r}", where="selections")
    done = Run.open(path)
    out = done.path.parent.parent
    with Store.open(out) as store:
        state = store.state
        refuse_purging(state, store)
        plan = _planned(done, out)
        tainted = _tainted(plan, state, request)
        starts = {s.path.name: _start(s) for s in tainted}
        again = _again(plan, tainted, selections)
        kept = _chosen_by(plan, tainted) if selections == "keep" else []
        _clear(store, state, [s for s in tainted if taint(s.path)], again)
        began = time.perf_counter()
        with open_engine(engine, workers) as chosen:
            new = run(plan, chosen, progress)
        told = _told(plan, starts, time.perf_counter() - began)
    told |= {
        "run": str(new.path),
        "of": done.path.name,
        "requests": state.names(),
        "selections": selections,
        "kept_selections": [s.path.name for s in kept],
        "done_again": sorted(s.path.name for s in again),
    }
    write_json(new.path / "replay.json", told)
    return told


def _planned(done: Run, out: Path) -> Plan:
    """The plan of a run's recipe; DataError where it is not the run's any more."""
    plan = Recipe.read(done.path / "recipe.yaml").plan(out)
    theirs = {s["fingerprint"]: s["label"] for s in done.manifest["steps"]}
    mine = {s.fingerprint for s in plan.steps}
    gone = [label for fingerprint, label in theirs.items() if fingerprint not in mine]
    if gone:
        raise DataError(
            f"its recipe does not plan to the same steps any more, the first is {gone[0]!r}: data"
            " or models were moved or changed, or another version of foresift wrote the run; run"
            " the recipe again instead",
            where=str(done.path),
        )
    return plan


def _tainted(plan: Plan, state: State, request: str) -> list[Step]:
    """The trainings to replay, in their order; DataError where there is none."""
    if request and state.of(request) is None:
        raise DataError(f"request {request!r} is not applied here", where=str(plan.out))
    found = []
    for step in (s for s in plan.steps if s.verb == "train"):
        told = taint(step.path)
        begun = not step.done and f"steps/{step.path.name}" in state.replayed
        if begun or (told is not None and (not request or request in told["requests"])):
            found.append(step)
    if not found:
        by = f" by request {request!r}" if request else ""
        raise DataError(f"no training of this run is tainted{by}", where=str(plan.out))
    if request:  # no training can go on from one that stays tainted
        return [s for s in plan.steps if s.verb == "train" and (s in found or taint(s.path))]
    return found


def _start(training: Step) -> int:
    """The step of the last clean checkpoint, 0: from the beginning."""
    return max((c.step or 0 for c in _clean(training.path)), default=0)


def _clean(training: Path) -> list[checkpoints.Checkpoint]:
    """The checkpoints that a replay may go on from."""
    told, found = taint(training), checkpoints.intermediate(training)
    if told is None:  # a replay that was killed: the trainer sees what fits
        return found
    bad = {c["name"] for c in told["checkpoints"]}
    clean = [] if told["inherited"] else [c for c in found if c.path.name not in bad]
    return clean


def _parents(step: Step) -> set[Path]:
    """The step directories that a step reads."""
    inputs, found = step.inputs, set[Path]()
    for corpus in [inputs.corpus, *(r.corpus for r in inputs.references)]:
        if corpus is not None:
            found |= {corpus.base, *(m.path for m in corpus.masks)}
            found |= {corpus.columns[c][0] for c in step.reads if c in corpus.columns}
    if inputs.plan is not None:
        found.add(inputs.plan.path)
    if inputs.previous is not None:
        found.add(inputs.previous)
    if inputs.model is not None and (name := training_of(inputs.model.init)):
        found.add(step.path.parent / name)
    return found


def _after(plan: Plan, tainted: Sequence[Step]) -> list[Step]:
    """All other steps that read what a tainted training made, at any remove."""
    reached = {s.path for s in tainted}
    found = []
    for step in plan.steps:  # in an order in which they can run
        if step.path not in reached and _parents(step) & reached:
            reached.add(step.path)
            found.append(step)
    return found


def _again(plan: Plan, tainted: Sequence[Step], selections: Selections) -> list[Step]:
    """The steps besides the trainings that are done again."""
    mine = {s.path.name for s in tainted}
    if selections == "redo":
        return [s for s in _after(plan, tainted) if s.done]
    measured = [s for s in plan.steps if s.verb == "evaluate" and s.inputs.model is not None]
    return [s for s in measured if s.done and training_of(_model(s)) in mine]


def _chosen_by(plan: Plan, tainted: Sequence[Step]) -> list[Step]:
    """Decisions that stay although a tainted model had a say in them."""
    return [s for s in _after(plan, tainted) if s.verb in ("select", "dedup")]


def _model(step: Step) -> str:
    return step.inputs.model.init if step.inputs.model else ""


def _clear(store: Store, state: State, tainted: Sequence[Step], again: Sequence[Step]) -> None:
    """Set aside what is to be made again; clean checkpoints stay where the trainer looks."""
    ops: list[Op] = []
    for step in [*tainted, *again]:
        place = f"steps/{step.path.name}"
        ops.append(aside(store, place))
        if step in tainted:
            for checkpoint in _clean(step.path):
                _linked(checkpoint.path, store.stage(place) / checkpoints.FOLDER)
        state.replayed[place] = state.names()
    if ops:
        store.commit([*store.stage_state(state, store.forgotten), *ops])
        store.replayed = set(state.replayed)


def _linked(checkpoint: Path, folder: Path) -> None:
    """The files of a checkpoint under a second name."""
    for path in (p for p in checkpoint.rglob("*") if p.is_file()):
        name = folder / checkpoint.name / path.relative_to(checkpoint)
        name.parent.mkdir(parents=True, exist_ok=True)
        link(path, name)


def _told(plan: Plan, starts: dict[str, int], seconds: float) -> Facts:
    """Steps and operations of the replay, and of training everything again."""
    trainings, replayed, every, spent, whole = [], 0, 0, 0.0, 0.0
    for step in (s for s in plan.steps if s.verb == "train"):
        facts = StepDir(step.path).facts()["facts"]
        steps, flops = int(facts.get("steps") or 0), (facts.get("flops") or {}).get("train", 0.0)
        every, whole = every + steps, whole + flops
        name = step.path.name
        if name in starts:
            share = _share(step.path, starts[name])
            replayed, spent = replayed + steps - starts[name], spent + flops * share
            trainings.append(
                {
                    "name": name, "label": step.label, "from_step": starts[name], "steps": steps,
                    "steps_planned": int(facts.get("steps_planned") or steps),
                }
            )  # fmt: skip
    return {
        "trainings": trainings,
        "steps": replayed,
        "steps_of_all": every,
        "flops": spent,
        "flops_retraining": whole,
        "seconds": round(seconds, 3),
    }


def _share(training: Path, start: int) -> float:
    """The share of a training's tokens that came after a step."""
    path = training / "curve.parquet"
    if not start or not path.exists():
        return 1.0
    table = pq.read_table(path, columns=["step", "tokens"])
    tokens = dict(zip(table["step"].to_pylist(), table["tokens"].to_pylist(), strict=True))
    return 1.0 - float(tokens[start]) / float(max(tokens.values()))
