"""Recipe: what a user writes, as typed steps. Reading it checks words; planning checks sense.

    name, seed          text, integer
    data                the reader of the corpus: `{read: jsonl, paths: [...]}`
    datasets            further data sets by name, read the same way
    model, models       the model that is trained, and further ones by name
    steps               a list of `{<verb>: <part>, ...fields}`
    rounds              `{count, consume, steps}`: steps repeated, each round from what is left
    evidence            `{against, data, repeats}`: baselines at equal tokens, on its holdout
    report              whether the run ends with a page

Beside the fields of its part, a step may carry `as` (its name in columns), `data` (its data set),
`model` (for scores: `latest`, `init` or a named model) and, for trainers, `from` (likewise).
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pydantic
import yaml

from foresift.pipeline.choice import Budget
from foresift.pipeline.errors import RecipeError, nearest
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.nouns import Selector
from foresift.pipeline.parts import ONLINE, VERBS, Part, find

if TYPE_CHECKING:
    from foresift.pipeline.nouns import Progress
    from foresift.pipeline.plan import Plan
    from foresift.pipeline.run import Run

#: keys a step may carry besides verb and fields -> the verbs that know them
_EXTRAS = {
    "as": tuple(VERBS),
    "data": ("score", "dedup", "select", "order", "train", "export"),
    "model": ("score",),
    "from": ("train",),
    "budget": ("select",),
}


@dataclass(frozen=True)
class StepSpec:
    """One step as written: a verb, its parts, and what it is applied to."""

    verb: str
    parts: tuple[tuple[str, Part], ...]
    """(name in columns, part); several only for `score`."""
    where: str
    data: str = "data"
    model: str = "latest"
    budget: Budget | None = None
    named: bool = False
    """Whether the recipe gave the name with `as`."""


@dataclass(frozen=True, kw_only=True)
class Rounds(Part):
    """Steps that repeat: score, select, order, train; then again from what is left."""

    count: int = 1
    """How many rounds."""
    consume: bool = True
    """Whether a document chosen in one round leaves the pool of the later ones."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """The steps of a round."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("count must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Evidence(Part):
    """Baselines trained beside the selection at equal tokens, and where all are measured."""

    against: list[str] = field(default_factory=lambda: ["random", "length_matched_random"])
    """Selectors that take the place of the recipe's own, with the same budget."""
    data: str = "data"
    """The data set whose holdout measures every model."""
    repeats: int = 1
    """How often everything is trained, each time from other draws and other initial weights."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError("repeats must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Recipe(Part):
    """Typed steps with a seed."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(
        extra="forbid", arbitrary_types_allowed=True
    )
    name: str = "recipe"
    """A word for the run directory."""
    seed: int = 0
    """The one seed everything random derives from."""
    data: dict[str, Any]
    """The reader of the corpus."""
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further data sets by name."""
    model: dict[str, Any] | None = None
    """The model that scores and is trained."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further models by name."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Steps before the rounds."""
    rounds: dict[str, Any] | None = None
    """Steps that repeat."""
    evidence: dict[str, Any] | None = None
    """Baselines to train beside the selection."""
    report: bool = True
    """Whether the run writes `report/index.html`."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/\\\x00-\x1f]{1,80}", self.name):
            raise ValueError("name becomes a folder: up to 80 characters without slashes")

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a YAML file and apply `key.path=value` overrides."""
        path = Path(path)
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"cannot be read: {error.strerror}", where=str(path)) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(f"is not YAML: {error}", where=str(path)) from error
        if not isinstance(raw, dict):
            raise RecipeError("must be a mapping with `data` and `steps`", where=str(path))
        raw.setdefault("name", path.stem)
        for text in overrides:
            override(raw, text)
        return cls.parse(raw, path.name)

    def plan(self, out: str | Path = "out") -> Plan:
        """Resolve into steps under `out`; every mistake that can be known now is an error now."""
        from foresift.pipeline.planner import make_plan

        return make_plan(self, Path(out))

    def run(
        self,
        out: str | Path = "out",
        engine: str = "auto",
        workers: int = 0,
        progress: Progress | None = None,
    ) -> Run:
        """Plan and carry out; steps that are done already are not done again."""
        from foresift.pipeline.engines import open_engine
        from foresift.pipeline.nouns import silent
        from foresift.pipeline.run import run

        plan = self.plan(out)
        with open_engine(engine, workers) as chosen:
            return run(plan, chosen, progress or silent)

    def raw(self) -> dict[str, Any]:
        """The recipe as plain values, ready for YAML."""
        return {k: copy.deepcopy(v) for k, v in self.settings().items() if v not in (None, {}, [])}

    def readers(self) -> dict[str, StepSpec]:
        """Data set name -> its read step."""
        found = {"data": step_of({**self.data}, "data", ("read",))}
        for name, fields in self.datasets.items():
            found[name] = step_of({**fields}, f"datasets.{name}", ("read",))
        return found

    def model_specs(self) -> dict[str, ModelSpec]:
        """Model name -> specification; the main one is called `init`."""
        found = {n: ModelSpec.parse(m, f"models.{n}") for n, m in self.models.items()}
        if self.model is not None:
            found["init"] = ModelSpec.parse(self.model, "model")
        return found

    def step_specs(self) -> list[StepSpec]:
        """The steps before the rounds."""
        return [step_of(dict(s), f"steps[{i}]") for i, s in enumerate(self.steps)]

    def round_specs(self) -> tuple[Rounds, list[StepSpec]]:
        """The rounds and the steps in them."""
        rounds = Rounds.parse(self.rounds or {}, "rounds")
        places = enumerate(rounds.steps)
        return rounds, [step_of(dict(s), f"rounds.steps[{i}]") for i, s in places]

    def evidence_spec(self) -> Evidence | None:
        """The baselines asked for, if any."""
        return None if self.evidence is None else Evidence.parse(self.evidence, "evidence")


def override(raw: dict[str, Any], text: str) -> None:
    """Apply one `rounds.count=1` or `steps.0.threshold=0.7` to a raw recipe."""
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError("an override is written key=value", where=text)
    *path, last = key.split(".")
    place: Any = raw
    for name in path:
        place = _child(place, name, text)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value is not YAML: {error}", where=text) from error
    if isinstance(place, list):
        place[_position(place, last, text)] = parsed
    else:
        place[last] = parsed


def _child(place: Any, name: str, where: str) -> Any:
    if isinstance(place, list):
        return place[_position(place, name, where)]
    if not isinstance(place, dict):
        raise RecipeError(f"nothing below {place!r}", where=where)
    return place.setdefault(name, {})


def _position(place: list[Any], name: str, where: str) -> int:
    if not name.isdigit() or int(name) >= len(place):
        raise RecipeError(f"no item {name!r} in a list of {len(place)}", where=where)
    return int(name)


def step_of(fields: dict[str, Any], where: str, verbs: Sequence[str] = ()) -> StepSpec:
    """Read one step: exactly one verb, its part or parts, their fields, and the extras."""
    allowed = verbs or [v for v in VERBS if v != "read" and v not in ONLINE]
    given = [k for k in fields if k in allowed]
    if len(given) != 1:
        unknown = next((str(k) for k in fields if k not in _EXTRAS), "")
        hint = nearest(unknown, allowed) if unknown and not given else f" (verbs: {allowed})"
        what = "no verb" if not given else f"{len(given)} verbs {given}"
        raise RecipeError(f"a step has exactly one verb; {what} here{hint}", where=where)
    verb = given[0]
    value = fields.pop(verb)
    extras = _extras(fields, verb, where)
    if isinstance(value, list):
        if verb != "score":
            raise RecipeError(f"{verb} takes one part, got {value!r}", where=where)
        if "as" in extras:
            raise RecipeError("`as` names a single part; this step has several", where=where)
        own = {n: fields.pop(_short(n), None) or {} for n in map(str, value)}
        parts = tuple((_short(n), _part(verb, n, each, where)) for n, each in own.items())
        if fields:
            name = str(next(iter(fields)))
            hint = nearest(name, [_short(n) for n in own])
            raise RecipeError(f"no part {name!r} in this step{hint}", where=f"{where} ({verb})")
    else:
        part = _part(verb, value, fields, where)
        parts = ((str(extras.get("as") or _short(value)), part),)
    budget = None
    if "budget" in extras:
        budget = Budget.parse(extras["budget"], f"{where} ({verb} {value}).budget")
    chooser = parts[0][1]
    if isinstance(chooser, Selector) and chooser.budgeted and budget is None:
        raise RecipeError(
            "needs a `budget`, such as '20%' or '1B tokens'", where=f"{where} ({verb} {value})"
        )
    return StepSpec(
        verb=verb,
        parts=parts,
        where=where,
        data=str(extras.get("data", "data")),
        model=str(extras.get("model", extras.get("from", "latest"))),
        budget=budget,
        named="as" in extras,
    )


def _extras(fields: dict[str, Any], verb: str, where: str) -> dict[str, Any]:
    return {k: fields.pop(k) for k, verbs in _EXTRAS.items() if k in fields and verb in verbs}


def _part(verb: str, name: Any, fields: Mapping[str, Any], where: str) -> Part:
    kind = find(verb, name, where)
    if not isinstance(fields, Mapping):
        raise RecipeError(f"fields of {name} must be a mapping, got {fields!r}", where=where)
    place = f"{where} ({verb} {_short(name)})"
    known = [f.name for f in dataclasses.fields(kind)]
    known += [extra for extra, verbs in _EXTRAS.items() if verb in verbs and extra not in known]
    for field_name in fields:
        if field_name not in known:
            raise RecipeError(
                f"no field {field_name!r}{nearest(str(field_name), known)}", where=place
            )
    return kind.parse(fields, place)


def _short(name: str) -> str:
    """`their.module:Class` is called `class` in columns; a part on disk by its file name."""
    return name.rpartition(":")[2].lower() if ":" in name else name
