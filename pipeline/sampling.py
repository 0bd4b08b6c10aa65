"""Draws of documents from a pool: the rows whose draw from (seed, id) is smallest, with their text.

A draw does not depend on the order of rows or shards, nor on how many others are in the pool: a
document drawn among many is drawn among fewer. Exact copies share their draw. Cost: the ids of all
alive rows once, and the row groups in which the drawn ones lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.choice import Budget
from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import RecipeError
from foresift.pipeline.labels import labels
from foresift.pipeline.plan_rows import content_at
from foresift.pipeline.rng import Rng
from foresift.pipeline.tables import CONTENT

Floats = npt.NDArray[np.float64]


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


def draw(
    corpus: Corpus,
    number: int,
    rng: Rng,
    columns: Sequence[str] = (),
    *,
    by: str = "",
    depth: int = 0,
    distinct: bool = False,
) -> pa.Table:
    """`id`, content and `columns` of `number` drawn rows (or all, if fewer), in corpus order.

    by         column of labels whose values take turns, so that each is there if they are no more
               than `number`; rows without one count as one value
    depth      components of a key path in `by` that make a label; 0: all of it
    distinct   of exact copies only the first is drawn
    """
    places, draws, kinds = [], [], []
    shards = corpus.shards()
    for k, shard in enumerate(shards):
        rows = np.flatnonzero(shard.alive())
        places.append(np.stack([np.full(len(rows), k), rows], axis=1))
        here = shard.load(["id", *([by] if by else [])]).take(pa.array(rows))
        draws.append(rng.uniform(here["id"]))
        names, codes = (
            labels(here, by, depth) if by else ([""], np.zeros(len(rows), dtype=np.int64))
        )
        kinds += [names[code] if code >= 0 else None for code in codes.tolist()]
    where = np.concatenate([np.empty((0, 2), dtype=np.int64), *places])
    drawn = np.concatenate([np.empty(0), *draws])
    order = np.lexsort((drawn, _turns(drawn, kinds)) if by else (drawn,))
    if distinct:
        order = order[np.diff(drawn[order], prepend=-1.0) != 0]
    chosen = where[np.sort(order[:number])]
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


def _turns(draws: Floats, kinds: Sequence[str | None]) -> npt.NDArray[np.int64]:
    """Of each row, how many of its kind were drawn before it; copies share their draw and turn."""
    names = {kind: code for code, kind in enumerate(dict.fromkeys(kinds))}
    codes = np.array([names[kind] for kind in kinds], dtype=np.int64)
    order = np.lexsort((draws, codes))
    first = np.diff(codes[order], prepend=-1) != 0
    number = np.cumsum(first | (np.diff(draws[order], prepend=-1.0) != 0))
    turns = np.empty(len(order), dtype=np.int64)
    turns[order] = number - np.maximum.accumulate(np.where(first, number, 0))
    return turns
