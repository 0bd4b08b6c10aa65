"""What the ways to go would cost: replay from the last clean checkpoint, unlearn, train anew.

    clean     a checkpoint of step s has seen what was trained up to s: it is clean where the first
              exposure is later. Before the first checkpoint: the one that the training started from
    replay    (S - s) steps of the training of the first exposure, and every step of those after it
              on the same line (each may have gone on from the one before)
              tokens of these steps without those of the forgotten documents (with them where a
              training repeats its plan: others come in their place); 6 N FLOPs a token
    retrain   6 N FLOPs for every token of the line without those of the forgotten documents
    unlearn   m N FLOPs for each token of the forget set (`model_tokens`) and epoch; m = 6 for a
              gradient, 2 for a forward, of forget and (where the method has it) as much of retain

`N` are the parameters of the line's last training. A figure that the trainings do not tell is null.
Every line of the run (the selection, each baseline, each repeat) has its own; `main` is the
selection's. Cost: one look at the ids of each ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foresift.pipeline.checkpoints import checkpoints
from foresift.pipeline.plan import MAIN
from foresift.pipeline.store import StepDir
from foresift.stages.forget.history import Done, History

#: FLOPs for each parameter, token of the forget set and epoch
UNLEARNING = {
    "GA": 6, "GradDiff": 12, "NPO": 14, "SimNPO": 12, "IdkDPO": 22, "UNDIAL": 8, "WGA": 12,
    "PDU": 12, "CE-U": 6, "FLAT": 12, "ME+GD": 12,
}  # fmt: skip
EPOCHS = 10
#: FLOPs of training for each parameter and token
TRAINING = 6


@dataclass(frozen=True)
class Met:
    """A training, and where it met the documents."""

    training: Done
    exposures: pa.Table
    """Rows of its ledger (pipeline/ledger.py) about them."""

    @property
    def first(self) -> int | None:
        """The step of the first exposure; None: unknown."""
        steps = self.exposures["step"]
        return None if steps.null_count else pc.min(steps).as_py()

    def tokens_after(self, step: int) -> int:
        """Tokens of the documents in later steps; pieces of unknown size count as none."""
        steps = self.exposures["step"]
        later = pc.fill_null(pc.greater(steps, step), True)
        return pc.sum(self.exposures.filter(later)["tokens"]).as_py() or 0


@dataclass(frozen=True)
class Back:
    """A checkpoint to go back to: of which training, after which of its steps (0: its start)."""

    training: int
    """Number in the line."""
    step: int
    path: Path | None


def met(history: History, ids: pa.Array) -> list[Met]:
    """What each training of the run saw of these documents."""
    return [Met(t, history.ledger(t).find(ids)) for t in history.trainings]


def budget(
    history: History, seen: Sequence[Met], forget_tokens: int, stored: int
) -> dict[str, Any]:
    """What is written to `budget.json`; `stored` are the bytes of the plan."""
    lines: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(_line(m.training) for m in seen):
        line = [m for m in seen if _line(m.training) == name]
        lines[name] = _of_line(history, line, forget_tokens)
    kept = [c.path for m in seen for c in checkpoints(m.training.path)]
    return {
        "main": lines.get(MAIN),
        "lines": {name: told for name, told in lines.items() if name != MAIN},
        "forget_tokens": forget_tokens,
        "unlearning_epochs": EPOCHS,
        "storage": {"plan": stored, "checkpoints": sum(map(size_of, kept))},
    }


def model_tokens(seen: Sequence[Met], sizes: Mapping[bytes, int]) -> int:
    """Tokens of the documents as the model counts them; `sizes`: as the reader does.

    The ledger of the first training that saw some of them tells how many of the model's tokens one
    of the reader's is; without one they are taken for the same.
    """
    whole = sum(sizes.values())
    for one in seen:
        met_ids = pc.unique(one.exposures["id"]).to_pylist()
        known = sum(sizes.get(id_, 0) for id_ in met_ids)
        trained = pc.sum(one.exposures["tokens"]).as_py() or 0
        if known and trained:
            passes = max(1.0, float(one.training.facts.get("epochs") or 1))
            return round(whole * trained / passes / known)
    return whole


def _line(training: Done) -> str:
    return training.line + (f" #{training.repeat + 1}" if training.repeat else "")


def _of_line(history: History, line: Sequence[Met], forget_tokens: int) -> dict[str, Any]:
    parameters = line[-1].training.facts.get("parameters")
    back = roll_back(line)
    steps, tokens = _replay(line, back) if back else (0, 0)
    whole = _tokens(line, 0)
    first = next((m for m in line if m.exposures.num_rows), None)
    return {
        "first_training": first.training.path.name if first else None,
        "first_step": first.first if first else None,
        "exposures": sum(m.exposures.num_rows for m in line),
        "roll_back_to": _told(history, line, back) if back else None,
        "replay_steps": steps,
        "replay_tokens": tokens,
        "retrain_tokens": whole,
        "parameters": parameters,
        "replay_flops": flops(parameters, tokens),
        "retrain_flops": flops(parameters, whole),
        "unlearn_flops": {
            name: flops(parameters, forget_tokens * EPOCHS, each)
            for name, each in UNLEARNING.items()
        },
    }


def roll_back(line: Sequence[Met]) -> Back | None:
    """The last clean state of a line; None where it saw none of the documents."""
    for number, one in enumerate(line):
        if not one.exposures.num_rows:
            continue
        first = one.first
        clean = [
            c
            for c in checkpoints(one.training.path)
            if first is not None and c.step is not None and c.step < first
        ]
        if clean:
            return Back(number, clean[-1].step or 0, clean[-1].path)
        before = checkpoints(line[number - 1].training.path) if number else []
        return Back(number, 0, before[-1].path if before else None)
    return None


def _replay(line: Sequence[Met], back: Back) -> tuple[int | None, int | None]:
    """(steps, tokens) from there to the end of the line; None where a training does not tell."""
    steps = [one.training.facts.get("steps") for one in line[back.training :]]
    known = [int(s) for s in steps if s is not None]
    count = sum(known) - back.step if len(known) == len(steps) else None
    here = _after(line[back.training], back.step)
    rest = _tokens(line[back.training + 1 :], 0)
    return count, None if here is None or rest is None else here + rest


def _tokens(line: Sequence[Met], step: int) -> int | None:
    every = [_after(one, step) for one in line]
    return None if None in every else sum(n for n in every if n is not None)


def _after(one: Met, step: int) -> int | None:
    """Tokens of a training in steps after this one, without those of the documents.

    A training that repeats its plan up to a budget takes as many tokens without them.
    """
    total = one.training.facts.get("tokens")
    if total is None:
        return None
    repeats = StepDir(one.training.path).facts().get("fields", {}).get("repeat")
    gone = 0 if repeats else one.tokens_after(step)
    return max(0, int(total) - _until(one.training, step) - gone)


def _until(training: Done, step: int) -> int:
    """Tokens of a training up to a step: by its curve, else in proportion."""
    if step == 0:
        return 0
    path = training.path / "curve.parquet"
    if path.exists():
        curve = pq.read_table(path, columns=["step", "tokens"])
        at = int(np.searchsorted(np.asarray(curve["step"]), step, side="right"))
        return int(curve["tokens"][at - 1].as_py()) if at else 0
    return int(training.facts["tokens"] * step / max(int(training.facts.get("steps") or step), 1))


def flops(parameters: int | None, tokens: int | None, each: int = TRAINING) -> float | None:
    """`each` operations for each parameter and token; None where one of them is unknown."""
    return None if parameters is None or tokens is None else float(each) * parameters * tokens


def _told(history: History, line: Sequence[Met], back: Back) -> dict[str, Any]:
    path = back.path
    inside = path is not None and path.is_relative_to(history.out)
    return {
        "training": line[back.training].training.path.name,
        "step": back.step,
        "path": str(path.relative_to(history.out) if inside and path else path) if path else None,
        "what": "a checkpoint" if path else "the model that the training started from",
    }


def size_of(path: Path) -> int:
    """Bytes of the files under a folder."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
