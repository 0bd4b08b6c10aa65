"""What stays of a text, and for how long: recognition, cued recall, retention, the law of decay.

    recognition     share of pairs with loss(seen) < loss(foil); a tie is wrong       [0, 1], 0.5 =
                    chance, larger = remembered
    cued recall     the first half of a text's tokens (the integer half) is given, as many follow
                    greedily as are left: ROUGE-L of the completion alone against the truth [0, 1]
    effectivity     L(maximum) - L(before), L a probe's log-probability, the maximum within WINDOW
                    steps after the injection                        nats; larger = learned more
    retainability   R(t) = (L(t) - L(before)) / (L(maximum) - L(before)), t steps after the maximum
                    1 = all of the gain is left, 0 = none; NaN where nothing was gained
    decay           R(t) = R(1) - a log10 t, least squares: a is the share of the gain that is lost
                    with every tenfold of steps; larger = forgets faster
    interval        t* = 10^(R(1) / a) steps after which nothing is left: what is met more rarely
                    than that is never learned; infinite where a <= 0
    outlier         outside [Q1 - 1.5 IQR, Q3 + 1.5 IQR]: R explodes where the gain is tiny

Known answers: losses 1, 2, 3 against 2, 2.5, 2.5: 2/3. a = 0.25, R(1) = 1: R(10) = 0.75, R(100) =
0.50, t* = 10,000; a = 0.20: 100,000; a = 0.26: 7,017.
Cost: a forward of every probe at each measured step (space them evenly in log t); recall decodes.
Pitfalls: batch size and learning rate change a: never compare it across schedules. WINDOW = 50 is
AdamW's memory at beta1 = 0.9 (0.9^50 = 0.005); 1 for optimizers without momentum.
Sources: Chang et al. 2024 (factual knowledge in pretraining; their code takes 2.0 IQR);
Recognition, recall and retention of few-shot memories (its ROUGE counts the given half too).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from foresift.pipeline.audit.extraction import rouge_l
from foresift.pipeline.audit.generate import greedy
from foresift.pipeline.audit.token_stats import Item, limit, start_of, words_of
from foresift.pipeline.errors import DataError

Floats = npt.NDArray[np.float64]
WINDOW, IQR = 50, 1.5


def recognised(seen: npt.ArrayLike, foils: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """[n] whether each seen text has a lower loss than its foil."""
    ours, theirs = np.asarray(seen, dtype=float), np.asarray(foils, dtype=float)
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise DataError(f"{ours.shape} losses do not pair with {theirs.shape}", where="foils")
    found: npt.NDArray[np.bool_] = ours < theirs
    return found


def recognition(seen: npt.ArrayLike, foils: npt.ArrayLike) -> float:
    """Share of pairs that are recognised."""
    return float(recognised(seen, foils).mean())


def cued_recall(
    model: Any,
    tokenizer: Any,
    items: Sequence[Item],
    *,
    device: str | None = None,
    max_length: int = 1024,
) -> Floats:
    """[n] ROUGE-L (F1) of the second halves as the model completes them; NaN below two tokens."""
    texts = words_of(items, tokenizer, limit(model, max_length) - 1)
    start = start_of(tokenizer)
    asked = [i for i, ids in enumerate(texts) if len(ids) // 2 + len(start) > 0 and len(ids) > 1]
    halves = [len(texts[i]) // 2 for i in asked]
    prompts = [start + texts[i][:half] for i, half in zip(asked, halves, strict=True)]
    left = [len(texts[i]) - half for i, half in zip(asked, halves, strict=True)]
    told = greedy(model, prompts, left, device=device) if asked else []
    found = np.full(len(texts), np.nan)
    for i, half, line in zip(asked, halves, told, strict=True):
        found[i] = rouge_l(texts[i][half:], line).f1
    return found


def maximum(logp: npt.ArrayLike, injection: int, window: int = WINDOW) -> int:
    """The step of the highest log-probability within `window` steps from the injection on."""
    curve = np.asarray(logp, dtype=np.float64)
    if not 0 < injection < len(curve):
        raise DataError(f"needs a step before it, and lies in {len(curve)}", where="injection")
    return injection + int(curve[injection : injection + window + 1].argmax())


def effectivity(logp: npt.ArrayLike, injection: int, window: int = WINDOW) -> float:
    """What an injection adds to a probe's log-probability at its best."""
    curve = np.asarray(logp, dtype=np.float64)
    return float(curve[maximum(curve, injection, window)] - curve[injection - 1])


def retainability(now: npt.ArrayLike, before: float, best: float) -> Floats:
    """Share of the gain that is left, of log-probabilities measured after the maximum."""
    gain = best - before
    left = np.asarray(now, dtype=np.float64) - before
    return left / gain if gain > 0 else np.full_like(left, np.nan)


class Decay(NamedTuple):
    """R(t) = start - a log10 t."""

    a: float
    """Share of the gain lost with every tenfold of steps."""
    start: float
    """R(1)."""
    r2: float
    """Share of the variance that the line explains; 1 where there is none."""

    @property
    def interval(self) -> float:
        """Steps until nothing is left."""
        return learnability_interval(self.a, self.start)


def decay(steps: npt.ArrayLike, retained: npt.ArrayLike) -> Decay:
    """The straight line of R against log10 t; steps below 1 and NaN are left out."""
    t, r = np.asarray(steps, dtype=np.float64), np.asarray(retained, dtype=np.float64)
    there = (t >= 1) & np.isfinite(r)
    if len(np.unique(t[there])) < 2:
        raise DataError("two measured steps from 1 on are needed", where="steps")
    x, y = np.log10(t[there]), r[there]
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    start = float(y.mean() - slope * x.mean())
    whole = float(((y - y.mean()) ** 2).sum())
    rest = float(((y - start - slope * x) ** 2).sum())
    return Decay(-slope + 0.0, start, 1 - rest / whole if whole > 0 else 1.0)


def learnability_interval(a: float, start: float = 1.0) -> float:
    """Steps after which an item that is not met again is gone."""
    if a <= 0:
        return math.inf
    return float(10 ** (start / a)) if start / a < 300 else math.inf


def outliers(values: npt.ArrayLike, factor: float = IQR) -> npt.NDArray[np.bool_]:
    """[n] which values lie outside the quartiles by more than `factor` times their distance."""
    found = np.asarray(values, dtype=np.float64)
    low, high = np.nanquantile(found, [0.25, 0.75]) if len(found) else (0.0, 0.0)
    room = factor * (high - low)
    outside: npt.NDArray[np.bool_] = (found < low - room) | (found > high + room)
    return outside
