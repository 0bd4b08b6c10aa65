"""Does a model still hold the right answer for the likelier one? Truth ratio and what follows.

Probabilities of answers are length-normalised: exp of the mean log-probability of their tokens.

    truth ratio R        mean of the probabilities of wrong answers / probability of the right one
                         arithmetic mean (TOFU's paper) or geometric (its code: mean of losses) > 0
    on forget            mean of min(R, 1 / R): 1 = the right answer is told from no wrong one
    elsewhere            mean of max(0, 1 - R): larger = knows it
    forget quality       p-value of the two-sample Kolmogorov-Smirnov test between R of the audited
                         and of the retrained model on forget: larger = more alike. It falls with
                         the number of items at equal effect, so the statistic stands beside it
    model utility        harmonic mean of scores in [0, 1]: one zero gives zero; larger = better
    PrivLeak             100 (A - A') / A' in %, A = AUC with forget as the non-member class, A' the
                         retrained model's: negative = still there, positive = overdone, 0 = alike
    F.D., R.U.           max(0, 1 - |P - P'| / max(P', FLOOR)) on forget and on retain, P' that of
                         the retrained model: 1 = alike. Near the floor it means little: report P
    P                    geometric mean of token probability, ROUGE-L and token accuracy

Known answers: wrong 0.1 and 0.4, right 0.5: R = 0.50 arithmetic, 0.40 geometric; identical samples:
p = 1; 20 against 20 disjoint: 1.45e-11; harmonic mean of 0.5 and 1: 0.667; PrivLeak of a member AUC
of 0.9: -80, of 0.2: +60 with 0.5 retrained; F.D. of P = 0.3 against 0.2: 0.5, of twice as much: 0.
Cost: sums and sorting.
Pitfall: the AUC of a retrained model is not 0.5 (MUSE: 0.477 on News, 0.539 on Books): measure it.
Sources: Maini et al. 2024 (TOFU), OpenUnlearning, Shi et al. 2024 (MUSE), FIT for F.D. and R.U.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from foresift.pipeline.audit.token_stats import TokenStats
from foresift.pipeline.errors import DataError

#: least denominator of F.D. and R.U.
FLOOR = 1e-3


def probability(stats: TokenStats) -> float:
    """Length-normalised probability of an answer."""
    return float(np.exp(-stats.loss))


def truth_ratio(
    right: float, wrong: Sequence[float], mean: Literal["arithmetic", "geometric"] = "arithmetic"
) -> float:
    """Wrong answers' mean probability over the right one's."""
    found = np.asarray(wrong, dtype=np.float64)
    if not len(found) or not right > 0 or not (found >= 0).all():
        raise DataError("a right answer and some wrong ones, with probabilities, are needed")
    if mean == "arithmetic":
        return float(found.mean() / right)
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(found).mean()) / right)


def forget_score(ratios: npt.ArrayLike) -> float:
    """How far the right answer is told from none of the wrong ones; 1 = not at all."""
    r = np.asarray(ratios, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return float(np.minimum(r, 1 / r).mean())


def knowledge_score(ratios: npt.ArrayLike) -> float:
    """How far right answers stand above wrong ones; 1 = wrong ones are impossible."""
    return float(np.maximum(0.0, 1 - np.asarray(ratios, dtype=np.float64)).mean())


class Quality(NamedTuple):
    """Forget quality: how alike two samples of truth ratios are."""

    p: float
    """p-value; depends on the number of items."""
    statistic: float
    """Largest distance of the two distribution functions, [0, 1]."""


def forget_quality(audited: npt.ArrayLike, retrained: npt.ArrayLike) -> Quality:
    """Two-sample Kolmogorov-Smirnov test, exact where the samples are small."""
    from scipy.stats import ks_2samp  # type: ignore[import-untyped]

    ours, theirs = np.asarray(audited, dtype=float), np.asarray(retrained, dtype=float)
    if not len(ours) or not len(theirs):
        raise DataError("both samples need items")
    found = ks_2samp(ours, theirs)
    return Quality(float(found.pvalue), float(found.statistic))


def model_utility(scores: Sequence[float]) -> float:
    """Harmonic mean; 0 where one score is 0."""
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or (values < 0).any():
        raise DataError("some scores, none below 0, are needed", where="scores")
    return float(len(values) / (1 / values).sum()) if (values > 0).all() else 0.0


def privleak(auc: float, retrained: float = 0.5) -> float:
    """PrivLeak in % from AUCs with forget as the member class, as everywhere here."""
    if retrained >= 1:
        raise DataError("a retrained model cannot know all that it never saw", where="retrained")
    return 100 * ((1 - auc) - (1 - retrained)) / (1 - retrained)


def likeness(p: float, retrained: float, floor: float = FLOOR) -> float:
    """F.D. on forget, R.U. on retain: 1 = as the retrained model."""
    return max(0.0, 1 - abs(p - retrained) / max(retrained, floor))


def overall(probability: float, rouge: float, accuracy: float) -> float:
    """P, the geometric mean of what F.D. and R.U. compare."""
    return float((probability * rouge * accuracy) ** (1 / 3))
