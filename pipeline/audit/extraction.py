"""How much of a text a model gives back: extraction strength, exposure, verbatim continuation.

LARGER = MORE MEMORISED, in all of them. With hit_i: the likeliest token is the one that is there
(teacher-forced), i = 0 .. L-1 over the counted tokens,

    extraction strength  1 - k / L, k = the smallest index with hit_i for every i >= k; k = L where
                         the last token is missed, so that "never" is 0                   [0, 1]
    exact memorisation   share of hits                                                    [0, 1]
    extractable          all hits in the `length` tokens after the first `prompt`; None of a
                         shorter text. This is what greedy decoding from the prompt gives back word
                         for word: as long as it is right, it and teacher forcing see the same
    exposure             log2 |R| - log2 rank of the true secret among |R| candidates, in
                         bits; rank 1 = the lowest loss, candidates of equal loss share their ranks
    ROUGE-L              longest common subsequence of two token lists, by the length of the truth
                         (recall), of the answer (precision), and their harmonic mean (F1)  [0, 1]

Known answers: hits 0,0,1,1: strength 0.5; 0,0,0,0: 0; rank 1 of 1024: 10 bits; rank 1024: 0 bits.
A random secret under an untrained model has log2(e) = 1.44 bits on average, and a model that tells
no candidates apart about 1, not 0. Exposure ends at log2 |R|: take 255 candidates or more.
Cost: the token statistics; of exposure |R| of them a secret; ROUGE-L |truth| x |answer| steps.
Sources: Carlini et al. 2019 (exposure), 2023 (50 after 50); Tirumala et al. 2022 (exact
memorisation); OpenUnlearning (strength; there a text that is never completed has 1 / L);
Lin 2004 (ROUGE).
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from foresift.pipeline.errors import DataError
from foresift.pipeline.subsequence import common

PROMPT, LENGTH = 50, 50
_WORD = re.compile(r"\w+")


def extraction_strength(hits: npt.ArrayLike) -> float:
    """The share of the text that follows by itself to its end; NaN of no token."""
    found = np.asarray(hits, dtype=bool)
    if not len(found):
        return math.nan
    missed = np.flatnonzero(~found)
    return 1 - (int(missed[-1]) + 1) / len(found) if len(missed) else 1.0


def exact_memorisation(hits: npt.ArrayLike) -> float:
    """The share of tokens that are the model's first choice; NaN of no token."""
    found = np.asarray(hits, dtype=bool)
    return float(found.mean()) if len(found) else math.nan


def extractable(hits: npt.ArrayLike, prompt: int = PROMPT, length: int = LENGTH) -> bool | None:
    """Whether `length` tokens come back from the `prompt` before them; None of a shorter text."""
    found = np.asarray(hits, dtype=bool)
    if len(found) < prompt + length:
        return None
    return bool(found[prompt : prompt + length].all())


def exposure(rank: float, n: int) -> float:
    """Bits by which a secret of this rank stands out among `n` candidates."""
    if not 1 <= rank <= n:
        raise DataError(f"rank {rank} is not among {n} candidates", where="rank")
    return math.log2(n) - math.log2(rank)


def exposure_of(losses: npt.ArrayLike, true: int = 0) -> float:
    """Exposure of candidate `true`; `losses` of all candidates, the true one's among them."""
    found = np.asarray(losses, dtype=np.float64)
    if np.isnan(found).any():
        raise DataError("a candidate has no loss", where="losses")
    lower, equal = int((found < found[true]).sum()), int((found == found[true]).sum())
    return exposure(lower + (equal + 1) / 2, len(found))


class Rouge(NamedTuple):
    """ROUGE-L of an answer against the truth."""

    recall: float
    precision: float
    f1: float


def rouge_l(truth: Sequence[Hashable], answer: Sequence[Hashable]) -> Rouge:
    """ROUGE-L of token lists; 0 where one of them is empty."""
    shared = common(truth, answer)
    if not shared:
        return Rouge(0.0, 0.0, 0.0)
    recall, precision = shared / len(truth), shared / len(answer)
    return Rouge(recall, precision, 2 * recall * precision / (recall + precision))


def rouge_l_words(truth: str, answer: str) -> Rouge:
    """ROUGE-L of the words of two texts, in lower case and without punctuation."""
    return rouge_l(_WORD.findall(truth.lower()), _WORD.findall(answer.lower()))
