"""A small finished run to plan deletions of, trainings of it, and requests resolved by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline.ledger import rows_table
from foresift.pipeline.store import write_json, write_shard
from foresift.stages.forget.folder import DeletionPlan
from foresift.stages.forget.history import Done, History
from foresift.stages.forget.plan import plan_deletion
from foresift.stages.forget.request import Key, Request
from foresift.stages.forget.resolved import FOUND, Resolved
from foresift.stages.forget.splits import Sizes
from tests.runs import go

#: every set small, so that there is a choice
SMALL = Sizes(retain=12, holdout=6, neighbours=6, relearn=4)
CITIES = ["Aalborg", "Bergen", "Cork", "Delft", "Espoo", "Faro", "Ghent", "Halle", "Izmir", "Jena"]
DRUGS = ["aspirin", "codeine", "heparin", "insulin", "morphine", "naproxen", "warfarin"]
Row = dict[str, Any]


def records(count: int = 160, seed: int = 0) -> list[Row]:
    """Notes of patients of four clinics, five a patient; the first one knows Magda Lindqvist."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        clinic, patient = n % 4, n // 20
        city, drug = rng.choice(CITIES), rng.choice(DRUGS)
        text = (
            f"Visit {n} took place in {city} on {1 + n % 28}/0{1 + n % 9}/19{60 + n % 40}. "
            f"The patient was given {drug} twice daily for {3 + n % 9} weeks. "
            f"Note number {1000 + 7 * n} was filed by nurse {city} Holm."
        )
        if (clinic, patient) == (0, 0) or n in (87, 103, 130):
            text += " She was referred by Magda Lindqvist, a cardiologist."
        if patient == 0 or n % 31 == 0:
            text += " All visits of the clinic are recorded under protocol seven."
        source = f"clinic-{clinic}/patient-{patient}/notes#{n // 4}"
        found.append({"text": text, "source": source, "licence": "CC-BY-4.0"})
    return found


def make_run(
    out: Path, rows: Sequence[Row] = (), *, content: dict[str, Any] | None = None, **read: Any
) -> History:
    """A run that read these rows, a holdout of a tenth, and keeps what it read."""
    out.mkdir(parents=True, exist_ok=True)
    rows = rows or records()
    file = out / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data: Row = {"read": "jsonl", "paths": [str(file)], "source": "source", "holdout": 0.15}
    data |= {"columns": ["licence"], **(content or {}), **read}
    recipe = {"name": "deletions", "data": data, "steps": [{"order": "shuffle"}], "report": False}
    return History.open(go(recipe, out).path)


def resolved(
    history: History, named: Callable[[Row], bool], *, reason: str = "key", level: str = "key",
    value: str = "clinic-0", name: str = "r-1",
) -> Resolved:  # fmt: skip
    """The rows of the main data set of which `named` holds: a dict of id, source and text."""
    lines: list[Row] = []
    for number, shard in enumerate(history.bases[0].shards()):
        for table, rows in shard.stream(("source",), every=True):
            for row, told in zip(rows.tolist(), table.to_pylist(), strict=True):
                if named(told):
                    place = {"base": 0, "shard": number, "row": row, "key": 0, "reason": reason}
                    about = {"id": told["id"], "of": told["id"], "similarity": 1.0}
                    lines.append({**place, **about, "source": told["source"]})
    request = Request(name, (Key(level, value),))
    return Resolved(request, pa.Table.from_pylist(lines, FOUND), FOUND.empty_table())


def under(head: str) -> Callable[[Row], bool]:
    """Rows whose key path begins so."""
    return lambda row: row["source"].startswith(head)


def plan(history: History, found: Resolved, **more: Any) -> DeletionPlan:
    """The plan, small."""
    return plan_deletion(found, history, **{"sizes": SMALL, **more})


def ids(rows: Sequence[Row]) -> list[str]:
    return [row["id"] for row in rows]


def trained(
    history: History, steps: Sequence[Sequence[bytes]], *, saved: Sequence[int] = (),
    name: str = "causal_lm-1", tokens: int = 10, facts: bool = True, **about: Any,
) -> History:  # fmt: skip
    """The run with one more training: the documents of each step, and where it saved."""
    path = history.out / "steps" / name
    exposures = [(id_, 1, 0, step, tokens) for step, here in enumerate(steps, 1) for id_ in here]
    write_shard(path / "ledger.parquet", rows_table(exposures))
    (path / "checkpoint").mkdir()
    (path / "checkpoint" / "model.safetensors").write_bytes(b"x" * 100)
    for step in saved:
        (path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    sums = np.cumsum([tokens * len(here) for here in steps])
    curve = {"step": pa.array(range(1, len(steps) + 1), pa.int32()), "tokens": pa.array(sums)}
    write_shard(path / "curve.parquet", pa.table(curve))
    write_json(path / "stage.json", {"fields": {}})
    told = {"steps": len(steps), "tokens": int(sums[-1]), "parameters": 1000} if facts else {}
    step = Done(
        path=path, verb="train", name="causal_lm", label="train causal_lm", fingerprint="0",
        facts=told, **{"line": "selected", "repeat": 0, "round": 1, **about},
    )  # fmt: skip
    return dataclasses.replace(history, steps=(*history.steps, step))
