"""ssToken: tokens on which the model has made progress, or that attend to their prompt.

    REL_j   = L_his(x_j) - L_cur(x_j)         nats; the history model against the live one
    REL~_j  = (REL_j - min) / (max - min + 1e-8)      within the sample; 0 where all are alike
    A_j     = mean over heads of sum_{i in prompt} attention_h[j, i]      in [0, 1], one layer
    score_j = gamma REL~_j + (1 - gamma) A_j; the ceil(rho n) largest of a sample are kept

A sample is a row; in a conversation, the prompt of a token is all that stands before its turn. REL
points the other way than the excess loss of `rho1`: it is what was learned, not what is left to
learn. `polarity: cur_minus_his` turns it, as at least one later implementation does.

REL is 0 at the start of training when the history is the model itself, so that attention alone
decides there. The released code has a longer phase of attention alone, until it meets a sample
number of 10,000 or more, in every epoch; `attention_only_steps` is that phase, off by default.

**Noise that can be learnt a little is progress too.** Where a fifth of the response tokens were
drawn from the vocabulary and a 1M-parameter model was tuned on what was kept, REL kept 26 to 29 %
of such tokens: their marginal is learnt in a few steps, then they are trained on, and show more
progress. On a model that trains on clean tokens the same REL keeps 6 to 10 %. `rho1` had 7 %.

Reduction is the trainer's matter: the paper weights each sample alike, the released code each kept
token. The released code compares losses without dropout (history) and with dropout (live), so that
its REL contains dropout noise; here both are read in the mode of the live model's scoring, the
history always without dropout.

Cost: one forward for losses and attention, none when it has nothing to read, and for the history
one more (`cached`: none). Memory: `frozen` and `ema` copy the weights that are trained; a folder or
hub id in `reference` is a second model. Errors: a loss that is not finite; a cache of other tokens.
Source: ssToken (Qin et al. 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from foresift.pipeline.lm.live import LiveModel, Seen
from foresift.pipeline.lm.signals import Integers
from foresift.pipeline.online import Masker, State, TokenSelector
from foresift.stages.samplers import _history
from foresift.stages.samplers._attention import PromptAttention
from foresift.stages.samplers._tokens import (
    Floats,
    Mask,
    TokenMasker,
    checked,
    keep_largest,
    share_field,
)

_HERE = "sstoken"


@dataclass(frozen=True, kw_only=True)
class SsToken(TokenSelector):
    """Keep tokens that were learned since the start or attend to their prompt (ssToken)."""

    gamma: float = 0.5
    """Weight of progress; 1 - gamma is that of attention. In [0, 1]."""
    rho: float = 0.6
    """Share of each sample's counted tokens that is kept, in (0, 1]."""
    polarity: Literal["his_minus_cur", "cur_minus_his"] = "his_minus_cur"
    """Which difference counts as progress; the default is the paper's."""
    layer: int = -1
    """Layer whose attention is read; -1 is the last."""
    attn_row: Literal["token", "predictor"] = "token"
    """Query of a token's attention: its own, or that of the position from which it is predicted."""
    history: Literal["cached", "frozen", "adapters", "ema"] = "frozen"
    """`cached`: a table of losses. `frozen`: the weights when training began, or the model in
    `reference`. `adapters`: the live model with its PEFT adapters off. `ema`: a moving average."""
    reference: str = ""
    """With `cached` the table (`.parquet`); with `frozen` a folder or hub id, or nothing."""
    ema_decay: float = 0.999
    """a in h <- a h + (1 - a) w, once a step, in [0, 1)."""
    attention_only_steps: int = 0
    """Steps at the start in which attention alone decides."""
    eps: float = 1e-8
    """Added to max - min, in nats."""

    def __post_init__(self) -> None:
        share_field(self.rho, "rho")
        if not 0 <= self.gamma <= 1:
            raise ValueError("gamma must be from 0 to 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError("ema_decay must be at least 0 and below 1")
        if self.attention_only_steps < 0 or not self.eps > 0:
            raise ValueError("attention_only_steps must not be negative, and eps above 0")
        table = self.reference.endswith(".parquet")
        if (self.history == "cached") != table:
            raise ValueError("history: cached needs a .parquet table in reference, others none")
        if self.reference and self.history in ("adapters", "ema"):
            raise ValueError(f"history: {self.history} takes no reference")

    @property
    def signals(self) -> tuple[str, ...]:
        """None where attention is read: the forward that reads it gives the losses as well."""
        return () if self.reads_attention else ("nll",)

    @property
    def reads_attention(self) -> bool:
        """Whether any step needs attention."""
        return self.gamma < 1 or self.attention_only_steps > 0

    def open(self, live: LiveModel) -> Masker:
        return _SsToken(self, live)


def progress(rel: Floats, offsets: Integers, eps: float = 1e-8) -> Floats:
    """REL scaled to [0, 1] within each sample."""
    counts = np.diff(offsets)
    out = np.zeros(len(rel))
    filled = np.flatnonzero(counts)
    if len(filled):
        starts = offsets[:-1][filled]
        low, high = np.minimum.reduceat(rel, starts), np.maximum.reduceat(rel, starts)
        low, high = (np.repeat(x, counts[filled]) for x in (low, high))
        out = (rel - low) / (high - low + eps)
    return out


class _SsToken(TokenMasker):
    def __init__(self, part: SsToken, live: LiveModel) -> None:
        super().__init__()
        self.part, self.live = part, live
        self.past = _past(part, live) if part.gamma > 0 else None
        self.attention: PromptAttention | None = None
        if part.reads_attention:
            self.attention = PromptAttention(live, part.layer, part.attn_row)

    @property
    def reason(self) -> str:
        """Why attention is read from eager matrices, where it is."""
        return self.attention.reason if self.attention else ""

    def keep(self, seen: Seen, step: int) -> Mask:
        offsets = seen.signals.offsets
        if self.past:
            self.past.advance(step)
        if not offsets[-1]:
            return np.zeros(0, dtype=np.bool_)
        part = self.part
        gamma = 0.0 if step < part.attention_only_steps else part.gamma
        score: Any = 0.0
        if gamma < 1 and self.attention is not None:
            seen, attention = self.attention.look(seen.candidates)
            attention = checked(attention, seen, f"{_HERE} attention")
            score = (1 - gamma) * attention
            self.facts["attention"] = float(attention.mean())
            if self.reason:
                self.facts["attention_reason"] = self.reason
        if gamma > 0 and self.past is not None:
            current = checked(self._current(seen), seen, f"{_HERE} loss")
            then = checked(self.past.losses(seen, step), seen, f"{_HERE} history")
            rel = then - current
            self.facts["progress_nats"] = float(rel.mean())
            sign = 1 if part.polarity == "his_minus_cur" else -1
            score = score + gamma * progress(sign * rel, offsets, part.eps)
        return keep_largest(score, offsets, part.rho)

    def _current(self, seen: Seen) -> Floats:
        """From the look that was made already, where there was one."""
        if "nll" not in seen.signals.token:
            seen = self.live.look(seen.candidates, ("nll",))
        return seen.signals.token["nll"]

    def state_dict(self) -> State:
        return {"history": self.past.state_dict()} if self.past else {}

    def load_state_dict(self, state: State) -> None:
        if self.past:
            self.past.load_state_dict(state["history"])


def _past(part: SsToken, live: LiveModel) -> _history.Past:
    if part.reference:
        return _history.reference(part.reference, live, f"{_HERE}.reference")
    if part.history == "adapters":
        return _history.Adapters(live, f"{_HERE}.history")
    return _history.Weights(live, part.ema_decay if part.history == "ema" else 1.0)
