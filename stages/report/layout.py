"""Where documents lie on the map of a report: alike ones near each other.

    vectors   [n, d] at length 1: a column of vectors, or word_vectors: hashed words weighted by
              (1 + ln tf) (1 + ln((1 + n) / (1 + df))), then the DIRECTIONS leading singular vectors
    plane     [n, 2] in 0..1: t-SNE of the distinct vectors (PLAIN and more of them), below that
              their two leading principal components; both axes are stretched to the whole range
    cells     [n] group of each, spherical k-means (`cells.py`), the largest group first
    terms     a few words for each group: most distinctive by df_in / n_in x ln of the ratio of that
              share to the share outside

Near means alike; far, and the direction, mean little: t-SNE keeps neighbourhoods, not distances.
Letters of scripts that put no spaces between words count as words. A row without a direction (no
vector, no word that another has too) has NaN and group -1. Results depend on the vectors and the
seed, not on the order of rows or on copies: distinct vectors are laid out once, in one thread.
Word vectors of many texts come from a random projection and may differ in the last digits when the
rows come in another order; the page gives them in the order of what their ids draw. Cost: 2,000
documents some 3 s, of which t-SNE 2 s.
Source: van der Maaten 2014 (t-SNE by Barnes and Hut), through scikit-learn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foresift.pipeline.cells import spherical_kmeans
from foresift.pipeline.rng import Rng
from foresift.pipeline.vectors import unit
from foresift.pipeline.words import hashed_words

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: distinct vectors from which on t-SNE is worth its while; dimensions of word vectors
PLAIN, DIRECTIONS = 30, 50
PERPLEXITY, STEPS, ANGLE = 20, 350, 0.8
#: groups at most, documents a group at least, words that name one
GROUPS, EACH, NAMED = 8, 12, 3
#: scripts that do not put spaces between words: Thai to Myanmar, Khmer, kana, Han
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_WORD = re.compile(r"[^\W\d_]{3,20}")


def word_vectors(texts: Sequence[str], seed: int = 0) -> Floats:
    """[n, d] vectors of length 1 from words of texts; NaN where none is shared with another."""
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.utils.extmath import randomized_svd

    words = hashed_words(_UNSPACED.sub(r"\g<0> ", text) for text in texts)
    kinds, place = np.unique(words.ids, return_inverse=True)
    bounds = np.concatenate([[0], np.cumsum(words.lengths)])
    counts = csr_matrix((np.ones(len(place)), place, bounds), shape=(len(texts), len(kinds)))
    counts.sum_duplicates()
    several = np.bincount(counts.indices, minlength=len(kinds)) > 1
    if several.any():
        # a word of one document says nothing of what it is like; without others it is all there is
        counts = counts[:, several]
    if counts.nnz == 0:
        return np.full((len(texts), 1), np.nan)
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    if min(weighted.shape) <= DIRECTIONS:
        return unit(weighted.toarray())
    left, sizes, _ = randomized_svd(weighted, DIRECTIONS, random_state=seed)
    return unit(left * sizes)


def plane(vectors: Floats, seed: int = 0) -> Floats:
    """[n, 2] places in 0..1 of vectors of length 1."""
    places = np.full((len(vectors), 2), np.nan)
    there = np.flatnonzero(~np.isnan(vectors).any(axis=1))
    if len(there):
        distinct, which = np.unique(vectors[there].round(6), axis=0, return_inverse=True)
        places[there] = _stretched(_laid(distinct, seed))[which.ravel()]
    return places


def _laid(vectors: Floats, seed: int) -> Floats:
    start = _principal(vectors)
    if len(vectors) < PLAIN:
        return start
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    spread = start[:, 0].std()
    method = TSNE(
        init=(start / spread * 1e-4).astype(np.float32) if spread > 0 else "random",
        perplexity=min(PERPLEXITY, (len(vectors) - 1) / 3),
        max_iter=STEPS,
        angle=ANGLE,
        random_state=seed,
    )
    with threadpool_limits(1):  # sums of several threads would not be the same each time
        laid: Floats = method.fit_transform(vectors.astype(np.float32)).astype(np.float64)
    return laid


def _principal(vectors: Floats) -> Floats:
    """The two leading principal components; their larger side is positive."""
    centred = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(vectors), 2))
    width = min(2, len(sizes))
    found[:, :width] = (left * sizes)[:, :width]
    far = np.abs(found).argmax(axis=0)
    signs: Floats = np.where(found[far, [0, 1]] < 0, -1.0, 1.0)
    return found * signs


def _stretched(places: Floats) -> Floats:
    low, high = places.min(axis=0), places.max(axis=0)
    wide = high - low > 1e-9
    scaled: Floats = np.where(wide, (places - low) / np.where(wide, high - low, 1), 0.5)
    return scaled


def cells(vectors: Floats, seed: int = 0) -> Ints:
    """[n] group of each vector of length 1, the largest group 0; -1 without a vector."""
    found = np.full(len(vectors), -1, dtype=np.int64)
    there = np.flatnonzero(~np.isnan(vectors).any(axis=1))
    if len(there):
        distinct, which = np.unique(vectors[there].round(6), axis=0, return_inverse=True)
        count = max(1, min(GROUPS, len(distinct) // EACH))
        groups = spherical_kmeans(distinct.astype(np.float32), count, Rng(seed).at("map"))
        found[there] = groups[which.ravel()]
    return ranked(found)


def ranked(groups: npt.NDArray[Any]) -> Ints:
    """Groups numbered by size, the largest 0; what is negative stays -1."""
    kinds, which, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sizes = np.where(kinds < 0, -1, sizes)
    order = np.lexsort((kinds, -sizes))
    rank = np.empty(len(kinds), dtype=np.int64)
    rank[order] = np.arange(len(kinds))
    rank[kinds < 0] = -1
    numbered: Ints = rank[which.ravel()]
    return numbered


def terms(texts: Sequence[str], groups: Ints, count: int) -> list[str]:
    """A few words for each of the first `count` groups; empty where none stands out."""
    kinds = [set(_WORD.findall(text.lower())) for text in texts]
    everywhere = Counter(word for words in kinds for word in words)
    named = []
    for group in range(count):
        inside = [words for words, mine in zip(kinds, groups, strict=True) if mine == group]
        here = Counter(word for words in inside for word in words)
        n, rest = len(inside), len(kinds) - len(inside)
        weight = {
            word: k / n * np.log((k / n) / ((everywhere[word] - k + 1) / (rest + 1)))
            for word, k in here.items()
            if k > 1 or n == 1
        }
        best = sorted((w for w in weight if weight[w] > 0), key=lambda w: (-weight[w], w))
        named.append(", ".join(best[:NAMED]))
    return named
