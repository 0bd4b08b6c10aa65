"""How rare the rarest name of a document is, and whether it stands beside a way to reach somebody.

    df(e)            distinct documents that have the name e          n = distinct documents
    min_df           min over the names of the document of df(e)
    rarity           -ln(min_df / n)                                  nats; ln n: one document alone
    beside_contact   a name stands at most `reach` characters from an e-mail address or a telephone
                     number
    contact_rarity   -ln(df / n) of the rarest such name; 0 where there is none
    utility          -contact_rarity

Names are runs of capitalised words (`_names.py`): heuristics of no language, without a model. A
rare name alone is most often the useful long tail; beside a contact it is most often a private
person, who may ask for removal (Feldman 2020 for what the tail is worth; the product is ours). A
document without a name has NaN in min_df and rarity. Exact copies count once.

Contacts are those of `pipeline/personal.py`, or of `contacts`, a column of findings such as
`pii.findings` (reasons email and phone), which is then not searched for again. Findings:
rare_name for each name beside a contact that `rare` documents or fewer have (value: df). Rows stand
alone once fitted. Memory: 16 bytes a distinct name, some 100 a document (its id). Cost: some 10
MB/s. Errors: `contacts` that holds no findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline import personal
from foresift.pipeline.errors import DataError
from foresift.pipeline.findings import FOUND, Findings, findings, is_findings
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.store import Facts, read_json, write_json
from foresift.pipeline.tables import Column, content_texts
from foresift.scorers._counting import Counts
from foresift.scorers._names import Name, names

#: reasons that are a way to reach somebody
CONTACTS = frozenset(("email", "phone"))
Spans = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class EntityRarity(FittedScorer):
    """Rarity of the names in a document, and whether a rare one stands beside a contact."""

    contacts: str = ""
    """Column of findings with reasons email and phone (`pii.findings`); empty: they are sought."""
    reach: int = 100
    """Characters between a name and a contact that still stand beside each other."""
    rare: int = 2
    """Documents with a name up to which it is told among the findings."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "minus nats of a name beside a contact", "higher"),
        "min_df": Column(pa.float64(), "documents with the rarest name", "higher"),
        "rarity": Column(pa.float64(), "nats of the rarest name", "lower"),
        "names": Column(pa.int64(), "distinct names"),
        "beside_contact": Column(pa.bool_(), "a name stands beside a contact"),
        "contact_rarity": Column(pa.float64(), "nats of the rarest name beside a contact", "lower"),
        "findings": FOUND,
    }

    def __post_init__(self) -> None:
        if self.reach < 0 or self.rare < 1:
            raise ValueError("reach is not negative, and rare at least 1")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.contacts,) if self.contacts else ()

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        counts, seen = Counts(), set[bytes]()
        for table in tables:
            for row_id, text in zip(table["id"].to_pylist(), content_texts(table), strict=True):
                if row_id not in seen:
                    seen.add(row_id)
                    keys = {name.key for name in names(text)}
                    counts.add(np.array(sorted(keys), dtype=np.uint64))
        known, documents = counts.total()
        np.save(out / "names.npy", known, allow_pickle=False)
        np.save(out / "documents.npy", documents, allow_pickle=False)
        write_json(out / "corpus.json", {"documents": len(seen)})
        rare = int((documents <= self.rare).sum())
        return {"documents": len(seen), "names": len(known), "rare_names": rare}

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        known = np.load(out / "names.npy", mmap_mode="r", allow_pickle=False)
        documents = np.load(out / "documents.npy", mmap_mode="r", allow_pickle=False)
        n = max(1, read_json(out / "corpus.json")["documents"])
        rows = batch.num_rows
        least = np.full((rows, 2), np.nan)  # of all names, and of those beside a contact
        counted, found = np.zeros(rows, dtype=np.int64), Findings(rows)
        given = self._given(batch) if self.contacts else [None] * rows
        for row, text in enumerate(content_texts(batch)):
            here = list(names(text))
            if not here:
                continue
            spans = _contacts(text) if (told := given[row]) is None else told
            df = _frequencies(here, known, documents)
            near = self._beside(here, spans)
            counted[row] = len({name.key for name in here})
            least[row, 0] = df.min()
            if near.any():
                least[row, 1] = df[near].min()
            for name, count in ((here[k], df[k]) for k in np.flatnonzero(near).tolist()):
                if count <= self.rare:
                    found.add(row, "rare_name", name.start, name.stop, float(count))
        nats = -np.log(np.minimum(least / n, 1.0)) + 0.0
        beside = ~np.isnan(least[:, 1])
        rarity = np.where(beside, nats[:, 1], 0.0)
        return {
            "utility": -rarity, "min_df": least[:, 0], "rarity": nats[:, 0], "names": counted,
            "beside_contact": beside, "contact_rarity": rarity, "findings": found.array(),
        }  # fmt: skip

    def _given(self, batch: pa.Table) -> list[Spans]:
        column = batch[self.contacts]
        if not is_findings(column.type):
            raise DataError(f"contacts are findings, not {column.type}", where=self.contacts)
        return [
            [(f.start, f.stop) for f in each if f.reason in CONTACTS and not f.whole]
            for each in findings(column)
        ]

    def _beside(self, here: list[Name], spans: Spans) -> npt.NDArray[np.bool_]:
        """[names] whether a contact begins within reach behind it and ends within reach before."""
        places = np.array([(name.start, name.stop) for name in here], dtype=np.int64)
        ranked = np.array([(-1, -1), *sorted(spans)], dtype=np.int64)  # the first one is none
        begun = np.searchsorted(ranked[1:, 0], places[:, 1] + self.reach, side="right")
        ends = np.maximum.accumulate(ranked[:, 1])[begun]
        return (begun > 0) & (places[:, 0] - ends <= self.reach)


def _contacts(text: str) -> Spans:
    return [(hit.start, hit.stop) for hit in personal.find(text) if hit.kind in CONTACTS]


def _frequencies(
    here: list[Name], known: npt.NDArray[np.uint64], documents: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Documents with each name; at least the one that it stands in."""
    keys = np.array([name.key for name in here], dtype=np.uint64)
    if not len(known):
        return np.ones(len(keys), dtype=np.int64)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.asarray(np.where(known[place] == keys, documents[place], 1), dtype=np.int64)
