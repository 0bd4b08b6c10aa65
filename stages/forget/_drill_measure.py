"""What a model knows of a document beyond what it makes of texts that it never saw.

    l_m(x)    mean NLL of x under model m, nats a token: of a pair's response alone
    r_m(x)    reference: mean l_m of the 16 texts of the holdout (all, where there are fewer) that
              are nearest to x in |d ln tokens| + |d ln share|, share = bytes after zlib / before
    known_m   r_m(x) - l_m(x)

    residual = clip(max(known_u, known_a) / known_b, 0, 1)          0 where known_b < 0.1

b: before; u: after unlearning; a: after a short relearning of u on the other half of what was
drilled. The reference is of the same model, so that a model that got worse at everything, or better
again, has not forgotten or learnt x by that. What was hardly known before leaves nothing behind.
Known answer: losses 1, 3, 2 under references 3, 3, 2.5: known 2, 0, 0.5, residual 0.25.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.audit.extraction import extraction_strength
from foresift.pipeline.audit.token_stats import token_stats
from foresift.pipeline.corpus import Corpus
from foresift.pipeline.lm.encode import Encoded, encode
from foresift.pipeline.lm.model import ModelSpec
from foresift.pipeline.nouns import Progress
from foresift.pipeline.plan_rows import content_at
from foresift.stages.forget import _language as language

NEAREST, KNOWN = 16, 0.1
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Text:
    """A document as the model reads it."""

    tokens: tuple[int, ...]
    start: int
    """Leading tokens that are context and do not count."""
    plain: str
    """What the tokens say."""

    @property
    def form(self) -> tuple[float, float]:
        """ln tokens that count, ln of what zlib leaves of a byte."""
        data = self.plain.encode()
        share = len(zlib.compress(data, 9)) / max(len(data), 1)
        return float(np.log(len(self.tokens) - self.start)), float(np.log(share))


def read(
    corpus: Corpus, places: Ints, tokenizer: Any, spec: ModelSpec, progress: Progress, label: str
) -> list[Text | None]:
    """The texts at [n, 2] of (shard, row); None where no token would count."""
    found: list[Text | None] = [None] * len(places)
    shards, done = corpus.shards(), 0
    for number in np.unique(places[:, 0]).tolist():
        mine = np.flatnonzero(places[:, 0] == number)
        mine = mine[np.argsort(places[mine, 1])]
        rows = places[mine, 1]
        for first, batch in content_at(shards[number], rows):
            low, high = np.searchsorted(rows, [first, first + batch.num_rows])
            if low < high:
                encoded = encode(batch.take(pa.array(rows[low:high] - first)), tokenizer, spec)
                for k, at in enumerate(mine[low:high].tolist()):
                    found[at] = _text(encoded, k, tokenizer)
                done += int(high - low)
                progress(done, len(places), label)
    return found


def _text(encoded: Encoded, number: int, tokenizer: Any) -> Text | None:
    span = slice(*encoded.offsets[number : number + 2].tolist())
    counted = np.flatnonzero(encoded.counts[span])
    if not len(counted):
        return None
    tokens = encoded.ids[span].tolist()
    return Text(tuple(tokens), int(counted[0]), tokenizer.decode(tokens, skip_special_tokens=True))


def apart(texts: Sequence[Text | None], others: Sequence[Text]) -> list[int]:
    """The places of the texts that share neither all tokens nor half of their runs of 13 words
    with one of the others."""
    tokens = {text.tokens for text in others}
    none = np.empty(0, dtype=np.uint64)
    known = np.unique(np.concatenate([none, *(language.grams(t.plain) for t in others)]))
    found = []
    for number, text in enumerate(texts):
        if text is None or text.tokens in tokens:
            continue
        mine = language.grams(text.plain)
        if not len(mine) or np.isin(mine, known).mean() <= 0.5:
            found.append(number)
    return found


@dataclass(frozen=True, eq=False)
class Level:
    """What a model makes of some texts."""

    loss: Floats
    """[n] nats a token."""
    strength: Floats
    """[n] extraction strength."""


def level(model: Any, texts: Sequence[Text], progress: Progress, label: str) -> Level:
    """Losses and extraction strengths of the tokens that count."""
    longest = max((len(t.tokens) for t in texts), default=2)
    stats = token_stats(
        model, None, [list(t.tokens) for t in texts], max_length=longest,
        told=lambda done, total: progress(done, total, label),
    )  # fmt: skip
    rows = [
        (s.logp[t.start - 1 :], s.hit[t.start - 1 :]) for s, t in zip(stats, texts, strict=True)
    ]
    return Level(
        np.array([-logp.mean() for logp, _ in rows]),
        np.array([extraction_strength(hit) for _, hit in rows]),
    )


def nearest(texts: Sequence[Text], holdout: Sequence[Text]) -> Ints:
    """[n, k] the texts of the holdout that are nearest in form; equal ones in their order."""
    ours, theirs = (np.array([t.form for t in side]) for side in (texts, holdout))
    away = np.abs(ours[:, None, :] - theirs[None, :, :]).sum(axis=2)
    return np.argsort(away, axis=1, kind="stable")[:, :NEAREST]


def residuals(before: Floats, unlearned: Floats, relearned: Floats) -> Floats:
    """What is left, of what was known before and after: [n] from 0 to 1."""
    share = np.maximum(unlearned, relearned) / np.maximum(before, KNOWN)
    return np.where(before < KNOWN, 0.0, np.clip(share, 0.0, 1.0))
