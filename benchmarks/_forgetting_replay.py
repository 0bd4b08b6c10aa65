"""The arm of `forgetting.py` that deletes exactly: plan, apply, replay, with foresift itself.

The untouched corpus is trained on once more, with a checkpoint at every tenth of its steps. Then
two requests come, one after the other: one document (a canary that stands once), and everything
that must go. The model after the second replay should be the oracle's, bit for bit: both train on
the same documents in the same order, in the same steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import _recipes
import pyarrow as pa
import torch
from _forgetting_arms import Tier, train
from _forgetting_corpus import Truth

from foresift.stages.forget.apply import apply
from foresift.stages.forget.history import History
from foresift.stages.forget.plan import plan_deletion
from foresift.stages.forget.replay import replay
from foresift.stages.forget.request import Key, Request
from foresift.stages.forget.resolve import resolve

CHECKPOINTS = 10


def replayed(
    data: Path, truth: Truth, folder: Path, tier: Tier, seed: int
) -> tuple[Path, dict[str, Any]]:
    """(checkpoint after the last replay, what each request took)."""
    steps = tier.tokens // (tier.batch_rows * tier.length)
    saving = replace(tier, checkpoint_every=max(1, steps // CHECKPOINTS))
    trained = train("replay", data, folder, saving, seed)
    store = folder / "replay"
    once = next(p for p in truth.of("canary") if p.copies == 1)
    told = {
        "one": _delete(store, "one", once.texts),
        "all": _delete(store, "all", sorted(truth.deletion - set(once.texts))),
    }
    return Path(_recipes.step(trained, "train")["path"]) / "checkpoint", told


def _delete(store: Path, name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Plan, apply and replay the deletion of some texts; nothing near them goes too."""
    history = History.open(store)
    wanted = set(texts)
    keys = tuple(Key("document", i) for i in _ids(history, wanted))
    found = resolve(Request(name, keys), history, expand=False, allow_all=True)
    began = time.perf_counter()
    plan = plan_deletion(found, history)
    planned = time.perf_counter()
    apply([plan.path])
    applied = time.perf_counter()
    met = any(plan.lineage["exposures"].to_pylist())
    told = replay(store, workers=1) if met else {"steps": 0}  # a short run has not met it
    return {
        "documents": len(keys), "budget": plan.budget, "replay": told,
        "seconds": {"plan": planned - began, "apply": applied - planned,
                    "replay": time.perf_counter() - applied},
    }  # fmt: skip


def _ids(history: History, wanted: set[str]) -> list[str]:
    """Ids of the documents with these texts."""
    found: set[bytes] = set()
    for shard in history.bases[0].shards():
        for table, _ in shard.stream(every=True):
            here = pa.array([text in wanted for text in table["text"].to_pylist()])
            found |= set(table["id"].filter(here).to_pylist())
    return sorted(i.hex() for i in found)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same numbers."""
    from safetensors.torch import load_file

    left, right = (load_file(p / "model.safetensors") for p in (one, other))
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
