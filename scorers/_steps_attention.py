"""Where some tokens look: the attention of one layer, without the maps of all layers.

    a_j = mean over heads h and rows i of softmax_j(scale q_hi . k_hj), j <= i

Queries and keys are taken where the model hands them to its kernel (`pipeline/lm/attention.py`).
Sliding windows and soft caps are applied again. A layer that cannot be captured is refused: a
number that is nearly right would not be noticed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.attention import Found, attention_layers, captured

_BLOCK = 1 << 22


class Attention:
    """One layer of a model, `depth` of the way from its first (0) to behind its last (1)."""

    def __init__(self, model: Any, depth: float) -> None:
        layers = attention_layers(model)
        if not layers:
            raise ModelError(f"{type(model).__name__} has no attention layer of a known form")
        self.model = model
        self.module = layers[min(int(depth * len(layers)), len(layers) - 1)]

    @torch.inference_mode()
    def mean(self, ids: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """[tokens] how much these rows look at each token, on average; sums to 1."""
        device = self.model.get_input_embeddings().weight.device
        tokens = torch.from_numpy(ids.astype(np.int64))[None].to(device)
        with captured(self.module) as found:
            self.model.base_model(input_ids=tokens, use_cache=False)
        if found.unknown:
            raise ModelError(f"attention cannot be read: {found.unknown}")
        wanted = torch.from_numpy(rows).to(device)
        return averaged(found, wanted).double().cpu().numpy()


def averaged(found: Found, rows: torch.Tensor) -> torch.Tensor:
    """[tokens] the mean over heads and rows of the causal softmax, rows in blocks."""
    assert found.query is not None
    assert found.key is not None
    _, heads, length, width = found.query.shape
    total = torch.zeros(length, device=rows.device)
    column = torch.arange(length, device=rows.device)
    key = found.key[0].float()
    size = max(1, _BLOCK // max(1, heads * length))
    for some in rows.split(size):
        query = found.query[0][:, some].float().reshape(len(key), -1, width)
        z = (query @ key.mT).view(heads, len(some), length) * found.scale
        if found.cap:
            z = found.cap * torch.tanh(z / found.cap)
        hidden = column > some[:, None]
        if found.window:
            hidden |= column <= some[:, None] - found.window
        total += z.masked_fill(hidden, -torch.inf).softmax(-1).mean(0).sum(0)
    return total / max(1, len(rows))
