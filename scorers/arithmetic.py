"""Wrong sums in a chain of thought: each equation is worked out again, without a model.

    noise    wrong equations, and a wrong answer / all that could be checked, 0 where nothing could
    first    step with the first wrong equation, from 0; -1: none             utility = -noise
    static   a wrong equation whose result nothing after it uses, or whose right value is used
    dynamic  a wrong equation whose result is carried on: into later equations, or as the answer
    answer   whether the last number is what the question's own expression is worth; null where the
             question is none (`what is 31 + 58`, `((2 - 3) * 4) =`)

Static noise breaks one line of a trace (a digit was changed, a false fact put in), dynamic noise
goes through the rest, which is then consistent and wrong; models learn much worse from the latter
(TInt). A step is a line, or a sentence where there is one line (`by`). Findings: `static` and
`dynamic` with the characters of the equation and the value of its left side; `answer` with those of
the last number, and what it should be.

What an equation is, and when it holds, stands in `_steps_equations.py`: letters keep the values
that they were given (so a trace that contradicts its own running computation is found), rounding
is allowed, and a question about base b makes unmarked sums sums of that base. On a plain text all
of it is the trace. Wrong reasoning with right sums is not seen.

Cost: 0.7 MB/s on one core. Source: TInt (arXiv 2402.04004) for the kinds of noise; NoRa (arXiv
2410.23856) for the base.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import Arrays, Scorer
from foresift.pipeline.tables import Column
from foresift.scorers._steps import By, Trace, step_of, steps, traces
from foresift.scorers._steps_equations import BASE, Equation, asked, equations, number


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Scorer):
    """Equations of a chain of thought that do not hold, and whether errors are carried on."""

    by: By = "auto"
    """Steps are every `line`, `sentence` or `blank_line` (paragraph), or lines else sentences."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "-noise", "higher"),
        "noise": Column(pa.float32(), "share of what was checked, 0 to 1", "lower"),
        "equations": Column(pa.int32(), "equations that were read"),
        "static": Column(pa.int32(), "wrong equations that nothing builds on", "lower"),
        "dynamic": Column(pa.int32(), "wrong equations that are carried on", "lower"),
        "first": Column(pa.int32(), "step from 0, -1: none is wrong"),
        "answer": Column(pa.bool_(), "whether the answer is right", "higher"),
        "findings": FOUND,
    }

    def score(self, batch: pa.Table) -> Arrays:
        findings = Findings(batch.num_rows)
        rows: list[dict[str, Any]] = []
        for row, trace in enumerate(traces(batch)):
            found = _Checked.of(trace)
            rows.append(found.numbers(self.by, trace.text))
            for equation, carried in found.wrong:
                findings.add(
                    row, "dynamic" if carried else "static", trace.start + equation.start,
                    trace.start + equation.stop, equation.left,
                )  # fmt: skip
            if found.right is False:
                start, stop = found.place
                findings.add(row, "answer", trace.start + start, trace.start + stop, found.due)
        plain = {n: [r[n] for r in rows] for n in self.columns if n not in ("findings", "utility")}
        noise = np.array(plain["noise"], dtype=np.float32)
        return {**plain, "noise": noise, "utility": -noise, "findings": findings.array()}


@dataclass(frozen=True)
class _Checked:
    """A trace worked out again."""

    equations: Sequence[Equation]
    wrong: Sequence[tuple[Equation, bool]]
    """Equations that do not hold, and whether their results are carried on."""
    right: bool | None
    place: tuple[int, int]
    due: float

    @classmethod
    def of(cls, trace: Trace) -> _Checked:
        base = _base(trace)
        found = list(equations(trace.text, base))
        due = asked(trace.before, base) if trace.before else None
        needed = due is not None or not all(e.holds for e in found)
        last = number(trace.text, base) if needed else None
        given, end = (math.nan, -1) if last is None else (last[0], last[1][0])
        uses = _Uses(found)
        wrong = [
            (e, uses.carried(k, given if end >= e.stop else math.nan))
            for k, e in enumerate(found)
            if not e.holds
        ]
        if due is None or last is None:
            return cls(found, wrong, None, (0, 0), math.nan)
        right = abs(due - given) <= 1e-6 * max(1.0, abs(due))
        return cls(found, wrong, right, last[1], due)

    def numbers(self, by: By, text: str) -> dict[str, Any]:
        carried = sum(c for _, c in self.wrong)
        checked = len(self.equations) + (self.right is not None)
        first = -1
        if self.wrong:
            first = max(0, step_of(self.wrong[0][0].start, steps(text, by)))
        return {
            "noise": (len(self.wrong) + (self.right is False)) / max(1, checked),
            "equations": len(self.equations), "static": len(self.wrong) - carried,
            "dynamic": carried, "first": first, "answer": self.right,
        }  # fmt: skip


def _base(trace: Trace) -> int:
    """The base that the question, or the first words of a plain text, speak of; else 10."""
    said = BASE.search(trace.text if trace.before is None else trace.before)
    base = int(said.group(1)) if said else 10
    return base if 2 <= base <= 10 else 10


class _Uses:
    """Which values equations build on, kept so that any number of wrong ones is soon told."""

    def __init__(self, found: Sequence[Equation]) -> None:
        self.found = found
        self.last = {x: k for k, e in enumerate(found) for x in e.operands if not math.isnan(x)}
        self.values = sorted(self.last)

    def carried(self, number: int, answer: float) -> bool:
        """Whether the stated value is what the rest builds on, and the right one is not."""
        wrong = self.found[number]
        stated = self._later(number, wrong.right) or _near(answer, wrong.right)
        return stated and not (self._later(number, wrong.left) or _near(answer, wrong.left))

    def _later(self, number: int, value: float) -> bool:
        """Whether an equation behind this one uses a value, or goes on from it."""
        if math.isnan(value):
            return False
        place, stop = number + 1, self.found[number].stop
        while place < len(self.found) and self.found[place].start <= stop:
            if _near(self.found[place].left, value):
                return True
            place += 1
        margin = 2e-9 * max(1.0, abs(value))
        first = bisect.bisect_left(self.values, value - margin)
        behind = bisect.bisect_right(self.values, value + margin)
        near = (x for x in self.values[first:behind] if _near(x, value))
        return any(self.last[x] > number for x in near)


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-9 * max(1.0, abs(a), abs(b))
