"""What stays in a model of a document after it was unlearned: between 0 (nothing) and 1 (all).

Without a drill, by copies alone:

    residual = 1 / (1 + exp(-(A + B log2 copies)))                copies = other rows + 1

A = -3.47 and B = 0.99 are the least-squares line through the logits of (E - 1.44) / (8 - 1.44), E
the exposures in bits of canaries with 1, 2, 4, 8 and 16 copies in a pilot (1.6, 2.2, 2.5, 3.7, 5.6;
370,000 parameters, 3 seeds; 1.44 is chance, 8 the ceiling). They are exposures before unlearning:
after NPO with a retain term they were small, and back after 20 steps of relearning on others.

With a drill, a table of documents that were unlearned, their features and what was left
(`residual`): gradient-boosted trees (scikit-learn), monotone in each feature - up in copies,
surprise, memorisation, entanglement and worst_case, down in sharpness - and an isotonic regression
of what they say of documents they were not fitted on, five folds. Both are monotone, so their
composition is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from foresift.pipeline.choice import scores
from foresift.pipeline.errors import DataError

Floats = npt.NDArray[np.float64]
#: log-odds at one copy, and for each doubling
INTERCEPT, SLOPE = -3.466, 0.987
CHANCE, CEILING = 1.44, 8.0
PILOT = {1: 1.6, 2: 2.2, 4: 2.5, 8: 3.7, 16: 5.6}
#: feature -> the direction in which the residual goes with it
SIGNS = {
    "copies": 1, "surprise": 1, "memorisation": 1, "entanglement": 1, "worst_case": 1,
    "sharpness": -1,
}  # fmt: skip
FOLDS, LEAST, EDGE = 5, 20, 1e-4


def by_copies(others: Floats) -> Floats:
    """The residual of documents with so many other copies; without a number: none."""
    copies = 1.0 + np.maximum(np.nan_to_num(others), 0.0)
    return np.asarray(1 / (1 + np.exp(-(INTERCEPT + SLOPE * np.log2(copies)))))


def labelled(path: str, named: Mapping[str, Sequence[str]]) -> tuple[list[str], Floats]:
    """(features that the drill has, [rows, features + 1] with the residual last, sorted)."""
    table = _read(path)
    wanted = [f for f in SIGNS if f in named]
    known = {f: n for f in wanted for n in (named[f][0], f) if n in table.column_names}
    if not known:
        raise DataError(f"has none of {', '.join(wanted) or 'the features'}", where=path)
    if "residual" not in table.column_names:
        raise DataError("has no column `residual`", where=path)
    rows = np.column_stack([*(scores(table, n) for n in known.values()), scores(table, "residual")])
    left = rows[:, -1]
    if not ((left >= 0) & (left <= 1)).all():
        raise DataError("a residual is a number from 0 to 1", where=path)
    if len(rows) < LEAST:
        raise DataError(f"{len(rows)} documents are too few to fit, at least {LEAST}", where=path)
    return list(known), rows[np.lexsort(rows.T)]


def _read(path: str) -> pa.Table:
    try:
        return pq.read_table(path) if path.endswith(".parquet") else pj.read_json(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"no table of a drill: {error}", where=path) from None


class Fitted:
    """The model of a drill."""

    def __init__(self, features: Sequence[str], rows: Floats) -> None:
        from sklearn.isotonic import IsotonicRegression  # type: ignore[import-untyped]

        self.features = tuple(features)
        x, y = rows[:, :-1], rows[:, -1]
        fold = np.random.default_rng(0).permutation(len(rows)) % FOLDS
        apart = np.empty(len(rows))
        for number in range(FOLDS):
            apart[fold == number] = self._trees(x[fold != number], y[fold != number]).predict(
                x[fold == number]
            )
        self._model = self._trees(x, y)
        self._scale = IsotonicRegression(y_min=EDGE, y_max=1 - EDGE, out_of_bounds="clip")
        self._scale.fit(apart, y)
        self.facts: dict[str, Any] = {
            "documents": len(rows),
            "features": list(features),
            **_fit(apart, y),
        }
        if "copies" in features:
            plain = by_copies(x[:, self.features.index("copies")])
            self.facts["by_copies"] = _fit(plain, y)

    def _trees(self, x: Floats, y: Floats) -> Any:
        from sklearn.ensemble import (  # type: ignore[import-untyped]
            HistGradientBoostingRegressor,
        )

        model = HistGradientBoostingRegressor(
            max_iter=100, max_depth=3, min_samples_leaf=max(3, len(y) // 20), random_state=0,
            early_stopping=False, monotonic_cst=[SIGNS[f] for f in self.features],
        )  # fmt: skip
        return model.fit(x, y)

    def predict(self, columns: Mapping[str, Floats]) -> Floats:
        """[rows] residual of rows with these features; NaN is one without the feature."""
        x = np.column_stack([columns[f] for f in self.features])
        if not len(x):
            return np.empty(0)
        return np.asarray(self._scale.predict(self._model.predict(x)), dtype=np.float64)


def _fit(told: Floats, true: Floats) -> dict[str, float | None]:
    """How well predictions for documents that were not seen fit."""
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    spread = float(((true - true.mean()) ** 2).sum())
    wrong = float(((told - true) ** 2).sum())
    ranked = spread > 0 and float(np.ptp(told)) > 0
    return {
        "r2": 1 - wrong / spread if spread else None,
        "mean_absolute_error": float(np.abs(told - true).mean()),
        "spearman": float(spearmanr(told, true)[0]) if ranked else None,
    }


@functools.lru_cache(maxsize=4)
def fitted(path: Path, stamp: int) -> Fitted:
    """The model of the rows that `keep` wrote; fitted again in each process, always the same."""
    table = pq.read_table(path)
    rows = np.column_stack([np.asarray(table[n]) for n in table.column_names])
    return Fitted(table.column_names[:-1], rows)


def keep(path: Path, features: Sequence[str], rows: Floats) -> None:
    """Write what `fitted` reads."""
    names = [*features, "residual"]
    pq.write_table(pa.table({n: rows[:, k] for k, n in enumerate(names)}), path)
