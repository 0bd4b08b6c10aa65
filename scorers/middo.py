"""Middo's diagnosis of instruction data: too hard, too far from everything else, or too poor.

    hard     b_i > mean(b) + m_hard std(b)  and  c_i > mean(c) + m_hard std(c)
    sparse   a_i < mean(a) - m_sparse std(a)
    low      q_i < mean(q) - m_low std(q)

b and c (`before`, `after`) are the mean NLL of the response (nats per token) under the model before
and after it was trained on the data, a is the mean of the `neighbours` largest cosines to other
documents between the vectors of `embedding`, q (`quality`) is a rating. All comparisons are strict;
a row is hard only if both losses say so. An axis whose columns are not given flags nothing. Moments
are over all alive rows with a finite value (an exact copy counts again); the others are counted and
never flagged. Vectors are compared between distinct documents: a copy is no neighbour of itself,
but a near-copy is, so that duplicates are never sparse: dedup first. The search is exact up to
EXACT documents; above, it looks into the PROBES nearest of `cell_count` cells, and the facts say
so.

`std: population` divides by n on every axis. `released` does as the released code: n - 1 on the
axis of ratings alone. (The released code also parses m for the hard axis and then uses 1.)

`hard`, `sparse` and `low` are the masks, `density_cosine` is a, `quality` q, `neighbours` the ids
(hex) of the nearest documents of a sparse row, `utility` = -(number of masks set): 0 needs nothing.
`action` says what the rewriter would do: `simplify` (hard, whether low or not), `improve` (low),
`keep`, and `+add` where the row is sparse and a new one is made from it. The size of the next data
set is

    ours      n + |sparse|                                    a row hard and low is replaced once
    released  n - |hard or low| + |hard| + |low| + |sparse|   it is replaced twice

Warnings: more than half of the rows are flagged; a column says nothing. Cost: n^2 d multiplications
for the exact search (n documents of width d), otherwise a pass. Source: Middo (Tang et al. 2025),
section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.cells import Cells, cell_count, neighbours
from foresift.pipeline.choice import scores
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts, finite, read_json, write_json
from foresift.pipeline.tables import Column
from foresift.pipeline.vectors import Documents, spooled

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
#: documents up to which every pair is compared, and cells looked into above
EXACT, PROBES = 50_000, 8
#: share of flagged rows above which the run warns
MANY = 0.5


@dataclass(frozen=True, kw_only=True)
class Middo(FittedScorer):
    """Which rows are too hard, too isolated or too poor, and what a rewriter should do (Middo)."""

    before: str = ""
    """Column with the loss before training, such as `before.nll`; with `after`. Empty: no axis."""
    after: str = ""
    """Column with the loss after training; with `before`."""
    embedding: str = ""
    """Column of vectors; the paper embeds the instruction alone. Empty: no axis."""
    quality: str = ""
    """Column of ratings, larger is better, such as `judge.utility`. Empty: no axis."""
    m_hard: float = 1.0
    """Deviations above the mean from which a loss is hard."""
    m_sparse: float = 1.0
    """Deviations below the mean from which a row is sparse."""
    m_low: float = 1.0
    """Deviations below the mean from which a rating is low."""
    neighbours: int = 2
    """Nearest other documents whose cosines are averaged."""
    std: Literal["population", "released"] = "population"
    """Divide by n everywhere, or as released: by n - 1 for ratings."""
    seed: int = 0
    """Seed of the cells of the inexact search."""

    reads_content: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "-number of masks", "higher"),
        "hard": Column(pa.bool_(), "mask"),
        "sparse": Column(pa.bool_(), "mask"),
        "low": Column(pa.bool_(), "mask"),
        "density_cosine": Column(pa.float64(), "mean cosine to the nearest"),
        "quality": Column(pa.float64(), "rating", "higher"),
        "action": Column(pa.string(), "what to do"),
        "neighbours": Column(pa.list_(pa.string()), "ids of the nearest, of sparse rows"),
    }

    def __post_init__(self) -> None:
        if bool(self.before) != bool(self.after):
            raise ValueError("before and after come together: a row is hard if both losses say so")
        if not (self.before or self.embedding or self.quality):
            raise ValueError("give at least one of: before and after, embedding, quality")
        for name in ("m_hard", "m_sparse", "m_low"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a number")
        if self.neighbours < 1:
            raise ValueError("neighbours must be at least 1")

    @property
    def needs(self) -> tuple[str, ...]:
        names = (self.before, self.after, self.embedding, self.quality)
        return tuple(dict.fromkeys(name for name in names if name))

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        spool = out / "columns.arrow"
        table = spooled(tables, ["id", *self.needs], spool)
        search = _fit_density(self, table, out) if self.embedding else None
        values = self._values(table, out)
        cuts = {axis: cut(found, *self._rule(axis)) for axis, found in values.items()}
        write_json(out / "cuts.json", finite(cuts))
        spool.unlink(missing_ok=True)
        masks = flags(values, {axis: found["cut"] for axis, found in cuts.items()})
        return _facts(values, cuts, masks, search)

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        values = self._values(batch, out)
        cuts = {a: float(np.nan if c["cut"] is None else c["cut"])
                for a, c in read_json(out / "cuts.json").items()}  # fmt: skip
        masks = flags(values, cuts)
        rows, nothing = batch.num_rows, np.full(batch.num_rows, np.nan)
        found = {m: masks.get(m, np.zeros(rows, dtype=np.bool_)) for m in ("hard", "sparse", "low")}
        return {
            **found,
            "utility": 0.0 - np.sum(list(found.values()), axis=0, dtype=np.float64),
            "density_cosine": values.get("density", nothing),
            "quality": values.get("quality", nothing),
            "action": actions(**found),
            "neighbours": self._near(batch, out, found["sparse"]),
        }

    def _values(self, table: pa.Table, out: Path) -> dict[str, Floats]:
        """The number of each row on each axis that there is."""
        given = {"before": self.before, "after": self.after, "quality": self.quality}
        found = {axis: scores(table, name).copy() for axis, name in given.items() if name}
        if self.embedding:
            found["density"] = read_by_id(out, table["id"])["density"].astype(np.float64)
        for each in found.values():
            each[~np.isfinite(each)] = np.nan
        return found

    def _rule(self, axis: str) -> tuple[float, int]:
        """(signed m, degrees of freedom taken off) of an axis."""
        m = {"quality": -self.m_low, "density": -self.m_sparse}.get(axis, self.m_hard)
        return m, int(self.std == "released" and axis == "quality")

    def _near(self, batch: pa.Table, out: Path, sparse: Bools) -> list[list[str]]:
        if not self.embedding or not batch.num_rows:
            return [[] for _ in range(batch.num_rows)]
        pairs = read_by_id(out, batch["id"])["near"]
        return [hex_ids(row) if hit else [] for row, hit in zip(pairs, sparse, strict=True)]


def cut(values: Floats, m: float, ddof: int) -> dict[str, float]:
    """Mean, deviation and mean + m std of the values that are there; NaN where there are none."""
    some = np.sort(values[np.isfinite(values)])  # sorted: the sums do not depend on row order
    if len(some) <= ddof:
        return {"mean": math.nan, "std": math.nan, "cut": math.nan}
    if some[0] == some[-1]:  # rounding must not flag rows that are all alike
        return {"mean": float(some[0]), "std": 0.0, "cut": float(some[0])}
    mean, std = float(some.mean()), float(some.std(ddof=ddof))
    return {"mean": mean, "std": std, "cut": mean + m * std}


def flags(values: Mapping[str, Floats], cuts: Mapping[str, float]) -> dict[str, Bools]:
    """The masks of the axes that there are; NaN is never flagged."""
    found: dict[str, Bools] = {}
    if "before" in values:
        found["hard"] = (values["before"] > cuts["before"]) & (values["after"] > cuts["after"])
    if "density" in values:
        found["sparse"] = values["density"] < cuts["density"]
    if "quality" in values:
        found["low"] = values["quality"] < cuts["quality"]
    return found


def actions(hard: Bools, low: Bools, sparse: Bools) -> list[str]:
    """What is to be done with each row."""
    words = np.where(hard, "simplify", np.where(low, "improve", "keep"))
    return [f"{w}+add" if s else str(w) for w, s in zip(words.tolist(), sparse, strict=True)]


def hex_ids(words: npt.NDArray[np.int64]) -> list[str]:
    """Ids as people read them from pairs of stored words; -1, -1 is none."""
    pairs = words.reshape(-1, 2)
    return [p.astype("<i8").tobytes().hex() for p in pairs if not (p == -1).all()]


def _fit_density(part: Middo, table: pa.Table, out: Path) -> Facts:
    """Store the density and the nearest ids of each document; how they were searched."""
    documents = Documents.of(table, part.embedding)
    m, cells = len(documents), None
    if m > EXACT:
        cells = Cells.fit(documents, cell_count(m), Rng(part.seed).at("middo"), part.embedding)
    near, cosines = neighbours(documents, part.neighbours, cells, PROBES)
    have = ~np.isnan(cosines)
    sums = np.where(have, cosines, 0).sum(axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        density = sums / have.sum(axis=1)
    signed = np.ascontiguousarray(documents.words).view(np.int64).reshape(-1, 2)
    ids = np.full((m, part.neighbours, 2), -1, dtype=np.int64)
    ids[near >= 0] = signed[near[near >= 0]]
    write_by_id(
        out, documents.words, {"density": density, "near": ids.reshape(m, 2 * part.neighbours)}
    )
    vectors = documents.vectors
    return {
        "documents": m,
        "search": "exact" if cells is None else f"{PROBES} nearest of {len(cells)} cells",
        "no_vector": vectors.missing + vectors.zero,
    }


def _facts(
    values: Mapping[str, Floats], cuts: Mapping[str, Mapping[str, float]],
    masks: Mapping[str, Bools], search: Facts | None,
) -> Facts:  # fmt: skip
    """Counts, cuts, and the size of the data set that the rewriter would make."""
    n = len(next(iter(values.values())))
    none = np.zeros(n, dtype=np.bool_)
    hard, low, sparse = (masks.get(name, none) for name in ("hard", "low", "sparse"))
    counts = {
        **{name: int(mask.sum()) for name, mask in masks.items()},
        "both": int((hard & low).sum()),
        "any": int((hard | low | sparse).sum()),
    }
    h, lo, s = (int(mask.sum()) for mask in (hard, low, sparse))
    size = {"now": n, "ours": n + s, "released": n - int((hard | low).sum()) + h + lo + s}
    missing = {axis: int(np.isnan(found).sum()) for axis, found in values.items()}
    told: Facts = {"flagged": counts, "size": size, "cuts": cuts, "missing": missing}
    if search:
        told["density"] = search
    facts: Facts = finite({**told, "warnings": _warnings(n, counts, missing, cuts)})
    return facts


def _warnings(
    n: int, counts: Mapping[str, int], missing: Mapping[str, int],
    cuts: Mapping[str, Mapping[str, float]],
) -> list[str]:  # fmt: skip
    many = []
    if counts["any"] > MANY * n:
        many.append(f"{counts['any']} of {n} rows are flagged, more than half; raise m")
    for axis, gaps in missing.items():
        if n and gaps == n:
            many.append(f"no row has a number on the axis of {axis}: it flags nothing")
        elif n and cuts[axis]["std"] == 0:
            many.append(f"all rows have the same number on the axis of {axis}: it flags nothing")
        elif gaps:
            many.append(f"{gaps} of {n} rows have no number on the axis of {axis}")
    return many


__all__ = ["Middo", "actions", "cut", "flags", "hex_ids"]
