"""A page about data, its card and its metadata: what `foresift report PATH` does, from Python.

python examples/report_data.py [OUT] [PATH]       half a minute; a second run computes nothing
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from foresift.pipeline.reporting import Asked, report

HERE = Path(__file__).resolve().parent


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/report")
    path = sys.argv[2] if len(sys.argv) > 2 else str(HERE / "reference.jsonl")
    done = report(Asked([path], out=out), say=print)
    told = json.loads((done.page.parent / "report.json").read_text(encoding="utf-8"))
    for detector in told["found"]["detectors"]:
        print(f"{detector['any']:6,} of {detector['documents']:,} documents: {detector['name']}")
    for file in (done.page, *done.beside):
        print(file)


if __name__ == "__main__":
    main()
