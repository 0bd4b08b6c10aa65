"""How likely it is that the removal of a document will be asked for: a table of priors.

    p_delete = 1 - prod over the features of (1 - p)

    feature         columns it reads                          p
    licence         licence.p_delete                          as it is; 1e-3 where there is none
    personal        pii.spans, pii.verified                   1 - (1 - 1e-2)^a (1 - 5e-2)^b, of b
                                                              spans verified and a others
    secrets         secrets.count, secrets.verified           ... with 5e-2 and 2e-1
    names           entity_rarity.contact_rarity              1e-2 x rarity / ln(documents)
    temporal        temporal_leak.leak                        1e-1 where it is true
    contamination   contamination.contaminated                1e-1 where it is true
    junk            junk.junk                                 1e-2 x junk

Whoever is named in a span may ask, hence a factor for each. What lies behind a cut-off, or gives an
evaluation item away, no later step repairs: alone it is enough for a drop. The numbers are ours, to
order by; they were not measured. Classes of licences and sources: `scorers/licence.py`. A missing
value (null, NaN) counts as nothing found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import scores
from foresift.pipeline.errors import DataError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
#: feature -> the columns that it reads, as parts of a recipe give them
COLUMNS: dict[str, tuple[str, ...]] = {
    "licence": ("licence.p_delete",),
    "personal": ("pii.spans", "pii.verified"),
    "secrets": ("secrets.count", "secrets.verified"),
    "names": ("entity_rarity.contact_rarity",),
    "temporal": ("temporal_leak.leak",),
    "contamination": ("contamination.contaminated",),
    "junk": ("junk.junk",),
    "copies": ("copies.near", "copies.first", "copies.cluster"),
    "surprise": ("surprise.peak",),
    "memorisation": ("memorisation.gap",),
    "entanglement": ("entanglement.by_cluster",),
    "worst_case": ("worst_case.weight",),
    "sharpness": ("sharpness.by_cluster",),
}
#: what weighs in p_delete, in the order in which ties are told
ASKED = ("licence", "personal", "secrets", "names", "temporal", "contamination", "junk")
#: found in spans that can be replaced
SPANS = ("personal", "secrets")
PRIORS = {
    "unknown": 1e-3, "personal": 1e-2, "personal_verified": 5e-2, "secrets": 5e-2,
    "secrets_verified": 2e-1, "names": 1e-2, "temporal": 1e-1, "contamination": 1e-1, "junk": 1e-2,
}  # fmt: skip


def amounts(table: pa.Table, name: str) -> Floats:
    """A column as numbers, 0 where there is none."""
    found = scores(table, name)
    return np.where(np.isfinite(found), found, 0.0)


def asked(
    table: pa.Table,
    named: Mapping[str, Sequence[str]],
    priors: Mapping[str, float],
    documents: int,
) -> dict[str, Floats]:
    """Feature -> [rows] p; `named` has the columns of the features that are read."""
    rows, found = table.num_rows, {"licence": np.full(table.num_rows, priors["unknown"])}
    for feature in (f for f in ASKED if f in named):
        columns = [amounts(table, name) for name in named[feature]]
        if feature == "licence":
            given = scores(table, named[feature][0])
            p = np.where(np.isfinite(given), given, priors["unknown"])
        elif feature in SPANS:
            verified = columns[1] if len(columns) > 1 else np.zeros(rows)
            plain = np.maximum(columns[0] - verified, 0.0)
            q, checked = priors[feature], priors[f"{feature}_verified"]
            p = -np.expm1(plain * math.log1p(-q) + np.maximum(verified, 0) * math.log1p(-checked))
        elif feature == "names":
            p = priors[feature] * np.clip(columns[0] / math.log(max(documents, 2)), 0.0, 1.0)
        else:
            p = priors[feature] * np.clip(columns[0], 0.0, 1.0)
        if ((p < 0) | (p > 1)).any():
            raise DataError("holds no probabilities", where=named[feature][0])
        found[feature] = p
    return found


def together(rows: int, each: Sequence[Floats]) -> Floats:
    """1 - prod (1 - p)."""
    left = np.ones(rows)
    for p in each:
        left = left * (1 - p)
    return 1 - left


def silent(table: pa.Table, named: Mapping[str, Sequence[str]]) -> list[str]:
    """A warning of the features that no row has a value of: nothing is found by them."""
    first = [each[0] for each in named.values()]
    none = [n for n in first if table.num_rows and not np.isfinite(scores(table, n)).any()]
    if not none:
        return []
    known = (
        " (a mean by cluster needs `cluster` in that score)" if "by_cluster" in str(none) else ""
    )
    return [f"no row has a value in {', '.join(none)}, which so find nothing{known}"]


def spans(table: pa.Table, named: Mapping[str, Sequence[str]]) -> Floats:
    """[rows] spans that an export can replace."""
    return sum((amounts(table, named[f][0]) for f in SPANS if f in named), np.zeros(table.num_rows))
