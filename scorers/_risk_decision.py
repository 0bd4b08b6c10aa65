"""What is to be done about a document whose removal may be asked for, and why.

    left_p   p_delete without what stands in spans            what remains once they are replaced,
             nor names beside contacts where spans are         the contacts among them
    cost     plan + unlearn x (1 + k e) + penalty x residual  of a deletion, e = entanglement
    tail     worth > left_p x cost                            its place in the tail is worth more

`worth` is the benefit of a document without copies, for copies do not make it rare: what leaked,
was scraped or repeats an evaluation item stands there often, and would be kept the more surely.

Of the following, the last that applies:

    keep        reason low
    redact      spans were found                                      reason personal or secrets
    quarantine  left_p >= quarantine_at, not tail                     what weighs most in left_p
    keep        left_p >= quarantine_at, tail, no spans               reason tail
    cap         it is not the first of its cluster of copies          reason copies
    drop        left_p >= drop_at, not tail                           what weighs most in left_p
    drop        more than max_spans spans, `dense` or more a token    reason spans

`left` is the risk after that: 0 for what is dropped or capped, else p (left_p where spans are
replaced) x the residual of a single copy, for the others of its cluster are capped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foresift.scorers._risk_prior import SPANS, Floats, together

Words = npt.NDArray[np.object_]
Bools = npt.NDArray[np.bool_]
NAMES = "names"
DECISIONS = ("drop", "redact", "cap", "quarantine", "keep")


@dataclass(frozen=True)
class Limits:
    """The thresholds of a decision and the costs of a deletion."""

    max_spans: int
    dense: float
    quarantine_at: float
    drop_at: float
    plan: float
    unlearn: float
    entangled: float
    penalty: float


@dataclass(frozen=True)
class Decided:
    """[rows] what was decided, and what it changes."""

    decision: Words
    reason: Words
    left: Floats


def decide(
    p: dict[str, Floats], spans: Floats, tokens: Floats, first: Bools, worth: Floats,
    residual: Floats, entanglement: Floats, limits: Limits,
) -> Decided:  # fmt: skip
    """Decide on every row; `p` by feature, `worth` and `residual` of a single copy."""
    rows = len(spans)
    other = {name: each for name, each in p.items() if name not in SPANS}
    if NAMES in other:  # a name without the contact that stood beside it
        other[NAMES] = np.where(spans > 0, 0.0, other[NAMES])
    left_p, weighs = together(rows, list(other.values())), _most(other, rows)
    whole = together(rows, list(p.values()))
    cost = limits.plan + limits.unlearn * (1 + limits.entangled * entanglement)
    tail = worth > left_p * (cost + limits.penalty * residual)
    risky = left_p >= limits.quarantine_at
    decision, reason = np.full(rows, "keep", dtype=object), np.full(rows, "low", dtype=object)
    found = {name: p.get(name, np.zeros(rows)) for name in SPANS}
    full = (spans > limits.max_spans) & (spans >= limits.dense * tokens)
    for which, what, why in (
        (spans > 0, "redact", _most(found, rows)),
        (risky & ~tail, "quarantine", weighs),
        (risky & tail & (spans == 0), "keep", np.full(rows, "tail", dtype=object)),
        (~first, "cap", np.full(rows, "copies", dtype=object)),
        ((left_p >= limits.drop_at) & ~tail, "drop", weighs),
        (full, "drop", np.full(rows, "spans", dtype=object)),
    ):
        decision[which], reason[which] = what, why[which]
    gone = (decision == "drop") | (decision == "cap")
    left = np.where(decision == "redact", left_p, whole) * residual
    return Decided(decision, reason, np.where(gone, 0.0, left))


def _most(p: dict[str, Floats], rows: int) -> Words:
    """The feature with the largest p of each row, the first of equals."""
    names = np.array(list(p), dtype=object)
    return names[np.argmax(np.stack(list(p.values())), axis=0)] if rows else names[:0]
