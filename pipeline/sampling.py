"""Draws of documents from a pool: the rows whose draw from (seed, id) is smallest, with their text.

A draw does not depend on the order of rows or shards, nor on how many others are in the pool: a
document drawn among many is drawn among fewer. Exact copies share their draw. Cost: the ids of all
alive rows once, and the row groups in which the drawn ones lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from foresift.pipeline.choice import Budget
from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import RecipeError
from foresift.pipeline.plan_rows import content_at
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import CONTENT


def share(value: str | int, name: str) -> Budget:
    """Read a number of documents: `2000`, `10%`."""
    text = str(value)
    try:
        budget = Budget.parse(text if text.rstrip().endswith(("row", "rows")) else f"{text} rows")
    except RecipeError:
        budget = Budget(0.0)
    if budget.cost != "rows" or budget.amount <= 0:
        raise RecipeError(
            f"a number of documents or a share of them, such as 2000 or '10%'; got {value!r}",
            where=name,
        )
    return budget


def count(value: str | int, pool: int) -> int:
    """How many documents `2000` or `10%` are of a pool of so many."""
    budget = share(value, "documents")
    return min(pool, round(budget.amount * pool) if budget.relative else int(budget.amount))


def alive(corpus: Corpus) -> int:
    """How many rows of a corpus are alive."""
    return sum(int(shard.alive().sum()) for shard in corpus.shards())


def draw(corpus: Corpus, number: int, rng: Rng, columns: Sequence[str] = ()) -> pa.Table:
    """`id`, content and `columns` of `number` drawn rows (or all, if fewer), in corpus order."""
    places, draws = [], []
    shards = corpus.shards()
    for k, shard in enumerate(shards):
        rows = np.flatnonzero(shard.alive())
        places.append(np.stack([np.full(len(rows), k), rows], axis=1))
        draws.append(rng.uniform(shard.load(["id"])["id"].take(pa.array(rows))))
    where = np.concatenate([np.empty((0, 2), dtype=np.int64), *places])
    order = np.argsort(np.concatenate([np.empty(0), *draws]), kind="stable")[:number]
    chosen = where[np.sort(order)]
    tables = []
    for k, shard in enumerate(shards):
        rows = chosen[chosen[:, 0] == k, 1]
        if not len(rows):
            continue
        beside = shard.load(list(dict.fromkeys(["id", *columns])))
        for first, batch in content_at(shard, rows):
            here = rows[(rows >= first) & (rows < first + batch.num_rows)]
            if not len(here):
                continue
            found = batch.take(pa.array(here - first))
            known = {n: beside[n].take(pa.array(here)) for n in beside.column_names}
            content = {n: found[n].cast(CONTENT[n]) for n in found.column_names}
            tables.append(pa.table({**known, **content}))
    return pa.concat_tables(tables) if tables else pa.table({"id": pa.array([], pa.binary(16))})
