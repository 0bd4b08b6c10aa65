"""Contamination: which evaluation items a document gives away, how much of each, and where.

    hit     the document has n words in a row (13) that an evaluation item has
    score   max over items q of   sum of idf over the grams (5 words) of q that the document has
                                / sum of idf over the grams of q              0 to 1
    idf_g   ln(1 + (N + M) / (1 + documents with g + items with g)),  N documents, M items
    contaminated = hit, or the score of an item reaches its bar: 1 up to 20 words, falling in a line
                   to `threshold` at 50 words                                  utility = -score

The hard cut is GPT-3's (Brown et al. 2020), as in lm-evaluation-harness and NeMo Curator: an n-gram
that more than `common` documents have (copies counted once) is no evidence. A whole item that many
documents carry is then found by its score. The soft score follows decon (OLMo): items that share
template phrases are not taken for one another, and rewording takes n-grams away, so paraphrases are
not counted. Words are lower-cased runs of letters and digits (see `_contamination.py`).

An item is the prompt of a pair, or a whole text. Where it has fewer than `n` words the answer is
joined to it, because a short answer alone is found everywhere; items that are still shorter than
`shortest`, or have fewer than 4 distinct words, are left out and counted in the facts. Between
`shortest` and `n` only the score speaks, and only a perfect match contaminates. Items held out of
the reference are searched for like the others. Equal items of a set are one.

    share    distinct n-grams of the item found / all of it that are not common; NaN: it is short
    answer   whether an answer of the item stands in or up to 100 words behind what was found;
             null where nothing was found or the item has no answer of its own
    set, item    the reference, and where in it (key path) the item lies: of those found by n-grams
             the largest share, else the largest score; ties to the first id
    findings ngram_overlap (value: words in a row), soft_overlap (value: score of the item)

Rows stand alone. A very long document can collect the grams of a short item from far apart. Cost:
some 1 M words/s on one core; the pool is read twice. Memory: the items, and some 100 bytes for each
document with a gram of one. Facts: items, those left out, and those that the pool has an n-gram of,
for each set. Sources: GPT-3, appendix C; Dolma; decon (Allen AI), by its description.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import FOUND, Findings
from foresift.pipeline.nouns import AimedScorer, Arrays, Reference
from foresift.pipeline.references import Aims
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import Column, content_texts
from foresift.scorers._contamination import (
    Bools,
    Floats,
    Hits,
    Ints,
    Postings,
    Words,
    occurs,
    places,
    runs,
    sums_by_pair,
)
from foresift.scorers._contamination_items import Items, read_items

#: items of up to PERFECT words must be there whole; from LONG on `threshold` is enough
PERFECT, LONG = 20, 50
#: words behind what was found in which an answer counts
REACH = 100
_CLOSE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Contamination(AimedScorer):
    """Overlap of a document with evaluation items: 13 words in a row, and an IDF-weighted share."""

    reference: Aims
    """The evaluation sets: names, files, readers (`prompt: question`), or a list of them."""
    n: int = 13
    """Words in a row that are enough."""
    gram: int = 5
    """Words of the grams of the score."""
    threshold: float = 0.8
    """Score from which an item of 50 words or more is taken as given away."""
    common: int = 10
    """Documents beyond which an n-gram is a common phrase and no evidence; 0: none is."""
    shortest: int = 8
    """Words below which an item, its answer included, is not searched for (decon: 20 tokens)."""

    apart: ClassVar[bool] = False
    """What is searched for may lie in the pool: that is what is asked."""
    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "minus the score", "higher"),
        "score": Column(pa.float64(), "IDF-weighted share of an item, 0 to 1", "lower"),
        "hit": Column(pa.bool_(), "has n words in a row of an item"),
        "ngrams": Column(pa.int64(), "distinct n-grams of items", "lower"),
        "contaminated": Column(pa.bool_(), "an item is given away"),
        "set": Column(pa.string(), "evaluation set of the item"),
        "item": Column(pa.string(), "key path of the item"),
        "share": Column(pa.float64(), "share of the item's n-grams, 0 to 1", "lower"),
        "answer": Column(pa.bool_(), "an answer of the item is there too"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        if not 1 <= self.gram <= self.n:
            raise ValueError("gram is at least 1, and n at least gram")
        if not 0 < self.threshold <= 1:
            raise ValueError("threshold is above 0, and at most 1")
        if self.common < 0 or self.shortest < self.gram:
            raise ValueError("common is not negative, and shortest at least gram")

    @property
    def aims(self) -> Any:
        return self.reference

    def fit(
        self, tables: Iterable[pa.Table], references: tuple[Reference, ...], out: Path
    ) -> Facts:
        items = read_items(references, self.n, self.shortest)
        if not len(items):
            raise DataError(
                f"no evaluation item has {self.shortest} words; lower `shortest`",
                where=", ".join(r.name for r in references),
            )
        hard, soft = items.postings(self.n), items.postings(self.gram)
        documents, (hits, seen) = _count(tables, (hard, soft), (self.n, self.gram))
        total = documents + len(items)
        idf = np.log1p(total / (1.0 + seen + soft.spread))
        counted = (hits <= self.common) if self.common else np.ones(len(hits), np.bool_)
        items.write(
            out, {**hard.arrays("hard"), **soft.arrays("soft"), "idf": idf, "counted": counted}
        )
        there = np.zeros(len(items), np.bool_)
        there[hard.items[np.repeat((hits > 0) & counted, hard.spread)]] = True
        sets = {
            name: {**told, "found": int(there[items.set == number].sum())}
            for number, (name, told) in enumerate(items.told.items())
        }
        return {"documents": documents, "sets": sets, "common": int((~counted).sum())}

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        return _Search(self, batch, out).columns()


def _count(
    tables: Iterable[pa.Table], postings: tuple[Postings, ...], sizes: tuple[int, ...]
) -> tuple[int, list[Ints]]:
    """Documents, and in how many distinct ones each n-gram of an item is found."""
    totals = [np.zeros(len(p.keys), dtype=np.int64) for p in postings]
    documents, known = 0, set[bytes]()
    for table in tables:
        documents += table.num_rows
        words, ids = Words.of(content_texts(table)), table["id"].to_pylist()
        pairs = [Hits.of(words, n, p).distinct() for p, n in zip(postings, sizes, strict=True)]
        fresh = np.zeros(table.num_rows, dtype=np.bool_)
        for row in np.unique(np.concatenate([rows for rows, _ in pairs])).tolist():
            fresh[row] = ids[row] not in known
            known.add(ids[row])
        for total, (rows, keys) in zip(totals, pairs, strict=True):
            total += np.bincount(keys[fresh[rows]], minlength=len(total))
    return documents, totals


class _Search:
    """One batch against all items."""

    def __init__(self, part: Contamination, batch: pa.Table, out: Path) -> None:
        self.part, self.rows = part, batch.num_rows
        self.items, stored = Items.read(out)
        self.hard, self.soft = (Postings.read(stored, name) for name in ("hard", "soft"))
        self.idf, self.counted = stored["idf"], stored["counted"]
        self.texts = content_texts(batch)
        self.words = Words.of(self.texts)
        self.hits = Hits.of(self.words, part.n, self.hard, self.counted)
        self.grams = Hits.of(self.words, part.gram, self.soft)

    def columns(self) -> Arrays:
        row, item, score, share, reached = self._pairs()
        best = _first(row, np.lexsort((item, -score, ~reached, -share, row)))
        top = np.zeros(self.rows)
        np.maximum.at(top, row, score)
        hit = np.zeros(self.rows, np.bool_)
        hit[self.hits.rows] = True
        taken = hit.copy()
        taken[row[reached]] = True
        ngrams = np.bincount(self.hits.distinct()[0], minlength=self.rows)
        whose = np.full(self.rows, -1)
        whose[row[best]] = item[best]
        part_of = np.full(self.rows, np.nan)
        part_of[row[best]] = np.where(self._sizes()[item[best]] > 0, share[best], np.nan)
        of_item = np.zeros(self.rows)
        of_item[row[best]] = score[best]
        whose[~taken] = -1
        part_of[~taken] = np.nan
        answers, findings = self._places(hit, whose, of_item)
        return {
            "utility": -top, "score": top, "hit": hit, "ngrams": ngrams, "contaminated": taken,
            "set": [self.items.set_name(i) for i in whose.tolist()],
            "item": [self.items.place(i) for i in whose.tolist()],
            "share": part_of, "answer": answers, "findings": findings,
        }  # fmt: skip

    def _sizes(self) -> Floats:
        return self.hard.sums(self.counted.astype(np.float64), len(self.items))

    def _pairs(self) -> tuple[Ints, Ints, Floats, Floats, Bools]:
        """(row, item, score, share of n-grams, bar reached) of all that have a gram in common."""
        count = len(self.items)
        rows, items, keys = self.soft.pairs(*self.grams.distinct())
        row, item, found = sums_by_pair(rows, items, self.idf[keys], count)
        score = np.minimum(found / self.soft.sums(self.idf, count)[item], 1.0)
        rows, items, keys = self.hard.pairs(*self.hits.distinct())
        r, i, n = sums_by_pair(rows, items, np.ones(len(keys)), count)
        share = np.zeros(len(row))
        # an n-gram of an item is made of its grams, so each of these pairs is among those above
        share[np.searchsorted(row * count + item, r * count + i)] = n / self._sizes()[i]
        slope = np.clip((self.items.words - PERFECT) / (LONG - PERFECT), 0, 1)
        bar = 1.0 - (1.0 - self.part.threshold) * slope
        return row, item, score, share, score >= bar[item] - _CLOSE

    def _places(
        self, hit: Bools, whose: Ints, score: Floats
    ) -> tuple[list[bool | None], pa.ListArray]:
        """Whether an answer is there, and the findings; only rows with an item are looked at."""
        answers: list[bool | None] = [None] * self.rows
        findings = Findings(self.rows)
        for row in np.flatnonzero(whose >= 0).tolist():
            item, characters = int(whose[row]), places(self.texts[row])
            reason = "ngram_overlap" if hit[row] else "soft_overlap"
            where = self._stretches(row, None if hit[row] else item)
            for first, last in where:
                value = float(last - first if hit[row] else score[row])
                findings.add(row, reason, characters[first][0], characters[last - 1][1], value)
            near = self.words.of_text(row)[where[0][0] : where[-1][1] + REACH]
            given = self.items.answers(item)
            answers[row] = any(occurs(a, near) for a in given) if given else None
        return answers, findings.array()

    def _stretches(self, row: int, item: int | None) -> list[tuple[int, int]]:
        """The words of a row that n-grams cover, or the grams that are an item's."""
        hits, n = (self.hits, self.part.n) if item is None else (self.grams, self.part.gram)
        mine = slice(*np.searchsorted(hits.rows, [row, row + 1]))
        first = hits.first[mine] - self.words.offsets[row]
        if item is not None:
            which, items, _ = self.soft.pairs(np.arange(len(first)), hits.keys[mine])
            first = first[which[items == item]]
        return list(runs(first, n))


def _first(rows: Ints, order: Ints) -> Ints:
    """Of an order by row, the first place of each row."""
    ranked = rows[order]
    return order[np.flatnonzero(np.diff(ranked, prepend=-1))]
