"""Encoded documents of random tokens, and losses in float64, for tests of probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from foresift.pipeline.lm.batches import batches
from foresift.pipeline.lm.encode import Encoded
from foresift.pipeline.lm.gradients import directional, reference
from foresift.pipeline.lm.gradients.oracle import per_sample_gradients
from foresift.pipeline.lm.gradients.reference import ReferenceSet
from foresift.pipeline.lm.gradients.samples import Parameters, sample_losses, sum_losses
from foresift.pipeline.lm.model import Loaded
from tests.pipeline.lm.gradients.models import VOCABULARY, build

Floats = npt.NDArray[np.float64]


def encoded(lengths: Sequence[int], seed: int = 0, masked: int = 1) -> Encoded:
    """Documents of random tokens; the first `masked` tokens of each do not count."""
    draw = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    place = np.concatenate([np.arange(n) for n in lengths])
    ids = draw.integers(2, VOCABULARY, len(place)).astype(np.int32)
    return Encoded(ids, place >= masked, offsets, np.zeros(len(lengths), dtype=np.bool_))


def joined(*parts: Encoded) -> Encoded:
    """The documents of several tables, one after another."""
    lengths = np.concatenate([p.lengths for p in parts])
    return Encoded(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.counts for p in parts]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([p.cut for p in parts]),
    )


def ready(model: Any = None, dtype: torch.dtype = torch.float64) -> Loaded:
    """A tiny GPT-2 (or this model) as probes take it; its tokenizer has nothing but a size.

    The norms of other shapes are float32 whatever the model is.
    """
    return Loaded(model or build("gpt2", dtype=dtype), range(VOCABULARY), "cpu")


def gradients(documents: Encoded, loaded: Loaded) -> Parameters:
    """[n, ...] gradient of each document's mean NLL, by its definition; in row order."""
    rows = [per_sample_gradients(loaded.model, batch) for batch in _singly(documents)]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def means(documents: Encoded, loaded: Loaded, batch_tokens: int = 0) -> Floats:
    """`directional.losses` in float64 throughout, which the shared pass is not."""
    with torch.no_grad():
        found = [float(sample_losses(loaded.model, b)) for b in _singly(documents)]
    return np.array(found)


def total(aim: ReferenceSet, loaded: Loaded, batch_tokens: int = 0) -> float:
    """`reference.loss` in float64 throughout."""
    with torch.no_grad():
        sums = [float(sum_losses(loaded.model, b)) for b in _singly(aim.encoded)]
    return float(np.array(sums) @ aim.weights)


def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let probes take their losses in float64, so that formulas show and rounding does not."""
    monkeypatch.setattr(directional, "losses", means)
    monkeypatch.setattr(reference, "loss", total)


def bits(model: Any) -> dict[str, bytes]:
    """Every parameter and buffer, to the last bit."""
    return {
        name: value.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for name, value in model.state_dict().items()
    }


def _singly(documents: Encoded) -> list[Any]:
    rows = range(len(documents))
    return [next(batches(documents, np.array([row]), 1)) for row in rows]
