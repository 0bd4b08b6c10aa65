"""The splits around a forget set: one pass over the kept documents, one over the holdout.

    kept       rows of the data set that is selected from which the run chose (all alive ones where
               it chose none), without the request's documents and its suspects
    retain     the `retain` smallest draws of (seed, id) among the kept
    holdout    rows reserved at reading, the nearest in form and length (`neighbours.Style`) first;
               those that share a run of 13 words with the forget set are dropped and counted
    neighbours direct, then indirect, then style; a row is in the first that takes it

forget, the three neighbours, retain and holdout are disjoint by id, which is a hash of the content.
Choices depend on (seed, id), the document and the forget set: not on shards, batches or their
order. Memory: the forget set, what is chosen, and one byte a row. Cost: some 3 MB/s of kept text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.corpus import Corpus, Shard
from foresift.pipeline.nouns import Progress, silent
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import content_texts
from foresift.stages.forget import _language as language
from foresift.stages.forget._rows import Place, Row
from foresift.stages.forget.folder import NEIGHBOURS
from foresift.stages.forget.history import History
from foresift.stages.forget.neighbours import Best, Family, Found, Links, Style, closest_families
from foresift.stages.forget.shared import Facts

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many rows each set of a plan takes."""

    retain: int = 0
    """Rows of retain; 0: as many as forget, at least 100."""
    holdout: int = 0
    """Rows of the holdout; 0: as many as forget, at least 100."""
    neighbours: int = 100
    """Rows of each set of neighbours."""
    relearn: int = 100
    """Most rows of each relearning set."""
    coreset: float = 0.05
    """Share of forget in the coreset."""
    worst_case: float = 0.1
    """Share of forget in the worst case."""
    keywords: int = 200
    """Most words, names and numbers that are listed."""
    probes: int = 3
    """Most plain probes of a document."""
    shared: float = 0.8
    """Share of a fact's content words that a kept sentence must hold."""

    def __post_init__(self) -> None:
        for name in ("retain", "holdout", "neighbours", "relearn", "keywords", "probes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is not negative")
        for name in ("coreset", "worst_case", "shared"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1]")

    def filled(self, forget: int, name: str) -> int:
        """`retain` or `holdout`, given the size of forget."""
        asked: int = getattr(self, name)
        return asked or max(forget, 100)


@dataclass(frozen=True)
class Chosen:
    """A row that was chosen: where it lies, and what it has to do with the forget set."""

    place: Place
    relation: str = ""


@dataclass
class Splits:
    """What the passes found."""

    sets: dict[str, list[Chosen]]
    facts: Facts
    df: Mapping[str, int]
    """Kept documents that hold a word of the forget set."""
    documents: int
    """Kept documents that were read."""
    reserved: int
    """Rows of the holdout that were read."""
    overlapping: int
    """Those of them that were dropped for a run of 13 words."""


class Kept:
    """The rows that the run chose: by its plan file, where there is one with a chosen row."""

    def __init__(self, history: History) -> None:
        found: dict[int, list[npt.NDArray[np.int64]]] = {}
        if history.run.plan.exists():
            with pq.ParquetFile(history.run.plan) as file:
                for batch in file.iter_batches(columns=["shard", "row", "kept"]):
                    chosen = batch.filter(batch["kept"])
                    shards, rows = np.asarray(chosen["shard"]), np.asarray(chosen["row"])
                    for shard in np.unique(shards).tolist():
                        found.setdefault(shard, []).append(rows[shards == shard])
        self._rows = {shard: np.concatenate(parts) for shard, parts in found.items()}

    def of(self, number: int, rows: int) -> Bools:
        """[rows] whether each row of a shard was chosen."""
        if not self._rows:
            return np.ones(rows, dtype=np.bool_)
        mask = np.zeros(rows, dtype=np.bool_)
        mask[self._rows.get(number, np.empty(0, dtype=np.int64))] = True
        return mask


class Pass:
    """What one look at every kept document collects."""

    def __init__(self, forget: Sequence[Row], gone: Set[bytes], sizes: Sizes, rng: Rng) -> None:
        texts = [row.text for row in forget]
        self.gone, self.sizes, self.rng = gone, sizes, rng
        self.family, self.links = Family(row.source for row in forget), Links(texts)
        self.style, self.facts = Style(forget), Facts(forget, sizes.shared)
        words = {w for text in texts for w in language.content_words(text)}
        self.vocabulary = words | self.links.vocabulary
        near, retain = sizes.neighbours, sizes.filled(len(forget), "retain")
        self.direct, self.near = Best(near), Best(3 * near)
        self.random = Best(retain + 3 * near)
        self.df: Counter[str] = Counter()
        self.documents = 0

    def look(self, base: int, number: int, table: pa.Table, rows: npt.NDArray[np.int64]) -> None:
        """A batch of kept documents."""
        ids = table["id"].to_pylist()
        stay = [k for k, id_ in enumerate(ids) if id_ not in self.gone]
        if len(stay) < len(ids):
            table, rows = table.take(pa.array(stay, pa.int64())), rows[stay]
            ids = [ids[k] for k in stay]
        if not ids:
            return
        texts, sources = content_texts(table), [s or "" for s in table["source"].to_pylist()]
        draws = self.rng.uniform(table["id"]).tolist()
        distances = self.style.distances(texts, sources).tolist()
        for k, id_ in enumerate(ids):
            place = (base, number, int(rows[k]))
            self._one(id_, texts[k], sources[k], place, draws[k], distances[k])

    def _one(
        self, id_: bytes, text: str, source: str, place: Place, draw: float, distance: float
    ) -> None:
        found = self.vocabulary.intersection(language.words(text))
        self.documents += 1
        self.df.update(found)
        self.links.look(id_, source, place, text, found)
        self.facts.look(id_, text, found)
        family = self.family.rank(source)
        if family is not None:
            self.direct.add(id_, (*family[0], draw), source, place, "/".join(family[1]))
        self.near.add(id_, (distance, draw), source, place, "style")
        self.random.add(id_, (draw,), source, place, "")

    def sets(self, forget: int) -> dict[str, list[Chosen]]:
        """The neighbours and retain, each row in the first set that takes it."""
        size, taken = self.sizes.neighbours, set[bytes]()
        ranked = {
            NEIGHBOURS[0]: (closest_families(self.direct.ranked()), size),
            NEIGHBOURS[1]: (self.links.ranked(self.documents, self.rng), size),
            NEIGHBOURS[2]: (self.near.ranked(), size),
            "retain": (self.random.ranked(), self.sizes.filled(forget, "retain")),
        }
        return {name: _take(found, most, taken) for name, (found, most) in ranked.items()}


def _take(found: Sequence[tuple[bytes, Found]], most: int, taken: set[bytes]) -> list[Chosen]:
    """The first so many that are not taken yet; they are then."""
    chosen: list[Chosen] = []
    for id_, (_, _, place, relation) in found:
        if len(chosen) == most:
            break
        if id_ not in taken:
            taken.add(id_)
            chosen.append(Chosen(place, relation))
    return chosen


def split(
    history: History, forget: Sequence[Row], gone: Set[bytes], sizes: Sizes, rng: Rng,
    progress: Progress = silent,
) -> Splits:  # fmt: skip
    """Read the kept documents and the holdout, and choose."""
    corpus, kept = history.bases[0], Kept(history)
    seen = Pass(forget, gone, sizes, rng)
    chosen: dict[int, Bools] = {}
    for number, shard, table, rows in _batches(corpus, progress, "kept documents"):
        if number not in chosen:
            chosen = {number: kept.of(number, shard.rows)}
        mask = chosen[number][rows]
        if mask.any():
            seen.look(0, number, table.filter(pa.array(mask)), rows[mask])
    held, reserved, overlapping = _holdout(corpus, seen, forget, progress)
    sets = {**seen.sets(len(forget)), "holdout": held}
    return Splits(sets, seen.facts, seen.df, seen.documents, reserved, overlapping)


def _batches(
    corpus: Corpus, progress: Progress, label: str
) -> Iterator[tuple[int, Shard, pa.Table, npt.NDArray[np.int64]]]:
    shards = corpus.shards()
    for number, shard in enumerate(shards):
        progress(number, len(shards), label)
        for table, rows in shard.stream(("source",)):
            yield number, shard, table, rows
    progress(len(shards), len(shards), label)


def _holdout(
    corpus: Corpus, seen: Pass, forget: Sequence[Row], progress: Progress
) -> tuple[list[Chosen], int, int]:
    """(rows of the holdout, how many were read, how many were dropped for an overlap)."""
    best = Best(seen.sizes.filled(len(forget), "holdout"))
    parts = [language.grams(row.text) for row in forget]
    known = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *parts]))
    reserved = overlapping = 0
    for number, _, table, rows in _batches(corpus.only_holdout(), progress, "holdout"):
        ids, texts = table["id"].to_pylist(), content_texts(table)
        sources = [s or "" for s in table["source"].to_pylist()]
        draws = seen.rng.uniform(table["id"]).tolist()
        distances = seen.style.distances(texts, sources).tolist()
        for k, id_ in enumerate(ids):
            if id_ in seen.gone:
                continue
            reserved += 1
            if _shares(texts[k], known):
                overlapping += 1
                continue
            place = (0, number, int(rows[k]))
            best.add(id_, (distances[k], draws[k]), sources[k], place, "holdout")
    return [Chosen(f[2]) for _, f in best.ranked()], reserved, overlapping


def _shares(text: str, known: npt.NDArray[np.uint64]) -> bool:
    """Whether a text has a run of 13 words among these, which are sorted."""
    mine = language.grams(text)
    if len(known) == 0:
        return False
    at = np.minimum(np.searchsorted(known, mine), len(known) - 1)
    return bool((known[at] == mine).any())
