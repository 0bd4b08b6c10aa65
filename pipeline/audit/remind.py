"""REMIND: the shape of the loss around a text, from queries alone.

M walks start at the text; each takes max(RADII) steps, and each step swaps the token at one more
place for one of the K nearest in embedding space. With L_0 the loss of the text and L_r [M] the
losses after r swaps (r = 1, 2, 4), all in nats per token, the nine features are

    steepness_r    mean(L_r) - L_0               a memorised text lies in a deep, narrow hole
    volatility_r   standard deviation of L_r
    lower          share of all neighbours with a lower loss than the text
    slope          least-squares slope of mean(L_r) against r
    curvature      the largest of L_0 - 2 L_1 + L_2 over the walks

A walk's draws depend on (seed, the text's tokens) alone, so copies and the order of texts do not
matter; a text of fewer places is swapped at all of them. Only the loss is asked for, as a function
of token lists: query access suffices.

A flat surrounding also marks what the model never knew, and gibberish: compare with the features
of the retrained model on the same texts, not with 0. Learn the classifier on texts whose fate is
known (retained, held out, unlearned in a pilot run); there larger = more of that class.

Known answers: a constant loss: all features 0; a model that knows the text by heart (loss 0 there,
c elsewhere): steepness c, volatility 0, slope 0.
Cost: 3 M + 1 = 97 forwards a text at M = 32: 194 N FLOPs a token.
Source: REMIND names the idea; the walks, the features and their constants are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from foresift.pipeline.audit.auc import Auc, auc
from foresift.pipeline.errors import DataError
from foresift.pipeline.rng import Rng

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Losses = Callable[[Sequence[Ints]], Floats]
Told = Callable[[int, int], None]
RADII, WALKS, NEAREST = (1, 2, 4), 32, 10
FEATURES = (
    *(f"steepness_{r}" for r in RADII), *(f"volatility_{r}" for r in RADII),
    "lower", "slope", "curvature",
)  # fmt: skip


def nearest_tokens(
    embeddings: npt.ArrayLike, tokens: Sequence[int], k: int = NEAREST, barred: Sequence[int] = ()
) -> dict[int, Ints]:
    """The k tokens nearest to each token by cosine; itself and the `barred` are not among them."""
    table = np.asarray(embeddings, dtype=np.float32)
    table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    wanted = np.unique(np.asarray(tokens, dtype=np.int64))
    found: dict[int, Ints] = {}
    for start in range(0, len(wanted), 256):
        some = wanted[start : start + 256]
        alike = table[some] @ table.T
        alike[np.arange(len(some)), some] = -np.inf
        alike[:, list(barred)] = -np.inf
        best = np.lexsort((np.broadcast_to(np.arange(len(table)), alike.shape), -alike), axis=1)
        room = min(k, len(table) - len({*barred}) - 1)
        for token, line in zip(some.tolist(), best, strict=True):
            found[token] = line[: max(1, room)].astype(np.int64)
    return found


def neighbours(
    ids: npt.ArrayLike,
    nearest: Mapping[int, Ints],
    *,
    walks: int = WALKS,
    seed: int = 0,
    first: int = 1,
) -> list[Ints]:
    """For each radius the [walks, T] texts of that many swaps; tokens before `first` stay."""
    text = np.asarray(ids, dtype=np.int64)
    places = len(text) - first
    if places < 1:
        raise DataError(f"{len(text)} tokens leave none to swap", where="ids")
    key = xxhash.xxh3_128_hexdigest(text.tobytes())
    draw = Rng(seed).at("remind", key).generator()
    now, found = np.tile(text, (walks, 1)), []
    order = first + np.stack([draw.permutation(places) for _ in range(walks)])
    choice = draw.random((walks, max(RADII)))
    for step in range(max(RADII)):
        if step < places:
            at = order[:, step]
            for walk in range(walks):
                near = nearest[int(text[at[walk]])]
                now[walk, at[walk]] = near[int(choice[walk, step] * len(near))]
        if step + 1 in RADII:
            found.append(now.copy())
    return found


def features(here: float, around: Sequence[npt.ArrayLike]) -> Floats:
    """[9] FEATURES of the loss of a text and those of its neighbours at each radius."""
    losses = np.stack([np.asarray(each, dtype=np.float64) for each in around])
    means = losses.mean(axis=1)
    radii = np.array(RADII, dtype=np.float64)
    slope = float(((radii - radii.mean()) * (means - means.mean())).sum())
    slope /= float(((radii - radii.mean()) ** 2).sum())
    curvature = float((here - 2 * losses[0] + losses[1]).max())
    lower = float((losses < here).mean())
    return np.array([*(means - here), *losses.std(axis=1), lower, slope, curvature])


def measure(
    losses: Losses,
    texts: Sequence[npt.ArrayLike],
    nearest: Mapping[int, Ints],
    *,
    walks: int = WALKS,
    seed: int = 0,
    first: int = 1,
    told: Told | None = None,
) -> Floats:
    """[n, 9] features of texts as token ids; `losses` gives the mean loss of each list of ids."""
    found = np.full((len(texts), len(FEATURES)), np.nan)
    for number, ids in enumerate(texts):
        text = np.asarray(ids, dtype=np.int64)
        if len(text) > first:
            around = neighbours(text, nearest, walks=walks, seed=seed, first=first)
            flat = losses([text, *(line for ring in around for line in ring)])
            found[number] = features(float(flat[0]), np.split(flat[1:], len(RADII)))
        if told:
            told(number + 1, len(texts))
    return found


def classify(
    table: npt.ArrayLike, labels: Sequence[Any], *, folds: int = 5, seed: int = 0
) -> tuple[Floats, list[Any]]:
    """([n, classes] probabilities of each class, the classes); each text by models without it.

    Logistic regression on standardised features, stratified cross-validation.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = np.asarray(table, dtype=np.float64), np.asarray(labels)
    kinds, counts = np.unique(y, return_counts=True)
    if len(kinds) < 2 or counts.min() < folds:
        raise DataError(f"two classes of {folds} texts or more are needed", where="labels")
    if not np.isfinite(x).all():
        raise DataError("features are not finite", where="table")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    told = cross_val_predict(model, x, y, cv=split, method="predict_proba")
    return np.asarray(told, dtype=np.float64), kinds.tolist()


def aucs(table: npt.ArrayLike, labels: Sequence[Any], **options: int) -> dict[Any, Auc]:
    """How well each class is told from the rest, cross-validated."""
    told, kinds = classify(table, labels, **options)
    y = np.asarray(labels)
    return {k: auc(told[y == k, i], told[y != k, i]) for i, k in enumerate(kinds)}
