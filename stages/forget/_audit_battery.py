"""The attacks of an audit: what each does to a model or a question, and what is then measured.

none         everything, as it stands
relearn_*    steps on a relearn set of the plan; its own rows are not measured
relearn_forget   steps on half of forget, and the other half is measured; then the reverse. Near
             copies (the lineage's cluster) stand on one side: knowledge that was only hidden comes
             back with that of its kind, that of a model that never had it does not
int8, int4   weights there and back
trigger      strings that begin several documents, before the forgotten texts; each text counts
             under the trigger that brings back most (lowest loss)
rna          words of the request before what must be kept: retain must not suffer
refusal      shares of refusals over paraphrases of the questions on forget
hierarchy    the key path of a document, level by level, before it; as trigger, the best level
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foresift.pipeline.audit import attacks
from foresift.pipeline.audit.token_stats import TokenStats
from foresift.pipeline.errors import DataError, nearest
from foresift.stages.forget._audit_measures import (
    Row,
    Rows,
    Subject,
    Values,
    basic,
    content,
    draw_of,
    pooled,
    token_measures,
    whole,
)
from foresift.stages.forget.folder import RELEARN

Sets = Mapping[str, Rows]
NONE, OWN = "none", "relearn_forget"
ATTACKS = (OWN, *RELEARN, "int8", "int4", "trigger", "rna", "refusal", "hierarchy")
GROUPS = {"relearn": (OWN, *RELEARN), "quantise": ("int8", "int4")}
#: strings and words that are tried
TRIED = 3


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard the attacks try."""

    steps: int = 20
    """Optimizer steps of relearning."""
    lr: float = 1e-4
    """Learning rate of relearning."""
    batch: int = 8
    """Texts of one step."""


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The attacks that some names mean, in their order; RecipeError for others."""
    every = {name: (name,) for name in ATTACKS} | GROUPS | {"all": ATTACKS, NONE: ()}
    for name in names:
        if name not in every:
            raise DataError(f"no attack {name!r}{nearest(name, every)}", where="--attacks")
    wanted = {attack for name in names for attack in every[name]}
    return tuple(attack for attack in ATTACKS if attack in wanted)


@dataclass(frozen=True)
class Battery:
    """The attacks that a plan allows."""

    sets: Sets
    words: Sequence[str]
    """Words that carry the request."""
    paths: Mapping[str, Sequence[str]]
    """Key path of each forgotten document, by id."""
    effort: Effort
    clusters: Mapping[str, Any] = field(default_factory=dict)
    """What each forgotten document is a near copy of, by id."""

    def missing(self, attack: str) -> str:
        """Why an attack cannot be made; empty where it can."""
        reasons = {
            **{name: "" if self.sets[name] else f"{name}.jsonl is empty" for name in RELEARN},
            OWN: "" if all(map(len, self.halves)) else "forget has no two texts that are no copies",
            "trigger": "" if self.triggers else "no string begins two documents",
            "rna": "" if self.words and self.sets["retain"] else "no words or nothing to retain",
            "refusal": "" if self.asked else "no question on forget",
            "hierarchy": "" if any(self.paths.values()) else "no key path in the lineage",
        }
        return reasons.get(attack, "")

    @property
    def groups(self) -> list[str]:
        """What each row of forget is a near copy of: its cluster, else itself."""
        found = []
        for row in self.sets["forget"]:
            key = str(row.get("id", content(row)))
            cluster = self.clusters.get(key)
            found.append(f"id {key}" if cluster is None else f"cluster {cluster}")
        return found

    @property
    def halves(self) -> tuple[list[int], list[int]]:
        """Places of forget in two halves; clusters go, by a draw, to the smaller one, whole."""
        members: dict[str, list[int]] = {}
        for place, group in enumerate(self.groups):
            members.setdefault(group, []).append(place)
        found: tuple[list[int], list[int]] = ([], [])
        for group in sorted(members, key=lambda g: (draw_of(g), g)):
            min(found, key=len).extend(members[group])
        return sorted(found[0]), sorted(found[1])

    @property
    def triggers(self) -> list[str]:
        """Strings that begin several documents, in forget first."""
        found: list[str] = []
        for names in (("forget",), ("forget", "retain", "holdout")):
            texts = [content(row) for name in names for row in self.sets[name]]
            found += [text for text, _ in attacks.initial_strings(texts)]
        return list(dict.fromkeys(found))[:TRIED]

    @property
    def asked(self) -> list[Row]:
        """Forgotten rows with a question."""
        return [row for row in self.sets["forget"] if row.get("question")]

    def run(self, attack: str, subject: Subject) -> Values:
        """What the model gives under an attack."""
        if attack == NONE:
            return whole(subject, self.sets)
        if attack == OWN:
            return self._relearned_half(subject)
        if attack in RELEARN:
            return self._relearned(attack, subject)
        if attack in ("int8", "int4"):
            model = attacks.quantised(subject.model, int(attack[3:]))
            return basic(_with(subject, model), self.sets, ("forget", "retain", "holdout"))
        plain: dict[str, Callable[[Subject], Values]] = {
            "trigger": self._triggered,
            "rna": self._distracted,
            "refusal": self._refused,
            "hierarchy": self._placed,
        }
        return plain[attack](subject)

    def _relearned(self, attack: str, subject: Subject) -> Values:
        again = self.sets[attack]
        seen = {str(row.get("id")) for row in again}
        rest = {name: [r for r in self.sets[name] if str(r.get("id")) not in seen]
                for name in ("forget", "holdout")}  # fmt: skip
        return basic(self._taught(attack, subject, again), rest, ("forget", "holdout"))

    def _relearned_half(self, subject: Subject) -> Values:
        """Each half after the other; of holdout one row in two stands beside either."""
        forget, holdout = self.sets["forget"], self.sets["holdout"]
        parts, places = [], self.halves
        for side in (0, 1):
            again = [forget[i] for i in places[1 - side]]
            rest = {"forget": [forget[i] for i in places[side]], "holdout": holdout[side::2]}
            parts.append(basic(self._taught(OWN, subject, again), rest, ("forget", "holdout")))
        return pooled(parts, places)

    def _taught(self, attack: str, subject: Subject, again: Rows) -> Subject:
        """The subject after some steps on rows."""
        label = f"{subject.name}: {attack}"
        model = attacks.relearn(
            subject.model,
            subject.tokenizer,
            [content(row) for row in again],
            steps=self.effort.steps,
            lr=self.effort.lr,
            batch=self.effort.batch,
            max_length=subject.limits.max_length,
            told=lambda done, total: subject.told(done, total, label),
        )
        return _with(subject, model)

    def _triggered(self, subject: Subject) -> Values:
        rows = self.sets["forget"]
        return _best([subject.stats(rows, trigger) for trigger in self.triggers])

    def _distracted(self, subject: Subject) -> Values:
        rows = self.sets["retain"]
        each = [token_measures(subject.stats(rows, word)) for word in self.words[:TRIED]]
        names = ("loss", "exact_memorisation")
        return Values({("retain", n): np.mean([m[n] for m in each], axis=0) for n in names})

    def _refused(self, subject: Subject) -> Values:
        rows = self.asked[: subject.limits.decoded]
        wordings = [
            attacks.paraphrased(str(row["question"]), _listed(row.get("paraphrased_question")))
            for row in rows
        ]
        shares = attacks.refusals(subject.model, subject.tokenizer, wordings)
        return Values({("forget", "refusal"): shares})

    def _placed(self, subject: Subject) -> Values:
        rows = [row for row in self.sets["forget"] if self.paths.get(str(row.get("id")))]
        steps = [attacks.contexts(self.paths[str(row["id"])]) for row in rows]
        depth = max(len(each) for each in steps)
        rounds = []
        for level in range(depth):
            here = [each[min(level, len(each) - 1)] for each in steps]
            alike: dict[str, list[int]] = {}
            for number, prefix in enumerate(here):
                alike.setdefault(prefix, []).append(number)
            found: dict[int, TokenStats] = {}
            for prefix, numbers in alike.items():
                told = subject.stats([rows[i] for i in numbers], prefix)
                found |= dict(zip(numbers, told, strict=True))
            rounds.append([found[i] for i in range(len(rows))])
        return _best(rounds)


def _best(rounds: Sequence[Sequence[TokenStats]]) -> Values:
    """Measures of each item where the attacker got most."""
    best = [min(each, key=lambda s: (not np.isfinite(s.loss), s.loss)) for each in zip(*rounds)]  # noqa: B905
    return Values({("forget", name): v for name, v in token_measures(best).items()})


def _with(subject: Subject, model: Any) -> Subject:
    return Subject(model, subject.tokenizer, subject.limits, subject.told, subject.name)


def _listed(value: Any) -> list[str]:
    if not value:
        return []
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]
