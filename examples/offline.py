"""Curate the example corpus from Python: score with a model, keep a fifth, say what became of all.

python examples/offline.py [OUT]        about 20 seconds on two cores; a second run is instant
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from foresift import Recipe

HERE = Path(__file__).resolve().parent
RECIPE: dict[str, Any] = {
    "name": "offline",
    "data": {"read": "jsonl", "paths": [f"{HERE}/corpus/*.jsonl.gz"], "source": "source"},
    "model": {"init": "configs/models/tiny", "max_length": 256},
    "steps": [
        {"dedup": "minhash", "threshold": 0.8},
        {"score": ["length", "uncertainty"]},
        {"select": "where", "keep": "length.words >= 20"},
        {"select": "topk", "by": "uncertainty.entropy", "lowest": True, "budget": "20%"},
        {"order": "sorted", "by": "n_tokens"},
        {"export": "parquet"},
    ],
    "report": False,
}


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/offline")
    done = Recipe.parse(RECIPE, "offline").run(out)
    accounts = done.manifest["accounts"]
    print(f"{accounts['rows_in']} rows in, {accounts['kept']} kept")
    for reason, count in sorted(accounts["dropped_by_reason"].items()):
        print(f"{count:5} {reason}")
    print("plan  ", done.plan)
    print("export", done.manifest["steps"][-1]["path"])


if __name__ == "__main__":
    main()
