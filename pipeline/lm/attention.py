"""Queries and keys of one attention layer, as the model hands them to its kernel.

    with captured(layer) as found:
        model(...)
    found.query, found.key, found.scale, found.window, found.cap, found.mask

They are taken behind biases, norms and rotary embeddings, whatever kernel computes; the forward
goes on with that kernel. `found.unknown` says why they cannot be trusted: a layer does not go
through the shared attention interface, is called more than once, or hands more to its kernel than
is accounted for here (attention sinks, additive biases).
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator
from typing import Any

import torch

_NAME = "foresift_captured_attention"
#: what kernels are handed that changes nothing here, or is accounted for
_KNOWN = {
    "scaling", "softcap", "sliding_window", "dropout", "is_causal", "position_ids", "use_cache",
    "cache_position", "output_attentions", "output_hidden_states", "return_dict",
}  # fmt: skip


def attention_layers(model: Any) -> list[Any]:
    """The attention layers of a known form, first to last."""
    return sorted((m for m in model.modules() if _is_attention(m)), key=lambda m: int(m.layer_idx))


def _is_attention(module: Any) -> bool:
    named = type(module).__name__.endswith("Attention")
    return (
        named and isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "config")
    )


class Found:
    """Queries and keys as the kernel got them: [batch, heads, tokens, width]."""

    query: torch.Tensor | None = None
    key: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    unknown = ""
    scale = 1.0
    window, cap = 0, 0.0

    def take(self, module: Any, query: Any, key: Any, mask: Any, given: Any) -> None:
        self.mask = mask if isinstance(mask, torch.Tensor) and mask.dim() == 4 else None
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
def captured(module: Any) -> Iterator[Found]:
    """Within, the module's kernel is also watched; other layers and the mask are not touched."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found, before = Found(), module.config
    kernel = before._attn_implementation

    def watch(layer: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
        found.take(layer, query, key, mask, given)
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
