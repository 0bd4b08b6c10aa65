"""Which documents a drill takes: some of each decile of risk, and what must be kept, from the rest.

    pool       one row a document that the checkpoint saw (by the ledgers of its training and of
               those before it on its line; without them: what the run kept), has a risk, and was
               not forgotten
    clusters   by `minhash.cluster`: the document with the smallest id of each; else those with
               `copies.first`; else all. One document stands for its cluster
    decile     of the clusters in the order of risk, equal ones in the order of a draw of (seed, id)
    drilled    of each decile the `per_decile` smallest of another draw, at most half of it
    rest       all other clusters, in the order of that draw

Memory: ids and columns of the pool, never text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline.checkpoints import checkpoints
from foresift.pipeline.choice import scores
from foresift.pipeline.errors import DataError
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import StepDir
from foresift.pipeline.tables import ID, id_words
from foresift.stages.forget.history import Done, History

#: feature -> its column, where the recipe's forget risk names no other (`columns_of`)
FEATURES = {
    "copies": "copies.near", "surprise": "surprise.peak", "memorisation": "memorisation.gap",
    "entanglement": "entanglement.by_cluster", "worst_case": "worst_case.weight",
    "sharpness": "sharpness.by_cluster",
}  # fmt: skip
FIRST, CLUSTER, DECILES = "copies.first", "minhash.cluster", 10
#: documents below which nothing is fitted to a drill
LEAST = 20
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Start:
    """A checkpoint, and what is known of its training."""

    init: str
    step: int | None = None
    trainings: tuple[Done, ...] = ()
    """The training that left it last, those before it on its line first; empty: not of this run."""


@dataclass(frozen=True, eq=False)
class Pool:
    """The documents that may be drilled, one a cluster."""

    table: pa.Table
    """id, risk, exposures, and the features that the run has."""
    places: Ints
    """[n, 2] shard and row."""
    clusters: str
    """The column that told the clusters; `documents` where none did."""
    features: Mapping[str, str]
    """Feature -> its column."""


@dataclass(frozen=True, eq=False)
class Picked:
    """Rows of the pool."""

    drilled: Ints
    """In the order of decile and draw."""
    decile: Ints
    """[drilled] 1 (the smallest risk) to 10."""
    rest: Ints
    short: bool
    """Whether a decile had too few clusters."""


def start(history: History, model: str) -> Start:
    """The checkpoint that is asked for; the newest of the selection's trainings where none is."""
    if model:
        for training in history.trainings:
            for one in checkpoints(training.path):
                if one.path.resolve() == Path(model).resolve():
                    return Start(model, one.step, _line(history, training))
        return Start(model)
    for training in [t for t in history.trainings if t.main][::-1]:
        if found := checkpoints(training.path):
            return Start(str(found[-1].path), found[-1].step, _line(history, training))
    raise DataError(
        "this run has no checkpoint: nothing was trained, or it was removed; name one with --model",
        where=str(history.run.path),
    )


def _line(history: History, last: Done) -> tuple[Done, ...]:
    """The trainings of a line up to this one."""
    line = [t for t in history.trainings if (t.line, t.repeat) == (last.line, last.repeat)]
    return tuple(line[: line.index(last) + 1])


def pool(history: History, begun: Start, by: str) -> Pool:
    """The documents with a risk that the checkpoint saw, one a cluster."""
    where, named = str(history.run.path), _columns_of(history, by)
    risk = column(history, by)
    if risk is None:
        raise DataError(f"this run has no column {by!r}: score forget_risk first", where=where)
    found = {f: place for f, name in named.items() if (place := column(history, name))}
    if not found:
        raise DataError(
            f"this run has none of {', '.join(named.values())}, which a drill is fitted to: score"
            " one before forget_risk",
            where=where,
        )
    clusters, extra = _clusters(history)
    corpus = replace(history.bases[0], columns={"risk": risk, **found, **extra})
    table, places = corpus.table([*corpus.columns])
    table = table.append_column("row", pa.array(np.arange(table.num_rows)))
    table = _seen(table, history, begun)
    table = table.filter(pa.array(np.isfinite(scores(table, "risk"))))
    _, first = np.unique(id_words(table["id"]), axis=0, return_index=True)
    table = table.take(pa.array(first))  # by id: exact copies once
    if clusters == CLUSTER:
        table = _smallest(table)
    elif clusters == FIRST:
        table = table.filter(pc.fill_null(table["first"], False))
    features = {f: named[f] for f in found if table[f].null_count < table.num_rows}
    columns = ["id", "risk", "exposures", *features]
    return Pool(table.select(columns), places[np.asarray(table["row"])], clusters, features)


def column(history: History, public: str) -> tuple[Path, str] | None:
    """Where a column of the run lies, if it does."""
    place = history.score(public)
    shards = StepDir(place[0]).shards() if place else []
    return place if shards and place and place[1] in pq.read_schema(shards[0]).names else None


def _columns_of(history: History, by: str) -> dict[str, str]:
    """Feature -> its column, as the recipe's forget risk reads it."""
    recipe = Recipe.read(history.run.path / "recipe.yaml")
    every = [*recipe.step_specs(), *recipe.round_specs()[1]]
    parts = [p for spec in every for name, p in spec.parts if name == by.partition(".")[0]]
    told = getattr(parts[-1], "columns_of", {}) if parts else {}
    return {f: (told.get(f) or [name])[0] for f, name in FEATURES.items()}


def _clusters(history: History) -> tuple[str, dict[str, tuple[Path, str]]]:
    """What tells clusters, and where it lies."""
    for public in (CLUSTER, FIRST):
        if place := column(history, public):
            return public, {public.partition(".")[2]: place}
    return "documents", {}


def _smallest(table: pa.Table) -> pa.Table:
    """The first row of each cluster, of rows sorted by id; without one a row is its own."""
    keys = pc.coalesce(table["cluster"], table["id"])
    _, first = np.unique(id_words(keys), axis=0, return_index=True)
    return table.take(pa.array(np.sort(first)))


def _seen(table: pa.Table, history: History, begun: Start) -> pa.Table:
    """The rows that the checkpoint was trained on, with how often."""
    if begun.trainings:
        ids = [_exposures(history, t, _last(begun, t)) for t in begun.trainings]
        counted = pa.concat_tables(ids).group_by("id").aggregate([("n", "sum")])
        known, counts = counted["id"], counted["n_sum"]
    else:
        plan = pq.read_table(history.run.plan, columns=["id", "kept"])
        known = pc.unique(plan.filter(plan["kept"])["id"])
        counts = pa.nulls(len(known), pa.int64())
    at = pc.index_in(table["id"], value_set=known)
    table = table.append_column("exposures", pa.chunked_array([counts.take(at.combine_chunks())]))
    return table.filter(pc.is_valid(at))


def _last(begun: Start, training: Done) -> int | None:
    """The last step of a training that the checkpoint saw; None: all."""
    return begun.step if training == begun.trainings[-1] else None


def _exposures(history: History, training: Done, last: int | None) -> pa.Table:
    """(id, n) of the documents of a training up to a step; steps that are not known count."""
    parts = [pa.table({"id": pa.array([], ID), "n": pa.array([], pa.int64())})]
    for table in history.ledger(training).tables(["id", "step"]):
        if last is not None:
            table = table.filter(pc.fill_null(pc.less_equal(table["step"], last), True))
        found = table.group_by("id").aggregate([([], "count_all")])
        parts.append(found.select(["id", "count_all"]).rename_columns(["id", "n"]))
    return pa.concat_tables(parts)


def pick(found: Pool, per_decile: int, rng: Rng, where: str) -> Picked:
    """So many of each decile, and the rest; DataError where that is too little."""
    n, ids = found.table.num_rows, found.table["id"]
    draws = rng.at("pick").uniform(ids) if n else np.empty(0)
    ties = rng.at("tie").uniform(ids) if n else draws
    order = np.lexsort((ties, scores(found.table, "risk")))
    decile = np.empty(n, dtype=np.int64)
    decile[order] = 1 + np.arange(n) * DECILES // max(n, 1)
    chosen, short = [], False
    for number in range(1, DECILES + 1):
        mine = np.flatnonzero(decile == number)
        short |= len(mine) // 2 < per_decile
        chosen.append(mine[np.argsort(draws[mine])][: min(per_decile, len(mine) // 2)])
    drilled = np.concatenate(chosen)
    if len(drilled) < LEAST:
        raise DataError(
            f"{n} clusters of documents that the model saw and that have a risk, so {len(drilled)}"
            f" can be drilled; at least {LEAST} are needed, {2 * LEAST} clusters and 2 of a decile",
            where=where,
        )
    rest = np.setdiff1d(np.arange(n), drilled)
    return Picked(drilled, decile[drilled], rest[np.argsort(draws[rest])], short)
