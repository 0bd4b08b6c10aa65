"""FIT's answer to one request of a stream: filter, classify, choose layers, unlearn by class.

    model, history = given, Seen()
    for request in requests: history.answer(model, request.rows, retain, request.vectors)

What came before is kept as vectors, so a request that repeats one is mostly filtered out. Each
class of `stream.py` is unlearned by its own method, mildest first, in the blocks that carry the
request. The model is changed in place and left in evaluation mode; the reference of each part is
the model as that part finds it.

Cost: 2N a token for losses, 6N for importance, 2N (L + 1) for layers, then the methods' own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from foresift.pipeline.errors import DataError
from foresift.pipeline.unlearn.blocks import blocks
from foresift.pipeline.unlearn.documents import (
    Documents,
    Tokens,
    document_losses,
    documents,
    fits,
)
from foresift.pipeline.unlearn.run import Outcome, unlearn
from foresift.pipeline.unlearn.stream import (
    SETTINGS,
    Class,
    classes,
    importance,
    layer_scores,
    redundant,
    top_layers,
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """What was done about one request."""

    redundant: npt.NDArray[np.bool_]
    """[n] which chunks were left out."""
    classes: list[Class]
    """Of the chunks that were not, in their order."""
    layers: tuple[int, ...]
    """The blocks that moved; empty where nothing had to be done."""
    outcomes: dict[Class, Outcome]
    """One run for each class that occurs."""
    flops: int
    """Of everything, filter and choice of layers included."""


@dataclass
class Seen:
    """The vectors of what was forgotten so far, and the settings of the stream."""

    tau: float = 0.85
    epsilon: float = 0.01
    layers: int = 0
    """Blocks that move for a request; 0 = a quarter of them (published: 8 of 32)."""
    vectors: list[Floats] = field(default_factory=list)

    def answer(
        self,
        model: Any,
        rows: Sequence[Tokens],
        retain: Sequence[Tokens],
        vectors: npt.ArrayLike,
        **settings: Any,
    ) -> Answer:
        """Unlearn the chunks `rows` with embeddings [n, d]; `settings` go to `unlearn`."""
        documents(rows, where="request")  # refuses what cannot be read
        given = Documents(tuple(tuple(map(int, r)) for r in rows), (0,) * len(rows))
        own = np.asarray(vectors, dtype=np.float64)
        if len(rows) == 0 or own.ndim != 2 or len(own) != len(rows):
            raise DataError(f"{own.shape} vectors for {len(rows)} chunks", where="request")
        fits(given, model, "request")
        model.eval()
        size = sum(p.numel() for p in model.parameters())
        tokens = sum(map(len, given.rows))
        left_out = self._redundant(model, given, own)
        flops = 2 * size * tokens
        chosen = np.flatnonzero(~left_out)
        if not len(chosen):
            return Answer(left_out, [], (), {}, flops)
        kept = Documents(tuple(given.rows[i] for i in chosen), (0,) * len(chosen))
        kinds = classes(importance(model, kept))
        count = len(blocks(model))
        layers = top_layers(layer_scores(model, kept), self.layers or math.ceil(count / 4))
        flops += (6 + 2 * (count + 1)) * size * sum(map(len, kept.rows))
        outcomes: dict[Class, Outcome] = {}
        for kind, (method, options) in SETTINGS.items():
            mine = [r for r, k in zip(kept.rows, kinds, strict=True) if k == kind]
            if mine:
                outcomes[kind] = unlearn(
                    model, mine, retain, method, options=options, layers=layers, in_place=True,
                    **settings,
                )  # fmt: skip
        self.vectors += [own[i] for i in chosen]
        flops += sum(o.flops for o in outcomes.values())
        return Answer(left_out, kinds, layers, outcomes, flops)

    def _redundant(self, model: Any, given: Documents, own: Floats) -> npt.NDArray[np.bool_]:
        """Which chunks are like what went before and leave the request's loss as it is."""
        losses = document_losses(model, given).double().cpu().numpy()
        whole, count = losses.mean(), len(losses)

        def change(i: int) -> float:
            rest = (losses.sum() - losses[i]) / (count - 1) if count > 1 else 0.0
            return float(whole - rest)

        history = np.array(self.vectors) if self.vectors else np.empty((0, own.shape[1]))
        return redundant(own, history, change, tau=self.tau, epsilon=self.epsilon)
