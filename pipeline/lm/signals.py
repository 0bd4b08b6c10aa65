"""What the model pass hands to scorers: Tokens, Signals, Window.

A *counted* token is one whose prediction counts (`encode`). Token signals are flat float32 arrays
over the counted tokens of all documents: those of document i are `offsets[i]:offsets[i + 1]`.
Document signals have one row a document. All logarithms are natural.

A name with the suffix `@response` asks for the signal of the view without the prompt. Its tokens
are the same response tokens, so both views share their offsets; a token that cannot be predicted in
that view (a response that begins the document, under a tokenizer without a start token) is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foresift.pipeline.errors import RecipeError, nearest

if TYPE_CHECKING:
    from foresift.pipeline.lm.encode import Encoded
    from foresift.pipeline.lm.model import Loaded, ModelSpec

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

#: one number for each counted token
TOKEN = {
    "nll": "nats: negative log-likelihood of the token given all tokens before it",
    "entropy": "nats: entropy of the distribution from which the token was predicted",
    "top_prob": "probability of the likeliest token",
    "margin": "probability difference of the two likeliest tokens",
    "log_variance": "nats^2: variance of the log-probability under that distribution",
}
#: one number or vector for each document
DOCUMENT = {
    "hidden_mean": "[width]: mean of the final hidden states over all tokens",
    "hidden_mean_response": "[width]: the same over the counted tokens alone",
    "grad_norm": "norm of the gradient of the mean NLL with respect to the output matrix",
}
VIEW = "@response"


def validate(names: Iterable[str], where: str = "") -> None:
    """Raise a located error for a signal that does not exist."""
    known = [*TOKEN, *DOCUMENT]
    for name in names:
        if name.removesuffix(VIEW) not in known:
            everything = [*known, *(n + VIEW for n in known)]
            raise RecipeError(f"no signal {name!r}{nearest(name, everything)}", where=where)


@dataclass(frozen=True)
class Tokens:
    """The n documents of one window, as a scorer sees them."""

    table: pa.Table
    """`id` and the columns that the step's scorers need, content where one reads it; [n] rows."""
    offsets: Integers
    """[n + 1] bounds of each document in the flat token signals."""
    lengths: Integers
    """[n] tokens of each document as the model read it, start and prompt included."""
    cut: npt.NDArray[np.bool_]
    """[n] whether the document was longer than the model's max_length."""
    prompted: npt.NDArray[np.bool_]
    """[n] whether something (a prompt, an earlier turn) stands before what counts."""
    encoded: Encoded | None = None
    """The documents' token ids, prompt included; None where no scorer reads content."""
    tokenizer: Any = None
    """What made them of the content; None where no scorer reads content."""

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Signals:
    """The signals of one window, by name (with `@response` where that was asked for)."""

    token: Mapping[str, Floats]
    """name -> [total counted tokens]."""
    document: Mapping[str, npt.NDArray[Any]]
    """name -> [n] or [n, width]."""
    offsets: Integers
    """[n + 1] bounds of each document in the token signals."""
    vocab_size: int = 0
    """Tokens that the tokenizer can produce (without the padding of the model's matrix)."""

    @property
    def counts(self) -> Integers:
        """[n] counted tokens of each document."""
        return np.diff(self.offsets)

    def sum(self, name: str) -> npt.NDArray[np.float64]:
        """[n] sum over the counted tokens of each document, in float64; 0 where there are none."""
        return segment_sums(self.token[name], self.offsets)

    def mean(self, name: str) -> Floats:
        """[n] mean over the counted tokens of each document; NaN where there are none."""
        return segment_means(self.token[name], self.offsets)


@dataclass(frozen=True)
class Window:
    """What a fitted model scorer is given: the shared signals, and the model to go on asking."""

    tokens: Tokens
    signals: Signals
    encoded: Encoded
    """The documents' token ids, prompt included."""
    loaded: Loaded
    spec: ModelSpec


def segment_sums(values: npt.NDArray[Any], offsets: Integers) -> npt.NDArray[np.float64]:
    """[n] sums of the segments of a flat array; each depends on its own values alone."""
    sums = np.zeros(len(offsets) - 1, dtype=np.float64)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        sums[filled] = np.add.reduceat(values.astype(np.float64), offsets[:-1][filled])
    return sums


def segment_means(values: npt.NDArray[Any], offsets: Integers) -> Floats:
    """[n] means of the segments of a flat array; NaN for an empty segment."""
    counts = np.diff(offsets)
    means = np.full(len(counts), np.nan, dtype=np.float32)
    np.divide(segment_sums(values, offsets), counts, out=means, where=counts > 0, casting="unsafe")
    return means
