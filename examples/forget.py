"""A document must go: trace it, plan and apply its deletion, train again without it, measure.

python examples/forget.py [OUT]        about 15 seconds on one core

What may have to go comes late (`risk_late`), and the training keeps checkpoints, so the replay goes
back to the last one that never saw the document. The audit stands alone here and proves nothing;
given `retrained=`, a model trained without the document from the beginning, it comes to a verdict.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from foresift import Recipe
from foresift.stages.forget.apply import apply
from foresift.stages.forget.audit import Asked, audit
from foresift.stages.forget.history import History
from foresift.stages.forget.plan_requests import lines, plan_requests
from foresift.stages.forget.replay import replay
from foresift.stages.forget.trace import trace

HERE = Path(__file__).resolve().parent
RECIPE: dict[str, Any] = {
    "name": "forget",
    "data": {"read": "jsonl", "paths": [f"{HERE}/corpus/*.jsonl.gz"], "source": "source"},
    "model": {"init": "configs/models/tiny", "max_length": 128},
    "steps": [
        {"score": ["copies", "pii"]},
        {"dedup": "exact"},
        {"score": "forget_risk", "features": ["copies", "personal"]},
        {"select": "random", "budget": "10%"},
        {"order": "risk_late", "intervals": 5},
        {
            "train": "causal_lm",
            "length": 128,
            "batch_tokens": 1024,
            "checkpoint_every": 4,
            "threads": 1,
        },
    ],
    "report": False,
}


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/forget")
    run = Recipe.parse(RECIPE, "forget").run(out)
    training = Path(run.manifest["steps"][-1]["path"])
    late = pq.read_table(training / "ledger.parquet").sort_by("step")["id"][-1].as_py().hex()

    found = trace(late, History.open(run.path))
    saw = [c["step"] for c in found.checkpoints if c["saw"]]
    print(f"{late} in step {found.exposures[0]['step']}; seen by checkpoints {saw}")

    request = {"id": "r-1", "keys": [{"level": "document", "value": late}], "scope": "verbatim"}
    (out / "requests.jsonl").write_text(json.dumps(request) + "\n", encoding="utf-8")
    (planned,) = plan_requests(out / "requests.jsonl", run.path)
    print(*lines(planned), sep="\n")

    for about in apply([planned["path"]])["tainted"].values():
        print(f"tainted: from step {about['first_step']} on")
    again = replay(run.path)
    print(f"replayed {again['steps']} of {again['steps_of_all']} steps: {again['run']}")

    model, plan = str(training / "checkpoint"), Path(planned["path"])
    told = audit(Asked(model=model, plan=plan, attacks=["int8"]))
    print(f"{len(told['findings'])} findings; verdict: {told['verdict']}")


if __name__ == "__main__":
    main()
