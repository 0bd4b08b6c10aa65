"""Instruction-Following Difficulty: how little the prompt helps the model to give the response.

    nll = mean NLL(response | prompt)         nll_alone = mean NLL(response | no prompt)
    ratio:      ifd = nll / nll_alone         ppl_ratio:  ifd = exp(nll - nll_alone)

over the same response tokens in both views. Near 1 the prompt hardly helps: the pair is hard to
learn. Above 1 the prompt hurts, which the method takes for a misaligned pair and drops: utility is
NaN there (never selected; the raw `ifd` stays), and equals `ifd` elsewhere. Without its prompt a
response is preceded by the start token and the empty template, or by the assistant's header.
Rows of plain `text`, and responses without tokens, have no prompt to leave out: NaN.

Cost: two forwards, of the pair and of the response. Source: Li et al., "From Quantity to Quality"
(NAACL 2024), eq. 3-5, code `Cherry_LLM`; the ratio of perplexities is its authors' later variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from foresift.pipeline.lm.signals import Signals, Tokens
from foresift.pipeline.nouns import Arrays, ModelScorer
from foresift.pipeline.tables import Column

#: above 1 by rounding alone is not above 1
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Ifd(ModelScorer):
    """Loss of a response with its prompt over its loss without: instruction difficulty."""

    variant: Literal["ratio", "ppl_ratio"] = "ratio"
    """Ratio of mean NLLs (the paper), or of perplexities."""

    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "ratio, NaN above 1", "higher"),
        "ifd": Column(pa.float32(), "ratio"),
        "nll": Column(pa.float32(), "nats per token", "lower"),
        "nll_alone": Column(pa.float32(), "nats per token"),
    }

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll", "nll@response")

    def score(self, tokens: Tokens, signals: Signals) -> Arrays:
        nll, alone = signals.mean("nll"), signals.mean("nll@response")
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = nll / alone if self.variant == "ratio" else np.exp(nll - alone)
        known = tokens.prompted & np.isfinite(ratio)
        ratio = np.where(known, ratio, np.float32(np.nan))
        utility = np.where(ratio <= 1 + _ROUNDING, ratio, np.float32(np.nan))
        return {"utility": utility, "ifd": ratio, "nll": nll, "nll_alone": alone}
