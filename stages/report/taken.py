"""Which documents the page embeds: a sample, and examples of every kind, found in one pass.

    sample    at most SAMPLED documents whose ids have the smallest draws, the holdout left out
    reasons   EACH of the REASONS commonest reasons for which documents left, by draw
    findings  EACH of the FOUND commonest findings, by draw
    ends      the ENDS lowest and the ENDS highest values of every score, equal values by draw

Memory: a shard's columns, and a few places for each reason, finding and score.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.findings import is_findings
from foresift.pipeline.outcome import HOLDOUT
from foresift.stages.report.contents import Contents, Scored
from foresift.stages.report.sample import draws, floats

SAMPLED, EACH, ENDS = 2_000, 5, 5
REASONS, FOUND = 12, 24
PLAN = ("id", "shard", "row", "kept", "reason")
Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
#: (shard, row)
Place = tuple[int, int]


class Least:
    """The rows with the smallest keys seen so far; equal keys by draw, then as they lie."""

    def __init__(self, count: int) -> None:
        self.count, self.best = count, list[tuple[float, float, Place]]()

    def offer(self, number: int, keys: Floats, drawn: Floats, rows: Rows) -> None:
        """Take in rows of a shard; NaN keys are passed over."""
        there = np.flatnonzero(~np.isnan(keys))
        if len(there) > self.count:
            cut = np.partition(keys[there], self.count - 1)[self.count - 1]
            sure, ties = there[keys[there] < cut], there[keys[there] == cut]
            if len(ties) > self.count:
                at = np.partition(drawn[ties], self.count - 1)[self.count - 1]
                ties = ties[drawn[ties] <= at]
            there = np.concatenate([sure, ties])
        found = [(float(keys[i]), float(drawn[i]), (number, int(rows[i]))) for i in there]
        self.best = heapq.nsmallest(self.count, [*self.best, *found])

    @property
    def places(self) -> set[Place]:
        return {place for _, _, place in self.best}


@dataclass
class Taken:
    """What one pass finds: the sample, and rows for every reason, finding and end of a score."""

    sample: Least = field(default_factory=lambda: Least(SAMPLED))
    reasons: dict[str, Least] = field(default_factory=dict)
    found: dict[str, Least] = field(default_factory=dict)
    ends: dict[tuple[str, int], Least] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """Rows of every reason and finding."""
    population: int = 0

    @property
    def places(self) -> list[Place]:
        best = [*_commonest(self.reasons, self.counts, REASONS), *self.ends.values()]
        best += _commonest(self.found, self.counts, FOUND)
        return sorted(set().union(self.sample.places, *(b.places for b in best)))


def _commonest(least: dict[str, Least], counts: Counter[str], most: int) -> list[Least]:
    ranked = sorted(least, key=lambda name: (-counts[name], name))
    return [least[name] for name in ranked[:most]]


def findings_of(contents: Contents) -> list[Scored]:
    """The columns of findings."""
    return [c for c in contents.columns if is_findings(c.dtype)]


def take(contents: Contents, scores: Sequence[Scored]) -> Taken:
    """One pass over the plan, the scores and the findings."""
    taken, found = Taken(), findings_of(contents)
    wanted = ["holdout", *(c.name for c in scores), *(c.name for c in found)]
    for shard, plan in contents.plan(PLAN):
        table = shard.load(wanted)
        pool = ~np.asarray(table["holdout"])
        drawn, rows = draws(plan["id"]), np.asarray(plan["row"])
        number = plan["shard"][0].as_py()
        taken.population += int(pool.sum())
        keys = np.where(pool, drawn, np.nan)
        taken.sample.offer(number, keys, drawn, rows)
        for name, mask in _left(plan):
            taken.counts[name] += int(mask.sum())
            least = taken.reasons.setdefault(name, Least(EACH))
            least.offer(number, np.where(mask, drawn, np.nan), drawn, rows)
        for column in found:
            for name, mine in _rows_of_findings(table[column.name], column.step):
                mine = mine[pool[mine]]
                taken.counts[name] += len(mine)
                least = taken.found.setdefault(name, Least(EACH))
                least.offer(number, drawn[mine], drawn[mine], rows[mine])
        for column in scores:
            values = np.where(pool, floats(table[column.name]), np.nan)
            for sign in (1, -1):
                least = taken.ends.setdefault((column.name, sign), Least(ENDS))
                least.offer(number, sign * values, drawn, rows)
    return taken


def _left(plan: pa.Table) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """(reason, rows that left for it) of a shard."""
    gone = ~np.asarray(plan["kept"])
    reasons = plan["reason"].fill_null("")
    for name in pc.unique(reasons.filter(pa.array(gone))).to_pylist():
        if name and name != HOLDOUT:
            yield name, gone & np.asarray(pc.equal(reasons, name))


def _rows_of_findings(column: pa.ChunkedArray, step: str) -> Iterator[tuple[str, Rows]]:
    """(finding, rows that have it) of a shard."""
    whole = column.combine_chunks()
    flat = pc.list_flatten(whole).field("reason").dictionary_encode()
    parents = np.asarray(pc.list_parent_indices(whole)).astype(np.int64)
    codes = np.asarray(flat.indices)
    for code, name in enumerate(flat.dictionary.to_pylist()):
        yield f"{step}: {name}", np.unique(parents[codes == code])
