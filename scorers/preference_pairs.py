"""Preference pairs that teach something else than the preference: length, sameness, wrong ratios.

    length_ratio  words of the chosen answer / words of the rejected one
    similarity    2 |A n B| / (|A| + |B|), A and B the pairs of neighbouring words, ends included
    margin        reward of the chosen answer less that of the rejected one, if columns have them
    problems      findings of the row                                   utility = -problems

Findings, of the whole row: `length` (|length_ratio - 1| > `unequal`: the pair can be told by its
length), `near_identical` (similarity >= `identical`), `margin` (not above `least`), `missing` (an
answer is empty), `shared_question` (the question also stands under another error type).

Ratios (KnowPO): a pair has a context type (relevant, counterfactual, irrelevant) and an error type,
the way in which its rejected answer is wrong (context ignored, or taken over). Where one error type
prevails, the model learns to make the other. A cell is a pair of both:

    share      the cell's part of its context type       disjoint  the question was given to this
    balanced   whether the row is among the quota of its cell         error type, or has no other

A question that stands under several error types of a context type is given to one of them: in the
order of the questions' hashes each goes to the error type that has the fewest so far, so that two
types share ten questions five to five. Quotas come after that: the first of a cell by id, `cap` of
them (0: as many as the smallest cell of the context type has). A cell that has fewer is said in the
facts (`shortage`) and never filled from another, as are its rows and mean length ratio. Without the
two columns everything is one cell. Select by `balanced` to have the ratios.

Cost: 10 MB/s on one core. Sources: KnowPO (arXiv 2408.03297); MIA-DPO (arXiv 2410.17637) for the
filter by length and sameness.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.labels import numbers
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column, first_copies, id_words
from foresift.scorers._label_samples import as_ids
from foresift.scorers._steps import Trace, traces

Floats = npt.NDArray[np.float64]
_WORD = re.compile(r"\w+|[^\w\s]")
Cell = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class PreferencePairs(FittedScorer):
    """Checks of chosen and rejected answers: length, sameness, margin, ratios of error types."""

    rejected: str
    """Column with the rejected answer."""
    chosen: str = ""
    """Column with the chosen answer; empty: the row's response."""
    chosen_reward: str = ""
    """Column with the reward of the chosen answer, where there is one."""
    rejected_reward: str = ""
    """Column with the reward of the rejected answer."""
    context_type: str = ""
    """Column that says what kind of context the pair has."""
    error_type: str = ""
    """Column that says in which way the rejected answer is wrong."""
    unequal: float = 0.2
    """By how much the ratio of lengths may differ from 1."""
    identical: float = 0.9
    """Similarity from which two answers are the same."""
    least: float = 0.0
    """Margin that a pair must be above."""
    cap: int = 0
    """Pairs of a cell that are in balance; 0: as many as the smallest of its context type has."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "-problems", "higher"),
        "problems": Column(pa.int32(), "findings", "lower"),
        "length_ratio": Column(pa.float32(), "words of chosen / rejected"),
        "similarity": Column(pa.float32(), "0 to 1", "lower"),
        "margin": Column(pa.float32(), "reward", "higher"),
        "share": Column(pa.float32(), "fraction of its context type"),
        "disjoint": Column(pa.bool_(), "whether the question belongs to this error type", "higher"),
        "balanced": Column(pa.bool_(), "whether among the quota of its cell", "higher"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        if bool(self.chosen_reward) != bool(self.rejected_reward):
            raise ValueError("a margin needs chosen_reward and rejected_reward")
        if self.unequal < 0 or not 0 < self.identical <= 1 or self.cap < 0:
            raise ValueError("unequal and cap are not negative, identical is above 0 and at most 1")

    @property
    def needs(self) -> tuple[str, ...]:
        names = (
            self.rejected, self.chosen, self.chosen_reward, self.rejected_reward,
            self.context_type, self.error_type,
        )  # fmt: skip
        return tuple(dict.fromkeys(n for n in names if n))

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        words, cells, questions, ratios = [np.empty((0, 2), dtype=np.uint64)], [], [], [_NONE]
        for table in tables:
            here, pairs = _cells(self, table), self.pairs(table)
            words.append(_keys(table, here, pairs))
            cells += here
            questions += [xxhash.xxh3_64_intdigest(_question(t)) for t in traces(table)]
            ratios.append(_lengths(pairs))
        every, ratio = np.concatenate(words), np.concatenate(ratios)
        order = np.lexsort((every[:, 1], every[:, 0]))
        order = order[first_copies(every[order])]
        cells, questions = [cells[i] for i in order], [questions[i] for i in order]
        own, shared = split(cells, questions)
        kept, wanted = quotas(cells, own, self.cap)
        of_context = Counter(context for context, _ in cells)
        size = Counter(cells)
        share = np.array([size[c] / of_context[c[0]] for c in cells], dtype=np.float64)
        told = {"disjoint": own, "shared": shared, "balanced": kept, "share": share}
        write_by_id(out, every[order], told)
        return _facts(cells, own, kept, wanted, ratio[order])

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        pairs = self.pairs(batch)
        known = read_by_id(out, as_ids(_keys(batch, _cells(self, batch), pairs)))
        lengths, same = _lengths(pairs), np.array([similarity(*p) for p in pairs], dtype=np.float64)
        margin = np.full(len(pairs), np.nan)
        if self.chosen_reward:
            margin = numbers(batch, self.chosen_reward, "rewards") - numbers(
                batch, self.rejected_reward, "rewards"
            )
        empty = np.array([not (a.strip() and b.strip()) for a, b in pairs], dtype=np.bool_)
        findings = Findings(len(pairs))
        found = {
            "length": (~empty & ~(np.abs(lengths - 1) <= self.unequal), lengths),
            "near_identical": (same >= self.identical, same),
            "margin": (margin <= self.least, margin),
            "missing": (empty, np.full(len(pairs), np.nan)),
            "shared_question": (known["shared"], np.full(len(pairs), np.nan)),
        }
        for reason, (which, values) in found.items():
            findings.whole(reason, which, values)
        problems = np.sum([which for which, _ in found.values()], axis=0, dtype=np.int64)
        return {
            "utility": -problems.astype(np.float32), "problems": problems,
            "length_ratio": lengths, "similarity": same, "margin": margin,
            "share": known["share"], "disjoint": known["disjoint"],
            "balanced": known["balanced"], "findings": findings.array(),
        }  # fmt: skip

    def pairs(self, table: pa.Table) -> list[tuple[str, str]]:
        """(chosen, rejected) of each row; a missing one is empty."""
        chosen = _texts(table, self.chosen) if self.chosen else [t.text for t in traces(table)]
        return list(zip(chosen, _texts(table, self.rejected), strict=True))


_NONE = np.empty(0)


def _texts(table: pa.Table, name: str) -> list[str]:
    if not (pa.types.is_string(table[name].type) or pa.types.is_large_string(table[name].type)):
        raise DataError(f"answers are strings, this column is {table[name].type}", where=name)
    return [t or "" for t in table[name].to_pylist()]


def _question(trace: Trace) -> bytes:
    return (trace.text if trace.before is None else trace.before).strip().encode()


def _cells(part: PreferencePairs, table: pa.Table) -> list[Cell]:
    """(context type, error type) of each row."""
    named = [
        [str(v) for v in table[name].to_pylist()] if name else [""] * table.num_rows
        for name in (part.context_type, part.error_type)
    ]
    return list(zip(*named, strict=True))  # type: ignore[arg-type]


def _keys(
    table: pa.Table, cells: Sequence[Cell], pairs: Sequence[tuple[str, str]]
) -> npt.NDArray[np.uint64]:
    """[rows, 2] what a pair is known by: an id is of the question and the chosen answer alone."""
    words = id_words(table["id"]).copy()
    told = (repr((*c, *p)).encode() for c, p in zip(cells, pairs, strict=True))
    words[:, 1] ^= np.fromiter(map(xxhash.xxh3_64_intdigest, told), np.uint64, len(words))
    return words


def _lengths(pairs: Sequence[tuple[str, str]]) -> Floats:
    """Words of the chosen / words of the rejected answer; NaN without any."""
    counts = np.array([[len(a.split()), len(b.split())] for a, b in pairs], dtype=np.float64)
    counts = counts.reshape(-1, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(counts.all(axis=1), counts[:, 0] / counts[:, 1], np.nan)
    return found


def similarity(one: str, other: str) -> float:
    """Dice coefficient of neighbouring words; NaN where an answer has none."""
    a, b = (_WORD.findall(text.lower()) for text in (one, other))
    if not a or not b:
        return float("nan")
    left, right = (Counter(pairwise(["", *words, ""])) for words in (a, b))
    return 2 * (left & right).total() / (left.total() + right.total())


def split(
    cells: Sequence[Cell], questions: Sequence[int]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(whether the row's error type has its question, whether another one had it as well)."""
    types: dict[tuple[str, int], set[str]] = defaultdict(set)
    for (context, error), question in zip(cells, questions, strict=True):
        types[context, question].add(error)
    given: dict[tuple[str, int], str] = {}
    held: Counter[Cell] = Counter()
    for key in sorted(types, key=lambda k: (k[0], len(types[k]) > 1, k[1])):
        error = min(types[key], key=lambda e: (held[key[0], e], e))
        given[key] = error
        held[key[0], error] += 1
    keys = [(c, q) for (c, _), q in zip(cells, questions, strict=True)]
    own = [given[key] == error for key, (_, error) in zip(keys, cells, strict=True)]
    shared = [len(types[key]) > 1 for key in keys]
    return np.array(own, dtype=np.bool_), np.array(shared, dtype=np.bool_)


def quotas(
    cells: Sequence[Cell], own: npt.NDArray[np.bool_], cap: int
) -> tuple[npt.NDArray[np.bool_], dict[Cell, int]]:
    """(which rows are within the quota of their cell, the quota of each cell)."""
    sizes = Counter(c for c, mine in zip(cells, own, strict=True) if mine)
    least: dict[str, int] = {}
    for cell in cells:
        least[cell[0]] = min(least.get(cell[0], len(cells)), sizes[cell])
    wanted = {cell: cap or least[cell[0]] for cell in sorted(set(cells))}
    taken: Counter[Cell] = Counter()
    kept = np.zeros(len(cells), dtype=np.bool_)
    for row in np.flatnonzero(own).tolist():
        kept[row] = taken[cells[row]] < wanted[cells[row]]
        taken[cells[row]] += 1
    return kept, wanted


def _facts(
    cells: Sequence[Cell], own: npt.NDArray[np.bool_], kept: npt.NDArray[np.bool_],
    wanted: Mapping[Cell, int], ratio: Floats,
) -> Facts:  # fmt: skip
    told, warnings = {}, []
    for cell, quota in wanted.items():
        mine = np.array([c == cell for c in cells], dtype=np.bool_)
        name = "/".join(part for part in cell if part) or "all"
        known = ratio[mine & np.isfinite(ratio)]
        short = quota - int(kept[mine].sum())
        told[name] = {
            "pairs": int(mine.sum()), "disjoint": int(own[mine].sum()),
            "balanced": int(kept[mine].sum()), "shortage": short,
            "length_ratio": float(known.mean()) if len(known) else None,
        }  # fmt: skip
        if short:
            warnings.append(f"{name} has {short} pairs fewer than its quota of {quota}")
    return {"cells": told, "warnings": warnings}
