"""Run: a plan carried out, and the directory that tells of it.

    <out>/runs/<time>-<recipe>-<fp8>/
        recipe.yaml     resolved; can itself be run
        plan.parquet    one line a document: in or out, in which round, at which place, and why
        log.txt         what was said
        report/         the page
        manifest.json   written last: steps, facts, seconds, versions, and the accounts

The accounts must add up: every row that went in is in the plan, or in `rejects.jsonl`.
"""

from __future__ import annotations

import datetime
import importlib
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import yaml

from foresift.pipeline import tombstones
from foresift.pipeline.beside import beside
from foresift.pipeline.errors import DataError, StoreError, placed
from foresift.pipeline.execute import execute
from foresift.pipeline.nouns import Engine, Job, Progress, silent
from foresift.pipeline.outcome import account, write_outcome
from foresift.pipeline.plan import Evaluation, Plan, Step
from foresift.pipeline.store import Facts, StepDir, write_json, write_text


@dataclass(frozen=True)
class Run:
    """A finished run's directory."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run directory; `<out>` itself means its latest run."""
        path = Path(path)
        if (path / "manifest.json").exists():
            return cls(path)
        runs = sorted(p.parent for p in path.glob("runs/*/manifest.json"))
        if not runs:
            raise DataError(
                "no finished run here (a manifest.json is written last)", where=str(path)
            )
        return cls(runs[-1])

    @property
    def manifest(self) -> Facts:
        """Steps, facts, seconds, versions, accounts."""
        import json

        try:
            loaded: Facts = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"unreadable manifest ({error})", where=str(self.path)) from error
        return loaded

    @property
    def plan(self) -> Path:
        """The plan file."""
        return self.path / "plan.parquet"


def run(plan: Plan, engine: Engine, progress: Progress = silent) -> Run:
    """Carry out a plan; steps that are done already are taken as they are."""
    with placed(str(plan.out)):
        trained = [s.path for s in plan.steps if s.verb == "train" and s.done]
        tombstones.ready(plan.out, trained, _models(plan.steps))
        path = _directory(plan)
        with _log(path / "log.txt") as log:
            return _carry_out(plan, path, engine, progress, log)


def _carry_out(
    plan: Plan, path: Path, engine: Engine, progress: Progress, log: logging.Logger
) -> Run:
    write_text(path / "recipe.yaml", yaml.safe_dump(plan.recipe.raw(), sort_keys=False))
    told: list[Facts] = []
    started = time.perf_counter()
    cached = {s.path for s in plan.steps if s.done}
    for step in plan.steps:
        job = Job(
            engine=engine, rng=step.rng, progress=_named(progress, step), log=log,
            beside=beside(step, plan.steps),
        )  # fmt: skip
        with placed(step.where):
            told.append(_one(step, plan.steps, job, step.path in cached))
    write_outcome(plan, path / "plan.parquet")
    manifest = {
        "recipe": plan.recipe.name,
        "fingerprint": plan.fingerprint,
        "seed": plan.recipe.seed,
        "out": str(plan.out.resolve()),
        "steps": told,
        "accounts": account(plan, path / "plan.parquet"),
        "evaluations": [_evaluation(e) for e in plan.evaluations],
        "seconds": round(time.perf_counter() - started, 3),
        "versions": versions(),
    }
    write_json(path / ".manifest.json", manifest)
    if plan.recipe.report:
        manifest["report"] = str(_report(Run(path)))
    write_json(path / "manifest.json", manifest)
    (path / ".manifest.json").unlink()
    return Run(path)


def _models(steps: Sequence[Step]) -> list[str]:
    """The models that are used, as they are named."""
    return [s.inputs.model.init for s in steps if s.inputs.model is not None]


def _named(progress: Progress, step: Step) -> Progress:
    """A progress that says which step is speaking."""

    def tell(done: int, total: int, label: str) -> None:
        progress(done, total, f"{step.label}: {label}" if label else step.label)

    return tell


def _one(step: Step, steps: Sequence[Step], job: Job, cached: bool) -> Facts:
    """Carry out one step; scores of its group come with it, so theirs take no time of their own."""
    began = time.perf_counter()
    group = [s for s in steps if step.group and s.group == step.group and s is not step]
    stage = execute(step, job, group)
    if stage["fingerprint"] != step.fingerprint:
        raise StoreError(
            f"holds {stage['fingerprint']}, the plan wants {step.fingerprint}; delete it",
            where=str(step.path),
        )
    seconds = round(time.perf_counter() - began, 3)
    job.log.info("%s: %s, %.1f s", step.label, "cached" if cached else "done", seconds)
    return {
        "label": step.label,
        "verb": step.verb,
        "name": step.name,
        "line": step.line,
        "repeat": step.repeat,
        "round": step.round,
        "path": str(step.path.resolve()),
        "fingerprint": step.fingerprint,
        "cached": cached,
        "model": step.inputs.model.init if step.inputs.model else None,
        "seconds": seconds,
        **{f"{kind}_seconds": round(value, 3) for kind, value in job.seconds.items()},
        "facts": stage["facts"],
    }


def _directory(plan: Plan) -> Path:
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S")
    base = plan.out / "runs" / f"{now}-{plan.recipe.name}-{plan.fingerprint[:8]}"
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    path.mkdir(parents=True)
    return path


@contextmanager
def _log(path: Path) -> Iterator[logging.Logger]:
    log = logging.getLogger("foresift")
    log.setLevel(logging.INFO)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield log
    finally:
        log.removeHandler(handler)
        handler.close()


def _report(done: Run) -> Path:
    """The report is a stage, so the core reaches it by name."""
    path: Path = importlib.import_module("foresift.stages.report.page").write(done)
    return path


def _evaluation(told: Evaluation) -> Facts:
    """A measurement, and the tokens that the measured model was trained on in all."""
    trained = [StepDir(path).facts()["facts"].get("tokens") or 0 for path in told.trained]
    about = {"line": told.line, "repeat": told.repeat, "round": told.round}
    return {**StepDir(told.path).facts()["facts"], **about, "trained_tokens": sum(trained)}


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    names = ("foresift", "torch", "transformers", "pyarrow", "numpy", "ray")
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
