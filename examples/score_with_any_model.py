"""Score a table with a causal language model: no recipe, no files, no Ray.

    python examples/score_with_any_model.py [MODEL]

MODEL is a folder, a configuration or a hub id; by default a tiny model with random weights, whose
scores mean nothing. One forward serves both scorers.
"""

from __future__ import annotations

import sys

import pyarrow as pa

from foresift.pipeline.lm.forward import score_table
from foresift.pipeline.lm.model import ModelSpec
from foresift.scorers.loss import Loss
from foresift.scorers.uncertainty import Uncertainty

TEXTS = [
    "The with statement is used to wrap the execution of a block.",
    "with block of The to is wrap execution used statement a the.",
    "block block block block block block block block block block",
]


def score(model: str) -> pa.Table:
    """One row a text: id, text, and a column for each number."""
    table = pa.table({"id": [f"text {n}" for n in range(len(TEXTS))], "text": TEXTS})
    spec = ModelSpec(init=model, max_length=512)
    loss, uncertainty = score_table(table, spec, [Loss(), Uncertainty()])
    for name, values in {**loss, "entropy": uncertainty["entropy"]}.items():
        table = table.append_column(name, pa.array(values))
    return table


def main() -> None:
    scored = score(sys.argv[1] if len(sys.argv) > 1 else "configs/models/tiny")
    print(scored.drop_columns(["text"]).to_pandas().round(3).to_string(index=False))


if __name__ == "__main__":
    main()
