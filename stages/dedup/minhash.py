"""Near-duplicates by MinHash and banding, as FineWeb removes them.

A document is the set of its word n-grams ("shingles") after normalisation: lower case, every number
"0", punctuation a space, accents stripped. A signature of `bands * rows` minima estimates Jaccard
similarity; two documents are candidates when all `rows` minima of any of the `bands` bands agree:

    P(candidate | s) = 1 - (1 - s^rows)^bands      s = Jaccard similarity of the shingle sets
    14 bands of 8:  s .5 .053   .6 .211   .7 .565   .75 .772   .8 .924   .85 .988   .9 .9996

    threshold: null   every candidate pair is joined (FineWeb; similar to datatrove's MinHash)
    threshold: 0.8    a candidate pair is joined only if that share of all minima agrees. The share
                      estimates s with standard deviation sqrt(s (1 - s) / (bands * rows)), .038
                      at s = .8; P above still bounds recall. In a bucket of more than 32
                      documents each is compared with the 32 before it, not with all

Clusters are the connected components of joined pairs, so a chain may put unlike documents together;
`cluster_sizes` in the facts is the histogram, `largest_cluster` its end. One document of each is
kept: the best by `keep`, or the first of the corpus.

Guaranteed, whatever the seed: exact copies are always joined, and so are documents that the stage
`exact` with `normalise` finds equal, unless they hold no letter and no digit (":)" and "!!!" are
not duplicates). Documents of fewer than `ngram` words have one shingle, their whole text with its
numbers kept: they are joined with normalised copies of themselves and with nothing else.

Steps: signatures (a job item a shard) -> pairs (an item a band) -> [verification] -> union-find ->
decisions (an item a shard). Only signatures read text. Memory: about 150 bytes a row, with a
threshold also 4 * bands * rows bytes a row that has a candidate. Cost: about 60 MB/s a core.

Source: Broder 1997 (MinHash); Penedo et al. 2024 (FineWeb) for 14 x 8 and 5-grams; signatures by
rensa (R-MinHash, see `pipeline/minhash.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline.components import Ints, bucket_pairs, find_clusters
from foresift.pipeline.corpus import Shard
from foresift.pipeline.minhash import band_keys, document_hashes, signatures
from foresift.pipeline.nouns import Facts, Inputs, Job, Stage, StepDir
from foresift.pipeline.store import ShardWriter, write_shard
from foresift.pipeline.tables import ID, Column
from foresift.stages.dedup._batches import gathered, groups
from foresift.stages.dedup._clusters import (
    COLUMNS,
    Pool,
    Prefer,
    decide,
    decided,
    summary,
)
from foresift.stages.dedup._verify import verified

#: documents before it in a bucket that a document is compared with, where a threshold is set
WINDOW = 32


@dataclass(frozen=True, kw_only=True)
class MinHash(Stage):
    """Keeps one of each cluster of near-duplicates found by MinHash banding."""

    columns: ClassVar[Mapping[str, Column]] = COLUMNS

    bands: int = 14
    """Bands of the signature; more find more (FineWeb: 14)."""
    rows: int = 8
    """Minima in a band; more demand more similarity (FineWeb: 8)."""
    ngram: int = 5
    """Words in a shingle (FineWeb: 5)."""
    threshold: float | None = None
    """Share of equal minima, in (0, 1], from which a candidate pair is joined; null: always."""
    seed: int = 0
    """Chooses the hash functions."""
    keep: str = ""
    """Column of numbers by which the best of a cluster is kept (`loss.nll`, `n_bytes`); empty: the
    first of the corpus. Null and NaN are worst; among equals the first is kept."""
    prefer: Prefer = "higher"
    """Whether the `higher` or the `lower` value of `keep` is better."""

    def __post_init__(self) -> None:
        for name in ("bands", "rows", "ngram"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError("seed must lie in [0, 2^64)")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError("threshold must lie in (0, 1], or be null")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.keep,) if self.keep else ()

    def run(self, inputs: Inputs, out: StepDir, job: Job) -> Facts:
        corpus = inputs.corpus
        assert corpus is not None
        signed, paired = StepDir(out.path / "signatures"), StepDir(out.path / "pairs")
        if not decided(corpus, out):
            pool = Pool.open(corpus, self.keep, self.prefer)
            pairs = self._pairs(pool, signed, paired, job)
            decide(pool, find_clusters(pairs, pool.worth), out, job, "near duplicate")
        for work in (paired, signed):
            shutil.rmtree(work.path, ignore_errors=True)
        return {**summary(out), "parameters": self.settings()}

    def _pairs(self, pool: Pool, signed: StepDir, paired: StepDir, job: Job) -> Ints:
        """[m, 2] joined pairs of alive rows."""
        shards = [signed.shard(shard.name) for shard in pool.shards]
        bands = [paired.shard(f"part-{band:05d}") for band in range(self.bands)]
        task = partial(write_signatures, self, signed.path)
        job.map_shards(task, pool.shards, shards, pool.resources, "signatures")
        window = 0 if self.threshold is None else WINDOW
        link = partial(write_pairs, shards, window, paired.path)
        job.map_shards(link, range(self.bands), bands, pool.resources, "pairs")
        pairs = np.concatenate([_matrix(pq.read_table(path)) for path in bands])
        if self.threshold is None:
            return pairs
        return verified(pairs, shards, self.bands * self.rows, self.threshold)


def _matrix(table: pa.Table) -> Ints:
    columns = [np.asarray(table[name], dtype=np.int64) for name in table.column_names]
    return np.stack(columns, axis=1)


def write_signatures(part: MinHash, out: Path, shard: Shard) -> Facts:
    """Write the band keys (and, to be verified, the minima) of the alive rows of a shard."""
    kinds = [("id", ID), *((f"band-{band}", pa.uint64()) for band in range(part.bands))]
    if part.threshold is not None:
        kinds.append(("minima", pa.binary(4 * part.bands * part.rows)))
    with ShardWriter(StepDir(out).shard(shard.name), pa.schema(kinds)) as writer:
        for table in gathered(_sketches(part, shard)):
            writer.write(table)
    return writer.facts


def _sketches(part: MinHash, shard: Shard) -> Iterator[pa.Table]:
    slots = part.bands * part.rows
    for table, documents in groups(shard):
        minima = signatures(*document_hashes(documents, part.ngram), slots, part.seed)
        keys = band_keys(minima, part.bands)
        arrays = {f"band-{band}": pa.array(keys[:, band]) for band in range(part.bands)}
        if part.threshold is not None:
            raw = [None, pa.py_buffer(minima.astype("<u4").tobytes())]
            arrays["minima"] = pa.Array.from_buffers(pa.binary(4 * slots), len(minima), raw)
        yield pa.table({"id": table["id"], **arrays})


def write_pairs(shards: Sequence[Path], window: int, out: Path, band: int) -> Facts:
    """Write the pairs of rows whose keys agree in one band."""
    keys = [np.asarray(pq.read_table(p, columns=[f"band-{band}"])[0]) for p in shards]
    pairs = bucket_pairs(np.concatenate([np.empty(0, dtype=np.uint64), *keys]), window)
    table = pa.table({"first": pairs[:, 0], "other": pairs[:, 1]})
    return write_shard(StepDir(out).shard(f"part-{band:05d}"), table)
