"""Do the detectors find what people marked? One table over sets whose truth nobody here made.

    python benchmarks/detectors.py                        all parts: about 20 minutes on one core
    python benchmarks/detectors.py --part labels,pii
    python benchmarks/detectors.py --smoke                under a minute; no goal is judged

Sets, halves and baselines stand in the file of each part; every part can be run by itself:

    junk      pages people would not keep, boilerplate, spam, contamination    _detectors_junk.py
    labels    wrong labels                                                     _detectors_labels.py
    steps     wrong or needless steps in chains of thought                     _detectors_steps.py
    pii       personal data by type                                            _detectors_pii.py

At most half of a set is used to fit or to set a threshold; the other half is reported.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("junk", "labels", "steps", "pii")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="under a minute")
    parser.add_argument("--part", default=",".join(PARTS), help="some of them, with commas")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    args = parser.parse_args()
    if unknown := set(args.part.split(",")) - set(PARTS):
        parser.error(f"--part: no {', '.join(sorted(unknown))} among {', '.join(PARTS)}")
    if not args.data.exists():
        raise SystemExit(f"no data at {args.data}; name its folder with --data")
    torch.set_num_threads(1)
    parts: dict[str, Any] = {}
    for name in args.part.split(","):
        start = time.perf_counter()
        parts[name] = importlib.import_module(f"_detectors_{name}").run(args.data, args.smoke)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        print(f"\n## {name}\n\n{table(parts[name]['rows'])}", flush=True)
    goals = [{"part": name, **goal} for name, told in parts.items() for goal in told["goals"]]
    print(json.dumps({"benchmark": "detectors", "parts": parts, "goals": goals}))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table; columns in the order in which they first come."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
