"""How well a model knows a document that it may have been trained on: gap, Min-K%++, zlib ratio.

    gap    = reference - nll                        nats per token          utility = -gap
    z_t    = (log p_t - mu_t) / sqrt(max(s2_t, 1e-6))
             mu_t = sum_v p_v log p_v,   s2_t = sum_v p_v (log p_v)^2 - mu_t^2
    min_k  = mean of the lowest k of z_t            (Min-K%++)
    zlib   = -nll / bytes of zlib(text)             nats per token and byte

`nll` is the mean NLL under the step's model, the proxy, whose corpus may hold the document.
`reference` is the same under a model that never saw it: a column that an earlier `score: loss` step
under that model has given. The three raw columns point one way: larger = better known than text
like it, so more likely memorised. Utility keeps what the proxy does not know first; it is NaN where
either loss is missing. The text of the ratio is what counts (the response of a pair, the answers of
a conversation), as far as the model read it, without special tokens.

Fitting the proxy on a sample without the document's cluster gives the cleanest reference; one that
differs in domain measures the domain. For text seen once in a large corpus all membership scores
are near chance: read `gap` as a rank within documents of one kind, not as a verdict. `min_k` and
`zlib` need no reference, and confound memorised with easy more than `gap` does.

Known answer: p = (0.7, 0.2, 0.1): mu = -0.8018, s2 = 0.4944, z of the second token -1.1486, of the
first +0.6331. Cost: one forward, shared with the other model scores of its step (the column cost
another). Sources: Carlini et al. 2021 (reference, zlib), Zhang et al. 2024 (Min-K%++).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.audit import membership
from foresift.pipeline.audit.token_stats import TokenStats
from foresift.pipeline.labels import numbers
from foresift.pipeline.lm.signals import Signals, Tokens
from foresift.pipeline.nouns import Arrays, ModelScorer
from foresift.pipeline.tables import Column

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Memorisation(ModelScorer):
    """Loss that a reference model has beyond this one's, Min-K%++ and the zlib ratio."""

    against: str
    """Column with the loss, in nats per token, of a model that never saw it: `reference.nll`."""
    k: float = 0.2
    """Share of a document's tokens in Min-K%++, the least likely ones."""

    reads_content: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, Column]] = {
        "utility": Column(pa.float32(), "-gap, nats per token", "higher"),
        "gap": Column(pa.float32(), "nats per token", "lower"),
        "nll": Column(pa.float32(), "nats per token"),
        "reference": Column(pa.float32(), "nats per token"),
        "min_k": Column(pa.float32(), "standard deviations", "lower"),
        "zlib": Column(pa.float32(), "nats per token and byte", "lower"),
    }

    def __post_init__(self) -> None:
        if not 0 < self.k <= 1:
            raise ValueError("k is a share of the tokens, in (0, 1]")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.against,)

    @property
    def signals(self) -> tuple[str, ...]:
        return ("nll", "entropy", "log_variance")

    def score(self, tokens: Tokens, signals: Signals) -> Arrays:
        reference = numbers(tokens.table, self.against, "reference losses")
        stats = statistics(signals)
        nll = np.array([each.loss for each in stats], dtype=np.float64)
        gap = np.where(np.isfinite(reference), reference, np.nan) - nll
        texts = counted_texts(tokens)
        return {
            "utility": -gap, "gap": gap, "nll": nll, "reference": reference,
            "min_k": [membership.min_k_plus_plus(each, self.k) for each in stats],
            "zlib": [membership.zlib(s, t) for s, t in zip(stats, texts, strict=True)],
        }  # fmt: skip


def statistics(signals: Signals) -> list[TokenStats]:
    """What measures of membership read of each document (`hit` is not known, and false)."""
    logp, mean, var = (
        factor * signals.token[name].astype(np.float64)
        for name, factor in (("nll", -1.0), ("entropy", -1.0), ("log_variance", 1.0))
    )
    none = np.zeros(len(logp), dtype=np.bool_)
    bounds = itertools.pairwise(signals.offsets)
    return [TokenStats(logp[a:b], mean[a:b], var[a:b], none[a:b]) for a, b in bounds]


def counted_texts(tokens: Tokens) -> list[str]:
    """The text of the counted tokens of each document."""
    encoded = tokens.encoded
    assert encoded is not None
    ids = [encoded.ids[a:b][encoded.counts[a:b]] for a, b in itertools.pairwise(encoded.offsets)]
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return [tokens.tokenizer.decode(each, **plain) for each in ids]
