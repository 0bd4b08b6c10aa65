"""Plant noise whose truth is known, and see how much of it detectors find, and where.

python examples/find_noise.py       a few seconds

Invented personal data are planted into the docstrings under examples/corpus, wrong digits into sums
made here. Nothing is dropped: detectors give numbers and findings; the truth is in `noise.kind`.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foresift.pipeline.findings import findings
from foresift.pipeline.noise_inject import inject
from foresift.pipeline.nouns import Scorer
from foresift.pipeline.tables import content_ids, content_texts
from foresift.scorers.arithmetic import Arithmetic
from foresift.scorers.pii import Pii

HERE = Path(__file__).resolve().parent


def main() -> None:
    told("pii", Pii(), texts(), types=["email", "phone", "iban", "card"])
    told("static", Arithmetic(), sums(300))


def texts() -> pa.Table:
    """The docstrings, each once."""
    with gzip.open(HERE / "corpus" / "docs-0.jsonl.gz", "rt", encoding="utf-8") as file:
        return named({"text": sorted({json.loads(line)["text"] for line in file})})


def sums(n: int) -> pa.Table:
    """Chains of two sums."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(2, 90, (n, 3)).tolist()
    return named({
        "prompt": [f"What is {a} + {b} + {c}?" for a, b, c in drawn],
        "response": [f"{a} + {b} = {a + b}\n{a + b} + {c} = {a + b + c}" for a, b, c in drawn],
    })  # fmt: skip


def named(columns: dict[str, list[str]]) -> pa.Table:
    table = pa.table(columns)
    return table.append_column("id", content_ids(table))


def told(kind: str, detector: Scorer, clean: pa.Table, **options: Any) -> None:
    """Plant a kind of noise into a fifth of the rows, and print what the detector found."""
    noisy = inject(clean, kind, share=0.2, seed=0, **options)
    planted = np.asarray(noisy["noise.kind"].is_valid())
    given = noisy.select([n for n in noisy.column_names if not n.startswith("noise.")])
    found = list(findings(pa.array(detector.score(given)["findings"])))
    flagged = np.array([bool(row) for row in found])
    print(
        f"{type(detector).__name__}: {planted.sum()} of {len(planted)} rows carry {kind} noise; "
        f"{(flagged & planted).sum()} of them were found, and {(flagged & ~planted).sum()} others"
    )
    first = next(i for i in np.flatnonzero(flagged & planted) if not found[i][0].whole)
    one, text = found[first][0], content_texts(given)[first]
    print(f"    {one.reason}: ...{text[max(0, one.start - 25) : one.stop]!r}")


if __name__ == "__main__":
    main()
