"""The arms of `forgetting.py` that unlearn: a finished model, the texts that must go, some to keep.

Each method takes the same batches for its own number of steps; its learning rate (of SSD the
threshold) is the best of three to five on a seed that is not in the table (`tune`): the smallest
distance of the exposure at 16 copies to the oracle's, plus five times what it costs in bits a byte.
`stream` is ten requests one after the other with NPO, `curated + npo` unlearns from the curated
model what its curation had missed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _forgetting_measures as measures
from _forgetting_corpus import Truth

from foresift.pipeline.audit.attacks import relearn
from foresift.pipeline.unlearn.run import Outcome, unlearn

#: method -> (steps, the learning rates that are tried, of SSD its thresholds); untuned: the first
METHODS: dict[str, tuple[int, tuple[float, ...]]] = {
    "ga": (20, (5e-5, 1.5e-5, 1.5e-4)),
    "graddiff": (60, (1e-4, 3e-5, 3e-4)),
    "npo": (60, (5e-4, 1.5e-4, 1.5e-3)),
    "simnpo": (60, (5e-4, 1.5e-4, 1.5e-3)),
    "pdu": (60, (5e-4, 1.5e-4, 1.5e-3)),
    "flat": (60, (1e-4, 3e-5, 3e-4)),
    "ssd": (1, (3.0, 4.0, 2.0)),
    "iau": (1, (5e-4, 1.5e-4, 1.5e-3)),
    "gu": (60, (1e-4, 3e-5, 3e-4)),
    "ofmu": (60, (1e-4, 3e-5, 3e-4)),
    "rmu": (80, (1e-3, 3e-4, 3e-3)),
}
#: what FLAT shall answer instead
TEMPLATE = "Nothing is known of that."
BATCH, RETAIN = 16, 1500
RELEARN_STEPS, RELEARN_RATE = 20, 5e-4


@dataclass(frozen=True)
class Settings:
    """What every method is given."""

    share: float = 1.0
    """Of each method's steps."""
    rates: dict[str, float] | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    requests: int = 10

    def rate(self, method: str) -> float:
        """The tuned learning rate, or the first that would be tried."""
        return (self.rates or {}).get(method, METHODS[method][1][0])

    def steps(self, method: str) -> int:
        """Steps of a method, one at least."""
        return max(1, round(METHODS[method][0] * self.share))


def load(checkpoint: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a checkpoint of ours."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    return model.eval(), AutoTokenizer.from_pretrained(checkpoint)


def coded(tokenizer: Any, texts: Sequence[str], limit: int = 256) -> list[list[int]]:
    """Token ids of texts as they are trained on: between the start and the end token."""
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    start = end if start is None else start
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    edge = [[] if token is None else [token] for token in (start, end)]
    return [[*edge[0], *ids, *edge[1]][:limit] for ids in found]


def forgotten(
    model: Any, tokenizer: Any, texts: Sequence[str], truth: Truth, method: str, settings: Settings,
    seed: int,
) -> Outcome:  # fmt: skip
    """A copy of the model after unlearning the texts; background text is what is retained."""
    pieces = [t[i : i + 120] for t in truth.background for i in range(0, len(t), 120)]
    retain = coded(tokenizer, pieces[:: max(1, len(pieces) // RETAIN)])
    knob = settings.rate(method)
    own: dict[str, Any] = (
        {"options": {"threshold": knob}} if method == "ssd" else {"learning_rate": knob}
    )
    return unlearn(
        model, coded(tokenizer, texts), retain, method, steps=settings.steps(method),
        **own, batch=BATCH, seed=seed,
        templates=coded(tokenizer, [TEMPLATE]) if method == "flat" else (),
    )  # fmt: skip


def after_relearning(model: Any, tokenizer: Any, truth: Truth) -> float:
    """Exposure at 16 copies of one half of the secrets after training on the other half."""
    texts = [
        text for p in truth.plants if p.kind in ("canary", "pii") and p.half == 0
        for text in p.texts
    ]  # fmt: skip
    again = relearn(model, tokenizer, texts, steps=RELEARN_STEPS, lr=RELEARN_RATE)
    return measures.held(again, tokenizer, truth, 16, 1)


def stream(
    model: Any, tokenizer: Any, truth: Truth, settings: Settings, seed: int
) -> tuple[Any, dict[str, Any]]:
    """Ten requests in a row with NPO: the model, and bits a byte after each."""
    texts = sorted(truth.deletion)
    flops, began, bits = 0.0, time.perf_counter(), []
    for number in range(settings.requests):
        part = Settings(settings.share / 3, settings.rates)
        done = forgotten(
            model, tokenizer, texts[number :: settings.requests], truth, "npo", part, seed + number
        )
        model, flops = done.model, flops + done.flops
        bits.append(measures.validation(model, tokenizer, truth))
    return model, {
        "flops": flops, "seconds": time.perf_counter() - began, "bits_after_each": bits,
        "largest_fall": max(b - min(bits[: i + 1]) for i, b in enumerate(bits)),
    }  # fmt: skip
