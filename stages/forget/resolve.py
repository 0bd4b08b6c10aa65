"""What a request means: the rows its keys name, and the copies of these, wherever they were read.

    1 columns    document, text, key, licence, personal: ids, sources and score columns
    2 texts      entity: word-bounded, in any case (a pass over the text, only where one is asked)
    3 copies     exact, near and substring copies of all that is named (`copies.py`; one pass)
    4 suspects   rows whose vectors are like theirs, where the run has the score `embedding`, and
                 rows that share boilerplate only: for people to look at, not among the rows

All rows count: holdout, dropped and rejected ones alike, in every data set that was read, and rows
that were forgotten before too. A row has one line: the first reason of text ... personal, exact,
near, substring that holds. Exact copies share a reason, except that only rows under the source of a
`key` are named by it; their copies elsewhere are `exact`.

DataError: nothing matches, or more than `most` of all rows do, or a request of the same name asked
for other keys. Copies of copies are not looked for: similarity would run away along a chain.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.corpus import Shard
from foresift.pipeline.engines.local import LocalEngine
from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Engine, Progress, Resources, silent
from foresift.pipeline.plan_rows import content_at
from foresift.pipeline.store import read_json
from foresift.pipeline.tables import content_texts
from foresift.pipeline.tombstones import forgotten
from foresift.stages.forget import copies
from foresift.stages.forget._find_index import Index, Sought
from foresift.stages.forget._find_keys import Entity, columns_of, fold, hint, named, text_id
from foresift.stages.forget._find_semantic import semantic as semantic_copies
from foresift.stages.forget.copies import Hit, Measure
from foresift.stages.forget.history import History
from foresift.stages.forget.request import Request
from foresift.stages.forget.resolved import COPIES, FOUND, NAMED, Resolved

#: the order in which reasons count
ORDER = {name: n for n, name in enumerate((*NAMED, *COPIES))}
#: sources whose names are compared with a key that matches nothing
HEADS = 10_000
#: keys that match nothing for which that is done: comparing names is slow
HINTS = 3
#: rows below which starting processes costs more than it saves
SMALL_ROWS = 1 << 15
MEASURE = Measure()


@dataclass(frozen=True)
class Place:
    """One shard of one data set."""

    base: int
    number: int
    shard: Shard


@dataclass
class Lines:
    """Rows as they are found, several a row, as columns."""

    parts: list[pa.Table] = field(default_factory=list)

    def add(self, place: Place, table: pa.Table, rows: Any, key: Any, **columns: Any) -> None:
        """Rows of a shard; `table` has `id` and `source` of all of its rows."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) == 0:
            return
        here = table.take(pa.array(rows))
        told = {
            "base": np.full(len(rows), place.base),
            "shard": np.full(len(rows), place.number),
            "row": rows,
            "id": here["id"],
            "source": here["source"].cast(pa.string()),
            "key": np.broadcast_to(np.asarray(key), len(rows)),
            **columns,
        }
        self.parts.append(pa.table(told).select(FOUND.names).cast(FOUND))

    @property
    def keys(self) -> set[int]:
        """Numbers of the keys that led anywhere."""
        return {key for part in self.parts for key in pc.unique(part["key"]).to_pylist()}

    def table(self) -> pa.Table:
        """One line a row: the first reason, then the most similar, then the first key."""
        every = pa.concat_tables([FOUND.empty_table(), *self.parts]).combine_chunks()
        order = np.array([ORDER[r] for r in every["reason"].to_pylist()], dtype=np.int64)
        columns = [np.asarray(every[n]) for n in ("base", "shard", "row")]
        ranks = (np.asarray(every["key"]), -np.asarray(every["similarity"]), order)
        by = np.lexsort((*ranks, *columns[::-1]))
        sorted_ = np.stack([c[by] for c in columns], axis=1)
        first = np.ones(len(by), dtype=np.bool_)
        first[1:] = (sorted_[1:] != sorted_[:-1]).any(axis=1)
        return every.take(pa.array(by[first]))


def resolve(
    request: Request,
    history: History,
    progress: Progress = silent,
    *,
    measure: Measure = MEASURE,
    most: float = 0.5,
    allow_all: bool = False,
    expand: bool = True,
    semantic: float = 0.9,
    engine: Engine | None = None,
) -> Resolved:
    """The rows that a request means.

    `most`: the share of all rows above which it is refused, unless `allow_all`. `expand`: to
    copies. `semantic`: the cosine of centred vectors from which a row is a suspect.
    """
    unlike_before(request, history)
    places = [
        Place(base, number, shard)
        for base, corpus in enumerate(history.bases)
        for number, shard in enumerate(corpus.shards())
    ]
    lines, suspects = _named(request, history, places, progress), Lines()
    if expand:
        chosen = engine or LocalEngine(1)
        found, suspects = _copies(request, places, lines.table(), measure, chosen, progress)
        lines.parts += found.parts
        suspects.parts += _alike(lines.table(), history, places, semantic).parts
    rows = lines.table()
    met = lines.keys
    unmatched = [number for number in range(len(request.keys)) if number not in met]
    missing = _missing(request, unmatched, places)
    if rows.num_rows == 0:
        raise DataError(f"nothing matches: {'; '.join(missing)}", where=f"request {request.id!r}")
    total = sum(place.shard.rows for place in places)
    if rows.num_rows > most * total and not allow_all:
        raise DataError(
            f"it means {rows.num_rows:,} of {total:,} rows, more than {most:.0%}; if that is what"
            " is wanted, allow it (--allow-all)",
            where=f"request {request.id!r}",
        )
    doubtful = without(suspects.table(), rows)
    warnings = [*missing, *_doubts(doubtful), *_before(rows, history)]
    return Resolved(request, rows, doubtful, unmatched, warnings)


def _missing(request: Request, unmatched: Sequence[int], places: Sequence[Place]) -> list[str]:
    """What is said of keys that match nothing: of the first ones what they may have meant."""
    heads = _heads(places) if unmatched else []
    told = [hint(request.keys[n], heads) for n in unmatched[:HINTS]]
    rest = len(unmatched) - len(told)
    return [*told, f"{rest:,} more keys match nothing"] if rest else told


def without(table: pa.Table, rows: pa.Table) -> pa.Table:
    """The lines of a table about rows that the other does not have."""
    places = [
        np.stack([np.asarray(t[n], dtype=np.int64) for n in ("base", "shard", "row")], axis=1)
        for t in (table, rows)
    ]
    every, back = np.unique(np.concatenate(places), axis=0, return_inverse=True)
    known = np.zeros(len(every), dtype=np.bool_)
    back = back.reshape(-1)
    known[back[table.num_rows :]] = True
    return table.filter(pa.array(~known[back[: table.num_rows]]))


def _doubts(suspects: pa.Table) -> list[str]:
    if not suspects.num_rows:
        return []
    alike = pc.sum(pc.equal(suspects["reason"], "semantic")).as_py()
    rest = suspects.num_rows - alike
    told = []
    if rest:
        told.append(
            f"{rest:,} rows share only passages that many documents hold with what is asked for:"
            " they are suspects and stay"
        )
    if alike:
        told.append(f"{alike:,} rows are alike by their vectors: they are suspects and stay")
    return told


def _before(rows: pa.Table, history: History) -> list[str]:
    """What was forgotten already is said, not hidden."""
    bases = [corpus.base for corpus in history.bases]
    gone = sum(
        int(forgotten(rows.filter(pc.equal(rows["base"], number))["id"], base).sum())
        for number, base in enumerate(bases)
    )
    return [f"{gone:,} of its rows were forgotten before"] if gone else []


def unlike_before(request: Request, history: History) -> None:
    """DataError where a request of this name asked for other keys before."""
    path = history.deletions / request.id / "request.json"
    if not path.exists():
        return
    before = read_json(path)
    earlier = {(k["level"], k["value"]) for k in before.get("keys", [])}
    asked = {(k.level, k.value) for k in request.keys}
    if earlier != asked:
        raise DataError(
            f"contradicts an earlier request of the same id: that one asks for {_told(earlier)},"
            f" this one for {_told(asked)}; give this one another id",
            where=f"request {request.id!r} ({path})",
        )


def _told(keys: set[tuple[str, str]]) -> str:
    shown = [f"{level} {value[:40]!r}" for level, value in sorted(keys)[:3]]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(shown) + more


def _named(
    request: Request, history: History, places: Sequence[Place], progress: Progress
) -> Lines:
    """The rows that the keys name."""
    scores = columns_of(request.keys, history)
    entities = {n: Entity(k.value) for n, k in enumerate(request.keys) if k.level == "entity"}
    lines = Lines()
    for done, place in enumerate(places):
        progress(done, len(places), "keys")
        table = place.shard.load(["id", "source"])
        here: list[tuple[int, Any]] = [
            *named(request.keys, place.shard, table, scores if place.base == 0 else {}),
            *(_standing(entities, place.shard) if entities else {}).items(),
        ]
        for number, rows in here:
            lines.add(
                place, table, rows, number, reason=[request.keys[number].level] * len(rows),
                similarity=np.ones(len(rows), dtype=np.float32),
                of=table["id"].take(pa.array(rows, pa.int64())),
            )  # fmt: skip
    progress(len(places), len(places), "keys")
    return lines


def _standing(entities: dict[int, Entity], shard: Shard) -> dict[int, list[int]]:
    """Number of a key -> the rows in whose text its entity stands."""
    found: dict[int, list[int]] = {number: [] for number in entities}
    for table, rows in shard.stream(every=True):
        for row, text in zip(rows.tolist(), content_texts(table), strict=True):
            folded = fold(text)
            for number, entity in entities.items():
                if entity.stands_in(folded):
                    found[number].append(row)
    return found


def _copies(
    request: Request, places: Sequence[Place], named: pa.Table, measure: Measure, engine: Engine,
    progress: Progress,
) -> tuple[Lines, Lines]:  # fmt: skip
    """The copies of all that is named (a text of the request too), and rows of boilerplate."""
    sought = [
        Sought(text_id(key.value), number, key.value.encode(), given=True)
        for number, key in enumerate(request.keys)
        if key.level == "text"
    ]
    sought += _texts(named, places, {s.id for s in sought})
    shards = [place.shard for place in places]
    small = Resources(small=sum(s.rows for s in shards) < SMALL_ROWS)
    lines, suspects = Lines(), Lines()
    with tempfile.TemporaryDirectory(prefix="foresift-copies-") as folder:
        for turn, index in enumerate(copies.passes(sought, measure)):
            label = f"copies, pass {turn + 1}" if turn else "copies"
            task = copies.keep(index, measure.near, Path(folder))
            progress(0, len(shards), label)
            found = []
            for done, (at, facts) in enumerate(engine.map(task, shards, small), 1):
                found += [(places[at], facts["hits"])] if facts["hits"] else []
                progress(done, len(shards), label)
            _judge(index, found, measure, lines, suspects)
    return lines, suspects


def _judge(
    index: Index, found: list[tuple[Place, list[Hit]]], measure: Measure, lines: Lines,
    suspects: Lines,
) -> None:  # fmt: skip
    """Put the hits of all shards among the lines, or the suspects where it is boilerplate."""
    tables = {place: place.shard.load(["id", "source"]) for place, _ in found}
    every = [hit for _, hits in found for hit in hits]
    ids = [
        i for place, hits in found
        for i in tables[place]["id"].take(pa.array([h.row for h in hits])).to_pylist()
    ]  # fmt: skip
    doubtful = copies.boilerplate(index, every, ids, measure)
    start = 0
    for place, hits in found:
        here = doubtful[start : start + len(hits)]
        start += len(hits)
        for to, wanted in ((lines, ~here), (suspects, here)):
            _add_hits(to, place, tables[place], index, [hits[i] for i in np.flatnonzero(wanted)])


def _add_hits(
    lines: Lines, place: Place, table: pa.Table, index: Index, hits: Sequence[Hit]
) -> None:
    lines.add(
        place, table, [h.row for h in hits], [index.sought[h.sought].key for h in hits],
        reason=[h.reason for h in hits],
        similarity=np.array([h.similarity for h in hits], dtype=np.float32),
        of=[index.sought[h.sought].id for h in hits],
    )  # fmt: skip


def _alike(named: pa.Table, history: History, places: Sequence[Place], least: float) -> Lines:
    """Semantic copies of all that was found."""
    lines = Lines()
    by_id = dict(zip(named["id"].to_pylist(), named["key"].to_pylist(), strict=True))
    for one in semantic_copies(history, pc.unique(named["id"]), least):
        place = next(p for p in places if (p.base, p.number) == (0, one.shard))
        lines.add(
            place, place.shard.load(["id", "source"]), [one.row], by_id[one.of],
            reason=["semantic"], similarity=np.array([one.similarity], dtype=np.float32),
            of=[one.of],
        )  # fmt: skip
    return lines


def _texts(found: pa.Table, places: Sequence[Place], known: set[bytes]) -> Iterator[Sought]:
    """The texts of the rows named, each id once, with the first key that led to it."""
    by_place = {(p.base, p.number): p.shard for p in places}
    lies = zip(found["base"].to_pylist(), found["shard"].to_pylist(), strict=True)
    for base, number in sorted(set(lies)):
        inside = pc.and_(pc.equal(found["base"], base), pc.equal(found["shard"], number))
        here = found.filter(inside)
        rows = np.asarray(here["row"])
        keys, ids = here["key"].to_pylist(), here["id"].to_pylist()
        for first, batch in content_at(by_place[base, number], rows):
            low, high = np.searchsorted(rows, [first, first + batch.num_rows])
            texts = content_texts(batch.take(pa.array(rows[low:high] - first)))
            for at, text in enumerate(texts, int(low)):
                if ids[at] not in known:
                    known.add(ids[at])
                    yield Sought(ids[at], keys[at], text.encode())


def _heads(places: Sequence[Place]) -> list[str]:
    """Key paths and their heads, of the first rows of each shard: what a key may have meant."""
    heads: dict[str, None] = {}
    for place in places:
        source = place.shard.load(["source"])["source"].cast(pa.string())
        for path in pc.unique(source.slice(0, HEADS)).to_pylist():
            parts = [i for i, c in enumerate(path or "") if c in "/#" and i]
            heads |= dict.fromkeys([path[:i] for i in parts] + ([path] if path else []))
            if len(heads) > HEADS:
                return list(heads)
    return list(heads)
