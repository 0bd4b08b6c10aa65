"""The documents of a training run, tokenised as they are consumed, in plan order.

Memory holds one window of text and 64 tokenised documents, whatever the size of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline.errors import DataError
from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.nouns import Inputs
from foresift.pipeline.plan_rows import rows_in_plan_order
from foresift.stages.trainers._packing import Document, Place

#: documents tokenised at once
TOKENISED = 64


@dataclass
class Seen:
    """What was met on the way: every entry of the plan is trained on or counted here."""

    entries: int = 0
    documents: int = 0
    tokens: int = 0
    cut: int = 0
    skipped: dict[str, int] = field(default_factory=lambda: {"empty": 0, "zero_weight": 0})


def tables(inputs: Inputs) -> Iterator[pa.Table]:
    """Tables of (id, content, weight, shard, row, round): the plan, or the alive rows as they lie.

    Weights are checked here: one that is negative or not a number has no meaning as a loss weight.
    """
    if inputs.corpus is None:
        raise DataError("training needs a corpus; put a `read` step before it", where="train")
    if inputs.plan is None:
        yield from _alive(inputs)
        return
    for table in rows_in_plan_order(inputs.corpus, inputs.plan):
        weights = np.asarray(table["weight"], dtype=np.float64)
        bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        if len(bad):
            first = table["id"][int(bad[0])].as_py().hex()
            raise DataError(
                f"document {first} has weight {weights[bad[0]]}; a weight is finite and not "
                "negative",
                where=str(inputs.plan.path / "plan.parquet"),
            )
        yield table


def _alive(inputs: Inputs) -> Iterator[pa.Table]:
    assert inputs.corpus is not None
    for number, shard in enumerate(inputs.corpus.shards()):
        for table, rows in shard.stream():
            n = table.num_rows
            beside = {
                "weight": pa.array(np.ones(n, dtype=np.float32)),
                "shard": pa.array(np.full(n, number, dtype=np.int32)),
                "row": pa.array(rows),
                "round": pa.array(np.full(n, inputs.round, dtype=np.int32)),
            }
            for name, column in beside.items():
                table = table.append_column(name, column)
            yield table


def entries(inputs: Inputs) -> int:
    """How many documents the plan (or the corpus) has."""
    if inputs.plan is not None:
        import pyarrow.parquet as pq

        return int(pq.read_metadata(inputs.plan.path / "plan.parquet").num_rows)
    return sum(int(s.alive().sum()) for s in inputs.corpus.shards()) if inputs.corpus else 0


def documents(
    inputs: Inputs, tokenizer: Any, spec: ModelSpec, seen: Seen, *, repeat: bool = False
) -> Iterator[Document]:
    """Tokenised documents in plan order; `repeat` begins again at the end, for ever."""
    while True:
        before = seen.documents
        for table in tables(inputs):
            for start in range(0, table.num_rows, TOKENISED):
                yield from _tokenised(table.slice(start, TOKENISED), tokenizer, spec, seen)
        if not repeat or seen.documents == before:
            return


def _tokenised(table: pa.Table, tokenizer: Any, spec: ModelSpec, seen: Seen) -> Iterator[Document]:
    encoded = encode(table, tokenizer, spec)
    names = ("id", "round", "shard", "weight")
    values = zip(*(table[name].to_pylist() for name in names), strict=True)
    for k, (id_, round_, shard, weight) in enumerate(values):
        seen.entries += 1
        span = slice(int(encoded.offsets[k]), int(encoded.offsets[k + 1]))
        if span.start == span.stop or weight == 0:
            seen.skipped["empty" if span.start == span.stop else "zero_weight"] += 1
            continue
        seen.documents += 1
        seen.tokens += span.stop - span.start
        seen.cut += int(encoded.cut[k])
        place = Place(id_, round_, shard)
        yield Document(encoded.ids[span], encoded.counts[span], place, weight)
