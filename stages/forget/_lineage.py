"""Lineage: one line a document that is to go, with everything that is known of where it came from.

cluster          of near copies within the request (`coreset.clusters`)
licence, created_at   of a column that was read along, else of the licence score
reason_included  the first reason of text ... personal, exact, near, substring, semantic
exposures        (directory name of the training, round, step) from the ledgers, in their order
first_step       step of the first exposure in the first training that has one; null: none, unknown
duplicates_kept  rows of that id in the run's data sets
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from foresift.stages.forget._rows import DATES, LICENCES, Row, first_of
from foresift.stages.forget.budget import Met
from foresift.stages.forget.folder import LINEAGE
from foresift.stages.forget.history import History
from foresift.stages.forget.neighbours import key_path
from foresift.stages.forget.resolved import COPIES, NAMED, Resolved

ORDER = {name: n for n, name in enumerate((*NAMED, *COPIES))}


def lineage(
    resolved: Resolved, rows: Sequence[Row], cluster: Mapping[bytes, int], seen: Sequence[Met],
    licences: Mapping[bytes, str],
) -> pa.Table:  # fmt: skip
    """The table of LINEAGE, in the order of `rows`."""
    told = reasons(resolved)
    counts = copies(resolved)
    met = exposures(seen)
    lines: list[dict[str, Any]] = []
    for row in rows:
        found = met.get(row.id, [])
        first = [e for e in found if e["training"] == found[0]["training"]]
        steps = [e["step"] for e in first]
        lines.append(
            {
                "doc_id": row.id,
                "content_sha256": row.sha256,
                "cluster": cluster[row.id],
                "source": row.source,
                "key_path": list(key_path(row.source)),
                "licence": first_of(row, LICENCES) or licences.get(row.id),
                "created_at": first_of(row, DATES),
                "reason_included": told[row.id],
                "exposures": found,
                "first_step": None if None in steps else min(steps, default=None),
                "duplicates_kept": counts[row.id],
            }
        )
    return pa.Table.from_pylist(lines, schema=LINEAGE)


def reasons(resolved: Resolved) -> dict[bytes, str]:
    """Why each document goes: the first reason of any of its rows."""
    found: dict[bytes, str] = {}
    lines = resolved.rows.select(["id", "reason"]).to_pydict()
    for id_, reason in zip(lines["id"], lines["reason"], strict=True):
        if id_ not in found or ORDER[reason] < ORDER[found[id_]]:
            found[id_] = reason
    return found


def copies(resolved: Resolved) -> dict[bytes, int]:
    """Rows of each document."""
    counts: dict[bytes, int] = {}
    for id_ in resolved.rows["id"].to_pylist():
        counts[id_] = counts.get(id_, 0) + 1
    return counts


def exposures(seen: Sequence[Met]) -> dict[bytes, list[dict[str, Any]]]:
    """Document -> its exposures, trainings in their order."""
    found: dict[bytes, list[dict[str, Any]]] = {}
    for one in seen:
        name = one.training.path.name
        lines = one.exposures.select(["id", "round", "step"]).to_pydict()
        for id_, round_, step in zip(lines["id"], lines["round"], lines["step"], strict=True):
            found.setdefault(id_, []).append({"training": name, "round": round_, "step": step})
    return found


def licences_of(history: History, resolved: Resolved) -> dict[bytes, str]:
    """What the licence score says of the documents, where the run has one."""
    place = history.score("licence.licence")
    found: dict[bytes, str] = {}
    if place is None:
        return found
    shards = history.bases[0].shards()
    by_shard: dict[int, list[tuple[int, bytes]]] = {}
    for line in resolved.rows.select(["base", "shard", "row", "id"]).to_pylist():
        if line["base"] == 0:
            by_shard.setdefault(line["shard"], []).append((line["row"], line["id"]))
    for number, lines in by_shard.items():
        column = shards[number].sidecar(place[0], [place[1]])[place[1]]
        for row, id_ in lines:
            value = column[row].as_py()
            if value:
                found[id_] = min(str(value), found.get(id_, str(value)))
    return found
