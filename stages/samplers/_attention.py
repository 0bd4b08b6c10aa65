"""How much each token attends to its prompt, in one layer and without its matrix of attention.

    a_j = mean over heads of exp(LSE_{i in prompt} z_ji - LSE_{i <= j} z_ji),   z = scale q_j . k_i

which is the causal softmax summed over the prompt's columns. Queries and keys are taken where the
model hands them to its attention kernel, so biases, norms, rotary embeddings, grouped heads,
sliding windows and soft caps are its own, whatever kernel computes; the forward goes on with that
kernel and also gives the losses. Queries are read in blocks, so that memory is linear in length.

A layer that does not go through the shared attention interface, or hands more to its kernel than
can be accounted for here (attention sinks, additive biases), is read through
`output_attentions=True` with eager attention instead: a second forward with layers x heads x L^2
numbers. `reason` then says why. Values lie in [0, 1]; they depend on no padding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from foresift.pipeline.errors import ModelError
from foresift.pipeline.lm.attention import Found, attention_layers, captured
from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.online import Candidates
from foresift.stages.samplers._tokens import span_starts

Row = Literal["token", "predictor"]
#: numbers of one block of attention logits
_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}


class PromptAttention:
    """One layer of a live model, read while the model scores candidates."""

    def __init__(self, live: LiveModel, layer: int = -1, row: Row = "token") -> None:
        live.whole("attention to the prompt")
        self.live, self.layer, self.row = live, layer, row
        self.reason = ""
        layers = attention_layers(live.model)
        if layers and not -len(layers) <= layer < len(layers):
            raise ModelError(f"layer {layer} of {len(layers)} does not exist", where="layer")
        self.module: Any = layers[layer] if layers else None
        if self.module is None:
            self.reason = f"{type(live.model).__name__} has no attention layer of a known form"

    def look(self, candidates: Candidates) -> tuple[Seen, npt.NDArray[np.float64]]:
        """(candidates with `nll`, [counted tokens] their attention to the prompt)."""
        if self.module is not None:
            with captured(self.module) as found:
                seen = self.live.look(candidates, ("nll",))
            self.reason = found.unknown
            if not self.reason:
                scores = self._scores(found, seen)
                return seen, scores[seen.counted].double().cpu().numpy()
            self.module = None
        seen = self.live.look(candidates, ("nll",))
        scores = self._from_matrix(seen)
        return seen, scores[seen.counted].double().cpu().numpy()

    def _scores(self, found: Found, seen: Seen) -> torch.Tensor:
        assert found.query is not None
        assert found.key is not None
        starts = span_starts(seen).to(found.query.device)
        return prompt_attention(
            found.query, found.key, starts, seen.counted, found.scale, row=self.row,
            window=found.window, cap=found.cap, mask=found.mask,
        ).cpu()  # fmt: skip

    def _from_matrix(self, seen: Seen) -> torch.Tensor:
        model, ids = self.live.model, seen.ids.to(self.live.device)
        with torch.no_grad(), self.live.scoring(), _eager(model):
            out = model(input_ids=ids, use_cache=False, output_attentions=True)
        maps = getattr(out, "attentions", None)
        if not maps or maps[self.layer] is None:
            raise ModelError(f"{self.reason}, and it gives no attention maps", where="layer")
        return summed(maps[self.layer], span_starts(seen).to(ids.device), self.row).cpu()


@contextlib.contextmanager
def _eager(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def prompt_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    starts: torch.Tensor,
    counted: torch.Tensor,
    scale: float,
    *,
    row: Row = "token",
    window: int = 0,
    cap: float = 0.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """[B, T] from queries [B, H, T, d] and keys [B, H / g, T, d]; zero where nothing counts.

    `mask` is the kernel's own, [B or 1, 1, T, T], boolean or additive; it is causal without.
    """
    batch, heads, length, width = query.shape
    back = 1 if row == "predictor" else 0
    out = torch.zeros(batch, length, device=query.device)
    kind = "cuda" if query.device.type == "cuda" else "cpu"
    size = max(1, _BLOCK[kind] // max(1, batch * heads * length))
    wanted = counted.any(0).tolist()
    for a in range(1, length, size):
        b = min(a + size, length)
        if not any(wanted[a:b]):
            continue
        stop = b - back
        asked = query[:, :, a - back : stop].float()
        grouped = asked.reshape(batch, key.shape[1], -1, width)
        z = (grouped @ key[:, :, :stop].float().mT).view(batch, heads, b - a, stop) * scale
        if cap:
            z = cap * torch.tanh(z / cap)
        if mask is not None:
            own = mask[:, :, a - back : stop, :stop]
            z = z.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else z + own.float()
        at = torch.arange(a - back, stop, device=z.device)[:, None]
        column = torch.arange(stop, device=z.device)
        hidden = column > at
        if window:
            hidden |= column <= at - window
        z = z.masked_fill_(hidden, -torch.inf)
        whole = z.logsumexp(-1)
        outside = column >= starts[:, a:b, None]
        part = z.masked_fill_(outside[:, None], -torch.inf).logsumexp(-1)
        out[:, a:b] = (part - whole).exp().mean(1)
    return out


def summed(maps: torch.Tensor, starts: torch.Tensor, row: Row = "token") -> torch.Tensor:
    """[B, T] the same from a matrix of attention [B, H, T, T]."""
    mean = maps.float().mean(1)
    if row == "predictor":
        mean = mean.roll(1, dims=1)  # the first token never counts
    inside = torch.arange(mean.shape[2], device=mean.device) < starts[:, :, None]
    return (mean * inside).sum(2)
