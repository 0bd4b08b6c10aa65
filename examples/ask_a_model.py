"""Ask a model which texts would lower its loss on an aim: no recipe, no Ray.

    python examples/ask_a_model.py [MODEL]

MODEL is a folder or a hub id; by default a tiny model with random weights, which prefers texts that
share the aim's tokens. Two forwards a text, whatever the size of the aim.
"""

from __future__ import annotations

import sys

import pyarrow as pa

from foresift.pipeline.lm.encode import encode
from foresift.pipeline.lm.gradients import probes
from foresift.pipeline.lm.gradients.adamw import AdamW, load_moments
from foresift.pipeline.lm.gradients.reference import reference_set
from foresift.pipeline.lm.model import ModelSpec, load

AIM = [
    "The with statement is used to wrap the execution of a block.",
    "The for statement is used to iterate over the elements of a sequence.",
    "The while statement is used for repeated execution as long as an expression is true.",
]
TEXTS = [
    "The try statement specifies exception handlers for a group of statements.",
    "Stir the onions until they are golden, then add a glass of white wine.",
    "of a the is statement expression block used true sequence execution wrap.",
]


def utilities(model: str) -> list[float]:
    """By how much one step on each text would lower the loss on the aim, in nats per token."""
    spec = ModelSpec(init=model, max_length=512)
    loaded = load(spec)
    aim = reference_set(encode(pa.table({"text": AIM}), loaded.tokenizer, spec))
    texts = encode(pa.table({"text": TEXTS}), loaded.tokenizer, spec)
    moments = load_moments(spec, loaded.model)  # None where there is no optimizer.safetensors
    probe, _ = probes.prepare([(aim, 1.0)], loaded, AdamW(), moments, texts)
    return [float(u) for u in probes.linear(probe, texts, loaded)[:, 0]]


def main() -> None:
    found = utilities(sys.argv[1] if len(sys.argv) > 1 else "configs/models/tiny")
    for utility, text in sorted(zip(found, TEXTS, strict=True), reverse=True):
        print(f"{utility:+.6f}  {text}")


if __name__ == "__main__":
    main()
