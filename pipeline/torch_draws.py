"""Torch draws that are keyed by a seed and a place, so that they are the same after a restart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from foresift.pipeline.rng import Rng


@contextlib.contextmanager
def drawing(device: torch.device, seed: int, *place: str | int) -> Iterator[None]:
    """Torch draws by seed and place in here; what was drawn from before is left as it was."""
    key = Rng(seed).at(*place).key % 2**63
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(key)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(key)
        yield
