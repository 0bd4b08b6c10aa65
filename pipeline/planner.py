"""Planner: from a recipe to a plan. Every mistake that can be known now is a RecipeError here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from foresift.pipeline.choice import Budget
from foresift.pipeline.corpus import DECISION, Corpus
from foresift.pipeline.errors import RecipeError, nearest
from foresift.pipeline.evaluation import Evaluate, arm_specs
from foresift.pipeline.nouns import AimedScorer, FittedModelScorer, Inputs, ModelScorer, Reference
from foresift.pipeline.parts import Part, digest, find
from foresift.pipeline.plan import MAIN, Evaluation, Line, Model, Plan, Step
from foresift.pipeline.recipe import Evidence, Recipe, StepSpec, step_of
from foresift.pipeline.references import aim_specs
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import StepDir
from foresift.pipeline.tables import BASE


def make_plan(recipe: Recipe, out: Path) -> Plan:
    """Resolve a recipe into steps under `out`; reads no text, loads no weights."""
    return _Planner(recipe, out).plan()


class _Planner:
    """Walks a recipe once and adds its steps."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.steps: dict[Path, Step] = {}
        self.evaluations: list[Evaluation] = []

    def plan(self) -> Plan:
        recipe = self.recipe
        models = {n: Model(s, s.digest()) for n, s in recipe.model_specs().items()}
        for model in models.values():
            model.spec.check()
        line = Line(MAIN, Rng(recipe.seed), {}, models)
        for name, spec in recipe.readers().items():
            self._read(name, spec, line)
        for spec in recipe.step_specs():
            self._apply(spec, line, 0)
        line.decided(0, line.orders.get("data"))
        lines = self._rounds(line)
        return Plan(recipe, self.out, tuple(self.steps.values()), lines, tuple(self.evaluations))

    # -- rounds and evidence -------------------------------------------------------------------

    def _rounds(self, start: Line) -> tuple[Line, ...]:
        rounds, specs = self.recipe.round_specs()
        evidence = self.recipe.evidence_spec()
        if not specs:
            if evidence:
                raise RecipeError("evidence needs `rounds` that select and train", where="evidence")
            return (start,)
        lines = []
        for repeat in range(evidence.repeats if evidence else 1):
            rng = start.rng.at("repeat", repeat) if repeat else start.rng
            main = self._line(start, MAIN, rng, repeat)
            arms = [
                self._line(start, a, rng, repeat) for a in (evidence.against if evidence else [])
            ]
            for number in range(1, rounds.count + 1):
                chosen = self._round(main, specs, number, rounds.consume)
                for arm in arms:
                    self._round(arm, arm_specs(specs, arm.name), number, rounds.consume, chosen)
                if evidence:
                    for each in (main, *arms):
                        self._evaluate(evidence, each, repeat, number)
            lines += [main, *arms]
        return tuple(lines)

    def _line(self, start: Line, name: str, rng: Rng, repeat: int) -> Line:
        line = start.fork(name, rng, repeat)
        if repeat and "init" in line.models:
            spec = line.models["init"].spec
            spec = replace(spec, seed=spec.seed + repeat)
            line.models["init"] = Model(spec, spec.digest())
        return line

    def _round(
        self, line: Line, specs: Sequence[StepSpec], number: int, consume: bool,
        chosen: Path | None = None,
    ) -> Path | None:  # fmt: skip
        """Expand one round; returns the directory of its last decision."""
        pool = line.views["data"]
        if chosen is not None:
            line.views["data"] = pool.with_columns("select", chosen, ["kept"])
        line.orders.pop("data", None)
        for spec in specs:
            self._apply(spec, line, number)
        last = line.decisions[-1] if line.decisions else None
        after = replace(line.views["data"], masks=pool.masks)
        line.decided(number, line.orders.get("data"))
        line.views["data"] = after.with_mask(last, False) if consume and last else after
        return last

    def _evaluate(self, evidence: Evidence, line: Line, repeat: int, number: int) -> None:
        corpus = self._view(line, evidence.data, "evidence.data").only_holdout()
        model = self._model(line, "latest", "evidence")
        fp = digest(["evaluate", Evaluate().fingerprint, self._lineage(corpus), model.digest])
        step = self._add(
            "evaluate", evidence.data, Evaluate(), "evidence", fp, line, number,
            inputs=Inputs(corpus=corpus, model=model.spec, round=number),
        )  # fmt: skip
        told = Evaluation(line.name, repeat, number, step.path, model.trained)
        self.evaluations.append(told)

    # -- one step ------------------------------------------------------------------------------

    def _read(self, name: str, spec: StepSpec, line: Line) -> None:
        _, part = spec.parts[0]
        inputs = cast(Any, part).inputs()
        fp = digest(["read", part.fingerprint, inputs])
        step = self._add("read", spec.parts[0][0], part, spec.where, fp, line, 0, inputs=Inputs())
        extra = {c: (step.path, c) for c in getattr(part, "columns", ())}
        line.views[name] = Corpus(base=step.path, columns=extra)

    def _apply(self, spec: StepSpec, line: Line, number: int) -> None:
        handlers: dict[str, Callable[[StepSpec, Line, int], None]] = {
            "score": self._score,
            "dedup": self._decide,
            "select": self._decide,
            "order": self._order,
            "train": self._train,
            "export": self._export,
        }
        handlers[spec.verb](spec, line, number)

    def _score(self, spec: StepSpec, line: Line, number: int) -> None:
        corpus = self._view(line, spec.data, spec.where)
        added = corpus
        # scores of one group run together, so what any of them aims at is read before the first
        aimed = [self._references(p, line, f"{spec.where} (score {n})") for n, p in spec.parts]
        for (name, part), aims in zip(spec.parts, aimed, strict=True):
            where = f"{spec.where} (score {name})"
            reads = self._columns(corpus, cast(Any, part).needs, where)
            asked = isinstance(part, FittedModelScorer)
            needs_model = asked or isinstance(part, ModelScorer)
            model = self._model(line, spec.model, spec.where) if needs_model else None
            rng = line.rng.at("score", name, number)
            before = self._before(corpus, name, part) if asked else None
            key = [rng.key, before.fingerprint if before else None] if asked else []
            found = [(a.name, a.weight, self._aim(part, a, where)) for a in aims]
            lineage = [self._lineage(corpus, reads), model.digest if model else None]
            fp = digest(["score", part.fingerprint, *lineage, *found, *key])
            spec_of = model.spec if model else None
            step = self._add(
                "score", name, part, spec.where, fp, line, number, reads=reads, rng=rng,
                inputs=Inputs(corpus, None, spec_of, number, aims, before.path if before else None),
                gives=tuple(f"{name}.{c}" for c in cast(Any, part).columns),
                group=digest([spec.where, self._lineage(corpus), model.digest if model else None]),
            )  # fmt: skip
            added = added.with_columns(name, step.path, list(cast(Any, part).columns))
        line.views[spec.data] = added

    def _before(self, corpus: Corpus, name: str, part: Part) -> Step | None:
        """The same score in the round before: its columns are still beside the corpus."""
        own = [path for c, (path, _) in corpus.columns.items() if c.startswith(f"{name}.")]
        steps = [self.steps[path] for path in own]
        return next((s for s in steps if s.round and type(s.part) is type(part)), None)

    def _references(self, part: Part, line: Line, where: str) -> tuple[Reference, ...]:
        """The data sets a scorer aims at; those named by their files are read like any other."""
        aimed = isinstance(part, (AimedScorer, FittedModelScorer))
        value, found = cast(Any, part).aims if aimed else None, []
        known = [name for name in line.views if name == "data" or name in self.recipe.datasets]
        for aim in [] if value is None else aim_specs(value, known, where):
            name = aim.name
            if aim.reader is not None:
                name = f"reference {digest(aim.reader)}"
                if name not in line.views:
                    spec = step_of(dict(aim.reader), f"{where}.reference", ("read",))
                    self._read(name, spec, line)
            found.append(Reference(aim.name, line.views[name], aim.weight))
        return tuple(found)

    def _aim(self, part: Part, aim: Reference, where: str) -> str:
        """What a reference is, the columns that are read of it included."""
        wanted = part.aim_needs if isinstance(part, AimedScorer) else ()
        return self._lineage(
            aim.corpus, self._columns(aim.corpus, wanted, f"{where}, reference {aim.name}")
        )

    def _decide(self, spec: StepSpec, line: Line, number: int) -> None:
        name, part = spec.parts[0]
        where = f"{spec.where} ({spec.verb} {name})"
        corpus = self._view(line, spec.data, where)
        wanted = [*cast(Any, part).needs]
        if spec.budget and spec.budget.cost != "rows":
            wanted.append(spec.budget.cost)
        reads = self._columns(corpus, wanted, where)
        rng = line.rng.at(spec.verb, name, number)
        lineage = self._lineage(corpus, reads)
        budget = str(spec.budget) if spec.budget else None
        fp = digest([spec.verb, part.fingerprint, lineage, budget, rng.key])
        given = [*DECISION, *cast(Any, getattr(part, "columns", {}))]
        step = self._add(
            spec.verb, name, part, spec.where, fp, line, number, reads=reads, budget=spec.budget,
            inputs=Inputs(corpus=corpus, round=number), rng=rng,
            gives=tuple(f"{name}.{c}" for c in given),
        )  # fmt: skip
        line.views[spec.data] = corpus.with_columns(name, step.path, given).with_mask(step.path)
        line.orders.pop(spec.data, None)
        if spec.data == "data":
            line.decisions.append(step.path)

    def _order(self, spec: StepSpec, line: Line, number: int) -> None:
        name, part = spec.parts[0]
        where = f"{spec.where} (order {name})"
        corpus = self._view(line, spec.data, where)
        reads = self._columns(corpus, cast(Any, part).needs, where)
        rng = line.rng.at("order", name, number)
        fp = digest(["order", part.fingerprint, self._lineage(corpus, reads), number, rng.key])
        step = self._add(
            "order", name, part, spec.where, fp, line, number, reads=reads, rng=rng,
            inputs=Inputs(corpus=corpus, round=number),
        )  # fmt: skip
        line.orders[spec.data] = StepDir(step.path)

    def _train(self, spec: StepSpec, line: Line, number: int) -> None:
        name, part = spec.parts[0]
        where = f"{spec.where} (train {name})"
        corpus = self._view(line, spec.data, where)
        if spec.data not in line.orders:
            shuffle = find("order", "shuffle").parse({}, where)
            self._order(
                StepSpec("order", (("shuffle", shuffle),), spec.where, spec.data), line, number
            )
        model = self._model(line, spec.model, where)
        order = line.orders[spec.data]
        rng = line.rng.at("train", name, number)
        lineage = [self._lineage(corpus), self.steps[order.path].fingerprint, model.digest]
        fp = digest(["train", part.fingerprint, lineage, number, rng.key])
        step = self._add(
            "train", name, part, spec.where, fp, line, number, rng=rng,
            inputs=Inputs(corpus=corpus, plan=order, model=model.spec, round=number),
        )  # fmt: skip
        trained = name if spec.named else f"trained in round {number}" if number else "trained"
        checkpoint = model.spec.at(step.path / "checkpoint")
        line.models[trained] = Model(checkpoint, fp, (*model.trained, step.path))
        if not spec.named:
            line.latest = trained

    def _export(self, spec: StepSpec, line: Line, number: int) -> None:
        name, part = spec.parts[0]
        where = f"{spec.where} (export {name})"
        corpus = self._view(line, spec.data, where)
        reads = self._columns(corpus, cast(Any, part).needs, where)
        order = line.orders.get(spec.data)
        parent = self.steps[order.path].fingerprint if order else None
        fp = digest(["export", part.fingerprint, self._lineage(corpus, reads), parent])
        self._add(
            "export", name, part, spec.where, fp, line, number, reads=reads,
            inputs=Inputs(corpus=corpus, plan=order, round=number),
        )  # fmt: skip

    # -- shared --------------------------------------------------------------------------------

    def _add(
        self, verb: str, name: str, part: Part, where: str, fp: str, line: Line, number: int,
        *, inputs: Inputs, reads: Sequence[str] = (), gives: Sequence[str] = (),
        rng: Rng | None = None, budget: Budget | None = None, group: str = "",
    ) -> Step:  # fmt: skip
        kind = type(part).__module__.rpartition(".")[2]
        path = self.out / "steps" / f"{kind}-{fp[:8]}"
        known = self.steps.get(path)
        if known is None:
            known = Step(
                verb, name, part, where, path, fp, inputs, tuple(reads), tuple(gives),
                rng or line.rng, line.name, line.repeat, number, budget, group,
            )  # fmt: skip
            self.steps[path] = known
        assert known.fingerprint == fp, f"two steps share the directory {path}"
        return known

    def _lineage(self, corpus: Corpus, columns: Iterable[str] = ()) -> str:
        masks = [(self.steps[m.path].fingerprint, m.want) for m in corpus.masks]
        beside = [
            (c, self.steps[corpus.columns[c][0]].fingerprint, corpus.columns[c][1])
            for c in columns
            if c in corpus.columns
        ]
        return digest([self.steps[corpus.base].fingerprint, corpus.holdout, masks, beside])

    def _columns(self, corpus: Corpus, wanted: Iterable[str], where: str) -> tuple[str, ...]:
        known = [*BASE, *corpus.columns]
        for name in wanted:
            if name not in known:
                raise RecipeError(
                    f"no earlier step gives the column {name!r}{nearest(name, known)}", where=where
                )
        return tuple(dict.fromkeys(wanted))

    def _view(self, line: Line, name: str, where: str) -> Corpus:
        if name not in line.views:
            raise RecipeError(f"no data set {name!r}{nearest(name, line.views)}", where=where)
        return line.views[name]

    def _model(self, line: Line, name: str, where: str) -> Model:
        wanted = line.latest if name == "latest" else name
        if wanted not in line.models:
            if wanted == "init":
                raise RecipeError("needs a model: give the recipe a `model:`", where=where)
            raise RecipeError(f"no model {name!r}{nearest(name, line.models)}", where=where)
        return line.models[wanted]
