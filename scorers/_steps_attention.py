"""Where some tokens look: the attention of one layer, without the maps of all layers.

    a_j = mean over heads h and rows i of softmax_j(scale q_hi . k_hj), j <= i

Queries and keys are taken where the model hands them to its attention kernel, so that biases,
norms, rotary embeddings and grouped heads are its own. Sliding windows and soft caps are applied
again. What hands more to its kernel (attention sinks, biases), or does not go through the shared
attention interface, is refused: a number that is nearly right would not be noticed.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import ModelError

_NAME = "foresift_evidence_attention"
_BLOCK = 1 << 22
_KNOWN = {
    "scaling", "softcap", "sliding_window", "dropout", "is_causal", "position_ids", "use_cache",
    "cache_position", "output_attentions", "output_hidden_states", "return_dict",
}  # fmt: skip


class Attention:
    """One layer of a model, `depth` of the way from its first (0) to behind its last (1)."""

    def __init__(self, model: Any, depth: float) -> None:
        layers = sorted(
            (m for m in model.modules() if _is_attention(m)), key=lambda m: int(m.layer_idx)
        )
        if not layers:
            raise ModelError(f"{type(model).__name__} has no attention layer of a known form")
        self.model = model
        self.module = layers[min(int(depth * len(layers)), len(layers) - 1)]

    @torch.inference_mode()
    def mean(self, ids: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """[tokens] how much these rows look at each token, on average; sums to 1."""
        device = self.model.get_input_embeddings().weight.device
        tokens = torch.from_numpy(ids.astype(np.int64))[None].to(device)
        with _captured(self.module) as found:
            self.model.base_model(input_ids=tokens, use_cache=False)
        if found.unknown:
            raise ModelError(f"attention cannot be read: {found.unknown}")
        wanted = torch.from_numpy(rows).to(device)
        return averaged(found, wanted).double().cpu().numpy()


def _is_attention(module: Any) -> bool:
    named = type(module).__name__.endswith("Attention")
    return (
        named and isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "config")
    )


class Found:
    """Queries and keys of one forward as the kernel got them, [1, heads, tokens, width]."""

    query: Any = None
    key: Any = None
    unknown = ""
    scale, window, cap = 1.0, 0, 0.0

    def take(self, module: Any, query: Any, key: Any, given: Any) -> None:
        more = sorted(n for n, v in given.items() if n not in _KNOWN and v is not None)
        name = type(module).__name__
        if self.query is not None:
            self.unknown = f"{name} calls its kernel more than once in a forward"
        elif more:
            self.unknown = f"{name} hands {', '.join(more)} to its kernel"
        scale = given.get("scaling") or getattr(module, "scaling", None) or query.shape[-1] ** -0.5
        self.query, self.key, self.scale = query, key, float(scale)
        self.window = int(given.get("sliding_window") or 0)
        self.cap = float(given.get("softcap") or 0.0)


@contextlib.contextmanager
def _captured(module: Any) -> Iterator[Found]:
    """Within, the module's kernel is also watched; nothing else is touched."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found, before = Found(), module.config
    kernel = before._attn_implementation

    def watch(layer: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
        found.take(layer, query, key, given)
        if kernel in ALL_ATTENTION_FUNCTIONS:
            run = ALL_ATTENTION_FUNCTIONS[kernel]
        else:
            run = sys.modules[type(layer).__module__].eager_attention_forward  # type: ignore[attr-defined]
        return run(layer, query, key, value, mask, **given)

    ALL_ATTENTION_FUNCTIONS[_NAME] = watch
    module.config = copy.copy(before)
    module.config._attn_implementation = _NAME
    try:
        yield found
    finally:
        module.config = before
        del ALL_ATTENTION_FUNCTIONS[_NAME]
    if found.query is None:
        found.unknown = f"{type(module).__name__} does not use the shared attention interface"


def averaged(found: Found, rows: torch.Tensor) -> torch.Tensor:
    """[tokens] the mean over heads and rows of the causal softmax, rows in blocks."""
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
