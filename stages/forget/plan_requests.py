"""`foresift forget plan`: the requests of a file, resolved and planned one after the other.

A request that cannot be planned (nothing matches, it contradicts an earlier one) stops the file
there: plans of the lines before it stand, and planning again is idempotent. One that was applied or
purged keeps its plan, so that a file of requests may grow; where all of them were, that is an
error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foresift.pipeline.errors import DataError
from foresift.pipeline.nouns import Progress, silent
from foresift.stages.forget.folder import NEIGHBOURS, DeletionPlan
from foresift.stages.forget.history import History
from foresift.stages.forget.plan import plan_deletion, refuse_applied
from foresift.stages.forget.request import Request, read_requests
from foresift.stages.forget.resolve import resolve, unlike_before


def plan_requests(
    file: Path, run: Path, out: Path | None = None, seed: int = 0, allow_all: bool = False,
    progress: Progress = silent,
) -> list[dict[str, Any]]:  # fmt: skip
    """Plan every request of a file; what `summary` tells of each."""
    requests = read_requests(file)
    history = History.open(run)
    told, done = [], []
    for request in requests:
        folder = (out or history.out) / history.deletions.name / request.id
        try:
            refuse_applied(folder)
        except DataError as error:
            unlike_before(request, history)
            done.append(error)
            told.append({"id": request.id, "path": str(folder), "kept": error.message})
        else:
            told.append(summary(_plan(request, history, out, seed, allow_all, progress)))
    if len(done) == len(requests):
        raise done[0]
    return told


def _plan(
    request: Request, history: History, out: Path | None, seed: int, allow_all: bool,
    progress: Progress,
) -> DeletionPlan:  # fmt: skip

    def tell(done: int, total: int, label: str) -> None:
        progress(done, total, f"{request.id}: {label}")

    found = resolve(request, history, tell, allow_all=allow_all)
    return plan_deletion(found, history, out, seed=seed, progress=tell)


def summary(plan: DeletionPlan) -> dict[str, Any]:
    """What is said of a plan: its folder, facts and costs."""
    facts = {name: told for name, told in plan.facts.items() if name != "views"}
    return {"path": str(plan.path), **facts, "budget": plan.budget}


def lines(told: dict[str, Any]) -> list[str]:
    """The summary as the terminal shows it."""
    if "kept" in told:
        return [f"{told['id']}: {told['kept']}"]
    why = ", ".join(f"{count:,} {reason}" for reason, count in told["reasons"].items())
    sets = told["sets"]
    near = ", ".join(f"{sets[name]:,} {name.partition('_')[2]}" for name in NEIGHBOURS)
    return [
        f"{told['id']}: {told['documents']:,} documents in {told['rows']:,} rows ({why})",
        *_costs(told),
        f"  sets: {sets['shared']:,} shared facts, neighbours {near}, {sets['retain']:,} retain,"
        f" {sets['holdout']:,} holdout, {sets['coreset']:,} coreset, {sets['probes']:,} probes",
        *([f"  {told['suspects']:,} suspects are left to you: plan.json"] * bool(told["suspects"])),
        *(f"  note: {warning}" for warning in told["warnings"]),
        f"  {told['path']}",
    ]


def _costs(told: dict[str, Any]) -> list[str]:
    """Exposures, where to go back to, and what each way costs."""
    main = told["budget"]["main"]
    if main is None:
        return [f"  {told['exposures']:,} exposures"]
    back = main["roll_back_to"]
    if back is None:
        return ["  no training of the selection saw them: nothing to roll back"]
    first = "an unknown step" if main["first_step"] is None else f"step {main['first_step']:,}"
    where = f"step {back['step']:,} of {back['training']}" if back["step"] else back["what"]
    return [
        f"  {told['exposures']:,} exposures, the first at {first} of {main['first_training']};"
        f" roll back to {where}",
        f"  replay {_flops(main['replay_flops'])}, unlearn {_flops(main['unlearn_flops']['NPO'])}"
        f" (NPO, {told['budget']['unlearning_epochs']} epochs), train anew"
        f" {_flops(main['retrain_flops'])}",
    ]


def _flops(count: float | None) -> str:
    return "of unknown cost" if count is None else f"{count:.2g} FLOPs"
