"""Duplicates: how large the clusters are, and the largest of them with the document that was kept.

A dedup step tells the histogram in its facts (`cluster_sizes`: size -> clusters of that size) and
writes `cluster_size` beside every row. Sizes are shown in bins: 2, 3, 4-5, 6-10, 11-100, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import hex_id
from foresift.stages.report import charts
from foresift.stages.report.contents import Contents, fields
from foresift.stages.report.examples import texts_of
from foresift.stages.report.mask import origin

LARGEST = 5
_BINS = ((2, 2), (3, 3), (4, 5), (6, 10), (11, 100), (101, 1000), (1001, None))


@dataclass(frozen=True)
class Bin:
    """Clusters of some sizes."""

    label: str
    clusters: int
    documents: int
    share: float
    """Of the fullest bin."""

    @property
    def chart(self) -> Markup:
        return charts.bar(self.share, "gone")


@dataclass(frozen=True)
class Cluster:
    """One large cluster by the document kept of it."""

    size: int
    id: str
    source: str
    text: str


@dataclass(frozen=True)
class Clusters:
    """What one dedup step found."""

    label: str
    clusters: int
    dropped: int
    bins: list[Bin]
    largest: list[Cluster]


def clusters(contents: Contents) -> list[Clusters]:
    """Every dedup step of the selection that found a cluster."""
    found = []
    for step in contents.first_of("dedup"):
        sizes = {int(k): n for k, n in step["facts"].get("cluster_sizes", {}).items() if int(k) > 1}
        if sizes:
            dropped = sum((size - 1) * n for size, n in sizes.items())
            total = sum(sizes.values())
            largest = _largest(contents, step)
            found.append(Clusters(step["label"], total, dropped, bins(sizes), largest))
    return found


def bins(sizes: Mapping[int, int]) -> list[Bin]:
    """Sizes in bins that widen; empty bins above the largest cluster are left out."""
    rows = []
    for low, high in _BINS:
        inside = {s: n for s, n in sizes.items() if low <= s and (high is None or s <= high)}
        label = str(low) if low == high else f"{low:,}–{high:,}" if high else f"{low:,} and more"
        rows.append((label, sum(inside.values()), sum(s * n for s, n in inside.items()), low))
    top = max(clusters for _, clusters, _, _ in rows)
    far = max(sizes)
    return [Bin(a, n, d, n / max(top, 1)) for a, n, d, low in rows if low <= far]


def _largest(contents: Contents, step: Facts) -> list[Cluster]:
    """The documents kept of the largest clusters, text included."""
    path = contents.directory(step)
    if not contents.lies_beside(path) or "cluster_size" not in fields(path):
        return []
    names = {"size": (path, "cluster_size"), "kept": (path, "kept")}
    corpus = Corpus(contents.base, {f"dedup.{n}": place for n, place in names.items()})
    best: list[tuple[int, int, int, bytes, str]] = []
    for number, shard in enumerate(corpus.shards()):
        table = shard.load(["id", "source", "dedup.size", "dedup.kept"])
        sizes = np.asarray(
            pc.if_else(table["dedup.kept"].fill_null(False), table["dedup.size"], 0).fill_null(0)
        )
        for row in np.argsort(-sizes, kind="stable")[:LARGEST]:
            if sizes[row] > 1:
                i = int(row)
                identity, source = table["id"][i].as_py(), table["source"][i].as_py()
                best.append((-int(sizes[row]), number, i, identity, source or ""))
        best = sorted(best)[:LARGEST]
    texts, _ = texts_of(corpus, [(n, row, identity) for _, n, row, identity, _ in best])
    return [
        Cluster(-size, hex_id(identity)[:12], origin(source), texts.get((number, row), ""))
        for size, number, row, identity, source in best
    ]
