"""Plan a deletion: write the folder of a request (`folder.py`), whole or not at all.

    1 rows       what the request was found to mean, each document once, with its copies counted
    2 splits     one pass over what is kept and one over the holdout (`splits.py`)
    3 exposures  the ledgers of every training of the run (`budget.py`, `_lineage.py`)
    4 sets       forget shared neighbours retain holdout coreset worst_case probes relearn
    5 views      the same rows as other tools read them (`views.py`)

The folder is written under a temporary name and renamed; `plan.json` is written last in it. The
same request of the same run and seed gives the same bytes, so planning again changes nothing. A
plan that was applied or purged is not written over: DataError.

Optional figures of a model: `losses` (document -> loss after unlearning) for the worst case and
`drops` (word -> rise of its loss) for the keywords. Without them both go by counts.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from foresift.pipeline import personal
from foresift.pipeline.errors import DataError, placed
from foresift.pipeline.nouns import Progress, silent
from foresift.pipeline.rng import Rng
from foresift.pipeline.store import Facts as Json
from foresift.pipeline.store import finite, read_json, temporary, write_json
from foresift.pipeline.tombstones import FOLDER
from foresift.stages.forget import _lineage
from foresift.stages.forget._rows import Place, Row, beside_json, draws_of, gather
from foresift.stages.forget.budget import Met, budget, met, model_tokens, size_of
from foresift.stages.forget.coreset import clusters, coreset, worst_case
from foresift.stages.forget.folder import (
    APPLIED,
    NEIGHBOURS,
    PLANNED,
    PURGED,
    SETS,
    DeletionPlan,
    write_rows,
)
from foresift.stages.forget.history import History
from foresift.stages.forget.keywords import keywords
from foresift.stages.forget.probes import ATTACK, probes, subjects
from foresift.stages.forget.relearn import relearn
from foresift.stages.forget.resolved import Resolved
from foresift.stages.forget.splits import Sizes, Splits, split
from foresift.stages.forget.views import write_views

#: suspects that plan.json lists
SUSPECTS = 100
_SIZES = Sizes()


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a model says of the forget set, where one was asked."""

    losses: Mapping[bytes, float] | None = None
    """Document -> its loss on the unlearned model."""
    drops: Mapping[str, float] | None = None
    """Word -> mean rise of its loss that forgetting should cause, in nats."""


@dataclass(frozen=True)
class _Material:
    """Everything that the sets are made of."""

    resolved: Resolved
    history: History
    sizes: Sizes
    rng: Rng
    forget: Sequence[Row]
    splits: Splits
    rows: Mapping[str, Sequence[Row]]
    """Neighbours, retain, holdout and the relearning sets."""
    relations: Mapping[bytes, str]
    seen: Sequence[Met]
    cluster: Mapping[bytes, int]
    entities: Mapping[bytes, str]
    subject: Mapping[bytes, str]
    """What each document of forget, neighbours and retain is about."""


def plan_deletion(
    resolved: Resolved, history: History, out: Path | None = None, *, sizes: Sizes = _SIZES,
    seed: int = 0, model: Model | None = None, progress: Progress = silent,
) -> DeletionPlan:  # fmt: skip
    """Write the plan of a resolved request under `<out>/deletions/`; `out`: that of the run."""
    if resolved.rows.num_rows == 0:
        raise DataError("nothing matches", where=f"request {resolved.request.id!r}")
    target = (out or history.out) / FOLDER / resolved.request.id
    refuse_applied(target)
    material = _material(resolved, history, sizes, Rng(seed).at("forget"), progress)
    work = temporary(target)
    shutil.rmtree(work, ignore_errors=True)
    with placed(str(target)):
        try:
            work.mkdir(parents=True)
            _write(work, target, material, model or Model(), seed)
            _publish(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return DeletionPlan.open(target)


def refuse_applied(target: Path) -> None:
    """DataError where a plan lies here that was carried out."""
    path = target / "request.json"
    status = read_json(path).get("status") if path.exists() else None
    if status in (APPLIED, PURGED):
        raise DataError(
            f"this request was {status} already; its plan is the record of that and is not written"
            " over (undo it first, or give the request another id)",
            where=str(target),
        )


def _publish(work: Path, target: Path) -> None:
    """Put the folder in its place; one that lies there is moved away and removed."""
    old = temporary(target.with_name(f"{target.name}.old"))
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.rename(target, old)
    os.rename(work, target)
    shutil.rmtree(old, ignore_errors=True)


def _material(
    resolved: Resolved, history: History, sizes: Sizes, rng: Rng, progress: Progress
) -> _Material:
    bases = history.bases
    places = _first_places(resolved.rows)
    found = gather(bases, places.values())
    forget = [found[place] for _, place in sorted(places.items())]
    gone = {row.id for row in forget} | set(resolved.suspects["id"].to_pylist())
    splits = split(history, forget, gone, sizes, rng, progress)
    lying = gather(bases, {c.place for chosen in splits.sets.values() for c in chosen})
    rows = {name: [lying[c.place] for c in chosen] for name, chosen in splits.sets.items()}
    draws = draws_of(rng.at("relearn"), [r.id for each in rows.values() for r in each])
    relations = {lying[c.place].id: c.relation for name in NEIGHBOURS for c in splits.sets[name]}
    pairs = list(zip(*(resolved.rows[n].to_pylist() for n in ("id", "of")), strict=True))
    entities = _entities(resolved)
    stay = {r.id: r for name in (*NEIGHBOURS, "retain") for r in rows[name]}
    return _Material(
        resolved, history, sizes, rng, forget, splits,
        {**rows, **relearn(rows, draws, sizes.relearn)}, relations,
        met(history, resolved.ids), clusters([r.id for r in forget], pairs), entities,
        {**subjects(forget, entities), **subjects(list(stay.values()), {})},
    )  # fmt: skip


def _first_places(rows: pa.Table) -> dict[bytes, Place]:
    """The place of each document: that of its copy with the smallest source."""
    found: dict[bytes, tuple[str, Place]] = {}
    for line in rows.select(["base", "shard", "row", "id", "source"]).to_pylist():
        place = (line["base"], line["shard"], line["row"])
        here = (line["source"] or "", place)
        found[line["id"]] = min(found.get(line["id"], here), here)
    return {id_: place for id_, (_, place) in found.items()}


def _entities(resolved: Resolved) -> dict[bytes, str]:
    """Document -> the entity of the request that led to it; the first of several."""
    keys = resolved.request.keys
    lines = resolved.rows.select(["id", "key"]).to_pydict()
    found: dict[bytes, int] = {}
    for id_, number in zip(lines["id"], lines["key"], strict=True):
        if keys[number].level == "entity":
            found[id_] = min(number, found.get(id_, number))
    return {id_: keys[number].value for id_, number in found.items()}


def _write(folder: Path, target: Path, m: _Material, model: Model, seed: int) -> None:
    """Every file of the folder, plan.json last."""
    request = m.resolved.request
    write_json(folder / "request.json", {**request.json(), "status": PLANNED})
    licences = _lineage.licences_of(m.history, m.resolved)
    lineage = _lineage.lineage(m.resolved, m.forget, m.cluster, m.seen, licences)
    pq.write_table(lineage, folder / "lineage.parquet", compression="zstd")
    sets = _sets(m, model)
    counts = {name: write_rows(folder / f"{name}.jsonl", sets[name]) for name in SETS}
    texts = [row.text for row in m.forget]
    words = keywords(texts, m.splits.df, m.splits.documents, m.sizes.keywords, model.drops)
    write_json(folder / "keywords.json", words)
    views = write_views(folder, target, {**sets, **_asked(m)})
    tokens = model_tokens(m.seen, {row.id: row.tokens for row in m.forget})
    costs = budget(m.history, m.seen, tokens, size_of(folder))
    write_json(folder / "budget.json", finite(costs))
    facts = _facts(m, counts, seed)
    facts["views"] = {name: told["rows"] for name, told in views.items()}
    write_json(folder / "plan.json", finite(facts))


def _sets(m: _Material, model: Model) -> dict[str, list[Json]]:
    """The rows of every set, as they are written."""
    told, sizes, forget = _lineage.reasons(m.resolved), m.sizes, m.forget
    draws = draws_of(m.rng.at("coreset"), [row.id for row in forget])
    counts = _lineage.copies(m.resolved)
    asked = m.rng.at("coreset", m.resolved.request.id)
    return {
        "forget": [_forget(m, row, told[row.id]) for row in forget],
        "shared": m.splits.facts.rows(),
        **{n: [r.json(relation=m.relations[r.id]) for r in m.rows[n]] for n in NEIGHBOURS},
        **{n: [r.json(**beside_json(r)) for r in m.rows[n]] for n in ("retain", "holdout")},
        "coreset": coreset(forget, m.cluster, draws, sizes.coreset, asked),
        "worst_case": worst_case(forget, m.cluster, counts, sizes.worst_case, model.losses),
        "probes": probes(forget, m.subject, m.rng.at("probes"), sizes.probes),
        **{n: [r.json() for r in m.rows[n]] for n in SETS if n.startswith("relearn")},
    }


def _forget(m: _Material, row: Row, reason: str) -> Json:
    """A row of forget: its content, why it goes, and where what is asked for stands in it."""
    entity = m.entities.get(row.id)
    more: Json = {"entity": entity} if entity else {}
    spans = spans_of(row.text, entity, reason)
    if spans:
        more["span_offsets"] = spans
    return row.json(reason=reason, **more, **beside_json(row))


def spans_of(text: str, entity: str | None, reason: str) -> list[list[int]]:
    """[start, stop] of each mention of an entity, or of each piece of personal data.

    Which piece of several the request means cannot be told: only its keyed hash is known.
    """
    if entity:
        pattern = r"\s+".join(map(re.escape, entity.split()))
        found = re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)
        return [list(match.span()) for match in found]
    if reason == "personal":
        return [[hit.start, hit.stop] for hit in personal.find(text)]
    return []


def _asked(m: _Material) -> dict[str, list[Json]]:
    """What only views hold: probes about rows that stay, and what documents are about."""
    near = [*m.rows[NEIGHBOURS[0]], *m.rows[NEIGHBOURS[1]]]
    retain, rng = m.rows["retain"], m.rng.at("probes")
    found = {
        name: [p for p in probes(rows, m.subject, rng, m.sizes.probes) if p["level"] != ATTACK]
        for name, rows in (("asked_near", near), ("asked_retain", retain))
    }
    for name, rows in (("about_forget", m.forget), ("about_retain", retain)):
        found[name] = [row.json(subject=m.subject[row.id]) for row in rows]
    return found


def _facts(m: _Material, counts: Mapping[str, int], seed: int) -> Json:
    told = Counter(_lineage.reasons(m.resolved).values())
    suspects = m.resolved.suspects.slice(0, SUSPECTS).select(["id", "source", "similarity", "of"])
    return {
        "id": m.resolved.request.id,
        "run": m.history.run.path.name,
        "seed": seed,
        "sizes": asdict(m.sizes),
        "documents": len(m.forget),
        "rows": m.resolved.rows.num_rows,
        "tokens": sum(row.tokens for row in m.forget),
        "reasons": dict(sorted(told.items())),
        "unmatched_keys": list(m.resolved.unmatched),
        "suspects": m.resolved.suspects.num_rows,
        "first_suspects": [
            {**s, "id": s["id"].hex(), "of": s["of"].hex()} for s in suspects.to_pylist()
        ],
        "exposures": sum(one.exposures.num_rows for one in m.seen),
        "trainings": [
            {
                "training": one.training.path.name, "line": one.training.line,
                "round": one.training.round, "exposures": one.exposures.num_rows,
                "first_step": one.first if one.exposures.num_rows else None,
            }
            for one in m.seen
        ],
        "sets": dict(counts),
        "kept_documents": m.splits.documents,
        "holdout_reserved": m.splits.reserved,
        "holdout_overlapping": m.splits.overlapping,
        "warnings": [*m.resolved.warnings, *_warnings(m, counts)],
    }  # fmt: skip


def _warnings(m: _Material, counts: Mapping[str, int]) -> list[str]:
    """What the plan cannot give."""
    found, forget = [], len(m.forget)
    if m.splits.overlapping:
        found.append(
            f"{m.splits.overlapping} of {m.splits.reserved} reserved documents share 13 words in a"
            " row with the forget set and are not in the holdout"
        )
    if counts["holdout"] < forget:
        found.append(
            f"the holdout has {counts['holdout']} documents for {forget} to forget: membership"
            " cannot be told well (the share `holdout` of a reader is fixed when it reads)"
        )
    if counts["retain"] < m.sizes.filled(forget, "retain"):
        found.append(f"only {counts['retain']} kept documents are left for retain")
    empty = [name for name in NEIGHBOURS if not counts[name]]
    if empty:
        found.append(f"no document was found for {', '.join(empty)}")
    if not m.seen:
        found.append("the run trained nothing, so no checkpoint needs to go back")
    unknown = [o.training.path.name for o in m.seen if o.exposures["step"].null_count]
    if unknown:
        found.append(f"the steps are unknown in {', '.join(unknown)}: all of it counts as tainted")
    return found
