"""How many copies of a document, or of a passage of it, the corpus holds: forget-risk feature F3.

    exact      other rows with the same content, or the same once normalised: lower case; letters,
               digits and marks stay, everything else is a space
    near       rows of its cluster - 1: near copies by MinHash and banding (as `dedup: minhash` does
               without a threshold, but numbers tell texts apart), exact ones too; near >= exact
    substr50   other rows that share a run of 50 words or more with it, exact copies among them
    first      whether it has the smallest id of its cluster: the copy that stays under a cap
    cluster    the id of that copy
    utility    -max(exact, near, substr50)             fewer copies first; 0: there is no other

Memorisation grows with the number of copies (log-linearly: Carlini et al. 2022; Kandpal et al.
2022), so one copy is kept and the count stays as a feature: score before `dedup`, whose decision
then leaves the columns as they are. Rows with one id have the same values, `first` included, for a
scorer cannot tell them apart: `dedup: exact` does.

What is exact: `exact` (up to 128-bit hashes); `near` is what the bands find (Jaccard similarity 0.8
with probability 0.92, 0.9 with 0.9996; chains join unlike documents). `substr50` counts no pair
that shares less, and every pair that shares 50 + stride - 1 words or more; of shorter runs some are
missed, none at `stride: 1`. Where a passage lies in more than 64 documents, it is at least their
number (notices, licences). Texts without words have no copies but by their ids. Words are what
stands between spaces and punctuation; without either (Thai, base64) a text is cut every 256 bytes,
so a near copy is found only as far as it is the same from the beginning.

Memory while fitting: about 120 bytes a document, and 8 bytes for each pair of documents that share
a passage; on disk 32 + 8 * bands bytes a row, and 16 bytes a chosen window (2 / (stride + 1) of the
words), all gone afterwards. Cost: about 40 MB/s on one core. Scoring looks up 48 bytes a document.
Sources: Lee et al. 2022 (50-token substrings); `pipeline/minhash.py`; `_copies_passages.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.by_id import read_by_id, write_by_id
from foresift.pipeline.components import Ints, Keys
from foresift.pipeline.minhash import band_keys, document_hashes, shingles, signatures
from foresift.pipeline.normal_text import words
from foresift.pipeline.nouns import Arrays, FittedScorer
from foresift.pipeline.store import Facts
from foresift.pipeline.tables import ID, Column, content_texts, id_words
from foresift.scorers._copies import Documents, Spool, clustered, equal, plain_keys
from foresift.scorers._copies_passages import chosen, sharing

#: words of a passage; bytes of content that are hashed together
RUN, GROUP = 50, 256 << 10
COUNTS = ("exact", "near", "substr50")


@dataclass(frozen=True, kw_only=True)
class Copies(FittedScorer):
    """Copies of a document in the corpus: exact, near, and of passages of fifty words."""

    version: ClassVar[int] = 3

    bands: int = 14
    """Bands of the MinHash signature; more find more (FineWeb: 14)."""
    rows: int = 8
    """Minima in a band; more demand more similarity (FineWeb: 8)."""
    ngram: int = 5
    """Words in a shingle (FineWeb: 5)."""
    stride: int = 16
    """Windows of 50 words of which one is compared; 1: all, exact and some 8 times as much disk."""
    numbers: bool = True
    """Whether numbers and accents tell near copies apart; `dedup: minhash` takes them as equal, so
    that records and word problems of one form are copies of each other."""
    seed: int = 0
    """Chooses the hash functions."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float64(), "minus the most other rows", "higher"),
        "exact": Column(pa.int64(), "other rows with the same plain form", "lower"),
        "near": Column(pa.int64(), "other rows in the cluster", "lower"),
        "substr50": Column(pa.int64(), "other rows with a passage of it", "lower"),
        "first": Column(pa.bool_(), "the copy of its cluster that stays"),
        "cluster": Column(ID, "id of the first of its cluster"),
    }

    def __post_init__(self) -> None:
        if min(self.bands, self.rows, self.ngram, self.stride) < 1:
            raise ValueError("bands, rows, ngram and stride are at least 1")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError("seed must lie in [0, 2^64)")

    def fit(self, tables: Iterable[pa.Table], out: Path) -> Facts:
        with tempfile.TemporaryDirectory(dir=out) as folder:
            with Spool(Path(folder), self.bands) as spool:
                rows = self._look(tables, spool)
            found = Documents.of(np.array(spool.read("ids", 2)))
            plain = np.array(spool.read("plain", 2)[found.rows])
            bands = spool.read("bands", self.bands)
            exact = equal(plain, found.weight)
            near, kept = clustered(self._keys(plain, bands, found), found.weight)
            passages = sharing(spool.passages(), found.of_row, found.weight)
            del bands
        counts = dict(zip(COUNTS, (exact, near, passages), strict=True))
        first = kept == np.arange(len(kept))
        named = {"first": first, "cluster": found.words[kept].view(np.int64)}
        write_by_id(out, found.words, {**counts, **named})
        clusters = int(first.sum())
        return {
            "rows": rows,
            "documents": len(found.words),
            "clusters": clusters,
            "largest_cluster": int(near.max(initial=-1)) + 1,
            "surplus_rows": rows - clusters,
            "copied": {name: int(((n > 0) * found.weight).sum()) for name, n in counts.items()},
        }

    def _look(self, tables: Iterable[pa.Table], spool: Spool) -> int:
        """Write down the keys of every row; how many rows there were."""
        done = 0
        for table in tables:
            for ids, documents in _groups(table):
                spool.add("ids", ids)
                plain = words(documents, loose=False)
                spool.add("plain", plain_keys(ids, plain))
                hashed = document_hashes(documents, self.ngram, loose=not self.numbers)
                minima = signatures(*hashed, self.bands * self.rows, self.seed)
                spool.add("bands", band_keys(minima, self.bands))
                hashes, which = chosen(*shingles(plain.cut(), RUN), self.stride)
                spool.add_passages(hashes, which + done)
                done += len(documents)
        return done

    def _keys(self, plain: Keys, bands: Keys, found: Documents) -> Iterator[Keys]:
        """What documents of a cluster share, one kind of key after the other."""
        yield plain
        for band in range(self.bands):
            yield np.asarray(bands[:, band])[found.rows]

    def score(self, batch: pa.Table, out: Path) -> Arrays:
        found = read_by_id(out, batch["id"])
        unknown = found["near"] < 0
        most = np.max([found[name] for name in COUNTS], axis=0)
        counts = {name: pa.array(found[name], pa.int64(), mask=unknown) for name in COUNTS}
        return {
            **counts,
            "first": pa.array(found["first"], mask=unknown),
            "cluster": _ids(found["cluster"], unknown),
            "utility": np.where(unknown, np.nan, 0.0 - most),
        }


def _ids(words: Ints, unknown: npt.NDArray[np.bool_]) -> pa.Array:
    """[n, 2] words as ids, null where unknown."""
    raw = np.ascontiguousarray(words, dtype="<i8").tobytes()
    ids = pa.Array.from_buffers(ID, len(words), [None, pa.py_buffer(raw)])
    return pc.if_else(pa.array(~unknown), ids, pa.scalar(None, ID))


def _groups(table: pa.Table) -> Iterator[tuple[Keys, list[bytes]]]:
    """Ids and contents of some rows at a time, so that the work stays in the cache."""
    ids, done, size = id_words(table["id"]), 0, 0
    group: list[bytes] = []
    for text in content_texts(table):
        group.append(text.encode())
        size += len(group[-1])
        if size >= GROUP:
            yield ids[done : done + len(group)], group
            done, group, size = done + len(group), [], 0
    if group:
        yield ids[done:], group
