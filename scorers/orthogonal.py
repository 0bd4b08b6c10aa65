"""Orthogonal axes of several scores, so that "best" can be asked of each without asking twice.

    y_i = Q_K' z_i / sqrt(l)       z: the standardised scores `by` of document i, signs unified
    axis_k = y_ik                  regressor: none      the document's own scores, projected
    axis_k = f_k(text_i)           regressor: ridge     y regressed on the text, for all documents

`_axes.py` defines Q, l and the rule of signs: an axis is in units of its standard deviation on the
sample, larger = better by the columns in `quality`. Documents with all of `by` (say those that a
judge has scored) are the sample, at most `sample` of them, distinct, drawn by a hash of the id;
others are counted. f is one ridge with K outputs over hashed word unigrams and bigrams beside the
logarithm of the number of words (`pipeline/lm/regress.py`, `pipeline/words.py`), so the corpus is
read once for all axes.

`best` is the number of the axis on which a document stands highest above the sample's mean, in
standard deviations of that axis' emitted values; equal ones go to the smaller number; 0: no score.
Scores of different axes are compared by ranks: select with `per_axis_top`, whose `tails` can turn
an axis that points the wrong way.

**Unsigned axes** (the sum of loadings over `quality` is within `unsigned_below` of 0) are refused,
unless `unsigned` says `both` (axis_k = |y_k|: either end is good) or `keep` (as the largest loading
points). Axes are uncorrelated on the sample, **not independent**: among the facts is the overlap of
their top 5 % and 10 %, over what independent axes have (1 = independent), for the axes themselves
and for a fifth of the sample that a second fit to the others predicts. A regressor shrinks to the
mean, so the two differ; `r2` out of fold says how much of each axis the text tells, and below 0.1 a
warning does.

Measured (`benchmarks/orthogonal.py`: 8,000 documents, eleven cheap scores, overlap over p at p of
0.05 and 0.1): axes 0.55 with `standard`, where heavy tails exclude one another, 0.93 with
`rank_gauss`; predicted ones 0.22 and 1.20. An end of a cheap score is often junk, and so is a union
of such tops (34 % of it, of the pool 15 %): set a floor first.

Files: axes.safetensors (mean, scale, knots, loadings, variances), axes.json, ridge.safetensors.
Errors: DataError for a constant score, for more axes than the scores have directions, for fewer
documents than axes (20 for a ridge). NaN: without words (ridge), without one of `by` (none). Cost:
n D^2 and two ridge fits (`regress.py`; 1,500 documents: 3 s); to score, 13 MB of text a second.
Source: ODiS (arXiv 2510.18909), with one ridge where it has a RoBERTa for each axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import scores
from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.regress import Ridge, ngram_features
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts, finite, read_json, write_json
from foresift.pipeline.tables import Column, content_columns, content_texts, first_copies, id_words
from foresift.pipeline.words import hashed_words
from foresift.scorers._axes import SIGN, Axes, Floats, Scale, overlap

SHARES = (0.05, 0.1)
LEARNABLE = 0.1
#: of the sample, the share that is predicted by a fit to the rest, for the overlap
_CHECKED = 5


class _ByAxis:
    """The columns of an instance by its number of axes; of the class, those of the default."""

    def __get__(self, part: Orthogonal | None, kind: type) -> dict[str, Column]:
        about = Column(pa.float32(), "standard deviations of the axis", "higher")
        count = 4 if part is None else part.axes
        found = {f"axis_{k}": about for k in range(1, count + 1)}
        return {**found, "best": Column(pa.int8(), "number of an axis, 0 = none")}


@dataclass(frozen=True, kw_only=True)
class Orthogonal(FittedScorer):
    """Uncorrelated axes of several scores, learned on a sample and predicted from text (ODiS)."""

    columns: ClassVar[Mapping[str, Column]] = cast(Any, _ByAxis())

    by: tuple[str, ...]
    """Columns of raw scores, such as `surface.log_length` or a judge's; null or NaN: not judged."""
    axes: int = 4
    """How many axes, and columns axis_1, axis_2, ..., of largest variance first."""
    lower: tuple[str, ...] = ()
    """Those of `by` where smaller is better; they are negated first."""
    quality: tuple[str, ...] = ()
    """Those of `by` that tell which end of an axis is good; none: all of them."""
    unsigned: Literal["refuse", "both", "keep"] = "refuse"
    """What becomes of an axis whose good end `quality` does not tell: an error, both ends, or as
    its largest loading points."""
    unsigned_below: float = SIGN
    """Size of the sum of loadings over `quality` under which an axis is unsigned. Sums reach the
    root of the number of columns; one near this bound may fall on either side in another sample."""
    scale: Scale = "rank_gauss"
    """`standard`: mean and deviation, as in the paper. `rank_gauss`: normal quantiles of ranks
    first, against outliers: then the tops of axes overlap about as independent ones do."""
    regressor: Literal["ridge", "none"] = "ridge"
    """`ridge`: predict the axes from the text, for all documents. `none`: project the scores that a
    document has itself."""
    sample: int = 20_000
    """Documents to fit to, at most; more than 4,000 are fitted iteratively."""
    seed: int = 0
    """Which documents are in the sample."""

    def __post_init__(self) -> None:
        if len(set(self.by)) < len(self.by) or len(self.by) < 2:
            raise ValueError("by: at least two columns, each once")
        if not 1 <= self.axes <= min(len(self.by), 100):
            raise ValueError(f"axes: from 1 to the number of scores, {len(self.by)}")
        for name in ("lower", "quality"):
            strange = [c for c in getattr(self, name) if c not in self.by]
            if strange:
                raise ValueError(f"{name}: {strange[0]!r} is not among `by`")
        if not self.unsigned_below >= 0:
            raise ValueError("unsigned_below: at least 0")
        if self.sample < 20:
            raise ValueError("sample: at least 20 documents")

    @property
    def needs(self) -> tuple[str, ...]:
        return self.by

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        found = self._sample(tables)
        axes = Axes.fit(
            found.values, self.by, self.axes,
            lower=self.lower, quality=self.quality, scale=self.scale,
            below=self.unsigned_below, where="orthogonal",
        )  # fmt: skip
        if axes.unsigned.any() and self.unsigned == "refuse":
            raise DataError(_refusal(axes), where="orthogonal")
        axes.save(out)
        targets = self._scaled(axes, found.values)
        facts: Facts = {"rows": found.seen, "sample": len(targets), "left_out": found.incomplete}
        facts |= {"warnings": [], "scale": self.scale, **axes.facts()}
        emitted = self._emitted(axes, targets)
        facts["overlap"] = {"axes": _overlaps(emitted)}
        if self.regressor == "ridge":
            emitted, told = self._regress(axes, found, targets, out)
            facts["overlap"]["predicted"] = told.pop("overlap")
            facts |= told
        # what `best` compares: float32 as stored, in the units of the sample
        about = {"centre": emitted.mean(axis=0).tolist(), "spread": emitted.std(axis=0).tolist()}
        write_json(out / "axes.json", finite({**facts, "emitted": about}))
        return cast(Facts, finite(facts))

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        axes = Axes.load(out)
        if self.regressor == "ridge":
            values = _predict(Ridge.load(out), batch)
        else:
            values = self._scaled(axes, _values(batch, self.by))
        values = self._emitted(axes, values).astype(np.float32)
        about = read_json(out / "axes.json")["emitted"]
        spread = np.array(about["spread"])
        height = (values - np.array(about["centre"])) / np.where(spread > 0, spread, np.inf)
        scored = np.asarray(~np.isnan(values).any(axis=1))
        best = np.argmax(np.where(scored[:, None], height, 0.0), axis=1) + 1
        found: dict[str, Any] = {f"axis_{k + 1}": values[:, k] for k in range(self.axes)}
        return {**found, "best": np.where(scored, best, 0).astype(np.int8)}

    def _scaled(self, axes: Axes, values: Floats) -> Floats:
        """Scores of the axes in their standard deviations."""
        scaled: Floats = axes.project(values) / np.sqrt(axes.variance[: self.axes])
        return scaled

    def _emitted(self, axes: Axes, values: Floats) -> Floats:
        """Both ends of unsigned axes are good where that was said."""
        return np.where(axes.unsigned & (self.unsigned == "both"), np.abs(values), values)

    def _sample(self, tables: Iterable[pa.Table]) -> _Sample:
        """The documents to fit to, in the order of their ids."""
        found = _Sample(self.by, self.sample, Rng(self.seed).at("orthogonal"))
        for table in tables:
            found.add(table, self.regressor == "ridge")
        found.close()
        return found

    def _regress(
        self, axes: Axes, found: _Sample, targets: Floats, out: Path
    ) -> tuple[Floats, Facts]:
        """Fit the text to the axes; the sample's predictions, and how good they are elsewhere."""
        features, length = _features(found.table)
        ids = found.table["id"]
        ridge = Ridge.fit(features, targets, length, ids=ids, where="orthogonal")
        ridge.save(out)
        told = ridge.facts()
        draws = Rng(self.seed).at("orthogonal", "check").uniform(ids)
        checked: dict[str, Any] = {}
        rest, some = np.flatnonzero(draws > 1 / _CHECKED), np.flatnonzero(draws <= 1 / _CHECKED)
        if min(len(rest), len(some)) >= 20:
            other = Ridge.fit(
                features[rest], targets[rest], length[rest],
                ids=ids.take(pa.array(rest)), where="orthogonal",
            )  # fmt: skip
            guess = other.predict(features[some], length[some]).astype(np.float64)
            checked = _overlaps(self._emitted(axes, guess))
        emitted = self._emitted(axes, ridge.predict(features, length).astype(np.float64))
        facts = {name: told[name] for name in ("r2", "spearman", "solver")}
        return emitted, {**facts, "overlap": checked, "warnings": _warnings(told["r2"])}


class _Sample:
    """Up to `limit` distinct documents with all scores: those of smallest draw."""

    def __init__(self, by: tuple[str, ...], limit: int, rng: Rng) -> None:
        self.by, self.limit, self.rng = by, limit, rng
        self.seen = self.incomplete = 0
        self.table = pa.table({})
        self._kept: list[pa.Table] = []

    def add(self, table: pa.Table, content: bool) -> None:
        complete = np.isfinite(_values(table, self.by)).all(axis=1)
        self.seen += table.num_rows
        self.incomplete += int((~complete).sum())
        names = ["id", *self.by, *(content_columns(table.column_names) if content else [])]
        self._kept.append(table.select(list(dict.fromkeys(names))).filter(pa.array(complete)))
        if sum(t.num_rows for t in self._kept) > 2 * self.limit:
            self._kept = [self._first(pa.concat_tables(self._kept))]

    def close(self) -> None:
        if not any(t.num_rows for t in self._kept):
            raise DataError(
                f"no document of {self.seen} has all of {', '.join(self.by)}", where="orthogonal"
            )
        self.table = self._first(pa.concat_tables(self._kept))

    @property
    def values(self) -> Floats:
        """[n, D]"""
        return _values(self.table, self.by)

    def _first(self, table: pa.Table) -> pa.Table:
        """Each document once, those of smallest draw, by id; of copies the smallest scores."""
        words, values = id_words(table["id"]), _values(table, self.by)
        order = np.lexsort((*values.T[::-1], words[:, 1], words[:, 0]))
        rows = order[first_copies(words[order])]
        draws = self.rng.uniform(table["id"])[rows]
        rows = rows[np.sort(np.argsort(draws, kind="stable")[: self.limit])]
        return table.take(pa.array(rows))


def _values(table: pa.Table, by: tuple[str, ...]) -> Floats:
    """[n, D] scores; NaN where there is none."""
    return np.stack([scores(table, name) for name in by], axis=1)


def _features(table: pa.Table) -> tuple[Any, Floats]:
    """Hashed n-grams of the words of each document, and ln(1 + words) as [n, 1]."""
    words = hashed_words(content_texts(table))
    ids = (words.ids & np.uint64(0x7FFFFFFF)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(words.lengths)]).astype(np.int64)
    nothing: npt.NDArray[Any] = np.zeros(0, dtype=np.bool_)
    encoded = Encoded(ids, nothing, offsets, nothing)
    return ngram_features(encoded), np.log1p(words.lengths.astype(np.float64))[:, None]


def _predict(ridge: Ridge, batch: pa.Table) -> Floats:
    """[n, K]; NaN where a document has no words."""
    features, length = _features(batch)
    values = ridge.predict(features, length).astype(np.float64)
    values[length[:, 0] == 0] = np.nan
    return values


def _warnings(r2: list[float | None]) -> list[str]:
    """One sentence for each axis that the text does not tell."""
    return [
        f"axis_{k} is hardly told by the text (R2 {found or 0:.2f} out of fold): its top is close "
        "to chance"
        for k, found in enumerate(r2, start=1)
        if (found or 0.0) < LEARNABLE
    ]


def _overlaps(values: Floats) -> dict[str, float | None]:
    """share -> mean overlap of the tops of two axes, over the share; 1 where independent."""
    if values.shape[1] < 2:
        return {}
    return {f"{p:g}": float(overlap(values, p).mean() / p) for p in SHARES}


def _refusal(axes: Axes) -> str:
    """Which axis has no good end, and what can be done."""
    k = int(np.flatnonzero(axes.unsigned)[0])
    parts = zip(axes.loadings[:, k], axes.columns, strict=True)
    loadings = ", ".join(f"{value:+.2f} {name}" for value, name in parts)
    return (
        f"nothing tells which end of axis_{k + 1} is good: its loadings are {loadings}; name fewer "
        "columns in `quality`, or say `unsigned: both` (either end) or `unsigned: keep` (as the "
        "largest loading points)"
    )
