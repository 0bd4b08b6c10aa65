"""References: documents that stand for what the model should become better at.

A scorer with an aim takes one reference or a list of them. Each is

    news                                     a data set of the recipe's `datasets`, by its name
    aim.jsonl                                a file, read by its ending (.jsonl, .parquet, .txt ...)
    {read: jsonl, paths: [...], prompt: q, response: a}     any reader; loss on the responses
    {data: news, weight: 2}                  either, with a weight (1 unless given)

Weights multiply the gradients of the references' losses; a document of a reference never lies in
the pool, held-out ones included: what is aimed at or measured on must not be trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.corpus import Corpus
from foresift.pipeline.errors import DataError, RecipeError, nearest
from foresift.pipeline.nouns import Reference
from foresift.pipeline.tables import ID, content_columns

#: what a reference may be in a recipe
Aim = str | dict[str, Any]
Aims = Aim | list[Aim]
_READERS = {
    ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".txt": "text", ".md": "text",
}  # fmt: skip
#: shared documents that an error lists
LISTED = 5


@dataclass(frozen=True)
class AimSpec:
    """One reference as written: a data set's name, or the fields of a reader."""

    name: str
    reader: Mapping[str, Any] | None
    weight: float


def aim_specs(value: Any, known: Sequence[str], where: str) -> list[AimSpec]:
    """Read the `reference` of a scorer; names in `known` are data sets, other words are files."""
    given = value if isinstance(value, list) else [value]
    if not given or any(v in (None, "", {}) for v in given):
        raise RecipeError(
            "needs a `reference`: a name from `datasets`, a file, or a reader", where=where
        )
    found = [_aim(v, known, where) for v in given]
    if len({a.name for a in found}) < len(found):
        raise RecipeError(f"a reference is named twice: {[a.name for a in found]}", where=where)
    return found


def _aim(value: Any, known: Sequence[str], where: str) -> AimSpec:
    fields = {"data": value} if isinstance(value, str) else dict(value)
    weight: Any = fields.pop("weight", 1.0)
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not np.isfinite(weight) or weight <= 0:
        raise RecipeError(f"the weight of a reference is positive, got {weight!r}", where=where)
    if "read" in fields:
        paths = fields.get("paths", [])
        first = paths[0] if isinstance(paths, list) and paths else fields["read"]
        return AimSpec(str(first), fields, float(weight))
    name = fields.pop("data", None)
    if fields or not isinstance(name, str):
        raise RecipeError(
            f"a reference is a name, a file, or a mapping with `data` or `read`; got {value!r}",
            where=where,
        )
    if name in known:
        return AimSpec(name, None, float(weight))
    return AimSpec(name, {"read": _reader(name, known, where), "paths": [name]}, float(weight))


def _reader(path: str, known: Sequence[str], where: str) -> str:
    plain = path.removesuffix(".gz").removesuffix(".zst")
    for ending, reader in _READERS.items():
        if plain.endswith(ending):
            return reader
    raise RecipeError(
        f"no data set {path!r}{nearest(path, known)}, and no file of a known kind "
        f"({', '.join(_READERS)}); name its reader: {{read: ..., paths: [{path!r}]}}",
        where=where,
    )


def tables(corpus: Corpus) -> Iterator[pa.Table]:
    """The alive rows of a reference: id and content."""
    for shard in corpus.shards():
        for table, _ in shard.stream():
            yield table


def load(reference: Reference, least: int = 2) -> pa.Table:
    """All alive rows of a reference at once; a DataError where it has fewer than `least`."""
    found = list(tables(reference.corpus))
    rows = sum(t.num_rows for t in found)
    if rows < least:
        raise DataError(
            f"the reference has {rows} document{'s' * (rows != 1)} that are not held out; "
            f"at least {least} are needed to say what it is about",
            where=reference.name,
        )
    names = content_columns(found[0].column_names)
    return pa.concat_tables([t.select(["id", *names]) for t in found]).unify_dictionaries()


def check_apart(corpus: Corpus, references: Sequence[Reference]) -> None:
    """DataError where a document of a reference, held out or not, lies in the pool as well."""
    theirs = [_ids(r.corpus) for r in references]
    shared: list[list[str]] = [[] for _ in theirs]
    for shard in corpus.shards():
        rows = pa.array(np.flatnonzero(shard.alive()))
        table = shard.load(["id", "source"]).take(rows)
        for ids, found in zip(theirs, shared, strict=True):
            here = table.filter(pc.is_in(table["id"], ids))
            names = zip(here["id"].to_pylist(), here["source"].to_pylist(), strict=True)
            found += [f"{key.hex()} ({source})" for key, source in names]
    for reference, found in zip(references, shared, strict=True):
        if found:
            more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
            raise DataError(
                f"{len(found)} of its documents lie in the pool as well: "
                f"{', '.join(found[:LISTED])}{more}; take them out of one of the two, or what is "
                "aimed at will be trained on",
                where=reference.name,
            )


def _ids(corpus: Corpus) -> pa.Array:
    """The ids of a reference, its holdout included."""
    views = [corpus, replace(corpus, masks=(), holdout=not corpus.holdout)]
    found = [
        shard.load(["id"])["id"].take(pa.array(np.flatnonzero(shard.alive())))
        for view in views
        for shard in view.shards()
    ]
    chunks = [c for ids in found for c in ids.chunks]
    return pa.concat_arrays(chunks) if chunks else pa.array([], ID)
