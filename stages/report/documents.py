"""The documents that the page lets people search, sort and see on a map.

    drawn    at most SAMPLED documents by what their ids draw, the holdout left out
    picked   beside them examples of every reason and finding, and the ends of every score

(`taken.py`.) So the table has the true ends of every score; shares are told from the drawn ones
alone. Texts are excerpts, masked. What is embedded a document: 280 characters, its source cut to
SOURCE characters, at most SCORES numbers of five digits, names of findings, place and group: 0.5 to
0.9 kB, which makes 1 to 2 MB.

The map goes by a column `*.vector` where COVERED of the documents have one, else by the words of
the first READ characters; groups by a column `*.cluster` under the same condition, else by k-means.
Cost: one pass over scores and findings, one look at those of the documents taken, the row groups
that hold them, and `layout.py`. Memory: a shard and the documents taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from foresift.pipeline.corpus import Corpus, Shard
from foresift.pipeline.tables import hex_id
from foresift.pipeline.vectors import Vectors
from foresift.stages.report import layout
from foresift.stages.report.contents import Contents, Scored
from foresift.stages.report.examples import looked_at
from foresift.stages.report.mask import clean, excerpt, origin
from foresift.stages.report.sample import draws, floats
from foresift.stages.report.sources import top
from foresift.stages.report.taken import FOUND, Taken, findings_of, take

SCORES, SOURCE = 40, 80
READ, COVERED = 4_000, 0.9
#: rows of the table that are there without JavaScript, and of each page of it
SHOWN = 25
PLAN = ["id", "shard", "row", "source", "n_tokens", "kept", "reason"]
Floats = npt.NDArray[np.float64]
#: what would end the element that holds the data, or a line of script
_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Document:
    """One document as the page shows it."""

    id: str
    source: str
    top: str
    """First component of the source."""
    n_tokens: int
    excerpt: str
    status: str
    """`kept` or `left`."""
    reason: str
    """Why it left; empty where it was kept."""
    findings: list[str]
    """`<step>: <reason>`, each once."""
    scores: dict[str, float | None]
    drawn: bool
    """Whether it is of the sample, and not only picked as an example."""
    x: float | None = None
    y: float | None = None
    """Place on the map, 0 to 1; None without one."""
    cluster: int | None = None
    """Group on the map, the largest 0."""


@dataclass(frozen=True)
class Group:
    """Documents that lie together: the words that tell them from the others, and how many."""

    name: str
    size: int


@dataclass(frozen=True)
class Documents:
    """The documents of the page, by draw: the sample first."""

    docs: list[Document]
    population: int
    """Documents of the corpus without the holdout, from which the sample is drawn."""
    scores: list[Scored] = field(metadata={"plain": False})
    near: str
    """What makes documents lie near each other: `words` or a column."""
    grouped: str
    """What the groups are from: `k-means` or a column."""
    groups: list[Group]
    left_out: int
    """Scores that are not told, for there are more than SCORES."""
    trouble: str = ""
    """Why texts could not be read."""

    @property
    def drawn(self) -> int:
        return sum(d.drawn for d in self.docs)

    @property
    def placed(self) -> int:
        """Documents with a place on the map."""
        return sum(d.x is not None for d in self.docs)

    @property
    def island(self) -> Markup:
        """The data for the script, column by column, as JSON that can stand in an element."""
        text = json.dumps(
            _columns(self), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
        return Markup(text.translate(_ESCAPED))


def documents(contents: Contents) -> Documents | None:
    """Draw and pick, then read what the page shows; None where nothing is left of the corpus."""
    clusters = _clusters(contents)
    known = [c for c in contents.scored if c not in clusters]
    scores = known[:SCORES]
    taken = take(contents, scores)
    if not taken.population:
        return None
    rows = _rows(contents, taken, [*scores, *clusters[:1]])
    places = [(r["shard"], r["row"], r["id"]) for r in rows]
    texts, trouble = looked_at(
        Corpus(contents.base), sorted(places), lambda text: (excerpt(text), text[:READ])
    )
    nothing = ("", "")
    seen = [texts.get((r["shard"], r["row"]), nothing) for r in rows]
    vectors, near = _vectors(contents, rows, [text for _, text in seen])
    spots = layout.plane(vectors)
    groups, grouped = _groups(rows, clusters, vectors)
    named = layout.terms([shown for shown, _ in seen], groups, layout.GROUPS)
    sizes = np.bincount(groups[groups >= 0])
    sample = taken.sample.places
    made = [
        _document(row, shown, scores, spot, int(group), (row["shard"], row["row"]) in sample)
        for row, (shown, _), spot, group in zip(rows, seen, spots, groups, strict=True)
    ]
    return Documents(
        docs=made,
        population=taken.population,
        scores=scores,
        near=near,
        grouped=grouped,
        groups=[Group(n, int(k)) for n, k in zip(named, sizes, strict=False)],
        left_out=len(known) - len(scores),
        trouble=trouble,
    )


def _clusters(contents: Contents) -> list[Scored]:
    """Columns that hold numbers of clusters, the latest first."""
    found = [c for c in contents.scored if c.file_name == "cluster"]
    return [c for c in reversed(found) if pa.types.is_integer(c.dtype)]


def _rows(contents: Contents, taken: Taken, numbers: Sequence[Scored]) -> list[dict[str, Any]]:
    """What the plan and the columns beside the corpus say of the rows taken, by draw."""
    wanted: dict[int, list[int]] = {}
    for number, row in taken.places:
        wanted.setdefault(number, []).append(row)
    found, rows = findings_of(contents), []
    for shard, plan in contents.plan(PLAN):
        mine = wanted.get(plan["shard"][0].as_py(), [])
        if mine:
            here = pa.array(mine)
            beside = shard.load([*(c.name for c in found), *(c.name for c in numbers)]).take(here)
            part = plan.take(here)
            part = part.append_column("top", top(part["source"]))
            part = part.append_column("draw", pa.array(draws(part["id"])))
            columns = {c.name: floats(beside[c.name]) for c in numbers}
            reasons = [_named(beside[c.name], c.step) for c in found]
            for i, row in enumerate(part.to_pylist()):
                row["scores"] = {name: float(values[i]) for name, values in columns.items()}
                row["findings"] = [name for each in reasons for name in each[i]]
                rows.append(row)
    return sorted(rows, key=lambda r: (r["draw"], r["id"], r["shard"], r["row"]))


def _named(column: pa.ChunkedArray, step: str) -> list[list[str]]:
    """The findings of each row by name, each once, as they stand in the text."""
    return [
        list(dict.fromkeys(f"{step}: {f['reason']}" for f in row or ()))[:FOUND]
        for row in column.to_pylist()
    ]


def _vectors(
    contents: Contents, rows: Sequence[dict[str, Any]], texts: Sequence[str]
) -> tuple[Floats, str]:
    """[n, d] vectors of length 1, and what they are from."""
    columns = [c for c in contents.columns if c.file_name == "vector" and _vectorial(c.dtype)]
    shards = contents.shards
    for column in reversed(columns):
        places = [(shards[r["shard"]], r["row"]) for r in rows]
        vectors = Vectors.of(_gathered(column, places), "vector")
        if vectors.width > 1 and vectors.valid.mean() >= COVERED:
            return vectors.unit(np.arange(len(rows))).astype(np.float64), column.name
    return layout.word_vectors(texts), "words"


def _vectorial(kind: pa.DataType) -> bool:
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    nested = nested or pa.types.is_fixed_size_list(kind)
    return bool(nested and pa.types.is_floating(kind.value_type))


def _gathered(column: Scored, places: Sequence[tuple[Shard, int]]) -> pa.Table:
    """The vectors of rows, in their order; a few thousand vectors are in memory at once."""
    tables, order = [], []
    wanted: dict[str, list[int]] = {}
    for i, (shard, _) in enumerate(places):
        wanted.setdefault(shard.name, []).append(i)
    for mine in wanted.values():
        shard = places[mine[0]][0]
        shard.sidecar(column.path, [])  # the ids are ours
        rows = np.asarray([places[i][1] for i in mine])
        ranked = np.argsort(rows, kind="stable")
        order += [mine[i] for i in ranked]
        start = 0
        with pq.ParquetFile(column.path / f"{shard.name}.parquet") as file:
            for batch in file.iter_batches(4096, columns=[column.file_name]):
                low, high = np.searchsorted(rows[ranked], [start, start + batch.num_rows])
                here = rows[ranked][low:high] - start
                tables.append(pa.table({"vector": batch.column(0).take(pa.array(here))}))
                start += batch.num_rows
    back = np.argsort(np.asarray(order, dtype=np.int64))
    return pa.concat_tables(tables).combine_chunks().take(pa.array(back))


def _groups(
    rows: Sequence[dict[str, Any]], clusters: Sequence[Scored], vectors: Floats
) -> tuple[npt.NDArray[np.int64], str]:
    """[n] group of each document, the largest 0, and what they are from."""
    for column in clusters[:1]:
        values = np.asarray([r["scores"].pop(column.name) for r in rows])
        if (~np.isnan(values)).mean() >= COVERED:
            return layout.ranked(np.nan_to_num(values, nan=-1).astype(np.int64)), column.name
    return layout.cells(vectors), "k-means"


def _document(
    row: dict[str, Any], shown: str, scores: Sequence[Scored], spot: Floats, group: int, drawn: bool
) -> Document:
    x, y = (None if np.isnan(v) else round(float(v), 4) for v in spot)
    numbers = {c.name: row["scores"][c.name] for c in scores}
    return Document(
        id=hex_id(row["id"])[:12],
        source=origin(row["source"])[:SOURCE],
        top=origin(row["top"])[:SOURCE],
        n_tokens=row["n_tokens"] or 0,
        excerpt=shown,
        status="kept" if row["kept"] else "left",
        reason="" if row["kept"] else clean(row["reason"] or ""),
        findings=[clean(name) for name in row["findings"]],
        scores={n: None if np.isnan(v) else float(f"{v:.5g}") for n, v in numbers.items()},
        drawn=drawn,
        x=x,
        y=y,
        cluster=None if group < 0 else group,
    )


def _columns(all: Documents) -> dict[str, Any]:
    """Column by column, names by number: what the script reads."""
    found = sorted({name for d in all.docs for name in d.findings})
    reasons = sorted({d.reason for d in all.docs if d.reason})
    tops = sorted({d.top for d in all.docs})
    at = [{name: i for i, name in enumerate(names)} for names in (found, reasons, tops)]
    docs = all.docs
    return {
        "id": [d.id for d in docs],
        "text": [d.excerpt for d in docs],
        "source": [d.source for d in docs],
        "top": [at[2][d.top] for d in docs],
        "kept": [int(d.status == "kept") for d in docs],
        "reason": [at[1].get(d.reason, -1) for d in docs],
        "found": [[at[0][name] for name in d.findings] for d in docs],
        "drawn": [int(d.drawn) for d in docs],
        "x": [d.x for d in docs],
        "y": [d.y for d in docs],
        "cluster": [-1 if d.cluster is None else d.cluster for d in docs],
        "tops": tops,
        "reasons": reasons,
        "findings": found,
        "groups": [{"name": g.name, "size": g.size} for g in all.groups],
        "scores": [
            {
                "name": c.name,
                "unit": c.unit,
                "better": c.better,
                "values": [d.scores[c.name] for d in docs],
            }
            for c in all.scores
        ],
        "grouped": all.grouped,
        "shown": SHOWN,
    }
