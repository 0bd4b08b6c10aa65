"""Tainted trainings: their weights saw documents that were forgotten.

A training is tainted from the first step in which its ledger lists such a document (from its first
step where a step is unknown), and so are its checkpoints from that step on. A training that started
from a tainted checkpoint is tainted from its first step. One without a ledger may have seen
everything: it is tainted, and says so.

    steps/<training>/tainted.json
        requests      ids of the deletion requests
        first_step    the first step that saw such a document; null: unknown
        documents, exposures    how many of them, and how often
        checkpoints   [{name, step}] the tainted ones
        inherited     the tainted training whose checkpoint it started from, or null

Cost: one read of the ids of each ledger.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from foresift.pipeline.checkpoints import FINAL, FOLDER, checkpoints
from foresift.pipeline.errors import DataError
from foresift.pipeline.ledger import Ledger
from foresift.pipeline.store import Facts, StepDir, read_json
from foresift.pipeline.tombstones import TAINTED

TRAIN = "train"


def taints(
    trainings: Mapping[str, Path], forgotten: pa.Table, parents: Mapping[str, str]
) -> dict[str, Facts]:
    """Name of a training -> what it saw of the forgotten documents, for those that saw any.

    `trainings`: name -> directory; `forgotten`: (id, request); `parents`: as `parents_of`.
    """
    found: dict[str, Facts] = {}
    for name, path in trainings.items():
        told = _own(path, forgotten)
        if told is not None:
            found[name] = told
    for name in _descending(trainings, parents):
        parent = parents.get(name)
        if parent in found:
            found[name] = _inherited(trainings[name], found.get(name), parent, found[parent])
    return found


def _own(path: Path, forgotten: pa.Table) -> Facts | None:
    """What its own ledger says."""
    if not forgotten.num_rows:
        return None
    try:
        seen = Ledger.open(path).find(forgotten["id"])
    except DataError:
        names = sorted(set(forgotten["request"].to_pylist()))
        return _told(path, names, None, 0, 0, "it has no ledger: it may have seen everything")
    if not seen.num_rows:
        return None
    ids = pc.unique(seen["id"])
    mine = forgotten.filter(pc.is_in(forgotten["id"], value_set=ids))
    first = None if seen["step"].null_count else int(pc.min(seen["step"]).as_py())
    names = list(dict.fromkeys(mine["request"].to_pylist()))
    return _told(path, names, first, len(ids), seen.num_rows)


def _told(
    path: Path,
    requests: list[str],
    first: int | None,
    documents: int,
    exposures: int,
    why: str = "",
) -> Facts:
    return {
        "requests": requests,
        "first_step": first,
        "documents": documents,
        "exposures": exposures,
        "checkpoints": [
            {"name": c.path.name, "step": c.step}
            for c in checkpoints(path)
            if c.step is None or first is None or c.step >= first
        ],
        "inherited": None,
        **({"why": why} if why else {}),
    }


def _inherited(path: Path, own: Facts | None, parent: str, theirs: Facts) -> Facts:
    """Tainted from its first step on, by where it started."""
    mine = own or {"requests": [], "documents": 0, "exposures": 0}
    requests = list(dict.fromkeys([*mine["requests"], *theirs["requests"]]))
    told = _told(path, requests, 1, mine["documents"], mine["exposures"])
    return {**told, "inherited": parent}


def _descending(trainings: Mapping[str, Path], parents: Mapping[str, str]) -> list[str]:
    """Trainings, each after the one it started from."""

    def depth(name: str) -> int:
        count, seen = 0, {name}
        while (parent := parents.get(name)) is not None and parent not in seen:
            name, count = parent, count + 1
            seen.add(name)
        return count

    return sorted(trainings, key=lambda name: (depth(name), name))


def parents_of(runs: list[Path]) -> dict[str, str]:
    """Training -> the training whose checkpoint it started from, by the manifests of all runs.

    Manifests of older versions do not tell where a training started: there it is taken to be the
    training before it on the same line.
    """
    found: dict[str, str] = {}
    for run in sorted(runs):
        before: dict[tuple[str, int], str] = {}
        for step in read_json(run / "manifest.json")["steps"]:
            if step["verb"] != TRAIN:
                continue
            name, line = Path(step["path"]).name, (str(step["line"]), int(step["repeat"]))
            if "model" in step:
                parent = training_of(step["model"])
            else:
                parent = before.get(line)
            if parent and parent != name:
                found[name] = parent
            before[line] = name
    return found


def training_of(model: Any) -> str | None:
    """The name of the training's directory that a checkpoint lies in."""
    path = Path(str(model or ""))
    if path.name == FINAL and StepDir(path.parent).done:
        return path.parent.name
    if path.parent.name == FOLDER and StepDir(path.parent.parent).done:
        return path.parent.parent.name
    return path.parent.name if path.name == FINAL and path.parent.parent.name == "steps" else None


def drop_checkpoints(training: Path) -> list[str]:
    """Remove the tainted checkpoints of a training, which is then no longer done."""
    told, removed = read_json(training / TAINTED), []
    (training / "stage.json").unlink(missing_ok=True)
    for one in told["checkpoints"]:
        name = str(one["name"])
        place = name if name == FINAL else f"{FOLDER}/{name}"
        if (training / place).is_dir():
            shutil.rmtree(training / place)
            removed.append(f"steps/{training.name}/{place}")
    (training / TAINTED).unlink()
    return removed
