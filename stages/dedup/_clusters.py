"""From clusters to decisions; everything here is numbers, never text.

Rows are the alive rows of the corpus, numbered in corpus order. The best row of each cluster
(`pipeline/components.py`) is kept.

Memory: about 100 bytes a row, and 16 bytes an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.components import Clusters, Ints
from foresift.pipeline.corpus import DECISION, Corpus, Shard
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import SMALL_BYTES, Facts, Job, Resources, StepDir
from foresift.pipeline.store import add_counts, shard_facts, write_shard
from foresift.pipeline.tables import ID, Column

Prefer = Literal["higher", "lower"]

UNIQUE, BEST, EXACT = "unique", "best of cluster", "exact copy"
#: what a dedup part adds to a decision
COLUMNS = {
    "cluster": Column(ID, "id of the document kept of the cluster"),
    "cluster_size": Column(pa.int64(), "documents in the cluster"),
}


@dataclass(frozen=True)
class Pool:
    """The alive rows of a corpus as a dedup part sees them."""

    shards: Sequence[Shard]
    ids: pa.FixedSizeBinaryArray
    worth: npt.NDArray[np.float64]
    bounds: Ints
    """Shard s has the rows `bounds[s]` to `bounds[s + 1]`."""
    resources: Resources

    @classmethod
    def open(cls, corpus: Corpus, keep: str, prefer: Prefer) -> Pool:
        """Read ids and the column to keep by; without one all rows are worth the same."""
        shards = corpus.shards()
        table, places = corpus.table(["n_bytes", *([keep] if keep else [])])
        worth = _worth(table[keep], keep, prefer) if keep and shards else np.zeros(table.num_rows)
        bounds = np.searchsorted(places[:, 0], np.arange(len(shards) + 1)).astype(np.int64)
        small = (pc.sum(table["n_bytes"]).as_py() or 0) < SMALL_BYTES if shards else True
        ids = pa.concat_arrays(table["id"].chunks) if len(table) else pa.array([], ID)
        return cls(shards, ids, worth, bounds, Resources(small=small))


def _worth(column: pa.ChunkedArray, keep: str, prefer: Prefer) -> npt.NDArray[np.float64]:
    try:
        filled = column.cast(pa.float64()).fill_null(np.nan)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(
            f"cannot keep the best by {keep!r}: it holds {column.type}, not numbers", where="keep"
        ) from None
    values = np.asarray(filled, dtype=np.float64)
    return values if prefer == "higher" else -values


def decide(pool: Pool, clusters: Clusters, out: StepDir, job: Job, copy: str) -> None:
    """Write the decision of each shard; `copy` is the reason for dropping what is not exact."""
    raw = pool.ids.buffers()[1]
    ids = np.frombuffer(raw, dtype="V16")[pool.ids.offset :] if raw else np.empty(0, dtype="V16")
    cuts = np.searchsorted(clusters.rows, pool.bounds)
    items = []
    for number, shard in enumerate(pool.shards):
        here = slice(int(cuts[number]), int(cuts[number + 1]))
        rows, kept = clusters.rows[here], clusters.kept[here]
        local = rows - pool.bounds[number]
        items.append(Verdict(shard, local, rows == kept, ids[kept], clusters.sizes[here]))
    paths = [out.shard(shard.name) for shard in pool.shards]
    task = partial(write_decision, out.path, copy)
    job.map_shards(task, items, paths, pool.resources, "decide")


@dataclass(frozen=True)
class Verdict:
    """What was decided about the clustered rows of one shard (`rows` counts its alive rows)."""

    shard: Shard
    rows: Ints
    kept: npt.NDArray[np.bool_]
    cluster: npt.NDArray[Any]
    sizes: Ints


def write_decision(out: Path, copy: str, item: Verdict) -> Facts:
    """Write the decision about every row of one shard; rows that are not alive are not kept."""
    base = item.shard.load(["id", "n_tokens"]).combine_chunks()
    alive = item.shard.alive()
    rows = np.flatnonzero(alive)[item.rows]
    ids = np.frombuffer(b"".join(base["id"].to_pylist()), dtype="V16")
    cluster, sizes = ids.copy(), np.ones(len(ids), dtype=np.int64)
    cluster[rows], sizes[rows] = item.cluster, item.sizes
    code = np.zeros(len(ids), dtype=np.int8)
    code[rows] = np.where(item.kept, 1, np.where(ids[rows] == item.cluster, 2, 3))
    kept, names = alive & (code < 2), [UNIQUE, BEST, EXACT, copy]
    reasons = pa.DictionaryArray.from_arrays(pa.array(code, mask=~alive), names)
    columns = {
        "kept": pa.array(kept),
        "rank": pa.array(np.full(len(ids), -1), mask=~alive),
        "weight": pa.array(np.ones(len(ids), dtype=np.float32), mask=~alive),
        "reason": reasons.cast(pa.string()),
        "cluster": _binary(cluster, alive),
        "cluster_size": pa.array(sizes, mask=~alive),
    }
    assert list(columns) == [*DECISION, *COLUMNS]
    tokens = np.asarray(base["n_tokens"])
    facts = {
        "alive": int(alive.sum()),
        "kept": int(kept.sum()),
        "kept_tokens": int(tokens[kept].sum()),
        "pool_tokens": int(tokens[alive].sum()),
        "reasons": _counts(np.array(names)[code[alive]]),
        "sizes": _counts(item.sizes[item.kept]),
    }
    path = StepDir(out).shard(item.shard.name)
    return write_shard(path, pa.table({"id": base["id"], **columns}), facts)


def _binary(values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> pa.Array:
    bitmap = pa.array(valid).buffers()[1]
    return pa.Array.from_buffers(ID, len(values), [bitmap, pa.py_buffer(values.tobytes())])


def _counts(values: npt.NDArray[Any]) -> dict[str, int]:
    found, counts = np.unique(values, return_counts=True)
    return {str(v): int(c) for v, c in zip(found.tolist(), counts.tolist(), strict=True)}


def decided(corpus: Corpus, out: StepDir) -> bool:
    """Whether the decision about every shard lies there (then nothing else is needed)."""
    return all(out.shard(shard.name).exists() for shard in corpus.shards())


def summary(out: StepDir) -> Facts:
    """The facts of the whole decision, from those of its shards."""
    total = add_counts(shard_facts(path) for path in out.shards())
    rows, kept = total.get("alive", 0), total.get("kept", 0)
    sizes = {int(size): count for size, count in total.get("sizes", {}).items()}
    return {
        "rows": rows,
        "kept": kept,
        "dropped": rows - kept,
        "kept_tokens": total.get("kept_tokens", 0),
        "pool_tokens": total.get("pool_tokens", 0),
        "reasons": total.get("reasons", {}),
        "clusters": sum(sizes.values()),
        "largest_cluster": max(sizes, default=0),
        "cluster_sizes": {str(size): sizes[size] for size in sorted(sizes)},
    }
