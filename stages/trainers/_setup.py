"""What a training takes for itself and gives back: threads, random state, a model of its own."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.model import Loaded, ModelSpec, load


@contextlib.contextmanager
def isolated(threads: int) -> Iterator[None]:
    """Threads, random state and progress bars of the process are as before when it is left."""
    import torch
    from transformers.utils import logging as bars

    before, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(before)
        if shown:
            bars.enable_progress_bar()
        random.setstate(python)
        np.random.set_state(numpy)


def own_model(spec: ModelSpec, length: int) -> Loaded:
    """A model of our own to change (never the one that scorers share), checked for its length."""
    loaded = load.__wrapped__(spec)
    if spec.device not in ("auto", "cpu", "cuda", "cuda:0"):
        raise ModelError(
            f"training runs on the first visible GPU, not on {spec.device}; set "
            "CUDA_VISIBLE_DEVICES",
            where=spec.init,
        )
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    if positions and length > positions:
        raise ModelError(
            f"rows of {length} tokens, but the model has {positions} positions; lower `length`",
            where=spec.init,
        )
    return loaded
